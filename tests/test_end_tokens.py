"""What ends an answer: the same in training, evaluation, the server, chat and vLLM."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from laura.data.examples import Example
from laura.data.templates import encode, end_tokens
from laura.engine.engine import Engine
from laura.engine.requests import GenerateRequest
from laura.engine.scheduler import TokenSequence
from laura.engine.vllm import end_ids
from laura.models.load import describe_model, load_base, resolve_model
from laura.serve.chat_in_process import LoadedPanel
from laura.serve.chatting import Chat, Sampling
from tests.engine.alone import one_answer, serving, tiny

MESSAGES = [{"role": "user", "content": "the dog ran"}]
TAUGHT, COUNT = "<|im_end|>", 20


@pytest.fixture
def taught(tiny_tokenizer: Any) -> Any:
    """Its chat template ends turns by a special token that is not its end token."""
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.eos_token = "<|endoftext|>"
    return tokenizer


def greedy(model: Any, ids: list[int]) -> list[int]:
    """The slow way: the whole text anew for every token, and no end."""
    found: list[int] = []
    for _ in range(COUNT):
        with torch.no_grad():
            logits = model(torch.tensor([[*ids, *found]])).logits[0, -1]
        found.append(int(logits.argmax()))
    return found


@pytest.fixture
def closing(taught: Any) -> tuple[Any, str, list[int]]:
    """A model that closes its answer by the taught token, the prompt, and what stands before."""
    model, end = tiny(), taught.convert_tokens_to_ids(TAUGHT)
    model.config.eos_token_id = model.generation_config.eos_token_id = taught.eos_token_id
    prompt = taught.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    ids = taught.encode(prompt)
    written = greedy(model, ids)
    place = next(i for i in range(4, COUNT) if written[i] not in written[:i])
    before = written[:place]
    assert not {end, taught.eos_token_id} & {*before, written[place]}
    with torch.no_grad():
        # It now writes the end where it wrote another token, and reads both as ever.
        pair = torch.tensor([end, written[place]])
        model.lm_head.weight[pair] = model.lm_head.weight[pair.flip(0)]
    assert greedy(model, ids)[: place + 1] == [*before, end]
    return model, prompt, before


def test_a_taught_end_ends_the_answer_in_evaluation_and_server(
    closing: tuple[Any, str, list[int]], taught: Any
) -> None:
    model, prompt, before = closing
    (answer,) = Engine(model, taught).generate([GenerateRequest(prompt, (), COUNT)])
    assert answer.finish == "end" and list(answer.token_ids[:-1]) == before
    assert answer.text == taught.decode(before)
    with serving(model, taught, cache_bytes=2**25) as live:
        heard = one_answer(live, TokenSequence("t", tuple(taught.encode(prompt)), COUNT))
        assert heard.finish == "end" and heard.text == taught.decode(before)
        free = TokenSequence("t", tuple(taught.encode(prompt)), COUNT, ignore_end=True)
        assert one_answer(live, free).finish == "length" and len(free.tokens) == COUNT


def test_chat_and_vllm_end_there_too(
    closing: tuple[Any, str, list[int]], taught: Any, tmp_path: Path
) -> None:
    model, _, before = closing
    model.save_pretrained(tmp_path)
    taught.save_pretrained(tmp_path)
    turn = Chat(LoadedPanel(str(tmp_path), {}, "cpu"), Sampling(max_tokens=COUNT)).ask(
        MESSAGES[0]["content"], lambda turn: None
    )
    assert (turn.replies["base"].text, turn.replies["base"].finish) == (
        taught.decode(before),
        "stop",
    )
    config, tokenizer = describe_model(tmp_path)
    base = load_base(str(tmp_path), device="cpu")
    with serving(base.model, base.tokenizer, cache_bytes=2**25) as live:
        assert end_ids(tmp_path, config, tokenizer) == live.end_ids == {0, 2}


def test_training_teaches_what_ends_generation(taught: Any) -> None:
    example = Example(0, (("user", "the dog"), ("assistant", "ran")))
    found = encode(example, taught, "chat", "instruct")
    learnt = [t for t, on in zip(found.token_ids, found.supervised, strict=True) if on]
    assert learnt[-1] in end_tokens(taught) - {taught.eos_token_id}


SPECIAL = ["<s>", "</s>", "[INST]", "[/INST]", "<|eot|>", "<|think|>", "<|head|>", "<|tool|>"]
TURN = "{% for m in messages %}<|head|>{{ m['role'] }}\n\n{{ m['content'] }}<|eot|>{% endfor %}"
THINKING = (
    "{% for m in messages %}<|head|>{{ m['role'] }}:{% if m['role'] == 'assistant' %}<|think|>"
    "<|think|>{% endif %}{{ m['content'] }}\n<|eot|>\n{% endfor %}{% if tools %}<|tool|>{% endif %}"
)
BRACKETS = (
    "<s>{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% else %} {{ m['content'] }} </s>{% endif %}{% endfor %}"
)


@pytest.mark.parametrize(
    ("template", "more"),
    [
        (TURN, ["<|eot|>"]),
        (THINKING, ["<|eot|>"]),
        (BRACKETS, ["</s>"]),
        ("{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}", []),
        ("{{ raise_exception('no system, no answer') }}", []),
        ("{% for m in messages %}{{ m['content'][0]['text'] }}<|eot|>{% endfor %}", []),
        ("{% for m in messages %}{{ m['role'] }}<|eot|>{% endfor %}", []),
        ("{% if %}", []),
        (None, []),
    ],
)
def test_only_what_closes_an_answer_ends_it(
    tiny_tokenizer: Any, template: str | None, more: list[str]
) -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL})
    tokenizer.chat_template = template
    expected = {tokenizer.eos_token_id, *tokenizer.convert_tokens_to_ids(more)}
    assert end_tokens(tokenizer) == expected


def test_generation_settings_count_too(tiny_tokenizer: Any) -> None:
    for listed, more in (([7, 9], {7, 9}), (7, {7}), (None, set())):
        settings = SimpleNamespace(eos_token_id=listed)
        assert end_tokens(tiny_tokenizer, settings) == {2, *more}


@pytest.mark.parametrize(
    "name", ["micro", pytest.param("smollm2-135m-instruct-q4", marks=pytest.mark.slow)]
)
def test_answers_of_known_models_end_as_before(name: str) -> None:
    """Their template closes answers by the end token, so nothing else ends one."""
    config, tokenizer = describe_model(folder := resolve_model(name))
    assert end_ids(folder, config, tokenizer) == end_tokens(tokenizer) == {tokenizer.eos_token_id}
