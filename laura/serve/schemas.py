"""Requests, answers and errors of OpenAI's API, under OpenAI's names, which its schema shows.

Types of requests are strict, and a field that nobody knows is a fault: silence would let a
client believe that it was heard. Fields that would change the answer and that no engine here
honours are faults by name, unless they hold what is done anyway. Fields that only matter to
OpenAI's own business are read and forgotten.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    WithJsonSchema,
    model_serializer,
    model_validator,
)

from laura.results.errors import LauraError
from laura.serve.engines import EngineError

MOST_STOPS, LONGEST_STOP = 16, 256
MOST_MESSAGES = 4096
MOST_PARTS = 1024
# More than any object here has; each unknown one would become a fault of its own.
MOST_FIELDS = 64
MOST_CHOICES = 16
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

FinishReason = Literal["stop", "length"]


class UnsupportedError(ValueError):
    """A field holds what no engine here does."""


def _only(*allowed: Any) -> Any:
    """A field that may only hold what is done anyway."""

    def check(value: Any) -> Any:
        if not any(value == one and type(value) is type(one) for one in allowed):
            raise UnsupportedError("this server does not support it; leave the field out")
        return None

    return Annotated[Any, BeforeValidator(check), WithJsonSchema({"enum": list(allowed)})]


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


class _Body(BaseModel):
    model_config = ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=(), frozen=True
    )

    @model_validator(mode="before")
    @classmethod
    def _few_fields(cls, data: Any) -> Any:
        if isinstance(data, dict) and len(data) > MOST_FIELDS:
            raise ValueError(f"has {len(data)} fields; at most {MOST_FIELDS} are allowed")
        return data


class StreamOptions(_Body):
    """What a stream tells beside the text."""

    include_usage: bool | None = None
    include_obfuscation: _only(None, False) = None  # type: ignore[valid-type]


class ContentPart(_Body):
    """A part of a message; only texts are understood."""

    type: Literal["text"]
    text: Text


class ChatMessage(_Body):
    """One message of a conversation.

    What answers of an `openai` client hold besides, when they are sent back, is empty here.
    """

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[ContentPart], Field(max_length=MOST_PARTS, fail_fast=True)]
    refusal: _only(None) = None  # type: ignore[valid-type]
    annotations: _only(None, []) = None  # type: ignore[valid-type]
    audio: _only(None) = None  # type: ignore[valid-type]
    function_call: _only(None) = None  # type: ignore[valid-type]
    tool_calls: _only(None, []) = None  # type: ignore[valid-type]

    @property
    def text(self) -> str:
        """All that it says."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)


class ResponseFormat(_Body):
    """How the answer is written: as text."""

    type: Literal["text"]


class _SamplingRequest(_Body):
    """What both kinds of requests share. A null is as good as a field left out."""

    model: Text = Field(min_length=1, max_length=LONGEST_MODEL)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=0, lt=2**31)
    n: int | None = Field(default=None, ge=1, le=MOST_CHOICES)
    seed: int | None = Field(default=None, ge=-INT64, lt=INT64)
    stop: Stops = []
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    # These would change the answer.
    frequency_penalty: _only(None, 0, 0.0) = None  # type: ignore[valid-type]
    presence_penalty: _only(None, 0, 0.0) = None  # type: ignore[valid-type]
    logit_bias: _only(None, {}) = None  # type: ignore[valid-type]
    # These only matter to OpenAI's own business.
    user: Text | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: Text | None = None
    safety_identifier: Text | None = None
    prompt_cache_key: Text | None = None
    prompt_cache_retention: Text | None = None

    @model_validator(mode="after")
    def _options_need_a_stream(self) -> _SamplingRequest:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options: only allowed with stream: true")
        return self

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with what was used."""
        return bool(self.stream_options and self.stream_options.include_usage)


class ChatCompletionRequest(_SamplingRequest):
    """The body of `POST /v1/chat/completions`."""

    # The first fault is told: a list of ten thousand wrong messages has one, too.
    messages: list[ChatMessage] = Field(min_length=1, max_length=MOST_MESSAGES, fail_fast=True)
    max_tokens: Tokens | None = Field(default=None, ge=1)
    max_completion_tokens: Tokens | None = Field(default=None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=MOST_TOP)
    response_format: ResponseFormat | None = None
    modalities: _only(None, ["text"]) = None  # type: ignore[valid-type]
    audio: _only(None) = None  # type: ignore[valid-type]
    tools: _only(None, []) = None  # type: ignore[valid-type]
    tool_choice: _only(None, "none", "auto") = None  # type: ignore[valid-type]
    parallel_tool_calls: bool | None = None
    functions: _only(None, []) = None  # type: ignore[valid-type]
    function_call: _only(None, "none", "auto") = None  # type: ignore[valid-type]
    reasoning_effort: _only(None, "none") = None  # type: ignore[valid-type]
    verbosity: _only(None, "medium") = None  # type: ignore[valid-type]
    web_search_options: _only(None) = None  # type: ignore[valid-type]
    prediction: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _fields_agree(self) -> ChatCompletionRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs: only allowed with logprobs: true")
        if None not in (both := (self.max_tokens, self.max_completion_tokens)) and len({*both}) > 1:
            raise ValueError("max_tokens and max_completion_tokens differ; give one of them")
        return self

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
    suffix: _only(None, "") = None  # type: ignore[valid-type]

    @model_validator(mode="after")
    def _fields_agree(self) -> CompletionRequest:
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise ValueError("best_of: only allowed where it equals n")
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("max_tokens: 0 is only allowed with echo: true")
        return self


GenerationRequest = ChatCompletionRequest | CompletionRequest


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


class AssistantMessage(_Response):
    """What the model says."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


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

    @model_serializer
    def _filled(self) -> dict[str, str]:
        return {name: value for name, value in vars(self).items() if value is not None}


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
        place = ".".join(map(str, error["loc"]))[:LONGEST_FIELD]
        told.append(f"{place}: {_words(error)}" if place else _words(error))
    if len(errors) > MOST_FAULTS_TOLD:
        told.append(f"and {len(errors) - MOST_FAULTS_TOLD} more")
    first = errors[0]["loc"]
    unsupported = isinstance(_cause(errors[0]), UnsupportedError)
    code = "unsupported_value" if unsupported else "invalid_value"
    return bad_request("; ".join(told), str(first[0])[:LONGEST_FIELD] if first else None, code)


def _words(error: Any) -> str:
    if error["type"] == "extra_forbidden":
        return "this field is not known; leave it out"
    if error["type"] == "json_invalid":
        return f"the body is no JSON ({error['ctx']['error']})"
    if error["type"] == "model_type" and not error["loc"]:
        return "the body must be a JSON object"
    return str(_cause(error) or error["msg"])


def _cause(error: Any) -> object:
    """What a check of ours raised, if it did."""
    return error.get("ctx", {}).get("error") if error["type"] == "value_error" else None
