"""Clients as their users write with them: `python clients.py NAME URL`, in a Python that has them.

Each says something plain, streams, and has an answer of a given form or a call of a tool. Ends
with 77 where the client is not there.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, Literal

MISSING = 77
MODEL = "micro"
HELLO: Any = [{"role": "user", "content": "hello"}]
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 9}},
            "required": ["a"],
            "additionalProperties": False,
        },
    },
}


def thing() -> Any:
    from pydantic import BaseModel, Field

    class Thing(BaseModel):
        """What is wanted."""

        kind: Literal["big", "small"]
        good: bool
        count: int = Field(ge=0, le=99)

    return Thing


def use_litellm(url: str) -> None:
    import litellm

    ask: Any = {
        "model": f"openai/{MODEL}", "api_base": f"{url}/v1", "api_key": "none", "messages": HELLO,
        "max_tokens": 60,
    }  # fmt: skip
    assert litellm.completion(**ask).choices[0].message.content
    parts = [part.choices[0].delta.content or "" for part in litellm.completion(**ask, stream=True)]
    assert "".join(parts)
    told = litellm.completion(**ask, response_format=thing())
    thing().model_validate_json(told.choices[0].message.content)
    called = litellm.completion(**ask, tools=[TOOL], tool_choice="required").choices[0]
    assert 0 <= json.loads(called.message.tool_calls[0].function.arguments)["a"] <= 9
    try:
        litellm.completion(**{**ask, "messages": [{"role": "user", "content": "word " * 3000}]})
    except litellm.ContextWindowExceededError:
        return
    raise AssertionError("an overflow was not known as one")


def use_langchain(url: str) -> None:
    from langchain_core.tools import tool
    from langchain_openai import ChatOpenAI

    @tool
    def add(a: Literal[1, 2, 3]) -> int:
        """Adds."""
        return a

    model = ChatOpenAI(model=MODEL, base_url=f"{url}/v1", api_key="none", max_tokens=60)  # type: ignore[arg-type,call-arg]
    assert model.invoke("hello").content
    assert "".join(str(part.content) for part in model.stream("hello"))
    for method in ("json_schema", "function_calling"):
        found = model.with_structured_output(thing(), method=method).invoke("hello")
        assert isinstance(found.count, int), method
    said = model.bind_tools([add], tool_choice="any").invoke("hello")
    assert said.tool_calls[0]["name"] == "add" and said.tool_calls[0]["args"]["a"] in (1, 2, 3)
    newer = ChatOpenAI(  # type: ignore[call-arg]
        model=MODEL, base_url=f"{url}/v1", api_key="none", max_tokens=60, use_responses_api=True
    )  # type: ignore[arg-type]
    assert newer.invoke("hello").text


def use_instructor(url: str) -> None:
    import instructor
    import openai

    for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA):
        client = instructor.from_openai(
            openai.OpenAI(base_url=f"{url}/v1", api_key="none"), mode=mode
        )
        asked: Any = {"model": MODEL, "messages": HELLO, "max_tokens": 60}
        found = client.create(response_model=thing(), **asked)
        assert isinstance(found.count, int), mode
        *_, last = client.create_partial(response_model=thing(), **asked)
        assert last.kind in ("big", "small"), mode


def use_pydantic_ai(url: str) -> None:
    from pydantic_ai import Agent, NativeOutput, ToolOutput
    from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
    from pydantic_ai.providers.openai import OpenAIProvider

    provider = OpenAIProvider(base_url=f"{url}/v1", api_key="none")
    settings: Any = {"max_tokens": 60}
    chat = OpenAIChatModel(MODEL, provider=provider, settings=settings)
    assert Agent(chat).run_sync("hello").output
    with_events = Agent(chat).run_stream_sync("hello")
    assert "".join(with_events.stream_text(delta=True))
    for output in (ToolOutput(thing()), NativeOutput(thing())):
        found: Any = Agent(chat, output_type=output).run_sync("hello").output
        assert isinstance(found.count, int)
    newer = OpenAIResponsesModel(MODEL, provider=provider, settings=settings)
    assert Agent(newer).run_sync("hello").output


def use_openai(url: str) -> None:
    import openai

    with openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client:
        ask: Any = {"model": MODEL, "messages": HELLO, "max_tokens": 60}
        parsed = client.chat.completions.parse(**ask, response_format=thing())
        assert isinstance(parsed.choices[0].message.parsed.count, int)
        with client.chat.completions.stream(**ask, response_format=thing()) as stream:
            assert stream.get_final_completion().choices[0].message.parsed.kind
        newer = client.responses.parse(model=MODEL, input="hello", text_format=thing())
        assert isinstance(newer.output_parsed.count, int)


CLIENTS: dict[str, tuple[str, Callable[[str], None]]] = {
    "openai": ("openai", use_openai),
    "litellm": ("litellm", use_litellm),
    "langchain": ("langchain_openai", use_langchain),
    "instructor": ("instructor", use_instructor),
    "pydantic-ai": ("pydantic_ai", use_pydantic_ai),
}

if __name__ == "__main__":
    sys.path.pop(0)  # this folder's files must not hide others
    module, use = CLIENTS[sys.argv[1]]
    if find_spec(module) is None:
        sys.exit(MISSING)
    use(sys.argv[2])
