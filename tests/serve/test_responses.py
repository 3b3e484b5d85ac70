"""OpenAI's Responses API as its own client asks for it, of the micro base and of the echo."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import openai
import pytest

from tests.serve.houses import House, build, key, listening, tenant
from tests.serve.test_structured import ADD, SCHEMA

FORMAT: Any = {"format": {"type": "json_schema", "name": "thing", "schema": SCHEMA}}
TOOL: Any = {"type": "function", **ADD}


def respond(house: House, **fields: Any) -> Any:
    body = {"model": "micro", "input": "hello you", "temperature": 0, **fields}
    return house.request("POST", "/v1/responses", body, headers=key("ann"))


def test_a_text_whole_and_in_events(client: openai.OpenAI) -> None:
    ask: Any = {"model": "micro", "instructions": "Be brief.", "input": "hello", "temperature": 0}
    whole = client.responses.create(**ask, max_output_tokens=30)
    assert whole.status in ("completed", "incomplete") and whole.output_text
    assert whole.usage and whole.usage.total_tokens == (
        whole.usage.input_tokens + whole.usage.output_tokens
    )
    chat = client.chat.completions.create(
        model="micro", temperature=0, max_tokens=30,
        messages=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}],
    )  # fmt: skip
    assert whole.output_text == chat.choices[0].message.content
    events = list(client.responses.create(**ask, max_output_tokens=30, stream=True))
    assert [one.sequence_number for one in events] == list(range(len(events)))
    kinds = [one.type.removeprefix("response.") for one in events]
    deltas = [one for one in kinds if one != "output_text.delta"]
    assert deltas == [
        "created", "in_progress", "output_item.added", "content_part.added", "output_text.done",
        "content_part.done", "output_item.done", whole.status,
    ]  # fmt: skip
    text = "".join(one.delta for one in events if one.type == "response.output_text.delta")
    last: Any = events[-1]
    assert text == last.response.output_text == whole.output_text
    assert last.response.usage.output_tokens == whole.usage.output_tokens


def test_a_schema_is_kept_to(client: openai.OpenAI) -> None:
    told = client.responses.create(model="micro", input="hello", text=FORMAT, max_output_tokens=150)
    jsonschema.validate(json.loads(told.output_text), SCHEMA)


def test_functions_are_called_and_their_results_read(client: openai.OpenAI) -> None:
    ask: Any = {
        "model": "micro", "tools": [TOOL], "tool_choice": "required", "max_output_tokens": 60,
        "parallel_tool_calls": False,
    }  # fmt: skip
    told = client.responses.create(input="hello", **ask)
    (call,) = told.output
    assert call.type == "function_call" and call.status == "completed"
    jsonschema.validate(json.loads(call.arguments), ADD["parameters"])
    # Put together as the client itself does.
    with client.responses.stream(input="hello", **ask) as stream:
        (streamed,) = stream.get_final_response().output
    assert streamed.type == "function_call" and streamed.name == "add"
    jsonschema.validate(json.loads(streamed.arguments), ADD["parameters"])
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "4"}
    talk: Any = [{"role": "user", "content": "hello"}, call.to_dict(), result]
    after = client.responses.create(model="micro", input=talk, max_output_tokens=9)
    assert after.output_text


@pytest.mark.parametrize(("fields", "param", "words"), [
    ({"store": True}, "store", "keeps no answers"),
    ({"previous_response_id": "resp_1"}, "previous_response_id", "whole conversation as input"),
    ({"input": []}, "input", "at least 1"),
    ({"input": [{"type": "item_reference", "id": "x"}]}, "input.0", "must be a message"),
    ({"input": [5]}, "input.0", "must be a message"),
    ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
     "input.0.content.0.type", "input_text"),
    ({"input": "word " * 900}, "input", "maximum context length"),
    ({"max_output_tokens": 9999}, "input", "maximum context length"),
    ({"tool_choice": "required"}, "tool_choice", "tools"),
    ({"text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "foo"}}}},
     "text.format", "Invalid schema for response_format 'x'"),
    ({"text": {"format": {"type": "json_schema"}}}, "text.format", "name and schema"),
    ({"tools": [TOOL], "text": FORMAT}, "text.format", "calls no tools"),
    ({"reasoning": {"effort": "high"}}, "reasoning", "does not support"),
    ({"model": "law"}, "model", "does not exist"),
])  # fmt: skip
def test_what_is_refused_says_which_field_of_this_api(
    micro_tokenizer: Any, fields: Any, param: str, words: str
) -> None:
    house = build(micro_tokenizer, tenant("ann", "maths"))
    answer = respond(house, **fields)
    error = answer.json()["error"]
    assert answer.status_code in (400, 404) and error["param"] == param, error
    assert words in error["message"]
    assert house.used("ann").tokens == 0


def test_it_is_charged_logged_and_limited_like_a_chat(micro_tokenizer: Any) -> None:
    house = build(micro_tokenizer, tenant("ann", "*", requests_per_minute=2))
    body = respond(house).json()
    assert house.used("ann").tokens == body["usage"]["total_tokens"] > 0
    line = json.loads(house.log.getvalue().splitlines()[-1])
    assert line["path"] == "/v1/responses" and body["id"] == f"resp_{line['request_id']}"
    assert respond(house, stream=True).status_code == 200
    assert respond(house).status_code == 429
    assert house.request("POST", "/v1/responses", {}).status_code == 401


def test_a_stream_that_breaks_says_so(micro_tokenizer: Any) -> None:
    house = build(micro_tokenizer, engine={"fail_after": 2})
    with (
        listening(house) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        *_, last = client.responses.create(model="micro", input="hello you", stream=True)
    assert last.type == "error" and "try again" in last.message and last.code == "engine_gone"
    assert not house.engine.running
