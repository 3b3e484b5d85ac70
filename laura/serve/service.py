"""Between HTTP and the engine: which model, whose request, how much; then its sequences begin."""

from __future__ import annotations

import asyncio
import math
import secrets
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

from laura.engine.requests import Grammar
from laura.serve.accounts import Admission, Limits
from laura.serve.answers import ChatSerializer, CompletionSerializer, Generation, Serializer
from laura.serve.auth import LOCAL, Tenant, Tenants, TenantsFile, may_use
from laura.serve.context import RequestContext, RequestLog
from laura.serve.database import Database
from laura.serve.engines import AdapterFiles, SequenceRequest, ServingEngine
from laura.serve.library import AdapterRefusedError, UnknownAdapterError, short_record
from laura.serve.prompts import Body, Field, Prompter, TokenTexts, too_long
from laura.serve.schemas import (
    INT64,
    ApiError,
    ChatCompletionRequest,
    CompletionRequest,
    GenerationRequest,
    ModelCard,
    TokenizeRequest,
    TokenizeResponse,
    adapter_refused,
    bad_request,
    unknown_model,
)
from laura.serve.settings import ServeSettings
from laura.serve.tenant_changes import replace, stored_tenants
from laura.serve.tools import NO_ARGUMENTS, CallScanner, Format, calls_grammar

if TYPE_CHECKING:
    from laura.results.schema import Record
    from laura.serve.library import Entry, Library

T = TypeVar("T")

DISK_THREADS = 4
COMPLETION_TOKENS = 16  # OpenAI's default where a completion names no limit
LEAST_TEMPERATURE = 1e-6
# So often a gate says that it lives and looks for changes; what it knows is never older than the
# second when a key is judged by it.
BEAT_SECONDS, FRESH_SECONDS = 0.5, 0.9
# Log-probabilities of one request and of all that run; each takes 0.8 KiB until it is sent.
MOST_SCORES, MOST_HELD_SCORES = 1 << 18, 1 << 20


class Service:
    """What the routes stand on.

    Args:
        settings: Of the HTTP server.
        engine: Answers.
        library: The adapters there are.
        database: Who may come, and what they used; None for a server of this machine alone.
        log: Where requests are written down.

    Attributes:
        tenants: Who may come, as it was a moment ago; None for a server of this machine alone.
        stopping: Whether nothing new is taken.
    """

    def __init__(
        self,
        settings: ServeSettings,
        engine: ServingEngine,
        library: Library,
        database: Database | None,
        log: RequestLog,
    ) -> None:
        self.settings, self.engine, self.library = settings, engine, library
        self.log = log
        self.tenants: Tenants | None = None
        if database is None:
            self.database = Database()
            replace(self.database, TenantsFile.model_validate({"tenants": {LOCAL.name: {}}}))
        else:
            self.database = database
            self._read_tenants()
        self.limits = Limits(self.database)
        self.limits.accounts.beat()
        self._looked, self._looking = -math.inf, asyncio.Lock()
        self._keeping: asyncio.Task[None] | None = None
        self._scores = 0
        self.started = time.time()
        self.stopping = False
        self._disk = ThreadPoolExecutor(DISK_THREADS, thread_name_prefix="laura-adapters")
        self._opening: dict[str, asyncio.Task[AdapterFiles]] = {}
        self._names = frozenset(library.names())
        self._prompter = Prompter(engine.tokenizer, self._most_prompt_tokens)
        self._texts = TokenTexts(engine.tokenizer)

    def warm(self) -> None:
        """Begin to start what the first requests would wait for, and say that this gate lives."""
        self._prompter.warm()
        self._keeping = asyncio.create_task(self._keep())

    async def identify(self, context: RequestContext, key: str | None) -> None:
        """Note whose request it is; nobody's without a valid key.

        Raises:
            ApiError: the database does not answer, so nobody knows whether the key still opens.
        """
        if self.tenants is None:
            context.tenant, context.admin = LOCAL, True
        elif key is not None:
            if time.monotonic() - self._looked > FRESH_SECONDS:
                await self._look_again()
            tenant, valid = self.tenants.find(key)
            context.tenant, context.admin = tenant if valid else None, self.tenants.is_admin(key)
            context.expired = None if valid or tenant is None else tenant.name

    def check_ready(self) -> None:
        """Refuse what cannot be answered now.

        Raises:
            ApiError: the engine is not ready, or the server is stopping.
        """
        if self.stopping:
            raise ApiError(503, "the server is stopping; try again", "stopping", retry_after=1)
        self.database.check()
        state = self.engine.state()
        if not state.ready:
            why = f" ({state.why_not})" if state.why_not else ""
            raise ApiError(503, f"the server is not ready{why}", "not_ready", retry_after=2)

    def failed(self, context: RequestContext, error: Exception) -> ApiError:
        """Log a mistake of ours; what the client hears of it."""
        trace = "".join(traceback.format_exception(error))
        self.log.write({"request_id": context.id, "bug": True, "traceback": trace})
        context.code = "server_error"
        words = f"the server made a mistake; its log has more under {context.id}"
        return ApiError(500, words, context.code)

    def find(self, tenant: Tenant, name: str) -> str | None:
        """The adapter of a name that a tenant gave; None for the base.

        Names that the tenant may not use are not looked up at all: the answer and its time
        are the same whether there is such an adapter or not.

        Raises:
            ApiError: there is none for this tenant.
        """
        adapter = None if name == self.settings.base else name
        if not may_use(tenant, adapter) or not (adapter is None or self.knows(adapter)):
            raise unknown_model(name)
        return adapter

    async def models(self, tenant: Tenant) -> list[ModelCard]:
        """The base and the adapters that a tenant may use, the base first."""
        base = [self._card(None)] if may_use(tenant, None) else []
        entries = await self.entries([name for name in self._names if may_use(tenant, name)])
        return base + [self._card(entry) for entry in entries if entry.refused is None]

    async def model(self, tenant: Tenant, name: str) -> ModelCard:
        """One of them.

        Raises:
            ApiError: there is none for this tenant, or it is refused.
        """
        adapter = self.find(tenant, name)
        if adapter is None:
            return self._card(None)
        entries = await self.entries([adapter])
        if not entries:
            raise unknown_model(name)
        if entries[0].refused is not None:
            raise adapter_refused(entries[0].refused)
        return self._card(entries[0])

    async def entries(self, names: Iterable[str] | None = None) -> list[Entry]:
        """What is known of adapters, by name; of all by default."""
        wanted = sorted(self._names if names is None else names)

        def look() -> list[Entry]:
            found = []
            for name in wanted:
                with suppress(UnknownAdapterError):  # it may have gone a moment ago
                    found.append(self.library.entry(name))
            return found

        return await self._from_disk(look)

    async def files(self, adapter: str) -> AdapterFiles:
        """The checked files of an adapter.

        Raises:
            ApiError: a check failed, or it has gone.
        """
        # Reading a large adapter takes a while: all who ask for it wait for one reading.
        opening = self._opening.get(adapter)
        if opening is None:
            opening = asyncio.create_task(self._from_disk(lambda: self.library.open(adapter)))
            self._opening[adapter] = opening
            opening.add_done_callback(lambda done: self._opened(adapter, done))
        try:
            return await asyncio.shield(opening)
        except UnknownAdapterError:
            raise unknown_model(adapter) from None
        except AdapterRefusedError as error:
            raise adapter_refused(str(error)) from error

    def knows(self, adapter: str) -> bool:
        """Whether there is such an adapter."""
        return adapter in self._names

    async def rescan(self) -> None:
        """Look for new, changed and gone adapters."""
        await self._from_disk(self.library.rescan)
        self._names = frozenset(self.library.names())

    async def read(self, context: RequestContext, kind: type[Body], body: bytes) -> Body:
        """What a request wants, of its body.

        Raises:
            ApiError: the body is no such request, or nothing can be answered now.
        """
        self.check_ready()
        return await self._prompter.request(kind, body, context.need_tenant())

    async def tokenize(
        self, context: RequestContext, admission: Admission, request: TokenizeRequest
    ) -> TokenizeResponse:
        """The tokens of a prompt; nothing is charged for them.

        Raises:
            ApiError: it is refused.
        """
        tenant = context.need_tenant()
        if request.model is not None:
            self.find(tenant, request.model)
        await self.limits.reserve(admission, self._prompter.least_tokens(_texts(request)))
        if request.messages is not None:
            tokens = await self._prompter.chat(request.messages, tenant)
        else:
            special = request.add_special_tokens is not False
            (tokens,) = await self._prompter.texts([request.prompt or ""], tenant, special)
        context.prompt_tokens = len(tokens)
        return TokenizeResponse(
            count=len(tokens), max_model_len=self.engine.context_tokens, tokens=list(tokens)
        )

    async def begin(
        self, context: RequestContext, admission: Admission, request: GenerationRequest
    ) -> Generation:
        """Put what a request wants into the engine's queue.

        Raises:
            ApiError: it is refused; nothing of it is left anywhere.
        """
        tenant = context.need_tenant()
        adapter = self.find(tenant, request.model)
        context.adapter, context.stream = adapter or "base", bool(request.stream)
        _check_size(request, self.settings)
        # Whoever has no tokens left is refused before their prompts take the time of others.
        await self.limits.reserve(admission, self._prompter.least_tokens(_texts(request)))
        grammar = await self._grammar(request, tenant)
        prompts, echoes = await self._prompts(request, tenant)
        sequences = self._sequences(context, request, prompts, adapter, grammar)
        context.prompt_tokens = sum(map(len, prompts))
        # The most that they can use.
        tokens = sum(len(one.prompt) + one.max_new_tokens for one in sequences)
        await self.limits.reserve(admission, tokens)
        self._hold_scores(context, sequences)
        serializer = self._serializer(context, request, len(sequences), echoes)
        generation = Generation(context, serializer, self.settings.request_seconds)
        try:
            files = None if adapter is None else await self.files(adapter)
            generation.begin(self.engine, sequences, files)
        except BaseException:
            generation.close()
            raise
        return generation

    def settle(self, context: RequestContext, admission: Admission) -> None:
        """End a request, however it ended: what was computed for it is charged."""
        self.limits.settle(admission, context.used_tokens)
        self._scores -= context.scores

    def close(self) -> None:
        """End the threads that read prompts and adapters, and leave the database."""
        if self._keeping is not None:
            self._keeping.cancel()
        self.limits.close()
        self.database.close()
        self._disk.shutdown(wait=False, cancel_futures=True)
        self._prompter.close()

    async def _keep(self) -> None:
        while True:
            with suppress(ApiError):
                await self._look()
            await asyncio.sleep(BEAT_SECONDS)

    async def _look_again(self) -> None:
        """Look at the database, where another has not just done so."""
        self.database.check()
        async with self._looking:
            self.database.check()
            if time.monotonic() - self._looked > FRESH_SECONDS:
                await self._look()

    async def _look(self) -> None:
        """Say that this gate lives, and take over what was changed.

        Raises:
            ApiError: the database does not answer.
        """
        database, began, before = self.database, time.monotonic(), self.database.why_not
        try:
            revision = await database.run(self.limits.accounts.beat)
            if self.tenants is not None and revision != self._revision:
                await database.run(self._read_tenants)
        except ApiError as error:
            database.why_not = str(error.__cause__)
            raise
        else:
            database.why_not, self._looked = None, began
            self.limits.settle_left()
        finally:
            if database.why_not != before:
                self.log.write({"database": database.why_not or "answers again"})

    def _read_tenants(self) -> None:
        file, self._revision = stored_tenants(self.database)
        self.tenants = Tenants.of(file)

    async def _from_disk(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._disk, work)

    def _opened(self, adapter: str, done: asyncio.Task[AdapterFiles]) -> None:
        del self._opening[adapter]
        if not done.cancelled():
            done.exception()  # whoever waited has heard of it, or has gone

    def _most_prompt_tokens(self) -> int:
        context = self.engine.context_tokens  # known once the engine is ready
        return min(self.settings.prompt_tokens or context, context)

    def _hold_scores(self, context: RequestContext, sequences: Sequence[SequenceRequest]) -> None:
        """Note how many log-probabilities a request may come to, which all lie in memory.

        Raises:
            ApiError: too many for one request, or for all that run.
        """
        scores = 0
        for one in sequences:
            if one.top_logprobs is not None:
                read = len(one.prompt) if one.prompt_logprobs else 0
                scores += (read + one.max_new_tokens) * (1 + one.top_logprobs)
        if scores > MOST_SCORES:
            raise bad_request(
                f"up to {scores:,} log-probabilities are asked for; at most {MOST_SCORES:,} are "
                "given in one answer. Ask for fewer tokens, answers, or most likely tokens",
                "logprobs",
            )
        if self._scores + scores > MOST_HELD_SCORES:
            words = "too many log-probabilities are asked for at the moment; try again"
            raise ApiError(429, words, "queue_full", retry_after=5)
        self._scores += scores
        context.scores = scores

    async def _grammar(self, request: GenerationRequest, tenant: Tenant) -> Grammar | None:
        """What the answers must be, if anything; it can be used.

        Raises:
            ApiError: it cannot.
        """
        grammar, field, words = request.grammar, request.grammar_field, "Invalid structured_outputs"
        if request.response_format is not None and request.response_format.json_schema is not None:
            named = request.response_format.json_schema.name
            words = f"Invalid schema for response_format {named!r}"
        if isinstance(request, ChatCompletionRequest) and request.must_call:
            tools = request.callable_tools
            functions = [(one.name, one.parameters or NO_ARGUMENTS) for one in tools]
            grammar = calls_grammar(functions, request.most_calls)
            field, words = "tools", f"Invalid schema for function {' or '.join(dict(functions))}"
        if grammar is not None:
            await self._prompter.check(grammar, tenant, field, words)
        return grammar

    async def _prompts(
        self, request: GenerationRequest, tenant: Tenant
    ) -> tuple[list[tuple[int, ...]], list[str] | None]:
        """Tokens of a request's prompts, and the texts that its answers begin with, if any."""
        if isinstance(request, ChatCompletionRequest):
            tools = request.callable_tools
            return [await self._prompter.chat(request.messages, tenant, tools)], None
        special = request.add_special_tokens is not False
        prompts = await self._prompter.texts(request.prompt, tenant, special)
        if not request.echo:
            return prompts, None
        texts = await self._prompter.echoes(request.prompt, tenant)
        return prompts, [text for text in texts for _ in range(request.n or 1)]

    def _sequences(
        self,
        context: RequestContext,
        request: GenerationRequest,
        prompts: Sequence[tuple[int, ...]],
        adapter: str | None,
        grammar: Grammar | None,
    ) -> list[SequenceRequest]:
        """One sequence for each answer: all of the first prompt, then all of the second.

        The first answer to a prompt has the request's own seed, so that it does not depend
        on n or on the other prompts.
        """
        tenant = context.need_tenant()
        seed = secrets.randbits(63) if request.seed is None else request.seed % INT64
        if isinstance(request, CompletionRequest):
            echo, top = bool(request.echo), request.logprobs
        else:
            echo, top = False, (request.top_logprobs or 0) if request.logprobs else None
        budgets = [self._budget(request, len(prompt)) for prompt in prompts]
        return [
            SequenceRequest(
                id=f"{context.id}-{place}-{choice}",
                tenant=tenant.name,
                prompt=prompt,
                max_new_tokens=budget,
                priority=tenant.priority,
                adapter=adapter,
                temperature=1.0 if request.temperature is None else float(request.temperature),
                top_p=1.0 if request.top_p is None else float(request.top_p),
                top_k=max(request.top_k or 0, 0),  # vLLM writes -1 for all
                seed=(seed + choice) % INT64,
                stop=tuple(request.stop),
                top_logprobs=top,
                # An answer of no tokens is wanted by way of the prompt's scores.
                prompt_logprobs=echo and (top is not None or budget == 0),
                ignore_end=bool(request.ignore_eos),
                min_new_tokens=request.min_tokens or 0,
                grammar=grammar,
            )
            for place, (prompt, budget) in enumerate(zip(prompts, budgets, strict=True))
            for choice in range(request.n or 1)
        ]

    def _budget(self, request: GenerationRequest, prompt: int) -> int:
        """Most new tokens after a prompt of so many tokens."""
        context, settings = self.engine.context_tokens, self.settings
        left = context - prompt
        most = left if settings.new_tokens is None else min(left, settings.new_tokens)
        field: Field = "prompt"
        if isinstance(request, ChatCompletionRequest):
            field, asked, default = "messages", request.most_new_tokens, settings.default_new_tokens
        else:
            asked, default = request.max_tokens, COMPLETION_TOKENS
        if asked is None:
            asked = min(default, max(most, 1))
        if asked > left:
            came = f"you requested {prompt + asked} tokens ({prompt} in the {field}, {asked} in the"
            raise too_long(context, f"{came} completion)", field)
        if asked > most:
            raise bad_request(
                f"{asked} new tokens are asked for; this server gives at most {most}", "max_tokens"
            )
        if request.min_tokens is not None and request.min_tokens > asked:
            raise bad_request(
                f"at least {request.min_tokens} new tokens are asked for, and at most {asked}",
                "min_tokens",
            )
        return asked

    def _serializer(
        self,
        context: RequestContext,
        request: GenerationRequest,
        choices: int,
        echoes: list[str] | None,
    ) -> Serializer:
        kind = "chatcmpl" if isinstance(request, ChatCompletionRequest) else "cmpl"
        heading = {
            "id": f"{kind}-{context.id}",
            "created": int(time.time()),
            "model": request.model,
            "system_fingerprint": f"laura-{self.engine.fingerprint[:12]}",
        }
        if isinstance(request, ChatCompletionRequest):
            scanners = self._scanners(request, choices)
            return ChatSerializer(heading, self._texts, choices, bool(request.logprobs), scanners)
        return CompletionSerializer(
            heading, self._texts, choices, request.logprobs is not None, echoes
        )

    def _scanners(self, request: ChatCompletionRequest, choices: int) -> list[CallScanner]:
        """What finds calls in each answer; nothing where none may be called.

        Raises:
            ApiError: it is not known how the base calls.
        """
        if not request.callable_tools:
            return []
        form: Format | None = "bare" if request.must_call else self._prompter.calls
        if form is None:
            raise bad_request(
                "it is not known how this base calls tools; give tool_choice: required, or the "
                "name of a function",
                "tools",
                "unsupported_value",
            )
        return [CallScanner(form, request.most_calls) for _ in range(choices)]

    def _card(self, entry: Entry | None) -> ModelCard:
        """How an adapter, or the base, is listed."""
        base = self.settings.base
        record: Record | None = entry.record if entry else self.library.base.record
        return ModelCard(
            id=entry.name if entry else base,
            object="model",
            created=int(entry.created if entry else self.started),
            owned_by="laura",
            root=base,
            parent=base if entry else None,
            max_model_len=self.engine.context_tokens,
            laura={
                "record": short_record(record),
                "warnings": list(entry.warnings) if entry else [],
            },
        )


def _texts(request: GenerationRequest | TokenizeRequest) -> list[str] | list[list[int]]:
    """What is asked, as it came."""
    if isinstance(request, CompletionRequest):
        return request.prompt
    if isinstance(request, TokenizeRequest) and request.prompt is not None:
        return [request.prompt]
    return [one.text for one in request.messages or ()]


def _check_size(request: GenerationRequest, settings: ServeSettings) -> None:
    """Refuse what is too much or too little for one request, before anything is read."""
    prompts = len(request.prompt) if isinstance(request, CompletionRequest) else 1
    if prompts * (request.n or 1) > settings.sequences:
        raise bad_request(
            f"{prompts} prompts with n = {request.n or 1} came; {settings.sequences} answers are "
            "the most of one request. Send several requests",
            "prompt",
        )
    temperature = request.temperature
    if temperature is not None and 0 < temperature < LEAST_TEMPERATURE:
        raise bad_request(
            f"temperature is {temperature:g}; allowed are 0 and {LEAST_TEMPERATURE:g} to 2",
            "temperature",
        )
