"""lm-eval's own client for such servers gets the numbers that the engine gave."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from laura.models.encoding import Encoder
from laura.models.registry import MICRO_BASE
from tests.serve.fake_engine import is_beaten, logprob_of
from tests.serve.houses import build, listening

pytest.importorskip("lm_eval")
pytest.importorskip("tenacity", reason="lm-eval's clients need lm_eval[api]")
pytestmark = pytest.mark.slow

ITEMS = [("the cat", " sat"), ("3 + 4 =", " 7"), ("a", " b c d e"), ("def f(x):\n", "  return x")]


@pytest.fixture
def local_completions() -> Any:
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    def make(url: str, **options: Any) -> Any:
        return LocalCompletionsAPI(
            base_url=f"{url}/v1/completions", model="maths", pretrained=str(MICRO_BASE),
            tokenizer=str(MICRO_BASE), max_length=400, max_retries=1, **options,
        )  # fmt: skip

    return make


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("options", [{}, {"batch_size": 3}, {"num_concurrent": 4}])
@pytest.mark.parametrize("ends_at_once", [False, True])
def test_log_likelihoods(
    micro_tokenizer: Any, local_completions: Any, options: Any, ends_at_once: bool
) -> None:
    house = build(micro_tokenizer, engine={"ends_at_once": ends_at_once})
    with listening(house) as url:
        model = local_completions(url, tokenizer_backend="huggingface", **options)
        requests = [SimpleNamespace(args=item) for item in ITEMS]
        found = model.loglikelihood(requests, disable_tqdm=True)
    for (context, continuation), (total, greedy) in zip(ITEMS, found, strict=True):
        before, after = Encoder(micro_tokenizer, None).pair(context, continuation)
        ids, places = [*before, *after], range(len(before), len(before) + len(after))
        assert total == pytest.approx(sum(logprob_of(ids[p], p) for p in places), abs=1e-9)
        assert greedy == (not any(is_beaten(ids[p]) for p in places))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("tokenized", [True, False])
def test_continuations(micro_tokenizer: Any, local_completions: Any, tokenized: bool) -> None:
    house = build(micro_tokenizer)
    with listening(house) as url:
        model = local_completions(
            url, tokenizer_backend="huggingface", tokenized_requests=tokenized
        )
        wanted = {"until": ["stop"], "max_gen_toks": 60, "do_sample": False}
        requests = [SimpleNamespace(args=(text, dict(wanted))) for text in ("a b stop c", "d e")]
        assert model.generate_until(requests, disable_tqdm=True) == ["[maths] a b ", "[maths] d e"]
