"""Requests, answers and errors of OpenAI's API, under OpenAI's names, which its schema shows.

Types of requests are strict, and a field that nobody knows is a fault: silence would let a
client believe that it was heard. Fields of OpenAI's, vLLM's and transformers' that no engine here
honours stand in tables with the values that change nothing; any other value is a fault by name.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PlainValidator,
    Tag,
    ValidationError,
    WithJsonSchema,
    create_model,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

from laura.engine.requests import Grammar
from laura.results.errors import LauraError
from laura.serve.engines import EngineError

MOST_STOPS, LONGEST_STOP = 16, 256
MOST_MESSAGES = 4096
MOST_PARTS = 1024
# More than any object here has; each unknown one would become a fault of its own.
MOST_FIELDS = 128
MOST_CHOICES = 16
MOST_TOOLS, LONGEST_NAME = 128, 64
MOST_TOP = 20
LONGEST_MODEL = 256
INT64 = 2**63
MOST_FAULTS_TOLD, LONGEST_FIELD = 3, 100
KINDS = {
    401: "authentication_error",
    403: "permission_error",
    408: "timeout_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
    504: "timeout_error",
}

FinishReason = Literal["stop", "length", "tool_calls"]

ANYTHING = object()
"""For a field that changes no answer, whatever it holds."""
# Fields of a request that no engine here honours, with the values, besides null, that change
# nothing. A field that a request below has itself is honoured there.
OF_PROMPTS: dict[str, Any] = {
    "add_generation_prompt": (True,),
    "add_special_tokens": (False,),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "continue_final_message": (False,),
    "documents": ([],),
    "mm_processor_kwargs": ({},),
    "tools": ([],),
}
OF_REQUESTS: dict[str, Any] = {
    **OF_PROMPTS,
    # How tokens are chosen.
    "allowed_token_ids": (),
    "bad_words": ([],),
    "early_stopping": (False,),
    "frequency_penalty": (0,),
    "length_penalty": (1,),
    "logit_bias": ({},),
    "logits_processors": ([],),
    "min_p": (0,),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "typical_p": (1,),
    "use_beam_search": (False,),
    # What an answer may be.
    "audio": (),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "guided_choice": (),
    "guided_grammar": (),
    "guided_json": (),
    "guided_regex": (),
    "include_reasoning": ANYTHING,
    "modalities": (["text"],),
    "parallel_tool_calls": (True, False),
    "reasoning_effort": ("none",),
    "tool_choice": ("none", "auto"),
    "verbosity": ("medium",),
    "web_search_options": (),
    # How it is written.
    "best_of": (1,),
    "echo": (False,),
    "include_stop_str_in_output": (False,),
    "prompt_logprobs": (),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "stop_token_ids": ([],),
    "suffix": ("",),
    "truncate_prompt_tokens": (),
    # The business of whoever serves.
    "metadata": ANYTHING,
    "prediction": ANYTHING,
    "priority": (0,),
    "prompt_cache_key": ANYTHING,
    "prompt_cache_retention": ANYTHING,
    "request_id": ANYTHING,
    "safety_identifier": ANYTHING,
    "service_tier": ANYTHING,
    "store": ANYTHING,
    "user": ANYTHING,
}
# The same of a message: some clients send back what they were answered.
OF_MESSAGES: dict[str, Any] = {
    "annotations": ([],),
    "audio": (),
    "cache_control": ANYTHING,
    "function_call": (),
    "name": ANYTHING,
    "reasoning": ("",),
    "reasoning_content": ("",),
    "refusal": ("",),
    "type": ("text", "message"),
}


class UnsupportedError(ValueError):
    """A field holds what no engine here does."""


def _only(*allowed: Any) -> Any:
    """A field that may only hold null and what is done anyway."""
    values = [None, *allowed]
    told = " or ".join(map(json.dumps, values))

    def check(value: Any) -> Any:
        if not any(_same(value, one) for one in values):
            raise UnsupportedError(f"this server does not support it; leave it out, or give {told}")
        return None

    return Annotated[Any, BeforeValidator(check), WithJsonSchema({"enum": values})]


def _same(value: Any, one: Any) -> bool:
    """1 is as good as 1.0, but true is another value."""
    return bool(value == one) and isinstance(value, bool) == isinstance(one, bool)


def _stops(value: Any) -> list[str]:
    if value is None:
        return []
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(one, str) for one in stops[:MOST_STOPS]):
        raise ValueError("must be a text or a list of texts")
    if len(stops) > MOST_STOPS or not all(1 <= len(stop) <= LONGEST_STOP for stop in stops):
        raise ValueError(
            f"at most {MOST_STOPS} texts of 1 to {LONGEST_STOP} characters are allowed"
        )
    return [_encodable(stop) for stop in stops]


def _prompts(value: Any) -> list[str] | list[list[int]]:
    """One prompt or many, as texts or as tokens: always a list of prompts."""
    if isinstance(value, str):
        return [_encodable(value)]
    if isinstance(value, list) and value:
        if all(isinstance(one, str) for one in value):
            return [_encodable(one) for one in value]
        if all(type(one) is int for one in value):
            return [_token_ids(value)]
        if all(isinstance(one, list) and one for one in value):
            return [_token_ids(one) for one in value]
    raise ValueError(
        "must be a text, a list of texts, a list of token ids, or a list of such lists; none empty",
    )


def _token_ids(value: list[Any]) -> list[int]:
    if not all(type(one) is int and 0 <= one < INT64 for one in value):
        raise ValueError("token ids must be whole numbers, at least 0")
    return value


def _encodable(text: str) -> str:
    """Halves of surrogate pairs can be written in JSON, but no tokenizer reads them."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("holds half a surrogate pair, which is no character") from None
    return text


Text = Annotated[str, AfterValidator(_encodable)]
Tokens = Annotated[int, Field(lt=2**31)]
_STOP_TEXT = {"type": "string", "minLength": 1, "maxLength": LONGEST_STOP}
_TOKENS = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
Stops = Annotated[
    list[str],
    PlainValidator(_stops),
    WithJsonSchema(
        {
            "anyOf": [
                _STOP_TEXT,
                {"type": "array", "items": _STOP_TEXT, "maxItems": MOST_STOPS},
                {"type": "null"},
            ]
        }
    ),
]
Prompts = Annotated[
    list[str] | list[list[int]],
    PlainValidator(_prompts),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                {"type": "array", "items": {"type": "string"}, "minItems": 1},
                _TOKENS,
                {"type": "array", "items": _TOKENS, "minItems": 1},
            ]
        }
    ),
]


class StrictBody(BaseModel):
    """A JSON object of a request: a field that is not known is a fault."""

    model_config = ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=(), frozen=True
    )

    @model_validator(mode="before")
    @classmethod
    def _few_fields(cls, data: Any) -> Any:
        if isinstance(data, dict) and len(data) > MOST_FIELDS:
            raise ValueError(f"has {len(data)} fields; at most {MOST_FIELDS} are allowed")
        return data


def with_fields(name: str, fields: Mapping[str, Any]) -> type[StrictBody]:
    """A body that has the fields of a table."""
    forgotten = Field(None, description="Read and forgotten.")
    typed: dict[str, Any] = {
        field: (Any, forgotten) if values is ANYTHING else (_only(*values), None)
        for field, values in fields.items()
    }
    return create_model(name, __base__=StrictBody, **typed)


if TYPE_CHECKING:
    _Prompt = StrictBody
    _Request = StrictBody
    _Message = StrictBody
else:
    _Prompt = with_fields("_Prompt", OF_PROMPTS)
    _Request = with_fields("_Request", OF_REQUESTS)
    _Message = with_fields("_Message", OF_MESSAGES)


def _fault(field: str, words: str) -> ValidationError:
    """A fault between fields, told of one of them."""
    error = PydanticCustomError("disagrees", "{words}", {"words": words})
    return ValidationError.from_exception_data(
        "request", [{"type": error, "loc": (field,), "input": None}]
    )


class StreamOptions(StrictBody):
    """What a stream tells beside the text."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: _only(False) = None  # type: ignore[valid-type]


class ContentPart(StrictBody):
    """A part of a message; only texts are understood."""

    type: Literal["text"]
    text: Text
    cache_control: Any = Field(None, description="Read and forgotten.")


# pydantic names which of several kinds it took: no field of a client's is called so.
TEXT, PARTS = "(text)", "(parts)"
TEXT_OR_PARTS = Discriminator(lambda value: TEXT if isinstance(value, str) else PARTS)
TAGS = {TEXT, PARTS, "(message)", "(function_call)", "(function_call_output)"}
_NO_CONTENT = "must be a text, or a list of parts of the type text"


def _kind(content: Any) -> str | None:
    return TEXT if isinstance(content, str) else PARTS if isinstance(content, list) else None


Content = Annotated[
    Annotated[Text, Tag(TEXT)]
    | Annotated[list[ContentPart], Field(max_length=MOST_PARTS, fail_fast=True), Tag(PARTS)],
    Discriminator(
        _kind,
        custom_error_type="content",
        custom_error_message=_NO_CONTENT,
    ),
]


def _arguments(text: str) -> str:
    """A call's arguments, which templates want as an object."""
    try:
        found = json.loads(text or "{}")
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ValueError("must be a JSON object, written as a text")
    return text


Name = Annotated[str, Field(pattern=rf"^[a-zA-Z0-9_-]{{1,{LONGEST_NAME}}}$")]


class FunctionCall(StrictBody):
    """A function that the model called, with its arguments as JSON."""

    name: Name
    arguments: Annotated[Text, AfterValidator(_arguments)]


class ToolCall(StrictBody):
    """A call of an earlier answer."""

    id: Text = Field(max_length=LONGEST_MODEL)
    type: Literal["function"] = "function"
    function: FunctionCall
    index: Any = Field(None, description="Read and forgotten.")


class ChatMessage(_Message):
    """One message of a conversation; only an assistant's may be empty."""

    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [
                {"properties": {"role": {"const": "assistant"}}},
                {"properties": {"content": {"type": ["string", "array"]}}, "required": ["content"]},
            ]
        }
    )

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content | None = None
    tool_calls: list[ToolCall] | None = Field(None, max_length=MOST_TOOLS)
    tool_call_id: Text | None = Field(None, max_length=LONGEST_MODEL)

    @model_validator(mode="after")
    def _says_something(self) -> ChatMessage:
        if self.content is None and self.role != "assistant":
            raise _fault("content", f"{_NO_CONTENT}; only an assistant's may be null")
        if self.tool_calls and self.role != "assistant":
            raise _fault("tool_calls", "only an assistant calls tools")
        if (self.tool_call_id is None) == (self.role == "tool"):
            words = "says which call a message of the role tool answers, and stands in no other"
            raise _fault("tool_call_id", words)
        return self

    @property
    def text(self) -> str:
        """All that it says."""
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""


# The first fault is told: a list of ten thousand wrong messages has one, too.
Messages = Annotated[
    list[ChatMessage], Field(min_length=1, max_length=MOST_MESSAGES, fail_fast=True)
]


class JsonSchema(StrictBody):
    """A schema with a name; whether strict or not, the answer keeps to it."""

    name: Name
    description: Text | None = None
    of: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(StrictBody):
    """What an answer must be: a text, some JSON object, or JSON of a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _has_its_schema(self) -> ResponseFormat:
        if (self.json_schema is None) == (self.type == "json_schema"):
            raise _fault("json_schema", "belongs to the type json_schema, and to no other")
        return self

    @property
    def grammar(self) -> Grammar | None:
        """The same for an engine."""
        if self.json_schema is not None:
            return Grammar.of_schema(self.json_schema.of)
        return None if self.type == "text" else Grammar.of_schema({"type": "object"})


class StructuredOutputs(StrictBody):
    """vLLM's way to say what an answer must be; one of them."""

    of_json: dict[str, Any] | None = Field(None, alias="json")
    regex: Text | None = None
    choice: list[Text] | None = Field(None, min_length=1, max_length=MOST_PARTS)
    json_object: _only() = None  # type: ignore[valid-type]
    grammar: _only() = None  # type: ignore[valid-type]
    structural_tag: _only() = None  # type: ignore[valid-type]

    @model_validator(mode="after")
    def _one_of_them(self) -> StructuredOutputs:
        if sum(one is not None for one in (self.of_json, self.regex, self.choice)) != 1:
            raise ValueError("give one of json, regex and choice")
        return self

    @property
    def wanted(self) -> Grammar:
        """The same for an engine."""
        if self.of_json is not None:
            return Grammar.of_schema(self.of_json)
        # Signs of a pattern stand for themselves.
        escaped = (re.sub(r"([\\.+*?()|\[\]{}^$])", r"\\\1", one) for one in self.choice or ())
        return Grammar("regex", self.regex if self.regex is not None else "|".join(escaped))


class _SamplingRequest(_Request):
    """What both kinds of requests share. A null is as good as a field left out."""

    model: Text = Field(min_length=1, max_length=LONGEST_MODEL)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=-1, lt=2**31)
    n: int | None = Field(default=None, ge=1, le=MOST_CHOICES)
    seed: int | None = Field(default=None, ge=-INT64, lt=INT64)
    stop: Stops = Field(default=[])
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    # vLLM's names.
    ignore_eos: bool | None = None
    min_tokens: Tokens | None = Field(default=None, ge=0)
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None

    @model_validator(mode="after")
    def _one_end(self) -> _SamplingRequest:
        if self.response_format is not None and self.structured_outputs is not None:
            raise _fault("structured_outputs", "says what response_format says; give one of them")
        if self.grammar is not None and (self.ignore_eos or self.min_tokens):
            field = "ignore_eos" if self.ignore_eos else "min_tokens"
            raise _fault(field, "an answer of a given form ends with it; leave this field out")
        return self

    @property
    def grammar(self) -> Grammar | None:
        """What the answer must be."""
        if self.structured_outputs is not None:
            return self.structured_outputs.wanted
        return self.response_format.grammar if self.response_format is not None else None

    @property
    def grammar_field(self) -> str:
        """The field that says it."""
        return "response_format" if self.structured_outputs is None else "structured_outputs"

    @model_validator(mode="after")
    def _options_need_a_stream(self) -> _SamplingRequest:
        if self.stream_options is not None and not self.stream:
            raise _fault("stream_options", "only allowed with stream: true")
        return self

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with what was used."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def wants_usage_so_far(self) -> bool:
        """Whether every chunk of a stream tells it, too."""
        return self.wants_usage and bool(
            self.stream_options and self.stream_options.continuous_usage_stats
        )


class FunctionTool(StrictBody):
    """A function that the model may call."""

    name: Name
    description: Text | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(StrictBody):
    """A tool; there are only functions."""

    type: Literal["function"]
    function: FunctionTool


class FunctionName(StrictBody):
    """The name of one."""

    name: Name


class NamedTool(StrictBody):
    """The one that is to be called."""

    type: Literal["function"] = "function"
    function: FunctionName


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag(TEXT)] | Annotated[NamedTool, Tag(PARTS)],
    TEXT_OR_PARTS,
]


class ChatCompletionRequest(_SamplingRequest):
    """The body of `POST /v1/chat/completions`."""

    messages: Messages
    tools: list[Tool] | None = Field(None, max_length=MOST_TOOLS, fail_fast=True)
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    max_tokens: Tokens | None = Field(default=None, ge=1)
    max_completion_tokens: Tokens | None = Field(default=None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=MOST_TOP)

    @model_validator(mode="after")
    def _fields_agree(self) -> ChatCompletionRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise _fault("top_logprobs", "only allowed with logprobs: true")
        if None not in (both := (self.max_tokens, self.max_completion_tokens)) and len({*both}) > 1:
            raise _fault("max_tokens", "differs from max_completion_tokens; give one of them")
        return self

    @model_validator(mode="after")
    def _tools_agree(self) -> ChatCompletionRequest:
        names = [one.function.name for one in self.tools or ()]
        if len({*names}) < len(names):
            raise _fault("tools", "two functions have the same name")
        if self.must_call and not names:
            raise _fault("tool_choice", "only allowed when tools are given")
        if isinstance(self.tool_choice, NamedTool) and self.tool_choice.function.name not in names:
            raise _fault("tool_choice", "names a function that is not among the tools")
        if self.callable_tools and self.grammar is not None:
            words = "an answer of a given form calls no tools; give tool_choice: none, or no tools"
            raise _fault(self.grammar_field, words)
        if self.must_call and (self.ignore_eos or self.min_tokens):
            field = "ignore_eos" if self.ignore_eos else "min_tokens"
            raise _fault(field, "an answer that must be a call ends with it; leave this field out")
        return self

    @property
    def must_call(self) -> bool:
        """Whether the answer must be calls and nothing else."""
        return self.tool_choice == "required" or isinstance(self.tool_choice, NamedTool)

    @property
    def callable_tools(self) -> list[FunctionTool]:
        """The functions that the model may call."""
        functions = [one.function for one in self.tools or ()]
        if isinstance(self.tool_choice, NamedTool):
            return [one for one in functions if one.name == self.tool_choice.function.name]
        return [] if self.tool_choice == "none" else functions

    @property
    def most_calls(self) -> int | None:
        """Most calls of an answer."""
        one = self.parallel_tool_calls is False or isinstance(self.tool_choice, NamedTool)
        return 1 if one else None

    @property
    def most_new_tokens(self) -> int | None:
        """The limit under either of its names."""
        return self.max_tokens or self.max_completion_tokens


class CompletionRequest(_SamplingRequest):
    """The body of `POST /v1/completions`."""

    prompt: Prompts
    max_tokens: Tokens | None = Field(default=None, ge=0)
    logprobs: int | None = Field(default=None, ge=0, le=MOST_TOP)
    echo: bool | None = None
    best_of: int | None = Field(default=None, ge=1, le=MOST_CHOICES)
    add_special_tokens: bool | None = None

    @model_validator(mode="after")
    def _fields_agree(self) -> CompletionRequest:
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise _fault("best_of", "only allowed where it equals n")
        if self.max_tokens == 0 and not self.echo:
            raise _fault("max_tokens", "0 is only allowed with echo: true")
        return self


GenerationRequest = ChatCompletionRequest | CompletionRequest


class TokenizeRequest(_Prompt):
    """The body of `POST /tokenize`, as vLLM has it: a text or a conversation."""

    model: Annotated[Text, Field(min_length=1, max_length=LONGEST_MODEL)] | None = None
    prompt: Text | None = None
    messages: Messages | None = None
    add_special_tokens: bool | None = None
    return_token_strs: _only(False) = None  # type: ignore[valid-type]

    @model_validator(mode="after")
    def _fields_agree(self) -> TokenizeRequest:
        if (self.prompt is None) == (self.messages is None):
            raise _fault("prompt", "give either prompt or messages")
        if self.messages is not None and self.add_special_tokens:
            raise _fault("add_special_tokens", "the chat template adds them; leave it out")
        return self


class TokenizeResponse(BaseModel):
    """Answer to `POST /tokenize`."""

    count: int
    max_model_len: int
    tokens: list[int]


class _Response(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class ErrorObject(_Response):
    """What went wrong: in words, by kind, in which field, and as one word for programs."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorResponse(_Response):
    """Every answer with a status of 400 and above."""

    error: ErrorObject


class ModelCard(_Response):
    """A base or an adapter; `laura` holds what is known of it."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    parent: str | None
    max_model_len: int
    laura: dict[str, Any]


class ModelList(_Response):
    """The models a tenant may use."""

    object: Literal["list"]
    data: list[ModelCard]


class PromptTokensDetails(_Response):
    """Tokens of the prompt that were not computed anew."""

    cached_tokens: int


class CompletionUsage(_Response):
    """Tokens read and written."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class TopLogprob(_Response):
    """A likely token with its log-probability in nats."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    """A token of the answer, with the most likely ones in its place."""

    top_logprobs: list[TopLogprob]


class ChoiceLogprobs(_Response):
    """Log-probabilities of a chat's answer."""

    content: list[TokenLogprob]
    refusal: None = None


class CalledFunction(_Response):
    """A call's function and arguments; in a stream what has been added to them."""

    name: str | None = None
    arguments: str

    @model_serializer
    def _filled(self) -> dict[str, Any]:
        return _without_none(self)


class ToolCallDelta(_Response):
    """What has been added to a call; its id and name come first."""

    index: int | None = None
    id: str | None = None
    type: Literal["function"] | None = None
    function: CalledFunction

    @model_serializer
    def _filled(self) -> dict[str, Any]:
        return _without_none(self)


def _without_none(body: BaseModel) -> dict[str, Any]:
    return {name: value for name, value in vars(body).items() if value is not None}


class AssistantMessage(_Response):
    """What the model says, and calls."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None
    tool_calls: list[ToolCallDelta] | None = None

    @model_serializer
    def _filled(self) -> dict[str, Any]:
        # Clients look for these, whatever they hold.
        return {"role": self.role, "content": None, "refusal": None, **_without_none(self)}


class ChatChoice(_Response):
    """One answer to a conversation."""

    index: int
    message: AssistantMessage
    logprobs: ChoiceLogprobs | None
    finish_reason: FinishReason


class _Answer(_Response):
    """What every answer and every chunk begins with."""

    id: str
    object: str
    created: int
    model: str
    system_fingerprint: str


class ChatCompletion(_Answer):
    """Answer to `POST /v1/chat/completions`."""

    object: Literal["chat.completion"] = "chat.completion"
    choices: list[ChatChoice]
    usage: CompletionUsage


class ChoiceDelta(_Response):
    """What has been added to a message; the role comes first, and what is not there is left out."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    tool_calls: list[ToolCallDelta] | None = None

    @model_serializer
    def _filled(self) -> dict[str, Any]:
        return _without_none(self)


class ChunkChoice(_Response):
    """What has been added to one answer."""

    index: int
    delta: ChoiceDelta
    logprobs: ChoiceLogprobs | None = None
    finish_reason: FinishReason | None = None


class ChatCompletionChunk(_Answer):
    """One event of a chat's stream."""

    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    choices: list[ChunkChoice]
    usage: CompletionUsage | None = None


class CompletionLogprobs(_Response):
    """Log-probabilities of a completion.

    One entry a token in each list; with echo the prompt's tokens come first, and nothing
    is known of the very first. `text_offset` is where the token begins in the text.
    """

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(_Response):
    """One completion; in a stream what has been added, with no finish until the end."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason | None


class Completion(_Answer):
    """Answer to `POST /v1/completions`, and each event of its stream."""

    object: Literal["text_completion"] = "text_completion"
    choices: list[CompletionChoice]
    usage: CompletionUsage | None = None


class ApiError(LauraError, ValueError):
    """A request that is not answered.

    Args:
        status: HTTP status.
        message: What came, what is allowed, what to do; for the client.
        code: One word for programs; also the reason that the metrics count.
        param: Field of the request that is wrong.
        retry_after: Seconds after which trying again makes sense.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str,
        param: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(_writable(message))
        self.status, self.code = status, code
        self.param = None if param is None else _writable(param)
        self.retry_after = retry_after

    def body(self) -> dict[str, Any]:
        """The error as OpenAI's clients read it."""
        kind = KINDS.get(self.status, "invalid_request_error")
        error = {"message": str(self), "type": kind, "param": self.param, "code": self.code}
        return {"error": error}

    def headers(self) -> dict[str, str]:
        """Headers that belong to it."""
        if self.retry_after is not None:
            return {"retry-after": str(max(1, math.ceil(self.retry_after)))}
        return {"www-authenticate": "Bearer"} if self.status == 401 else {}


def _writable(text: str) -> str:
    """A client's own words come back in messages; half a surrogate pair has no UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode()


def bad_request(message: str, param: str | None = None, code: str = "invalid_value") -> ApiError:
    """A request that cannot be meant."""
    return ApiError(400, message, code, param)


def adapter_refused(message: str) -> ApiError:
    """An adapter that is not served."""
    return bad_request(message, "model", "adapter_refused")


def unknown_model(name: str) -> ApiError:
    """The same for a model that is not there and one that is another's."""
    return ApiError(
        404,
        f"The model {name!r} does not exist or you do not have access to it; "
        "GET /v1/models lists those you may use",
        "model_not_found",
        "model",
    )


def of_engine(error: EngineError) -> ApiError:
    """What an engine's refusal is to a client."""
    if error.kind == "adapter":
        return adapter_refused(str(error))
    if error.kind == "request":
        return bad_request(str(error))
    status, code = (429, "queue_full") if error.kind == "full" else (503, "engine_gone")
    return ApiError(status, str(error), code, retry_after=error.retry_after or 1)


def of_validation(errors: Sequence[Any]) -> ApiError:
    """The first faults of a request's body, by field; never what it held there."""
    told = []
    for error in errors[:MOST_FAULTS_TOLD]:
        place = _place(error)
        told.append(f"{place}: {_words(error)}" if place else _words(error))
    if len(errors) > MOST_FAULTS_TOLD:
        told.append(f"and {len(errors) - MOST_FAULTS_TOLD} more")
    unsupported = isinstance(_cause(errors[0]), UnsupportedError)
    code = "unsupported_value" if unsupported else "invalid_value"
    return bad_request("; ".join(told), _place(errors[0]) or None, code)


def _place(error: Any) -> str:
    """The field as OpenAI writes it, such as messages.0.content; empty for the whole body."""
    parts = (str(one) for one in error["loc"] if one not in TAGS)
    return ".".join(parts)[:LONGEST_FIELD]


def _words(error: Any) -> str:
    if error["type"] == "extra_forbidden":
        return "this field is not known; leave it out"
    if error["type"] == "json_invalid":
        return f"the body is no JSON ({error['ctx']['error']})"
    if error["type"] == "model_type":
        return "must be a JSON object" if error["loc"] else "the body must be a JSON object"
    words = str(_cause(error) or error["msg"])
    return words.replace("Input should", "must").replace(" after validation", "")


def _cause(error: Any) -> object:
    """What a check of ours raised, if it did."""
    return error.get("ctx", {}).get("error") if error["type"] == "value_error" else None
