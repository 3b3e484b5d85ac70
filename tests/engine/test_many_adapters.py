"""Many adapters side by side against PEFT with one at a time."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from laura.engine.engine import Engine
from laura.engine.requests import GenerateRequest, ScoreRequest, TokenDocument
from laura.models.adapters import load_adapters
from laura.models.lora import detach, lora_layers
from laura.results.errors import AdapterError, UsageError
from tests.conftest import make_tiny_model

pytestmark = pytest.mark.filterwarnings(
    "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"
)
KINDS: list[dict[str, Any]] = [
    {"r": 4, "target_modules": ["q_proj", "v_proj"]},
    {"r": 8, "target_modules": ["gate_proj", "up_proj", "down_proj"], "lora_alpha": 32},
    {"r": 2, "target_modules": "all-linear", "use_rslora": True},
    {"r": 16, "target_modules": ["o_proj"], "rank_pattern": {"layers.0.self_attn.o_proj": 3}},
    {"r": 4, "target_modules": ["q_proj", "down_proj"]},
    {"r": 1, "target_modules": ["k_proj"]},
    {"r": 8, "target_modules": "all-linear"},
    {"r": 5, "target_modules": ["up_proj"], "layers_to_transform": [1]},
]
TEXTS = ["the cat sat on", " a mat", "question: how many", " dogs ran to it", "A CAT", " sat"]
PROMPTS = ["the dog ran", "question: how many cats? answer", "the dog ran", "1 2 3 4 5"]


def lively(model: Any) -> Any:
    """An output map of its own: tied, a random model only repeats its last token."""
    model.config.tie_word_embeddings = False
    torch.manual_seed(1)
    model.lm_head.weight = torch.nn.Parameter(torch.randn(512, 64))
    return model


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Eight adapters of PEFT that differ in rank, targets and scale."""
    made = []
    for number, kind in enumerate(KINDS):
        torch.manual_seed(number)
        config = LoraConfig(**{"lora_alpha": 16, **kind})
        model = get_peft_model(lively(make_tiny_model()), config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.3)
        made.append(tmp_path_factory.mktemp("adapters") / f"adapter{number}")
        model.save_pretrained(made[-1])
    return made


@pytest.fixture
def engine(folders: list[Path], tiny_tokenizer: Any) -> Engine:
    model = lively(make_tiny_model())
    load_adapters(model, folders)
    names = {folder.name: slot for slot, folder in enumerate(folders)}
    return Engine(model, tiny_tokenizer, adapters=names)


def alone(folder: Path | None, tokenizer: Any) -> Engine:
    """The base, or PEFT's own merge of one adapter, as a plain model."""
    model = lively(make_tiny_model())
    if folder is not None:
        peft = PeftModel.from_pretrained(copy.deepcopy(model), folder)
        model = peft.merge_and_unload()
    return Engine(model, tokenizer)


def test_mixed_requests_equal_each_adapter_alone(
    engine: Engine, folders: list[Path], tiny_tokenizer: Any
) -> None:
    models: list[Path | None] = [None, *folders]
    scores, prompts = [], []
    for place in range(len(TEXTS) - 1):
        for folder in models:
            name = folder.name if folder else None
            scores.append(ScoreRequest(TEXTS[place], TEXTS[place + 1], name))
    for prompt in PROMPTS:
        for folder in models:
            name = folder.name if folder else None
            prompts.append(GenerateRequest(prompt, (), 12, logprobs=True, adapter=name))
    engine.cache_bytes = engine.runner.geometry.row_bytes(40) * 7  # they take turns
    mixed_scores, mixed_answers = engine.score(scores), engine.generate(prompts)
    seen = set()
    for number, folder in enumerate(models):
        own = alone(folder, tiny_tokenizer)
        for request, answer in zip(scores[number::9], mixed_scores[number::9], strict=True):
            (expected,) = own.score([ScoreRequest(request.context, request.continuation)])
            assert answer.loglikelihood == pytest.approx(expected.loglikelihood, abs=1e-4)
            assert answer.greedy == expected.greedy
        for request, found in zip(prompts[number::9], mixed_answers[number::9], strict=True):
            (reference,) = own.generate([GenerateRequest(request.prompt, (), 12, logprobs=True)])
            assert found.text == reference.text
            assert found.logprobs == pytest.approx(reference.logprobs, abs=1e-4)
            seen.add(found.text)
    assert len(seen) > 20, "the adapters answer differently"


def test_stems_of_several_adapters_stand_side_by_side(
    engine: Engine, folders: list[Path], tiny_tokenizer: Any
) -> None:
    shots = "question: how many cats sat on a mat? answer: the dog ran. " * 12
    prompts = [shots + prompt for prompt in PROMPTS]
    wanted = [None, *(folder.name for folder in folders[:3])]
    requests = [GenerateRequest(p, (), 9, adapter=name) for p in prompts for name in wanted]
    found = engine.generate(requests)
    for number, folder in enumerate([None, *folders[:3]]):
        own = alone(folder, tiny_tokenizer)
        expected = [own.generate([GenerateRequest(p, (), 9)])[0] for p in prompts]
        assert [answer.text for answer in found[number::4]] == [e.text for e in expected]


def test_losses_and_divergence_name_their_adapter(
    engine: Engine, folders: list[Path], tiny_tokenizer: Any
) -> None:
    ids = tiny_tokenizer.encode("the cat sat on a mat and the dog ran")
    document = TokenDocument(ids, [True] * len(ids), 9, 0)
    (found,) = engine.document_losses([document], folders[6].name)
    (expected,) = alone(folders[6], tiny_tokenizer).document_losses([document])
    assert found == pytest.approx(expected, abs=1e-4)
    base = alone(None, tiny_tokenizer)
    (kl,) = engine.document_divergences([document], base.model, folders[6].name)["forward"]
    merged = alone(folders[6], tiny_tokenizer)
    (reference,) = merged.document_divergences([document], base.model)["forward"]
    assert kl == pytest.approx(reference, abs=1e-4)
    assert max(kl) > 0.1


def test_unknown_names_and_foreign_adapters(
    engine: Engine, folders: list[Path], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="no adapter 'adapter9'; loaded are adapter0"):
        engine.score([ScoreRequest("a", " b", "adapter9")])
    wide = make_tiny_model(hidden_size=32, num_attention_heads=2, num_key_value_heads=2)
    with pytest.raises(AdapterError, match="made for another base"):
        load_adapters(wide, folders[:2])
    assert not lora_layers(wide)
    short = make_tiny_model(num_hidden_layers=1)
    with pytest.raises(AdapterError, match="adapter0 was made for another base"):
        load_adapters(short, folders[:2])
    with pytest.raises(AdapterError, match="not a folder"):
        load_adapters(short, [tmp_path / "none"])
    detach(engine.model)
