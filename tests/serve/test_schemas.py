"""What is taken off the wire, and what is refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from laura.serve.schemas import (
    ANYTHING,
    OF_MESSAGES,
    OF_REQUESTS,
    CompletionRequest,
    TokenizeRequest,
    of_validation,
)
from laura.serve.schemas import ChatCompletionRequest as ChatRequest

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
    ("functions", [{}]),
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
        ("top_k", -2), ("top_k", 1.0), ("n", 0), ("n", 17), ("n", "2"), ("n", True),
        ("seed", 2**63), ("seed", 1.5), ("max_tokens", 0), ("max_tokens", -5),
        ("max_tokens", 10**400), ("stop", ""), ("stop", ["a"] * 17), ("stop", "x" * 257),
        ("stop", 5), ("stop", [1]), ("stream", "yes"), ("stream", 1), ("logprobs", 1),
        ("messages", []), ("messages", "hello"), ("model", ""), ("model", 5), ("nonsense", 1),
        ("response_format", {"type": "xml"}), ("min_tokens", -1), ("ignore_eos", 1),
        ("tools", [{"type": "function"}]), ("tool_choice", "required"), ("tool_choice", "any"),
        ("response_format", {"type": "json_schema"}), ("parallel_tool_calls", 1),
        ("structured_outputs", {}), ("structured_outputs", {"json": {}, "regex": "a"}),
        ("structured_outputs", {"grammar": "root ::= x"}), ("structured_outputs", {"choice": []}),
    ],
)  # fmt: skip
def test_wrong_types_and_ranges(field: str, value: Any) -> None:
    assert fault(ChatRequest, {**HELLO, field: value})[0].split(".")[0] == field


@pytest.mark.parametrize(
    ("message", "place"),
    [
        ({"role": "function", "content": "x"}, "messages.0.role"),
        ({"role": "tool", "content": "x"}, "messages.0.tool_call_id"),
        ({"role": "user", "content": "x", "tool_call_id": "1"}, "messages.0.tool_call_id"),
        ({"role": "user"}, "messages.0.content"),
        ({"role": "user", "content": None}, None),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, None),
        ({"role": "user", "content": "x", "tool_calls": [{}]}, "messages.0.tool_calls.0.id"),
        ({"role": "user", "content": "\ud800"}, None),
    ],
)
def test_messages_that_nobody_here_understands(message: Any, place: str | None) -> None:
    with pytest.raises(ValidationError) as caught:
        ChatRequest.model_validate({**HELLO, "messages": [message]})
    first = ".".join(map(str, caught.value.errors()[0]["loc"]))
    assert first == place if place else first.startswith("messages.0")


def told(body: dict[str, Any], kind: Any = ChatRequest) -> Any:
    with pytest.raises(ValidationError) as caught:
        kind.model_validate_json(json.dumps(body))
    return of_validation(caught.value.errors(include_url=False, include_input=False))


NEUTRAL = [
    (field, value)
    for field, values in OF_REQUESTS.items()
    for value in (None, *(({"any": [1]},) if values is ANYTHING else values))
]


@pytest.mark.parametrize(("field", "value"), [*NEUTRAL, ("top_k", -1), ("top_k", 0), ("min_p", 0.0),
    ("repetition_penalty", 1.0)])  # fmt: skip
def test_what_does_nothing_passes(field: str, value: Any) -> None:
    assert ChatRequest.model_validate({**HELLO, field: value}) is not None
    assert field == "add_special_tokens" or CompletionRequest.model_validate({**TEXT, field: value})


@pytest.mark.parametrize(("field", "value", "allowed"), [
    ("repetition_penalty", 1.1, "null or 1"), ("min_p", 0.05, "null or 0"), ("min_p", False, "0"),
    ("stop_token_ids", [5], "null or []"), ("skip_special_tokens", False, "null or true"),
    ("echo", True, "null or false"), ("add_generation_prompt", False, "true"),
    ("guided_json", {}, "give null"),
    ("best_of", 2, "null or 1"), ("suffix", "x", '""'),
    ("use_beam_search", 0, "null or false"), ("logit_bias", [], "null or {}"),
])  # fmt: skip
def test_what_would_do_something_is_told_with_what_is_allowed(
    field: str, value: Any, allowed: str
) -> None:
    error = told({**HELLO, field: value})
    assert (error.param, error.code) == (field, "unsupported_value") and allowed in str(error)


@pytest.mark.parametrize(("field", "value"), [
    (field, value)
    for field, values in OF_MESSAGES.items()
    for value in (None, *(("x", {"a": 1}) if values is ANYTHING else values))
])  # fmt: skip
def test_what_clients_add_to_messages_passes(field: str, value: Any) -> None:
    message = {"role": "user", "content": "hello", field: value}
    assert ChatRequest.model_validate({**HELLO, "messages": [message]}).messages[0].text == "hello"


def test_an_assistant_may_say_nothing_and_a_part_may_be_cached() -> None:
    part = {"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}
    messages = [
        {"role": "assistant", "content": None, "reasoning_content": None, "name": "x"},
        {"role": "assistant"}, {"role": "user", "content": [part, part]},
    ]  # fmt: skip
    found = ChatRequest.model_validate({**HELLO, "messages": messages}).messages
    assert [one.text for one in found] == ["", "", "aa"]


@pytest.mark.parametrize(("message", "param"), [
    (5, "messages.0"), ({"role": "user"}, "messages.0.content"),
    ({"role": "user", "content": None}, "messages.0.content"),
    ({"role": "system", "content": None}, "messages.0.content"),
    ({"role": "user", "content": 5}, "messages.0.content"),
    ({"role": "user", "content": "x", "reasoning_content": "y"}, "messages.0.reasoning_content"),
    ({"role": "user", "content": [5]}, "messages.0.content.0"),
    ({"role": "user", "content": [{"type": "image_url"}]}, "messages.0.content.0.type"),
    ({"role": "user", "content": [{"type": "text", "text": 1}]}, "messages.0.content.0.text"),
])  # fmt: skip
def test_faults_are_told_by_openais_name_and_in_words(message: Any, param: str) -> None:
    error = told({**HELLO, "messages": [message]})
    assert error.param == param and str(error).startswith(f"{param}: ")
    for internal in ("Input", "instance of", "ContentPart", "ChatMessage", "[", "str:", "after"):
        assert internal not in str(error)


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
        (CompletionRequest, {**TEXT, "suffix": "x"}, "suffix"),
        (TokenizeRequest, {}, "prompt"),
        (TokenizeRequest, {**HELLO, **TEXT}, "prompt"),
        (TokenizeRequest, {**HELLO, "add_special_tokens": True}, "add_special_tokens"),
    ],
)
def test_fields_that_do_not_go_together(kind: Any, body: dict[str, Any], word: str) -> None:
    assert fault(kind, body)[0] == word
