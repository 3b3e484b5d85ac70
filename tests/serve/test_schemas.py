"""What is taken off the wire, and what is refused by name."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from laura.serve.schemas import ChatCompletionRequest as ChatRequest
from laura.serve.schemas import CompletionRequest

HELLO = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
TEXT = {"model": "m", "prompt": "hello"}


def fault(kind: Any, body: dict[str, Any]) -> tuple[str, str]:
    """Field and words of the only fault."""
    with pytest.raises(ValidationError) as caught:
        kind.model_validate(body)
    errors = caught.value.errors()
    assert len(errors) == 1, errors
    return ".".join(map(str, errors[0]["loc"])), errors[0]["msg"]


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("a", ["a"]),
        ("", [""]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [[1, 2]]),
        ([[1], [2, 3]], [[1], [2, 3]]),
    ],
)
def test_a_prompt_in_each_of_its_four_forms(prompt: Any, prompts: Any) -> None:
    assert CompletionRequest.model_validate({**TEXT, "prompt": prompt}).prompt == prompts


@pytest.mark.parametrize("prompt", [
    None, 1, True, {}, [], [[]], [1, "a"], ["a", [1]], [1.5], [True], [-1], [[-1]], [2**63],
    ["\ud800"],
])  # fmt: skip
def test_anything_else_is_no_prompt(prompt: Any) -> None:
    assert fault(CompletionRequest, {**TEXT, "prompt": prompt})[0] == "prompt"


@pytest.mark.parametrize(("field", "value"), [
    ("tools", [{"type": "function"}]), ("tool_choice", "required"), ("functions", [{}]),
    ("logit_bias", {"1": 5}), ("presence_penalty", 0.5), ("frequency_penalty", -1),
    ("reasoning_effort", "high"), ("modalities", ["audio"]), ("audio", {"voice": "alloy"}),
    ("web_search_options", {}),
])  # fmt: skip
def test_what_would_change_the_answer_is_refused_by_name(field: str, value: Any) -> None:
    place, words = fault(ChatRequest, {**HELLO, field: value})
    assert place == field and "does not support" in words


def test_what_asks_for_nothing_special_passes() -> None:
    body = {
        **HELLO, "tools": [], "tool_choice": "auto", "logit_bias": {}, "presence_penalty": 0,
        "frequency_penalty": 0.0, "response_format": {"type": "text"}, "user": "u",
        "metadata": {"a": "b"}, "store": False, "service_tier": "auto", "stop": None, "n": None,
        "seed": None, "stream": None, "temperature": None, "max_tokens": None,
    }  # fmt: skip
    assert ChatRequest.model_validate(body).stop == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1), ("temperature", 2.1), ("temperature", "1"), ("temperature", True),
        ("temperature", float("nan")), ("temperature", float("inf")), ("top_p", 0), ("top_p", 1.1),
        ("top_k", -1), ("top_k", 1.0), ("n", 0), ("n", 17), ("n", "2"), ("n", True),
        ("seed", 2**63), ("seed", 1.5), ("max_tokens", 0), ("max_tokens", -5),
        ("max_tokens", 10**400), ("stop", ""), ("stop", ["a"] * 17), ("stop", "x" * 257),
        ("stop", 5), ("stop", [1]), ("stream", "yes"), ("stream", 1), ("logprobs", 1),
        ("messages", []), ("messages", "hello"), ("model", ""), ("model", 5), ("nonsense", 1),
        ("response_format", {"type": "json_object"}),
    ],
)  # fmt: skip
def test_wrong_types_and_ranges(field: str, value: Any) -> None:
    assert fault(ChatRequest, {**HELLO, field: value})[0].split(".")[0] == field


@pytest.mark.parametrize(
    ("message", "place"),
    [
        ({"role": "tool", "content": "x"}, "messages.0.role"),
        ({"role": "user"}, "messages.0.content"),
        ({"role": "user", "content": None}, None),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, None),
        ({"role": "user", "content": "x", "tool_calls": [{}]}, "messages.0.tool_calls"),
        ({"role": "user", "content": "\ud800"}, None),
    ],
)
def test_messages_that_nobody_here_understands(message: Any, place: str | None) -> None:
    with pytest.raises(ValidationError) as caught:
        ChatRequest.model_validate({**HELLO, "messages": [message]})
    first = ".".join(map(str, caught.value.errors()[0]["loc"]))
    assert first == place if place else first.startswith("messages.0")


def test_an_answer_of_the_openai_client_can_be_sent_back() -> None:
    answer = {
        "role": "assistant", "content": "hi", "refusal": None, "annotations": [], "audio": None,
        "function_call": None, "tool_calls": None,
    }  # fmt: skip
    body = {**HELLO, "messages": [*HELLO["messages"], answer]}  # type: ignore[misc]
    assert ChatRequest.model_validate(body).messages[1].content == "hi"


@pytest.mark.parametrize(
    ("kind", "body", "word"),
    [
        (ChatRequest, {**HELLO, "top_logprobs": 2}, "top_logprobs"),
        (
            ChatRequest,
            {**HELLO, "max_tokens": 2, "max_completion_tokens": 3},
            "max_tokens",
        ),
        (
            ChatRequest,
            {**HELLO, "stream_options": {"include_usage": True}},
            "stream_options",
        ),
        (CompletionRequest, {**TEXT, "best_of": 2}, "best_of"),
        (CompletionRequest, {**TEXT, "max_tokens": 0}, "max_tokens"),
        (CompletionRequest, {**TEXT, "suffix": "x"}, "support"),
    ],
)
def test_fields_that_do_not_go_together(kind: Any, body: dict[str, Any], word: str) -> None:
    assert word in fault(kind, body)[1]
