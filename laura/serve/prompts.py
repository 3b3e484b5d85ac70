"""Texts and conversations to tokens, and tokens back to texts.

A tokenizer serves one thread at a time and a long prompt takes it a while, so `Prompter`
works in a thread of its own, beside the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, TypeVar

from laura.data.templates import chat_prompts
from laura.serve.context import bad_request
from laura.serve.schemas import ChatMessage

T = TypeVar("T")


class Prompter:
    """Turns what is asked into tokens.

    Args:
        tokenizer: The base's tokenizer.
        most_tokens: Gives the longest prompt in tokens. Texts that must be longer are refused
            before they are read.
    """

    def __init__(self, tokenizer: Any, most_tokens: Callable[[], int]) -> None:
        self._tokenizer, self._most_tokens = tokenizer, most_tokens
        self._ids = len(tokenizer)
        self._longest_piece = max((len(piece) for piece in tokenizer.get_vocab()), default=1)
        self._has_template = bool(getattr(tokenizer, "chat_template", None))
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="laura-prompts")

    async def chat(self, messages: list[ChatMessage]) -> tuple[int, ...]:
        """Tokens after which the model writes its next message.

        Raises:
            ApiError: the base has no chat template, the template refuses the messages, or
                they are too long.
        """
        if not self._has_template:
            raise bad_request(
                "this base has no chat template, so it cannot chat; use /v1/completions",
                "messages",
                "no_chat_template",
            )
        plain = [_plain(one) for one in messages]
        self._check_length(sum(len(one["content"]) for one in plain), "characters", "messages")
        return await self._aside(lambda: self._chat(plain))

    async def texts(self, prompts: list[str] | list[list[int]]) -> list[tuple[int, ...]]:
        """Tokens of each prompt.

        Raises:
            ApiError: a prompt is empty, too long, or holds no token of this base.
        """
        for prompt in prompts:
            if isinstance(prompt, str):
                self._check_length(len(prompt), "characters", "prompt")
        return await self._aside(lambda: [self._prompt(prompt) for prompt in prompts])

    async def echoes(self, prompts: list[str] | list[list[int]]) -> list[str]:
        """The texts that an answer with echo begins with."""
        decode = self._tokenizer.decode
        return await self._aside(
            lambda: [one if isinstance(one, str) else str(decode(one)) for one in prompts]
        )

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _aside(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _chat(self, messages: list[dict[str, str]]) -> tuple[int, ...]:
        from jinja2 import TemplateError

        try:
            text = chat_prompts(self._tokenizer)(messages)
        except (TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
            raise bad_request(
                f"the base's chat template refuses these messages: {error}", "messages"
            ) from error
        return self._checked(self._encode(text, special=False), "messages")

    def _prompt(self, prompt: str | list[int]) -> tuple[int, ...]:
        if isinstance(prompt, list):
            wrong = next((one for one in prompt if one >= self._ids), None)
            if wrong is not None:
                raise bad_request(
                    f"token id {wrong} came, but this base's are 0 to {self._ids - 1}", "prompt"
                )
            return self._checked(prompt, "prompt")
        begin = self._tokenizer.bos_token
        doubled = bool(begin) and prompt.startswith(begin)
        return self._checked(self._encode(prompt, special=not doubled), "prompt")

    def _encode(self, text: str, special: bool) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=special, verbose=False))

    def _checked(self, tokens: list[int], field: str) -> tuple[int, ...]:
        if not tokens:
            raise bad_request("the prompt has no tokens, so nothing can follow it", field)
        self._check_length(len(tokens), "tokens", field)
        return tuple(tokens)

    def _check_length(self, came: int, unit: Literal["characters", "tokens"], field: str) -> None:
        most = self._most_tokens()
        # No text of so many characters has fewer tokens than are allowed.
        if came > most * (self._longest_piece if unit == "characters" else 1):
            raise bad_request(
                f"the prompt has {came} {unit}; allowed are {most} tokens. Shorten it",
                field,
                "context_length_exceeded",
            )


class TokenTexts:
    """What single tokens stand for, as bytes: several together may make one character.

    Args:
        tokenizer: The base's tokenizer.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, bytes | None] = {}
        space = tokenizer.convert_tokens_to_ids("Ġ")
        unknown = {None, tokenizer.unk_token_id}
        self._byte_level = space not in unknown and tokenizer.decode([space]) == " "
        self._added = set(tokenizer.added_tokens_decoder)

    def bytes_of(self, token_id: int) -> bytes | None:
        """UTF-8 bytes of a token, perhaps half a character; None where they are not known."""
        if token_id not in self._known:
            self._known[token_id] = self._bytes_of(token_id)
        return self._known[token_id]

    def text_of(self, token_id: int) -> str:
        """A token as text; one that is no whole character as `bytes:\\xNN`, as OpenAI does."""
        found = self.bytes_of(token_id)
        if found is None:
            return str(self._tokenizer.decode([token_id]))
        try:
            return found.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in found)

    def _bytes_of(self, token_id: int) -> bytes | None:
        piece = self._tokenizer.convert_ids_to_tokens(token_id)
        if piece is None:
            return b""
        if token_id in self._added:
            return str(piece).encode()
        if self._byte_level:
            found = [_BYTES_OF_SIGNS.get(sign) for sign in piece]
            return None if None in found else bytes(found)  # type: ignore[arg-type]
        if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
            return bytes([int(piece[3:5], 16)])
        return str(piece).replace("▁", " ").encode()


def _byte_signs() -> dict[str, int]:
    """The sign that byte-level BPE writes for each byte.

    Source: `bytes_to_unicode` of GPT-2: printable bytes stand for themselves, the others
    for the code points from 256 on, in order.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    signs = {chr(byte): byte for byte in printable}
    return signs | {chr(256 + place): byte for place, byte in enumerate(others)}


_BYTES_OF_SIGNS = _byte_signs()


def _plain(message: ChatMessage) -> dict[str, str]:
    """A message as chat templates know it: "developer" is OpenAI's newer name of "system"."""
    content = message.content
    if not isinstance(content, str):
        content = "".join(part.text for part in content)
    role = "system" if message.role == "developer" else message.role
    return {"role": role, "content": content}
