"""Bodies to requests, texts and conversations to tokens, and tokens back to texts.

A tokenizer serves one thread at a time, and a large body or a long prompt takes a while: all that
is done in threads beside the event loop, one tenant after the other.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ValidationError

from laura.data.templates import chat_template
from laura.engine.grammar import LIMITS, tokenizer_text
from laura.engine.requests import Grammar
from laura.results.errors import DataError
from laura.serve.auth import Tenant
from laura.serve.confined import ConfinedFault, GrammarProcess, TemplateProcess, kept
from laura.serve.limits import FairQueue, QueueFull
from laura.serve.schemas import ApiError, ChatMessage, FunctionTool, bad_request, of_validation
from laura.serve.tools import format_of, in_words, knows_tools

T = TypeVar("T")
Body = TypeVar("Body", bound=BaseModel)
Field = Literal["messages", "prompt"]

# A body below it is read in less than a millisecond.
SMALL_BODY = 16 << 10
# Beside the tokens of a prompt. Every value takes time and memory before a check can see it: a few
# MiB of the smallest would hold everybody up.
MOST_VALUES = 1 << 16
_MARKS = (b",", b"[", b"{")
MOST_WAITING = 1024
PIECE = 1 << 14
# Grammars that were tried lately.
MOST_KNOWN = 1024


class FairThread:
    """A thread that works for one tenant after the other; who asks for more waits longer.

    Args:
        name: Of the thread.
    """

    def __init__(self, name: str) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._waiting = FairQueue[_Place](MOST_WAITING, MOST_WAITING // 2)
        self._busy = False

    async def do(self, tenant: Tenant, size: int, work: Callable[[], T]) -> T:
        """Do work when it is the tenant's turn.

        Args:
            tenant: Whose work it is.
            size: How much it is against others': bytes, characters or tokens.
            work: Done in the thread, unless who waits goes away before.

        Raises:
            ApiError: too much waits already.
        """
        loop = asyncio.get_running_loop()
        turn = _Place(tenant.name, size, loop.create_future())
        try:
            self._waiting.put(turn, tenant.name, tenant.priority, size)
        except QueueFull as full:
            raise ApiError(429, str(full), "queue_full", retry_after=1) from None
        self._next()
        try:
            await turn.came
            return await loop.run_in_executor(self._thread, work)
        finally:
            if not self._waiting.remove(turn, tenant.name):
                self._busy = False
                self._next()

    def close(self) -> None:
        """End it."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _next(self) -> None:
        turn = None if self._busy else next(self._waiting.in_order(), None)
        if turn is not None:
            self._busy = True
            self._waiting.remove(turn, turn.tenant)
            self._waiting.charge(turn.tenant, turn.size)
            turn.came.set_result(None)


@dataclass(eq=False)
class _Place:
    tenant: str
    size: int
    came: asyncio.Future[None]


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
        self._reading = FairThread("laura-prompts")
        # Apart: a template that takes its time must not hold up who needs none.
        self._rendering = FairThread("laura-templates")
        self._compiling = FairThread("laura-schemas")
        self._known = set[bytes]()
        self._template: TemplateProcess | None = None
        with suppress(DataError):  # then nobody can chat, but everything else can be asked
            special, text = json.dumps(tokenizer.special_tokens_map), chat_template(tokenizer)
            self._template = kept(TemplateProcess, text, special)
            self.calls, self._knows_tools = format_of(text), knows_tools(text)

    def warm(self) -> None:
        """Begin to start what the first request would otherwise wait for."""
        if self._template is not None:
            self._template.start()

    async def request(self, kind: type[Body], body: bytes, tenant: Tenant) -> Body:
        """The request that a body holds.

        Raises:
            ApiError: it holds none; its first faults are told.
        """
        most = MOST_VALUES + self._most_tokens()

        def read() -> Body:
            check_values(body, most)
            try:
                return kind.model_validate_json(body)
            except ValidationError as error:
                raise of_validation(error.errors(include_url=False, include_input=False)) from None

        if len(body) <= SMALL_BODY:
            return read()
        return await self._reading.do(tenant, len(body), read)

    def least_tokens(self, texts: Sequence[str | list[int]]) -> int:
        """Fewest tokens that texts, or prompts of tokens, can come to."""
        return sum(
            -(-len(one) // self._longest_piece) if isinstance(one, str) else len(one)
            for one in texts
        )

    async def check(self, grammar: Grammar, tenant: Tenant, field: str, words: str) -> None:
        """Try a grammar where it harms nobody, before an engine gets it.

        Args:
            grammar: What an answer shall be.
            tenant: Whose it is.
            field: Of the request, that says so.
            words: What the refusal begins with.

        Raises:
            ApiError: it cannot be used.
        """
        digest = sha256(f"{grammar.kind} {grammar.text}".encode()).digest()
        if digest in self._known:
            return

        def compile() -> None:
            self._grammars.check(grammar.source)

        try:
            await self._compiling.do(tenant, len(grammar.text), compile)
        except (ConfinedFault, ValueError) as fault:
            raise bad_request(f"{words}: {fault}", field) from None
        if len(self._known) >= MOST_KNOWN:
            self._known.clear()
        self._known.add(digest)

    async def chat(
        self, messages: list[ChatMessage], tenant: Tenant, tools: Sequence[FunctionTool] = ()
    ) -> tuple[int, ...]:
        """Tokens after which the model writes its next message.

        Args:
            messages: The conversation.
            tenant: Whose it is.
            tools: Functions that the model may call.

        Raises:
            ApiError: the base has no chat template, the template refuses the messages, or
                they are too long.
        """
        template = self._template
        if template is None:
            raise bad_request(
                "this base has no chat template, so it cannot chat; use /v1/completions",
                "messages",
                "no_chat_template",
            )
        plain = [_plain(one) for one in messages]
        told = [
            {"type": "function", "function": one.model_dump(exclude_none=True)} for one in tools
        ]
        if not self._knows_tools:
            plain, told = in_words(plain, told), []
        # Of tools and calls all is counted, though a template may leave some out.
        size = sum(len(one["content"] or "") for one in plain) + len(json.dumps(told))
        self._check_length(size, "characters", "messages")
        most = self._most_tokens() * self._longest_piece
        try:
            text = await self._rendering.do(
                tenant, size, lambda: template.render(plain, most, told or None)
            )
        except ConfinedFault as fault:
            raise bad_request(
                f"the base's chat template refuses these messages: {fault}", "messages"
            ) from None

        def encode() -> tuple[int, ...]:
            return self._checked(self._encode(text, "messages", special=False), "messages")

        return await self._reading.do(tenant, len(text), encode)

    async def texts(
        self, prompts: list[str] | list[list[int]], tenant: Tenant, special: bool = True
    ) -> list[tuple[int, ...]]:
        """Tokens of each prompt.

        Args:
            prompts: As they came.
            tenant: Whose they are.
            special: Whether texts get the special tokens that the tokenizer puts around them.

        Raises:
            ApiError: a prompt is empty, too long, or holds no token of this base.
        """
        for prompt in prompts:
            if isinstance(prompt, str):
                self._check_length(len(prompt), "characters", "prompt")
        size = sum(map(len, prompts))
        return await self._reading.do(
            tenant, size, lambda: [self._prompt(one, special) for one in prompts]
        )

    async def echoes(self, prompts: list[str] | list[list[int]], tenant: Tenant) -> list[str]:
        """The texts that an answer with echo begins with."""
        decode = self._tokenizer.decode
        return await self._reading.do(
            tenant,
            sum(map(len, prompts)),
            lambda: [one if isinstance(one, str) else str(decode(one)) for one in prompts],
        )

    @cached_property
    def _grammars(self) -> GrammarProcess:
        text, limits = tokenizer_text(self._tokenizer), json.dumps(LIMITS)
        process: GrammarProcess = kept(GrammarProcess, text, limits)
        return process

    def close(self) -> None:
        """End the threads."""
        self._reading.close()
        self._rendering.close()
        self._compiling.close()

    def _prompt(self, prompt: str | list[int], special: bool) -> tuple[int, ...]:
        if isinstance(prompt, list):
            wrong = next((one for one in prompt if one >= self._ids), None)
            if wrong is not None:
                raise bad_request(
                    f"token id {wrong} came, but this base's are 0 to {self._ids - 1}", "prompt"
                )
            return self._checked(prompt, "prompt")
        begin = self._tokenizer.bos_token
        doubled = bool(begin) and prompt.startswith(begin)
        tokens = self._encode(prompt, "prompt", special=special and not doubled)
        return self._checked(tokens, "prompt")

    def _encode(self, text: str, field: Field, special: bool) -> list[int]:
        # What is far too long is known before all of it is read. Prompts that fit have some four
        # letters a token, and are not read twice.
        most, tokens = 2 * self._most_tokens(), 0
        for start in range(0, len(text), PIECE) if len(text) > max(4 * most, PIECE) else ():
            piece = text[start : start + PIECE]
            tokens += len(self._tokenizer.encode(piece, add_special_tokens=False, verbose=False))
            if tokens > most:
                raise self._too_long(f"more than {start} characters", field)
        return list(self._tokenizer.encode(text, add_special_tokens=special, verbose=False))

    def _checked(self, tokens: list[int], field: Field) -> tuple[int, ...]:
        if not tokens:
            raise bad_request("the prompt has no tokens, so nothing can follow it", field)
        self._check_length(len(tokens), "tokens", field)
        return tuple(tokens)

    def _check_length(self, came: int, unit: Literal["characters", "tokens"], field: Field) -> None:
        most = self._most_tokens()
        # No text of so many characters has fewer tokens than are allowed.
        if came > most * (self._longest_piece if unit == "characters" else 1):
            raise self._too_long(f"{came} {unit}", field)

    def _too_long(self, came: str, field: Field) -> ApiError:
        return too_long(self._most_tokens(), f"your {field} came to {came}", field)


def too_long(most: int, came: str, field: Field) -> ApiError:
    """What does not fit, in OpenAI's words: clients know it by them."""
    return bad_request(
        f"This model's maximum context length is {most} tokens. However, {came}. Please reduce the "
        f"length of the {field} or completion.",
        field,
        "context_length_exceeded",
    )


def check_values(body: bytes, most: int) -> None:
    """Refuse a JSON text with too many values, before it is read; takes a few ms a MiB.

    Raises:
        ApiError: it has more than `most`.
    """
    if sum(map(body.count, _MARKS)) <= most:
        return
    # Most of the marks may stand in texts.
    plain = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    if plain.count(b'"') <= 4 * most:
        outside = b"".join(plain.split(b'"')[::2])
        if sum(map(outside.count, _MARKS)) <= most:
            return
    raise bad_request(
        f"the body holds more than {most} values; send several requests", code="body_too_complex"
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


def _plain(message: ChatMessage) -> dict[str, Any]:
    """A message as chat templates know it: "developer" is OpenAI's newer name of "system"."""
    role = "system" if message.role == "developer" else message.role
    found: dict[str, Any] = {"role": role, "content": message.text}
    if message.tool_call_id is not None:
        found["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        found["tool_calls"] = [
            {
                "id": one.id,
                "type": one.type,
                "function": {
                    "name": one.function.name,
                    "arguments": json.loads(one.function.arguments or "{}"),
                },
            }
            for one in message.tool_calls
        ]
    return found
