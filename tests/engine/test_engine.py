"""The engine against plain transformers, one request at a time."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from laura.engine.engine import Engine
from laura.engine.kv_cache import joined_attention, partial_attention, prefix_attention
from laura.engine.requests import GenerateRequest, ScoreRequest, TokenDocument
from laura.models.attention import Scoring
from laura.results.errors import DataError, ModelError, UsageError

PAIRS = [
    ("the cat sat on", " a mat and the dog"),
    ("the cat sat on", " an apple"),
    ("the cat sat on ", "a mat"),
    ("", "what question"),
    ("how many apples? answer:", " 17"),
    ("how many apples? answer:", " 18"),
    ("a dog ran to it with an apple and the cat sat on the mat " * 6, " é 漢 with"),
]
PROMPTS = ["the dog ran", "question: how many cats? answer", "a", "1 2 3 4 5 6 7", "An apple TO IT"]


def requests_of(pairs: list[tuple[str, str]]) -> list[ScoreRequest]:
    return [ScoreRequest(context, continuation) for context, continuation in pairs]


@pytest.fixture
def lively_model(tiny_model: Any) -> Any:
    """The tiny model with an output map of its own: tied, it only repeats its last token."""
    tiny_model.config.tie_word_embeddings = False
    torch.manual_seed(1)
    weight = torch.randn(512, 64)
    weight[380:] = 0  # the tokenizer knows 380 tokens only
    weight[:3] = 0
    tiny_model.lm_head.weight = torch.nn.Parameter(weight)
    return tiny_model


def eager_copy(model: Any) -> Any:
    """The same weights under transformers' own attention."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**{k: v for k, v in model.config.to_dict().items() if k != "dtype"})
    copy = LlamaForCausalLM._from_config(config, attn_implementation="eager")
    copy.load_state_dict(model.state_dict())
    return copy.eval()


def naive_score(model: Any, tokenizer: Any, context: str, continuation: str) -> tuple[float, bool]:
    kept = context.rstrip()
    continuation = context[len(kept) :] + continuation
    whole = tokenizer.encode(kept + continuation)
    before = tokenizer.encode(kept) if kept else [tokenizer.eos_token_id]
    after = whole[len(before) :] if kept else whole
    logits = model(torch.tensor([before + after])).logits[0].log_softmax(-1)
    places = range(len(before) - 1, len(before) + len(after) - 1)
    total = sum(logits[p, t].item() for p, t in zip(places, after, strict=True))
    best = all(logits[p].argmax() == t for p, t in zip(places, after, strict=True))
    return total, best


@torch.no_grad()
def test_score_equals_plain_transformers(tiny_model: Any, tiny_tokenizer: Any) -> None:
    answers = Engine(tiny_model, tiny_tokenizer).score(requests_of(PAIRS))
    reference = eager_copy(tiny_model)
    for (context, continuation), answer in zip(PAIRS, answers, strict=True):
        total, best = naive_score(reference, tiny_tokenizer, context, continuation)
        assert answer.loglikelihood == pytest.approx(total, abs=1e-4)
        assert answer.greedy == best


@pytest.mark.parametrize("row_tokens", [1, 40, 4096])
def test_score_does_not_depend_on_the_batch(
    tiny_model: Any, tiny_tokenizer: Any, row_tokens: int
) -> None:
    together = Engine(tiny_model, tiny_tokenizer).score(requests_of(PAIRS))
    engine = Engine(tiny_model, tiny_tokenizer, row_tokens=row_tokens)
    mixed = engine.score(requests_of([*PAIRS[::-1], *PAIRS]))
    for one, two, three in zip(
        together, mixed[len(PAIRS) :], mixed[len(PAIRS) - 1 :: -1], strict=True
    ):
        assert two == three
        assert one.loglikelihood == pytest.approx(two.loglikelihood, abs=1e-4)


def test_greedy_continuation_is_recognised(tiny_model: Any, tiny_tokenizer: Any) -> None:
    engine = Engine(tiny_model, tiny_tokenizer)
    before = tiny_tokenizer.encode("the cat sat")
    best = tiny_model(torch.tensor([before])).logits[0, -1].argmax().item()
    engine.encoder.pair = lambda context, continuation: (before, [int(continuation)])  # type: ignore[method-assign]
    answers = engine.score([ScoreRequest("x", str(best)), ScoreRequest("x", str(best - 1))])
    assert [answer.greedy for answer in answers] == [True, False]
    assert [answer.tokens for answer in answers] == [1, 1]


def test_pairs_are_encoded_as_lm_eval_does(tiny_model: Any, tiny_tokenizer: Any) -> None:
    lm_eval = pytest.importorskip("lm_eval.models.huggingface")
    peer = lm_eval.HFLM(pretrained=tiny_model, tokenizer=tiny_tokenizer, device="cpu")
    encoder = Engine(tiny_model, tiny_tokenizer).encoder
    assert encoder.context_tokens == peer.max_length
    for context, continuation in PAIRS:
        if context:
            assert encoder.pair(context, continuation) == peer._encode_pair(context, continuation)


def test_long_pairs_lose_their_beginning(tiny_model: Any, tiny_tokenizer: Any) -> None:
    engine = Engine(tiny_model, tiny_tokenizer)
    long = "the cat sat on a mat " * 200
    answer = engine.score([ScoreRequest(long, " an apple")])[0]
    before, after = engine.encoder.pair(long, " an apple")
    kept = (before + after)[-513:]
    with torch.no_grad():
        logits = tiny_model(torch.tensor([kept[:-1]])).logits[0].log_softmax(-1)
    expected = sum(logits[512 - len(after) + i, t].item() for i, t in enumerate(after))
    assert answer.loglikelihood == pytest.approx(expected, abs=1e-4)


def test_impossible_pairs_are_named(tiny_model: Any, tiny_tokenizer: Any) -> None:
    engine = Engine(tiny_model, tiny_tokenizer)
    with pytest.raises(DataError, match=r"continuation of .* has no tokens"):
        engine.score([ScoreRequest("the cat", "")])
    with pytest.raises(DataError, match="reads at most 512"):
        engine.score([ScoreRequest("the", " cat" * 2000)])


def shared(prompts: list[str], words: int) -> list[str]:
    return ["the cat sat on a mat and a dog ran. " * words + prompt for prompt in prompts]


@pytest.mark.parametrize("prefix_words", [0, 6])
@pytest.mark.parametrize("rows", [1, 2, 99])
def test_generate_equals_transformers(
    lively_model: Any, tiny_tokenizer: Any, rows: int, prefix_words: int
) -> None:
    prompts = shared(PROMPTS, prefix_words)
    engine = Engine(lively_model, tiny_tokenizer, row_tokens=64)
    limits = [12, 30, 7, 1, 21]
    requests = [GenerateRequest(p, (), limit) for p, limit in zip(prompts, limits, strict=True)]
    own = max(len(tiny_tokenizer.encode(p)) for p in prompts) + max(limits)
    engine.cache_bytes = engine.runner.geometry.row_bytes(own) * (rows + (prefix_words > 0))
    reference = eager_copy(lively_model)
    for request, answer in zip(requests, engine.generate(requests), strict=True):
        ids = torch.tensor([tiny_tokenizer.encode(request.prompt)])
        output = reference.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=request.max_new_tokens,
            do_sample=False,
        )
        new = output[0, ids.shape[1] :]
        assert answer.text == tiny_tokenizer.decode(new, skip_special_tokens=True)
        assert answer.tokens == len(new)


def test_stop_text_ends_an_answer(lively_model: Any, tiny_tokenizer: Any) -> None:
    engine = Engine(lively_model, tiny_tokenizer)
    free = engine.generate([GenerateRequest(p, (), 40) for p in PROMPTS])
    stops = [("never seen", answer.text[9:12]) for answer in free]
    requests = [GenerateRequest(p, stop, 40) for p, stop in zip(PROMPTS, stops, strict=True)]
    stopped = engine.generate(requests)
    for answer, (_, stop), short in zip(free, stops, stopped, strict=True):
        assert short.text == answer.text[: answer.text.index(stop)]
        assert short.finish == "stop"
        assert short.tokens < answer.tokens
    assert len({answer.text for answer in free}) == len(PROMPTS)


def test_special_token_as_stop_text(tiny_model: Any, tiny_tokenizer: Any) -> None:
    engine = Engine(tiny_model, tiny_tokenizer)
    first = functional.one_hot(torch.tensor([1]), 512).float()
    engine.runner.logits = lambda hidden, head=None: first.expand(len(hidden), -1)  # type: ignore[method-assign]
    answer = engine.generate([GenerateRequest("a cat", ("<|im_start|>",), 9)])[0]
    assert (answer.text, answer.tokens, answer.finish) == ("", 1, "stop")


def test_end_token_ends_an_answer(lively_model: Any, tiny_tokenizer: Any) -> None:
    engine = Engine(lively_model, tiny_tokenizer)
    ids = torch.tensor([tiny_tokenizer.encode("the dog ran")])
    output = eager_copy(lively_model).generate(ids, max_new_tokens=30, do_sample=False)
    new = output[0, ids.shape[1] :].tolist()
    assert engine.generate([GenerateRequest("the dog ran", (), 30)])[0].finish == "length"
    lively_model.generation_config.eos_token_id = [2, new[5]]
    first = new.index(new[5])
    ended = engine.generate([GenerateRequest("the dog ran", (), 30)])[0]
    assert (ended.finish, ended.tokens) == ("end", first + 1)
    assert ended.text == tiny_tokenizer.decode(new[:first])


def test_a_diverged_model_is_measured_all_the_same(tiny_model: Any, tiny_tokenizer: Any) -> None:
    with torch.no_grad():
        tiny_model.model.norm.weight.fill_(float("nan"))
    request = GenerateRequest("the dog ran", (), 5, logprobs=True)
    (answer,) = Engine(tiny_model, tiny_tokenizer).generate([request])
    assert answer.tokens == len(answer.logprobs) > 0
    assert all(math.isnan(nats) for nats in answer.logprobs)


def test_impossible_prompts_are_named(tiny_model: Any, tiny_tokenizer: Any) -> None:
    engine = Engine(tiny_model, tiny_tokenizer)
    assert engine.generate([]) == []
    with pytest.raises(UsageError, match="allowed are 1 to 511"):
        engine.generate([GenerateRequest("a", (), 512)])
    with pytest.raises(DataError, match="empty"):
        engine.generate([GenerateRequest("", (), 5)])


def documents_of(tokenizer: Any) -> list[TokenDocument]:
    documents = []
    for index, text in enumerate([*PROMPTS, "the cat " * 40]):
        ids = tokenizer.encode(text)
        supervised = [(i + index) % 3 != 0 or index == 5 for i in range(len(ids))]
        documents.append(TokenDocument(ids, supervised, len(text.encode()), index))
    return documents


@torch.no_grad()
def test_losses_equal_cross_entropy(tiny_model: Any, tiny_tokenizer: Any) -> None:
    documents = documents_of(tiny_tokenizer)
    found = Engine(tiny_model, tiny_tokenizer, row_tokens=32).document_losses(documents)
    reference = eager_copy(tiny_model)
    for document, nats in zip(documents, found, strict=True):
        ids = torch.tensor(document.token_ids)
        losses = functional.cross_entropy(
            reference(ids[None]).logits[0, :-1], ids[1:], reduction="none"
        )
        expected = losses[torch.tensor(document.supervised[1:], dtype=torch.bool)]
        torch.testing.assert_close(torch.tensor(nats), expected, atol=1e-4, rtol=0)


def other_model(model: Any) -> Any:
    other = eager_copy(model)
    other.set_attn_implementation("laura")
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return other


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_divergence_equals_kl_div(
    tiny_model: Any, tiny_tokenizer: Any, precision: torch.dtype
) -> None:
    documents, other = documents_of(tiny_tokenizer), other_model(tiny_model)
    engine = Engine(tiny_model, tiny_tokenizer, precision, row_tokens=64)
    found = engine.document_divergences(documents, other, directions=("forward", "reverse"))
    tolerance = 1e-4 if precision == torch.float32 else 0.05
    for number, document in enumerate(documents):
        ids = torch.tensor([document.token_ids])
        supervised = torch.tensor(document.supervised[1:], dtype=torch.bool)
        with torch.no_grad():
            log_p, log_q = (m(ids).logits[0, :-1].log_softmax(-1) for m in (other, tiny_model))
        for way, (log_from, log_to) in {
            "forward": (log_p, log_q),
            "reverse": (log_q, log_p),
        }.items():
            nats = functional.kl_div(log_to, log_from, reduction="none", log_target=True).sum(-1)
            given = torch.tensor(found[way][number])
            torch.testing.assert_close(given, nats[supervised], atol=tolerance, rtol=0)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_divergence_from_itself_is_zero(
    tiny_model: Any, tiny_tokenizer: Any, precision: torch.dtype
) -> None:
    entered = []

    @contextmanager
    def base() -> Iterator[None]:
        entered.append(True)
        yield

    engine = Engine(tiny_model, tiny_tokenizer, precision)
    for found in engine.document_divergences(documents_of(tiny_tokenizer), base)["forward"]:
        assert all(nats == 0 for nats in found)
    assert entered


def test_divergence_needs_one_vocabulary(tiny_model: Any, tiny_tokenizer: Any) -> None:
    other = other_model(tiny_model)
    other.resize_token_embeddings(600)
    with pytest.raises(ModelError, match="600 tokens in its vocabulary, the model 512"):
        Engine(tiny_model, tiny_tokenizer).document_divergences([], other)


def test_model_is_left_as_it_was(tiny_model: Any, tiny_tokenizer: Any) -> None:
    tiny_model.train()
    tiny_model.model.layers[1].eval()
    modes = [module.training for module in tiny_model.modules()]
    parameters = dict(tiny_model.named_parameters())
    engine = Engine(tiny_model, tiny_tokenizer, torch.bfloat16)
    engine.score(requests_of(PAIRS))
    engine.generate([GenerateRequest("a cat", (), 4)])
    assert [module.training for module in tiny_model.modules()] == modes
    assert all(parameter is parameters[name] for name, parameter in tiny_model.named_parameters())
    assert tiny_model.lm_head.weight is tiny_model.model.embed_tokens.weight
    engine.runner.logits = lambda hidden: 1 / 0  # type: ignore[assignment,method-assign]
    with pytest.raises(ZeroDivisionError):
        engine.generate([GenerateRequest("a cat", (), 4)])
    assert tiny_model.model.layers[0].mlp.up_proj.weight.dtype == torch.float32
    # Training still works: nothing made for measurement stays behind.
    ids = torch.tensor([[5, 6, 7]])
    tiny_model(ids).logits.sum().backward()


def test_bfloat16_stays_near_float32(tiny_model: Any, tiny_tokenizer: Any) -> None:
    exact = Engine(tiny_model, tiny_tokenizer).score(requests_of(PAIRS))
    mixed = Engine(tiny_model, tiny_tokenizer, torch.bfloat16).score(requests_of(PAIRS))
    for one, two in zip(exact, mixed, strict=True):
        assert two.loglikelihood == pytest.approx(one.loglikelihood, abs=0.05 * one.tokens)


@pytest.mark.slow
@pytest.mark.parametrize("same_shots", [True, False])
def test_gsm8k_answers_equal_transformers(
    smollm2: Any, shared_data: Path, same_shots: bool
) -> None:
    lines = (shared_data / "gsm8k" / "test.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines[:12]]
    shots = [f"Question: {row['question']}\nAnswer: {row['answer']}\n\n" for row in rows]
    prompts = [
        "".join(shots[:2] if same_shots else shots[i : i + 2])
        + f"Question: {rows[i + 4]['question']}\nAnswer:"
        for i in range(3)
    ]
    engine = Engine(smollm2.model, smollm2.tokenizer)
    answers = engine.generate([GenerateRequest(p, ("Question:",), 24) for p in prompts])
    reference = eager_copy(smollm2.model)
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = torch.tensor([smollm2.tokenizer.encode(prompt)])
        output = reference.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=24,
            do_sample=False,
            use_cache=True,
        )
        text = smollm2.tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)
        assert answer.text == text.split("Question:")[0]


def test_attention_in_two_parts_is_attention() -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(3, 2, t, 8) for t in (4, 6, 6))
    prefix_key, prefix_value = torch.randn(2, 2, 9, 8)
    mask = torch.zeros(3, 1, 1, 6)
    mask[1, ..., 2:] = -math.inf
    own = partial_attention(query, key, value, Scoring(0.3), mask)
    shared = prefix_attention(query, prefix_key, prefix_value, Scoring(0.3))
    found = joined_attention(*own, *shared)
    expected = functional.scaled_dot_product_attention(
        query,
        torch.cat([prefix_key.expand(3, -1, -1, -1), key], dim=2),
        torch.cat([prefix_value.expand(3, -1, -1, -1), value], dim=2),
        torch.cat([torch.zeros(3, 1, 1, 9), mask], dim=3),
        scale=0.3,
    )
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
