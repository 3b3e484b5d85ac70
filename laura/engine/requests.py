"""What is asked of a model, and what comes back: the words every engine understands. No torch.

An engine scores texts, continues prompts and measures the loss of documents. It may
run in this process (`engine.py`) or in another one; a task cannot tell.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from laura.models.encoding import Encoder
from laura.results.progress import Progress


@dataclass(frozen=True)
class ScoreRequest:
    """How likely is `continuation` after `context`?

    Attributes:
        context: What stands before.
        continuation: What is scored.
        adapter: Name of the engine's adapter that answers; None for the model itself.
    """

    context: str
    continuation: str
    adapter: str | None = None


@dataclass(frozen=True)
class ScoreAnswer:
    """Answer to a `ScoreRequest`.

    Attributes:
        loglikelihood: Sum over the continuation's tokens, nats, at most 0.
        greedy: Whether each of these tokens was the most likely one.
        tokens: Tokens of the continuation.
    """

    loglikelihood: float
    greedy: bool
    tokens: int


# Of a schema, what holds values and no schemas.
_VALUES = ("const", "default", "enum", "examples")
# No white space but one blank, as json.dumps writes: what is free never ends in a weak model.
JSON_WRITTEN = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}


@dataclass(frozen=True)
class Grammar:
    """What an answer must be.

    Attributes:
        kind: How it is said.
        text: A JSON schema, or a regular expression (of Rust's) for all of the answer.
    """

    kind: Literal["json", "regex"]
    text: str

    @classmethod
    def of_schema(cls, schema: Mapping[str, Any]) -> Grammar:
        """JSON of a schema, on one line; objects whose properties it names have no others.

        That is as others' servers do: a weak model would never come to an end of further ones.
        """
        # Where parts of an object are named apart, each must leave room for the others.
        whole = json.dumps(schema)
        told = schema if '"allOf"' in whole else _closed(schema)
        return cls("json", json.dumps({**told, "x-guidance": JSON_WRITTEN}))

    @property
    def source(self) -> str:
        """The same for llguidance.

        Raises:
            ValueError: the text is no JSON schema.
        """
        from llguidance import LLMatcher

        if self.kind == "regex":
            return str(LLMatcher.grammar_from_regex(self.text))
        return str(LLMatcher.grammar_from_json_schema(self.text))


def _closed(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_closed(one) for one in schema]
    if not isinstance(schema, Mapping):
        return schema
    found = {key: one if key in _VALUES else _closed(one) for key, one in schema.items()}
    return {"additionalProperties": False, **found} if _named_alone(found) else found


def _named_alone(schema: Mapping[str, Any]) -> bool:
    """Whether nothing says which properties there are but the list of them."""
    others = ("$ref", "patternProperties", "unevaluatedProperties")
    return isinstance(schema.get("properties"), dict) and not any(one in schema for one in others)


@dataclass(frozen=True)
class GenerateRequest:
    """Continue `prompt` until a stop text, an end token or the limit.

    Several samples of one prompt are several requests with different seeds; the
    engine reads the prompt once.

    Attributes:
        prompt: What is continued.
        stop: Texts that end the answer; they are cut off.
        max_new_tokens: Most new tokens, at least 1.
        temperature: 0 takes the most likely token; above 0 logits are divided by it.
        top_p: Only the most likely tokens that together reach this share are drawn
            from; 1 for all. Applied after `top_k`.
        top_k: Only so many most likely tokens are drawn from; 0 for all.
        seed: Seed of the draws; what is drawn does not depend on other requests.
        logprobs: Whether log-probabilities are wanted.
        adapter: Name of the engine's adapter that answers; None for the model itself.
    """

    prompt: str
    stop: tuple[str, ...]
    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    logprobs: bool = False
    adapter: str | None = None


@dataclass(frozen=True)
class GenerateAnswer:
    """Answer to a `GenerateRequest`.

    Attributes:
        text: New text, cut before the first stop text, without special tokens.
        tokens: New tokens, those of the stop text or the end token included.
        finish: "stop", "length" or "end" (an end token came).
        logprobs: If asked for: of each new token, nats, under the model itself (before
            temperature, top-k and top-p).
        token_ids: The new tokens themselves, as many as `tokens`.
    """

    text: str
    tokens: int
    finish: str
    logprobs: tuple[float, ...] = ()
    token_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class TokenDocument:
    """A document as tokens, for losses and divergences.

    Attributes:
        token_ids: All tokens, special ones included.
        supervised: Whether token i is a target. The first token is none: nothing
            comes before it.
        bytes: UTF-8 bytes of the supervised text.
        index: Row number in the data file.
    """

    token_ids: list[int]
    supervised: list[bool]
    bytes: int
    index: int


Direction = Literal["forward", "reverse"]
"""Of a divergence: KL(base || tuned), or KL(tuned || base)."""


def _forget(number: int, answer: Any) -> None:
    pass


ScoreFound = Callable[[int, ScoreAnswer], None]
GenerateFound = Callable[[int, GenerateAnswer], None]
FORGET = _forget
"""What is told of answers as they come, where nobody listens."""


class MeasuringEngine(Protocol):
    """What a task's measurement needs of an engine.

    `known` holds answers of an earlier attempt, by the request's number: they are
    given back, not computed. `found` hears every other answer as soon as it is there.
    """

    tokenizer: Any
    encoder: Encoder
    progress: Progress

    def score(
        self,
        requests: Sequence[ScoreRequest],
        *,
        known: Mapping[int, ScoreAnswer] = ...,
        found: ScoreFound = ...,
    ) -> list[ScoreAnswer]:
        """Log-likelihood of every continuation, in the order of the requests."""

    def generate(
        self,
        requests: Sequence[GenerateRequest],
        *,
        known: Mapping[int, GenerateAnswer] = ...,
        found: GenerateFound = ...,
    ) -> list[GenerateAnswer]:
        """The answer to every prompt, in the order of the requests."""

    def document_losses(
        self, documents: Sequence[TokenDocument], adapter: str | None = None
    ) -> list[list[float]]:
        """Nats of every supervised token of every document, in order."""
