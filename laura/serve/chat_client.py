"""Models of a running server for `laura chat`: any that speaks OpenAI's API. No torch."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx

from laura.results.errors import LauraError, UsageError
from laura.serve.chatting import Member, Messages, Reply, Sampling
from laura.serve.settings import is_loopback

KEY_VARIABLE = "LAURA_API_KEY"
MOST_ADAPTERS = 3
# Seconds to connect; between two pieces of an answer a queue may stand.
CONNECT, SILENCE = 10.0, 600.0


class RefusedError(LauraError, ValueError):
    """The server refuses a request; `code` is its word for programs."""

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(message)
        self.code = code


@dataclass
class ServerPanel:
    """Answers through a server, all models at once, as they are written.

    Args:
        url: Where it listens, as in http://127.0.0.1:8000.
        key: The tenant's key, where one is needed.
        chosen: Names of models; empty for the base and the first three adapters.

    Raises:
        UsageError: the address is none, nothing answers there, or a model is unknown.
        RefusedError: the server wants another key.
    """

    url: str
    key: str | None = None
    chosen: Sequence[str] = ()
    members: list[Member] = field(init=False)

    def __post_init__(self) -> None:
        self.url = _checked(self.url)
        self.members = asyncio.run(self._read_members())

    def ask(
        self,
        conversations: dict[str, Messages],
        sampling: Sampling,
        replies: dict[str, Reply],
    ) -> None:
        """Answer every conversation; see `Panel`. One that fails leaves the others alone."""
        asyncio.run(self._ask(conversations, sampling, replies))

    async def _ask(
        self,
        conversations: dict[str, Messages],
        sampling: Sampling,
        replies: dict[str, Reply],
    ) -> None:
        async def one(client: httpx.AsyncClient, name: str, reply: Reply) -> None:
            try:
                async for text in self._answer(client, name, conversations[name], sampling, reply):
                    reply.text += text
            except LauraError as error:
                reply.finish, reply.error = "failed", str(error)

        async with self._client() as client:
            await asyncio.gather(*(one(client, name, reply) for name, reply in replies.items()))

    async def _answer(
        self,
        client: httpx.AsyncClient,
        name: str,
        messages: Messages,
        sampling: Sampling,
        reply: Reply,
    ) -> AsyncIterator[str]:
        body: dict[str, Any] = {
            "model": name,
            "temperature": sampling.temperature,
            "max_tokens": sampling.max_tokens,
            "seed": sampling.seed,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        chat = {**body, "messages": messages}
        try:
            async for text in self._stream(client, "/v1/chat/completions", chat, reply):
                yield text
        except RefusedError as error:
            if error.code != "no_chat_template":
                raise
            # As the page does: such a base answers the question alone.
            plain = {**body, "prompt": messages[-1]["content"] + "\n\n"}
            async for text in self._stream(client, "/v1/completions", plain, reply):
                yield text

    async def _stream(
        self, client: httpx.AsyncClient, path: str, body: dict[str, Any], reply: Reply
    ) -> AsyncIterator[str]:
        try:
            async with client.stream("POST", path, json=body) as response:
                if response.is_error:
                    await response.aread()
                    raise _refusal(response)
                async for line in response.aiter_lines():
                    if not line.startswith("data:"):
                        continue
                    data = line.removeprefix("data:").strip()
                    if data == "[DONE]":
                        return
                    text = _heard(json.loads(data), reply)
                    if text:
                        yield text
        except (httpx.HTTPError, json.JSONDecodeError) as error:
            raise UsageError(f"the answer broke off: {_words(error)}") from error
        raise UsageError("the answer broke off: the server went away")

    async def _read_members(self) -> list[Member]:
        try:
            async with self._client() as client:
                response = await client.get("/v1/models")
                if response.is_error:
                    raise _refusal(response)
                listed = response.json()["data"]
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            if isinstance(error, LauraError):
                raise
            raise UsageError(
                f"{self.url} does not answer as a server of models ({_words(error)}); start "
                "`laura serve`, or mend --url"
            ) from error
        return _members(listed, self.chosen)

    def _client(self) -> httpx.AsyncClient:
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        # A proxy cannot know this machine's own addresses.
        return httpx.AsyncClient(
            base_url=self.url,
            headers=headers,
            timeout=httpx.Timeout(SILENCE, connect=CONNECT),
            trust_env=not is_loopback(urlsplit(self.url).hostname or ""),
        )


def _heard(event: dict[str, Any], reply: Reply) -> str:
    """Text of one event of a stream; what else it says goes into the reply."""
    if event.get("error"):
        raise RefusedError(str(event["error"].get("message", "the answer broke off")))
    if event.get("usage"):
        reply.tokens = event["usage"].get("completion_tokens")
    choice: dict[str, Any] = next(iter(event.get("choices") or []), {})
    if choice.get("finish_reason"):
        reply.finish = "length" if choice["finish_reason"] == "length" else "stop"
    return str((choice.get("delta") or {}).get("content") or choice.get("text") or "")


def _members(listed: list[dict[str, Any]], chosen: Sequence[str]) -> list[Member]:
    members = []
    for model in listed:
        known = model.get("laura") or {}
        warnings = tuple(map(str, known.get("warnings") or ()))
        members.append(Member(model["id"], not model.get("parent"), known.get("record"), warnings))
    names = [one.name for one in members]
    unknown = [name for name in chosen if name not in names]
    if unknown or not members:
        raise UsageError(
            f"the server offers no {', '.join(map(repr, unknown)) or 'model'}; it offers "
            f"{', '.join(map(repr, names[:20])) or 'nothing to this key'}"
        )
    # The base comes first: the others are compared with it.
    members.sort(key=lambda one: not one.is_base)
    if chosen:
        return [one for one in members if one.name in chosen]
    bases = [one for one in members if one.is_base][:1]
    return bases + [one for one in members if not one.is_base][:MOST_ADAPTERS]


def _refusal(response: httpx.Response) -> RefusedError:
    try:
        error = response.json()["error"]
        message, code = str(error["message"]), str(error.get("code") or "")
    except (ValueError, KeyError, TypeError, AttributeError):
        message, code = f"the server answered {response.status_code}", ""
    if response.status_code == 401:
        message = f"{message.rstrip('.')}; it is read from the environment variable {KEY_VARIABLE}"
    wait = response.headers.get("retry-after")
    if response.status_code == 429 and wait:
        message = f"{message.rstrip('.')}; try again in {wait} s"
    return RefusedError(message, code)


def _checked(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(f"--url {url} is no address; give one as http://127.0.0.1:8000")
    return url.rstrip("/").removesuffix("/v1")


def _words(error: Exception) -> str:
    return str(error) or type(error).__name__
