"""What is said to a vLLM server: completions as they grow, adapters in and out.

Prompts go as token ids and answers come as token ids; text is made of them on this side,
as in process. A stream that is closed before its end makes vLLM drop the request.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from laura.serve.engines import Ask, TokenScore

# What vLLM calls the base here; adapters have names with an @ in them.
BASE = "base"
# The address is a socket of the file system; HTTP wants a name all the same.
ADDRESS = "http://vllm"
CONNECT_SECONDS = 10.0
ID_PREFIX = "token_id:"


class VllmFault(Exception):
    """vLLM refused or broke off.

    Args:
        message: What it said; it may name files and internal names, so it is not for clients.
        status: HTTP status; 0 where the connection failed.
    """

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Piece:
    """What came of an answer.

    Attributes:
        tokens: New tokens; with log-probabilities where they were asked for.
        prompt: Scores of the prompt, where they were asked for.
        cached: Tokens of the prompt that were not computed anew; None where not said yet.
        ended: Whether vLLM says that this is all.
    """

    tokens: tuple[TokenScore, ...] = ()
    prompt: tuple[TokenScore, ...] = ()
    cached: int | None = None
    ended: bool = False


class VllmClient:
    """Speaks to one server.

    Args:
        socket: Its socket in the file system.
        key: Its key.
    """

    def __init__(self, socket: Path, key: str) -> None:
        self._open, self._heard = 0, 0.0
        self._http = httpx.AsyncClient(
            base_url=ADDRESS,
            transport=httpx.AsyncHTTPTransport(
                uds=str(socket), limits=httpx.Limits(max_connections=None)
            ),
            headers={"Authorization": f"Bearer {key}"},
            # One answer may wait for long behind others; `silent_seconds` tells of all.
            timeout=httpx.Timeout(None, connect=CONNECT_SECONDS),
            trust_env=False,
        )

    async def close(self) -> None:
        """Close every connection."""
        await self._http.aclose()

    def silent_seconds(self) -> float:
        """How long nothing has been heard though something was asked."""
        return time.monotonic() - self._heard if self._open else 0.0

    async def healthy(self, seconds: float) -> bool:
        """Whether it says within the time that it can work."""
        try:
            answer = await self._http.get("/health", timeout=seconds)
        except httpx.HTTPError:
            return False
        return answer.status_code == 200

    async def context_tokens(self) -> int:
        """Most tokens of prompt and answer together that it reads.

        Raises:
            VllmFault: it does not say.
        """
        try:
            async with self._asking():
                answer = await self._http.get("/v1/models")
        except httpx.HTTPError as error:
            raise _broken(error) from error
        if answer.status_code != 200:
            raise _fault(answer.status_code, answer.content)
        try:
            cards = {card["id"]: card for card in answer.json()["data"]}
            return int(cards[BASE]["max_model_len"])
        except (ValueError, KeyError, TypeError) as error:
            raise VllmFault("it does not say how much it reads at once", 500) from error

    async def load(self, name: str, folder: Path) -> None:
        """Have an adapter loaded from a folder.

        Raises:
            VllmFault: it cannot be.
        """
        await self._post("/v1/load_lora_adapter", lora_name=name, lora_path=str(folder))

    async def unload(self, name: str) -> None:
        """Have an adapter forgotten.

        Raises:
            VllmFault: there is none of this name, or the server has gone.
        """
        await self._post("/v1/unload_lora_adapter", lora_name=name)

    async def score(self, model: str, ask: Ask, salt: str) -> Piece:
        """The prompt's log-probabilities and, with them, one new token.

        vLLM does not stream where a prompt is scored, and always makes a new token.

        Raises:
            VllmFault: there is no whole answer.
        """
        body = {**_body(model, ask, salt), "max_tokens": 1}
        body["prompt_logprobs"] = ask.top_logprobs or 0
        answer = await self._post("/v1/completions", **body)
        choice = _choice(answer)
        scores = [
            TokenScore(token, None) if found is None else _prompt_score(token, found, ask)
            for token, found in zip(ask.prompt, choice.get("prompt_logprobs") or (), strict=False)
        ]
        if len(scores) != len(ask.prompt):
            raise VllmFault(f"{len(scores)} scores came for {len(ask.prompt)} tokens", 500)
        return Piece(_tokens(choice, ask), tuple(scores), _cached(answer), ended=True)

    async def stream(
        self, model: str, ask: Ask, salt: str, ends: frozenset[int] = frozenset()
    ) -> AsyncGenerator[Piece, None]:
        """The answer as it grows; one piece is marked as the end.

        Args:
            model: Who answers: the base or an adapter.
            ask: What is wanted.
            salt: Prompts share a cache only under the same one.
            ends: Tokens that end the answer.

        Raises:
            VllmFault: it refuses, breaks off or has gone.
        """
        body = _body(model, ask, salt)
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        # The text is cut on this side; vLLM is told so that it ends by itself.
        body |= {"stop_token_ids": sorted(ends), "include_stop_str_in_output": True}
        body["stop"] = [text for text in ask.stop if text]
        ended = False
        try:
            async with (
                self._asking(),
                self._http.stream("POST", "/v1/completions", json=body) as answer,
            ):
                if answer.status_code != 200:
                    raise _fault(answer.status_code, await answer.aread())
                async for line in answer.aiter_lines():
                    self._heard = time.monotonic()
                    if not line.startswith("data:"):
                        continue
                    text = line[5:].strip()
                    if text == "[DONE]":
                        break
                    piece = _piece(json.loads(text), ask)
                    ended = ended or piece.ended
                    yield piece
        except (httpx.HTTPError, ValueError) as error:
            raise _broken(error) from error
        if not ended:
            raise VllmFault("the answer broke off before its end")

    @asynccontextmanager
    async def _asking(self) -> AsyncIterator[None]:
        if self._http.is_closed:
            raise VllmFault("the server has ended")
        if not self._open:
            self._heard = time.monotonic()
        self._open += 1
        try:
            yield
            self._heard = time.monotonic()
        finally:
            self._open -= 1

    async def _post(self, path: str, **body: Any) -> dict[str, Any]:
        try:
            async with self._asking():
                answer = await self._http.post(path, json=body)
        except httpx.HTTPError as error:
            raise _broken(error) from error
        if answer.status_code != 200:
            raise _fault(answer.status_code, answer.content)
        # Loading and unloading are answered in plain words.
        if path != "/v1/completions":
            return {}
        try:
            found: dict[str, Any] = answer.json()
        except ValueError as error:
            raise VllmFault(f"the answer is no JSON ({error})", 500) from error
        return found


def _body(model: str, ask: Ask, salt: str) -> dict[str, Any]:
    """A request in vLLM's words; what ends an answer is known on this side."""
    body: dict[str, Any] = {
        "model": model,
        "prompt": list(ask.prompt),
        "max_tokens": max(1, ask.max_new_tokens),
        "temperature": ask.temperature,
        "ignore_eos": True,
        "return_token_ids": True,
        "cache_salt": salt,
        "logprobs": ask.top_logprobs,
        "return_tokens_as_token_ids": True,
    }
    if ask.temperature > 0:
        body |= {"top_p": ask.top_p, "top_k": ask.top_k, "seed": ask.seed}
    return body


def _broken(error: Exception) -> VllmFault:
    return VllmFault(f"the connection broke ({type(error).__name__}: {error})")


def _fault(status: int, content: bytes) -> VllmFault:
    """What a refusal says; the message is in `error.message` or, of older parts, bare."""
    try:
        found = json.loads(content)
        message = found.get("error", found).get("message") or str(found)
    except (ValueError, AttributeError):
        message = content.decode("utf-8", "replace")
    return VllmFault(f"status {status}: {str(message)[:500]}", status)


def _choice(answer: dict[str, Any]) -> dict[str, Any]:
    if "error" in answer:
        # A stream that has begun cannot change its status any more.
        raise VllmFault(f"it broke off: {answer['error']}", 500)
    choices = answer.get("choices") or [{}]
    return dict(choices[0])


def _piece(chunk: dict[str, Any], ask: Ask) -> Piece:
    choice = _choice(chunk)
    ended = choice.get("finish_reason") is not None
    if ended and choice["finish_reason"] not in ("stop", "length"):
        raise VllmFault(f"it gave the request up ({choice['finish_reason']})", 500)
    return Piece(_tokens(choice, ask), cached=_cached(chunk), ended=ended)


def _tokens(choice: dict[str, Any], ask: Ask) -> tuple[TokenScore, ...]:
    ids = choice.get("token_ids") or ()
    if ask.top_logprobs is None:
        return tuple(TokenScore(token, None) for token in ids)
    scores = choice.get("logprobs") or {}
    nats, tops = scores.get("token_logprobs") or (), scores.get("top_logprobs") or ()
    if len(nats) != len(ids):
        raise VllmFault(f"{len(nats)} log-probabilities came for {len(ids)} tokens", 500)
    return tuple(
        TokenScore(token, value, _best(_by_id(top or {}), ask.top_logprobs))
        for token, value, top in zip(ids, nats, tops or [{}] * len(nats), strict=True)
    )


def _by_id(top: dict[str, float]) -> dict[int, float]:
    return {int(name.removeprefix(ID_PREFIX)): value for name, value in top.items()}


def _best(values: dict[int, float], count: int) -> tuple[tuple[int, float], ...]:
    """The likeliest ones; vLLM adds the chosen token where it is not among them."""
    return tuple(sorted(values.items(), key=lambda pair: (-pair[1], pair[0]))[:count])


def _prompt_score(token: int, found: dict[str, Any], ask: Ask) -> TokenScore:
    values = {int(name): float(entry["logprob"]) for name, entry in found.items()}
    return TokenScore(token, values[token], _best(values, ask.top_logprobs or 0))


def _cached(answer: dict[str, Any]) -> int | None:
    usage = answer.get("usage")
    if not usage:
        return None
    return int((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0)
