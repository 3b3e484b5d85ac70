"""OpenAI's Responses API, as other words for a chat: requests become a chat's, its chunks events.

Nothing is kept between two requests, so whoever goes on sends the whole conversation. A whole
answer is what its events add up to.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    model_validator,
)

from laura.serve.answers import HEARTBEAT, EventStream, Generation, usage_of
from laura.serve.schemas import (
    ANYTHING,
    LONGEST_MODEL,
    MOST_MESSAGES,
    MOST_PARTS,
    MOST_TOOLS,
    PARTS,
    TEXT,
    TEXT_OR_PARTS,
    ApiError,
    ChatCompletionChunk,
    ChatCompletionRequest,
    CompletionUsage,
    FunctionCall,
    FunctionTool,
    Name,
    StrictBody,
    Text,
    Tokens,
    UnsupportedError,
    of_validation,
    with_fields,
)

# As in `schemas.py`: fields that are not honoured, with the values that change nothing.
OF_RESPONSES: dict[str, Any] = {
    "background": (False,),
    "client_metadata": ANYTHING,
    "context_management": ([],),
    "conversation": (),
    "include": ([],),
    "max_tool_calls": (),
    "metadata": ANYTHING,
    "prompt": (),
    "prompt_cache_key": ANYTHING,
    "prompt_cache_retention": ANYTHING,
    "reasoning": ({}, {"effort": "none"}),
    "safety_identifier": ANYTHING,
    "service_tier": ANYTHING,
    "stream_options": ({}, {"include_obfuscation": False}),
    "top_logprobs": (0,),
    "truncation": ("disabled",),
    "user": ANYTHING,
}
# The same of an item: clients send back what they were answered.
OF_ITEMS: dict[str, Any] = {"id": ANYTHING, "status": ANYTHING}
OF_PARTS: dict[str, Any] = {"annotations": ([],), "logprobs": ([],)}
# What a chat's fields are called here.
NAMES = {"messages": "input", "response_format": "text.format", "max_tokens": "max_output_tokens"}

if TYPE_CHECKING:
    _Asked = StrictBody
    _Item = StrictBody
    _Part = StrictBody
else:
    _Asked = with_fields("_Asked", OF_RESPONSES)
    _Item, _Part = with_fields("_Item", OF_ITEMS), with_fields("_Part", OF_PARTS)


def _nothing_kept(value: Any) -> None:
    if value not in (None, False):
        raise UnsupportedError(
            "this server keeps no answers: leave it out, and send the whole conversation as input"
        )


Unkept = Annotated[None, BeforeValidator(_nothing_kept)]


class InputPart(_Part):
    """A part of a message; only texts are understood."""

    type: Literal["input_text", "output_text"]
    text: Text


Input = Annotated[
    Annotated[Text, Tag(TEXT)]
    | Annotated[list[InputPart], Field(max_length=MOST_PARTS, fail_fast=True), Tag(PARTS)],
    TEXT_OR_PARTS,
]


class InputMessage(_Item):
    """A message of the conversation."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: Input


class InputCall(FunctionCall, _Item):
    """A call of an earlier answer."""

    type: Literal["function_call"]
    call_id: Text = Field(max_length=LONGEST_MODEL)


class CallOutput(_Item):
    """What a called function gave."""

    type: Literal["function_call_output"]
    call_id: Text = Field(max_length=LONGEST_MODEL)
    output: Input


def _kind(value: Any) -> str | None:
    given = value.get("type", "message") if isinstance(value, Mapping) else None
    return f"({given})" if given in ("message", "function_call", "function_call_output") else None


Items = Annotated[
    list[
        Annotated[
            Annotated[InputMessage, Tag("(message)")]
            | Annotated[InputCall, Tag("(function_call)")]
            | Annotated[CallOutput, Tag("(function_call_output)")],
            Discriminator(
                _kind,
                custom_error_type="item",
                custom_error_message="must be a message, a function_call or a function_call_output",
            ),
        ]
    ],
    Field(min_length=1, max_length=MOST_MESSAGES, fail_fast=True),
]


class TextFormat(StrictBody):
    """What an answer must be; a schema stands beside its type here."""

    type: Literal["text", "json_object", "json_schema"]
    name: Name | None = None
    description: Text | None = None
    of: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None

    @model_validator(mode="after")
    def _has_its_schema(self) -> TextFormat:
        named = self.name is not None and self.of is not None
        if named != (self.type == "json_schema") or (self.name is None) != (self.of is None):
            raise ValueError("name and schema belong to the type json_schema, and to no other")
        return self

    def of_chat(self) -> dict[str, Any]:
        """The same as a chat's response_format."""
        if self.of is None:
            return {"type": self.type}
        schema = {"name": self.name, "description": self.description, "schema": self.of}
        return {"type": self.type, "json_schema": schema}


class TextSettings(StrictBody):
    """How the answer's text is written."""

    format: TextFormat | None = None
    verbosity: Literal["medium"] | None = None


class ResponseTool(FunctionTool):
    """A function that the model may call; its fields stand beside its type here."""

    type: Literal["function"]


class ChosenTool(StrictBody):
    """The one that is to be called."""

    type: Literal["function"]
    name: Name


class ResponsesRequest(_Asked):
    """The body of `POST /v1/responses`."""

    model: Text = Field(min_length=1, max_length=LONGEST_MODEL)
    input: Annotated[
        Annotated[Text, Tag(TEXT)] | Annotated[Items, Tag(PARTS)],
        TEXT_OR_PARTS,
    ]
    instructions: Text | None = None
    max_output_tokens: Tokens | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    stream: bool | None = None
    text: TextSettings | None = None
    tools: list[ResponseTool] | None = Field(None, max_length=MOST_TOOLS, fail_fast=True)
    tool_choice: (
        Annotated[
            Annotated[Literal["none", "auto", "required"], Tag(TEXT)]
            | Annotated[ChosenTool, Tag(PARTS)],
            TEXT_OR_PARTS,
        ]
        | None
    ) = None
    parallel_tool_calls: bool | None = None
    previous_response_id: Unkept = None
    store: Unkept = None

    def chat(self) -> ChatCompletionRequest:
        """The same as a chat.

        Raises:
            ApiError: its fields disagree.
        """
        choice: Any = self.tool_choice
        if isinstance(choice, ChosenTool):
            choice = {"type": "function", "function": {"name": choice.name}}
        fields: dict[str, Any] = {
            "model": self.model,
            "messages": list(self._messages()),
            "max_completion_tokens": self.max_output_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "stream": self.stream,
            "tools": [
                {"type": "function", "function": one.model_dump(exclude={"type"})}
                for one in self.tools or ()
            ],
            "tool_choice": choice,
            "parallel_tool_calls": self.parallel_tool_calls,
        }
        if self.text is not None and self.text.format is not None:
            fields["response_format"] = self.text.format.of_chat()
        try:
            return ChatCompletionRequest.model_validate(fields)
        except ValidationError as error:
            faults = error.errors(include_url=False, include_input=False)
            raise renamed(of_validation(faults)) from None

    def _messages(self) -> Iterator[dict[str, Any]]:
        if self.instructions is not None:
            yield {"role": "system", "content": self.instructions}
        if isinstance(self.input, str):
            yield {"role": "user", "content": self.input}
            return
        said: dict[str, Any] | None = None  # by the assistant, who may call functions with it
        for item in self.input:
            if isinstance(item, InputCall):
                said = said or {"role": "assistant", "content": None}
                function = {"name": item.name, "arguments": item.arguments}
                calls = said.setdefault("tool_calls", [])
                calls.append({"id": item.call_id, "type": "function", "function": function})
                continue
            if said is not None:
                yield said
                said = None
            if isinstance(item, CallOutput):
                content = _text(item.output)
                yield {"role": "tool", "tool_call_id": item.call_id, "content": content}
            elif item.role == "assistant":
                said = {"role": "assistant", "content": _text(item.content)}
            else:
                yield {"role": item.role, "content": _text(item.content)}
        if said is not None:
            yield said


def renamed(fault: ApiError) -> ApiError:
    """A chat's fault, with the name that its field has here."""
    for name, here in NAMES.items():
        if fault.param is not None and fault.param.split(".")[0] == name:
            fault.param = here + fault.param.removeprefix(name)
    return fault


def _text(content: str | list[InputPart]) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)


class ResponseObject(BaseModel):
    """Answer to `POST /v1/responses`; `output` holds messages and calls in their order."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())

    id: str
    object: Literal["response"]
    created_at: int
    model: str
    status: Literal["in_progress", "completed", "incomplete"]
    output: list[dict[str, Any]]
    usage: dict[str, Any] | None


class ResponseWriter:
    """Makes events of a chat's chunks, and the answer that they add up to.

    Args:
        request: What was asked.
        id: Of the request.

    Attributes:
        body: The answer so far.
    """

    def __init__(self, request: ResponsesRequest, id: str) -> None:
        self._id, self._events = id, 0
        told = request.model_dump(by_alias=True, include={
            "instructions", "max_output_tokens", "temperature", "tools", "tool_choice", "top_p",
        })  # fmt: skip
        form = request.text.format if request.text is not None else None
        form = form or TextFormat(type="text")
        self.body: dict[str, Any] = {
            "id": f"resp_{id}",
            "object": "response",
            "created_at": int(time.time()),
            "status": "in_progress",
            "error": None,
            "incomplete_details": None,
            "model": request.model,
            "output": [],
            "parallel_tool_calls": request.parallel_tool_calls is not False,
            "previous_response_id": None,
            "store": False,
            "text": {"format": form.model_dump(by_alias=True, exclude_none=True)},
            "truncation": "disabled",
            "usage": None,
            "metadata": {},
            **told,
            "tools": told["tools"] or [],
            "tool_choice": told["tool_choice"] or "auto",
        }

    def begin(self) -> list[str]:
        """What comes before any chunk."""
        return [self._event(f"response.{one}", response=self.body)
                for one in ("created", "in_progress")]  # fmt: skip

    def add(self, chunk: ChatCompletionChunk) -> list[str]:
        """What a chunk brings."""
        events = []
        for choice in chunk.choices:
            if choice.delta.content:
                events += self._said(choice.delta.content)
            for call in choice.delta.tool_calls or ():
                events += self._called(call.id, call.function.name, call.function.arguments)
            if choice.finish_reason is not None:
                short = choice.finish_reason == "length"
                self.body["status"] = "incomplete" if short else "completed"
                if short:
                    self.body["incomplete_details"] = {"reason": "max_output_tokens"}
        return events

    def end(self, usage: CompletionUsage) -> list[str]:
        """What comes after all chunks."""
        events = self._done()
        self.body["usage"] = {
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": usage.prompt_tokens_details.model_dump(),
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage.total_tokens,
        }
        return [*events, self._event(f"response.{self.body['status']}", response=self.body)]

    def failed(self, fault: ApiError) -> str:
        """What comes where the answer broke off."""
        return self._event("error", code=fault.code, message=str(fault), param=fault.param)

    def _said(self, text: str) -> list[str]:
        events: list[str] = []
        item = self.body["output"][-1] if self.body["output"] else {}
        if item.get("type") != "message":
            part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
            events = self._begin("msg", {"type": "message", "role": "assistant", "content": []})
            item = self.body["output"][-1]
            events.append(self._of_item("response.content_part.added", content_index=0, part=part))
            item["content"].append(part)
        item["content"][0]["text"] += text
        kind = "response.output_text.delta"
        return [*events, self._of_item(kind, content_index=0, delta=text, logprobs=[])]

    def _called(self, id: str | None, name: str | None, arguments: str) -> list[str]:
        events: list[str] = []
        if id is not None:
            call = {"type": "function_call", "call_id": id, "name": name, "arguments": ""}
            events = self._begin("fc", call)
        self.body["output"][-1]["arguments"] += arguments
        return [*events, self._of_item("response.function_call_arguments.delta", delta=arguments)]

    def _begin(self, kind: str, item: dict[str, Any]) -> list[str]:
        events, output = self._done(), self.body["output"]
        item = {"id": f"{kind}_{self._id}-{len(output)}", "status": "in_progress", **item}
        output.append(item)
        added = "response.output_item.added"
        return [*events, self._event(added, output_index=len(output) - 1, item=item)]

    def _done(self) -> list[str]:
        """The end of the item that has grown, if there is one."""
        if not self.body["output"]:
            return []
        item, events = self.body["output"][-1], []
        # What was cut off is told, but is not whole.
        item["status"] = "incomplete" if self.body["status"] == "incomplete" else "completed"
        if item["type"] == "message":
            (part,) = item["content"]
            text, kind = part["text"], "response.output_text.done"
            events.append(self._of_item(kind, content_index=0, text=text, logprobs=[]))
            events.append(self._of_item("response.content_part.done", content_index=0, part=part))
        else:
            kind, given = "response.function_call_arguments.done", item["arguments"]
            events.append(self._of_item(kind, name=item["name"], arguments=given))
        index = len(self.body["output"]) - 1
        return [*events, self._event("response.output_item.done", output_index=index, item=item)]

    def _of_item(self, kind: str, **fields: Any) -> str:
        output = self.body["output"]
        return self._event(kind, item_id=output[-1]["id"], output_index=len(output) - 1, **fields)

    def _event(self, kind: str, **fields: Any) -> str:
        told = {"type": kind, "sequence_number": self._events, **fields}
        self._events += 1
        return f"event: {kind}\ndata: {json.dumps(told)}\n\n"


async def whole_response(writer: ResponseWriter, generation: Generation) -> str:
    """The answer when all of it is there.

    Raises:
        ApiError: as of `Generation.next`.
    """
    async with aclosing(generation.chunks()) as chunks:
        async for chunk in chunks:
            assert isinstance(chunk, ChatCompletionChunk)
            writer.add(chunk)
    writer.end(usage_of(generation.context))
    return json.dumps(writer.body)


class ResponseStream(EventStream):
    """Events of the Responses API, while the client listens.

    Args:
        writer: Makes them.
        generation, more: As of `EventStream`.
    """

    def __init__(self, writer: ResponseWriter, generation: Generation, **more: Any) -> None:
        super().__init__(generation, wants_usage=False, wants_usage_so_far=False, **more)
        self._writer = writer

    async def _pieces(self) -> AsyncGenerator[bytes]:
        writer, generation = self._writer, self._generation
        try:
            for event in writer.begin():
                yield event.encode()
            async for chunk in generation.chunks(self._heartbeat):
                assert chunk is None or isinstance(chunk, ChatCompletionChunk)
                yield HEARTBEAT if chunk is None else "".join(writer.add(chunk)).encode()
            yield "".join(writer.end(usage_of(generation.context))).encode()
        except Exception as error:
            fault = self._fault(error)
            yield writer.failed(renamed(fault)).encode()
