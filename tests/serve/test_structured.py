"""Structured output and tools as the official client asks for them, of the micro base itself."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import jsonschema
import openai
import pytest

from laura.serve.confined import CPU_SECONDS
from tests.serve.houses import build, key, tenant

HELLO: Any = [{"role": "user", "content": "hello"}]
SCHEMA = {
    "type": "object",
    "properties": {
        "a": {"type": "boolean"},
        "kind": {"enum": ["x", "yy"]},
        "n": {"type": "integer", "minimum": 0, "maximum": 99},
        "name": {"type": "string", "maxLength": 5},
        "next": {"anyOf": [{"$ref": "#/$defs/Pair"}, {"type": "null"}]},
    },
    "required": ["a", "kind", "n", "name", "next"],
    "additionalProperties": False,
    "$defs": {"Pair": {"type": "array", "prefixItems": [{"type": "null"}] * 2, "minItems": 2,
                       "items": False}},
}  # fmt: skip
ADD = {
    "name": "add",
    "description": "Adds.",
    "parameters": {
        "type": "object",
        "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 9},
                       "how": {"$ref": "#/$defs/How"}},
        "required": ["a", "how"],
        "additionalProperties": False,
        "$defs": {"How": {"enum": ["fast", "slow"]}},
    },
}  # fmt: skip
STOP = {"name": "stop"}
TOOLS: Any = [{"type": "function", "function": one} for one in (ADD, STOP)]


def formatted(schema: Any) -> Any:
    return {"type": "json_schema", "json_schema": {"name": "thing", "schema": schema}}


def ask(client: openai.OpenAI, **more: Any) -> Any:
    given = {"model": "micro", "messages": HELLO, "temperature": 1.0, "seed": 5, **more}
    return client.chat.completions.create(**given)


def test_every_answer_is_json_of_the_schema(client: openai.OpenAI) -> None:
    answer = ask(
        client, response_format=formatted(SCHEMA), n=6, max_tokens=120, top_p=0.95,
        logprobs=True, top_logprobs=2,
    )  # fmt: skip
    assert len({one.message.content for one in answer.choices}) > 1
    for one in answer.choices:
        jsonschema.validate(json.loads(one.message.content), SCHEMA)
        assert one.finish_reason == "stop"
        assert "".join(token.token for token in one.logprobs.content) == one.message.content
    alone = ask(client, response_format=formatted(SCHEMA), max_tokens=120, top_p=0.95, stream=True)
    text = "".join(part.choices[0].delta.content or "" for part in alone)
    assert text == answer.choices[0].message.content, "streamed, alone, from the prefix cache"


def test_any_object_and_vllms_ways(client: openai.OpenAI) -> None:
    begun = ask(client, response_format={"type": "json_object"}, max_tokens=5)
    assert begun.choices[0].message.content.startswith("{")
    words = ["a.b*", "(c|d)", "é\n"]
    for given, pattern in (
        ({"choice": words}, "|".join(map(re.escape, words))),
        ({"regex": "[0-9]{3}-[a-z]{2}"}, "[0-9]{3}-[a-z]{2}"),
    ):
        told = ask(client, extra_body={"structured_outputs": given}, max_tokens=60)
        assert re.fullmatch(pattern, told.choices[0].message.content)
    held = {"structured_outputs": {"json": SCHEMA}}
    told = client.completions.create(model="micro", prompt="a", max_tokens=120, extra_body=held)
    jsonschema.validate(json.loads(told.choices[0].text), SCHEMA)


def chain(length: int) -> Any:
    links = {f"x{i}": {"$ref": f"#/$defs/x{i + 1}"} for i in range(length)}
    return {"$defs": {**links, f"x{length}": {"type": "null"}}, "$ref": "#/$defs/x0"}


@pytest.mark.parametrize(("schema", "words"), [
    ({"type": "foo"}, "Invalid schema for response_format 'thing': Invalid type: foo"),
    ({"type": "array", "uniqueItems": True}, "uniqueItems"),
    ({"$ref": "file:///etc/passwd"}, "not present"),
    (chain(20_000), "too deep"),
    ({"enum": [str(i) for i in range(70_000)]}, "holds more than"),
    ({"type": "string", "pattern": "^(" * 500 + "a" + ")" * 500}, "Invalid schema"),
])  # fmt: skip
def test_schemas_that_cannot_be_are_told_and_harm_nobody(
    client: openai.OpenAI, schema: Any, words: str
) -> None:
    began = time.monotonic()
    with pytest.raises(openai.BadRequestError, match=words) as caught:
        ask(client, response_format=formatted(schema))
    if words != "holds more than":
        assert caught.value.param == "response_format"
    assert time.monotonic() - began < 10 * CPU_SECONDS
    assert ask(client, max_tokens=2).choices[0].message.content


@pytest.mark.parametrize("name", [None, "add"])
def test_a_call_that_must_be_is_one(client: openai.OpenAI, name: str | None) -> None:
    choice: Any = {"type": "function", "function": {"name": name}} if name else "required"
    more = {"tools": TOOLS, "tool_choice": choice, "parallel_tool_calls": False, "max_tokens": 80}
    schemas = {"add": ADD["parameters"], "stop": {"maxProperties": 0}}
    whole = ask(client, **more, n=4)
    for one in whole.choices:
        (call,) = one.message.tool_calls
        assert one.finish_reason == "tool_calls" and one.message.content is None
        assert name in (None, call.function.name)
        jsonschema.validate(json.loads(call.function.arguments), schemas[call.function.name])
    # Put together as the client itself does.
    with client.chat.completions.stream(
        model="micro", messages=HELLO, temperature=1.0, seed=5, **more
    ) as stream:
        last = stream.get_final_completion().choices[0]
    first = whole.choices[0]
    assert last.finish_reason == first.finish_reason
    for streamed, told in zip(last.message.tool_calls, first.message.tool_calls, strict=True):
        assert streamed.function.name == told.function.name
        assert streamed.function.arguments == told.function.arguments


def test_tools_may_stay_unused_and_calls_stand_in_what_was_said(client: openai.OpenAI) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    messages = [
        *HELLO,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "2"},
    ]
    for choice in ("auto", "none"):
        answer = ask(client, messages=messages, tools=TOOLS, tool_choice=choice, max_tokens=5)
        assert answer.choices[0].message.content and not answer.choices[0].message.tool_calls
        prompts = answer.usage.prompt_tokens
    assert prompts < ask(client, messages=messages, tools=TOOLS, max_tokens=1).usage.prompt_tokens


def test_calls_of_a_models_own_will(micro_tokenizer: Any) -> None:
    """The engine that says the prompt again, so that the answer holds a call."""
    house = build(micro_tokenizer)
    said = 'Yes. <tool_call>{"name": "stop", "arguments": {}}</tool_call>'
    body = {"model": "micro", "messages": [{"role": "user", "content": said}], "temperature": 0}
    plain = house.request("POST", "/v1/chat/completions", body).json()["choices"][0]
    assert said in plain["message"]["content"] and "tool_calls" not in plain["message"]
    house.app.state.service._prompter._knows_tools = True  # as if its template wrote them
    told = house.request("POST", "/v1/chat/completions", {**body, "tools": TOOLS, "n": 2}).json()
    for one in told["choices"]:
        (call,) = one["message"]["tool_calls"]
        assert call["function"] == {"name": "stop", "arguments": "{}"}
        assert "Yes.<" in one["message"]["content"] and one["finish_reason"] == "tool_calls"
    house.app.state.service._prompter.calls = None
    error = house.request("POST", "/v1/chat/completions", {**body, "tools": TOOLS}).json()["error"]
    assert error["param"] == "tools" and "not known how this base calls" in error["message"]


@pytest.mark.parametrize(("fields", "param"), [
    ({"tools": [*TOOLS, TOOLS[0]]}, "tools"), ({"tool_choice": "required"}, "tool_choice"),
    ({"tools": TOOLS, "tool_choice": {"function": {"name": "no"}}}, "tool_choice"),
    ({"tools": TOOLS, "response_format": formatted({})}, "response_format"),
    ({"tools": TOOLS, "tool_choice": "required", "ignore_eos": True}, "ignore_eos"),
    ({"response_format": formatted({}), "min_tokens": 3}, "min_tokens"),
    ({"response_format": formatted({}), "structured_outputs": {"regex": "a"}},
     "structured_outputs"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "a b", "schema": {}}}},
     "response_format.json_schema.name"),
    ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "foo"}}}],
      "tool_choice": "required"}, "tools"),
    ({"structured_outputs": {"regex": "("}}, "structured_outputs"),
    ({"messages": [{"role": "assistant", "tool_calls": [{"id": "1", "function": {
        "name": "f", "arguments": "[1]"}}]}]}, "messages.0.tool_calls.0.function.arguments"),
])  # fmt: skip
def test_what_cannot_be_meant_is_refused_by_name(
    micro_tokenizer: Any, fields: Any, param: str
) -> None:
    house = build(micro_tokenizer, tenant("ann", "*"))
    body = {"model": "micro", "messages": HELLO, **fields}
    answer = house.request("POST", "/v1/chat/completions", body, headers=key("ann"))
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    usage = house.used("ann")
    assert (usage.tokens, usage.running) == (0, 0)


def test_a_grammar_reaches_the_engine_also_behind_a_gate(
    micro_tokenizer: Any, engines: None
) -> None:
    house = build(micro_tokenizer)
    body = {"model": "micro", "messages": HELLO, "response_format": formatted(SCHEMA), "n": 2}
    assert house.request("POST", "/v1/chat/completions", body).status_code == 200
    for one in house.engine.asked:
        assert one.grammar is not None and one.grammar.kind == "json"
        assert json.loads(one.grammar.text)["required"] == SCHEMA["required"]
