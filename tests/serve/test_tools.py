"""Calls of tools: found in what models write, in any pieces; and tools told in words."""

from __future__ import annotations

import json
from typing import Any

import pytest

from laura.serve.tools import CallPart, CallScanner, calls_grammar, format_of, in_words

ADD = '{"name": "add", "arguments": {"a": "}<\\"", "b": [1, {"c": 2}]}}'
SWAPPED = '{"arguments": {"x": 1}, "name": "sub"}'
ADDED = ("add", {"a": '}<"', "b": [1, {"c": 2}]})


def scanned(form: Any, text: str, step: int, most: int | None = None) -> tuple[str, list[Any]]:
    """What is said, and name and arguments of each call; the text comes in pieces."""
    scanner, said, calls = CallScanner(form, most), "", list[list[str]]()
    pieces = [text[start : start + step] for start in range(0, len(text), step)]
    for found in (*map(scanner.feed, pieces), scanner.rest()):
        for one in found:
            if not isinstance(one, CallPart):
                said += one
                continue
            if one.name is not None:
                assert one.index == len(calls) and one.id and one.id.isalnum() and len(one.id) == 9
                calls.append([one.name, ""])
            calls[one.index][1] += one.arguments
    assert scanner.called == bool(calls)
    return said, [(name, json.loads(given)) for name, given in calls]


@pytest.mark.parametrize(("form", "text", "said", "calls"), [
    ("tagged", f"Well.\n<tool_call>\n{ADD}\n</tool_call>", "Well.", [ADDED]),
    ("tagged", f"<tool_call>{ADD}</tool_call>\n<tool_call>{SWAPPED}</tool_call>\n", "",
     [ADDED, ("sub", {"x": 1})]),
    ("tagged", "a < b <tool_cal x \n", "a < b <tool_cal x \n", []),
    ("tagged", "<tool_call>nothing</tool_call> x", "<tool_call>nothing</tool_call> x", []),
    ("tagged", ADD, ADD, []),
    ("bare", ' {"name": "f", "parameters": {"q": "x"}}', "", [("f", {"q": "x"})]),
    ("bare", '{"name": "f", "parameters": {}}; {"name": "g", "parameters": {"a": 1}}', "",
     [("f", {}), ("g", {"a": 1})]),
    ("bare", f"[{ADD}, {SWAPPED}]", "", [ADDED, ("sub", {"x": 1})]),
    ("bare", "[1, 2]", "[1, 2]", []),
    ("bare", '{"a": {"b": 1}} and so on', '{"a": {"b": 1}} and so on', []),
    ("bare", f"It is {ADD}", f"It is {ADD}", []),
    ("bare", '{"name": "f"', '{"name": "f"', []),
])  # fmt: skip
@pytest.mark.parametrize("step", [1, 2, 3, 7, 1000])
def test_calls_are_found_in_any_pieces(
    form: Any, text: str, said: str, calls: list[Any], step: int
) -> None:
    assert scanned(form, text, step) == (said, calls)


def test_arguments_come_as_they_are_written_and_no_more_calls_than_allowed() -> None:
    scanner = CallScanner("tagged", most=1)
    assert scanner.feed('<tool_call>{"name": "f", "arguments": ') == []
    (begun,) = scanner.feed('{"a"')[:1]
    assert isinstance(begun, CallPart) and begun.name == "f"
    (more,) = scanner.feed(": 1")
    assert isinstance(more, CallPart) and (more.id, more.arguments) == (None, ": 1")
    assert scanned("bare", f"[{ADD}, {SWAPPED}]", 5, most=1) == ("", [ADDED])


def test_a_long_object_that_is_no_call_is_looked_at_once() -> None:
    text = '{"a": "' + "x" * 300_000
    assert scanned("bare", text, 10) == (text, [])


@pytest.mark.parametrize(("template", "form"), [
    ("{% for tool in tools %}<tool_call>", "tagged"), ("{{ tools }}[TOOL_CALLS]", "bare"),
    ("{{ tools }}<|python_tag|>", "bare"), ("{{ messages }}", "tagged"),
    ("{{ tools }}<tool_call><function=", None), ("{{ tools }}", None),
])  # fmt: skip
def test_how_a_base_calls_is_read_off_its_template(template: str, form: Any) -> None:
    assert format_of(template) == form


def test_a_base_that_knows_no_tools_is_told_in_words() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
    told = in_words(
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "How many?"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": "7", "tool_call_id": "1"},
        ],
        [{"type": "function", "function": {"name": "f"}}],
    )
    assert [one["role"] for one in told] == ["system", "user", "assistant", "user"]
    assert told[0]["content"].startswith("Be brief.\n\n") and '"name": "f"' in told[0]["content"]
    assert scanned("tagged", told[2]["content"], 9) == ("", [("f", {"a": 1})])
    assert told[3]["content"] == "<tool_response>\n7\n</tool_response>"


def test_references_of_a_functions_schema_stay_its_own() -> None:
    own = {"$defs": {"A": {"enum": [1]}}, "properties": {"a": {"$ref": "#/$defs/A"}}}
    schema = json.loads(calls_grammar([("f", own), ("g", {"$ref": "#"})], 2).text)
    assert schema["$defs"]["f"]["properties"]["a"] == {"$ref": "#/$defs/f/$defs/A"}
    assert schema["$defs"]["g"] == {"$ref": "#/$defs/g"} and schema["maxItems"] == 2
