"""Answers of OpenAI's API, as they go over the wire; the OpenAPI schema is read off them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, model_serializer

FinishReason = Literal["stop", "length"]


class _Reply(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class ErrorDetails(_Reply):
    """What went wrong: in words, by kind, in which field, and as one word for programs."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorReply(_Reply):
    """Every answer with a status of 400 and above."""

    error: ErrorDetails


class ModelReply(_Reply):
    """A base or an adapter; `laura` holds what is known of it."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    parent: str | None
    laura: dict[str, Any]


class ModelsReply(_Reply):
    """The models a tenant may use."""

    object: Literal["list"]
    data: list[ModelReply]


class CachedTokens(_Reply):
    """Tokens of the prompt that were not computed anew."""

    cached_tokens: int


class Usage(_Reply):
    """Tokens read and written."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens


class TopToken(_Reply):
    """A likely token with its log-probability in nats."""

    token: str
    logprob: float
    bytes: list[int] | None


class ChosenToken(TopToken):
    """A token of the answer, with the most likely ones in its place."""

    top_logprobs: list[TopToken]


class ChatLogprobs(_Reply):
    """Log-probabilities of a chat's answer."""

    content: list[ChosenToken]
    refusal: None = None


class AnswerMessage(_Reply):
    """What the model says."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(_Reply):
    """One answer to a conversation."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason


class ChatReply(_Reply):
    """Answer to `POST /v1/chat/completions`."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage


class Delta(_Reply):
    """What has been added to a message; the role comes first, and what is not there is left out."""

    role: Literal["assistant"] | None = None
    content: str | None = None

    @model_serializer
    def _filled(self) -> dict[str, str]:
        return {name: value for name, value in vars(self).items() if value is not None}


class ChatChunkChoice(_Reply):
    """What has been added to one answer."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason | None = None


class ChatChunk(_Reply):
    """One event of a chat's stream."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = None


class CompletionLogprobs(_Reply):
    """Log-probabilities of a completion.

    One entry a token in each list; with echo the prompt's tokens come first, and nothing
    is known of the very first. `text_offset` is where the token begins in the text.
    """

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(_Reply):
    """One completion; in a stream what has been added, with no finish until the end."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason | None


class CompletionReply(_Reply):
    """Answer to `POST /v1/completions`, and each event of its stream."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage | None = None
