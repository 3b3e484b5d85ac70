"""Between the door and the engine: which model, whose turn, how much, then the work."""

from __future__ import annotations

import asyncio
import time
import traceback
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from laura.serve.answers import ChatForm, CompletionForm, Form, Heading
from laura.serve.asks import asks_of, check_size, reserved_tokens
from laura.serve.audit import Audit
from laura.serve.chats import Prompter, TokenTexts
from laura.serve.engines import AdapterFiles, Ask, EngineError, Event, ServingEngine
from laura.serve.faults import HttpFault, of_engine, of_limit, unknown_model
from laura.serve.library import AdapterRefusedError, UnknownAdapterError
from laura.serve.limits import LimitError, Limits
from laura.serve.replies import ModelReply
from laura.serve.settings import ServeSettings
from laura.serve.short_record import short_record
from laura.serve.tenants import LOCAL, Found, Tenant, Tenants, may_use
from laura.serve.visits import RequestLog, Visit
from laura.serve.wire import ChatRequest, CompletionRequest
from laura.serve.work import Work, close_streams

if TYPE_CHECKING:
    from laura.serve.library import Entry, Library

Wanted = ChatRequest | CompletionRequest
T = TypeVar("T")

DISK_THREADS = 4


class Service:
    """What the routes stand on.

    Args:
        settings: Of the door.
        engine: Answers asks.
        library: The adapters there are.
        tenants: Who may come; None for a server of this machine alone.
        audit: Where admin actions are written down.
        log: Where requests are.

    Attributes:
        stopping: Whether nothing new is taken.
    """

    def __init__(
        self,
        settings: ServeSettings,
        engine: ServingEngine,
        library: Library,
        tenants: Tenants | None,
        audit: Audit,
        log: RequestLog,
    ) -> None:
        self.settings, self.engine, self.library = settings, engine, library
        self.tenants, self.audit, self.log = tenants, audit, log
        self.limits = Limits()
        self.started = time.time()
        self.stopping = False
        self._disk = ThreadPoolExecutor(DISK_THREADS, thread_name_prefix="laura-adapters")
        self._opening: dict[str, asyncio.Task[AdapterFiles]] = {}
        self._names = frozenset(library.names())
        self._tongue: tuple[Prompter, TokenTexts] | None = None

    def identify(self, visit: Visit, key: str | None) -> None:
        """Note whose request it is; nobody's without a valid key."""
        if self.tenants is None:
            visit.tenant, visit.admin = LOCAL, True
        elif key is not None:
            found: Found = self.tenants.find(key)
            visit.tenant = found.tenant if found.state == "valid" else None
            visit.admin = self.tenants.is_admin(key)
            if found.state == "expired" and found.tenant is not None:
                visit.expired = found.tenant.name

    def check_ready(self) -> None:
        """Refuse what cannot be answered now.

        Raises:
            HttpFault: the engine is not ready, or the server is stopping.
        """
        if self.stopping:
            raise HttpFault(503, "the server is stopping; try again", "stopping", retry_after=1)
        state = self.engine.state()
        if not state.ready:
            why = f" ({state.why_not})" if state.why_not else ""
            raise HttpFault(503, f"the server is not ready{why}", "not_ready", retry_after=2)

    def failed(self, visit: Visit, error: Exception) -> HttpFault:
        """Log a mistake of ours; what the client hears of it."""
        self.log.failed(visit, "".join(traceback.format_exception(error)))
        return HttpFault(
            500, f"the server made a mistake; its log has more under {visit.id}", "server_error"
        )

    def find(self, tenant: Tenant, name: str) -> str | None:
        """The adapter of a name that a tenant gave; None for the base.

        Names that the tenant may not use are not looked up at all: the answer and its time
        are the same whether there is such an adapter or not.

        Raises:
            HttpFault: there is none for this tenant.
        """
        adapter = None if name == self.settings.base else name
        if not may_use(tenant, adapter):
            raise unknown_model(name)
        if adapter is not None and adapter not in self._names:
            raise unknown_model(name)
        return adapter

    async def models(self, tenant: Tenant) -> list[ModelReply]:
        """The base and the adapters that a tenant may use, the base first."""
        base = [self._base_reply()] if may_use(tenant, None) else []
        entries = await self.entries([name for name in self._names if may_use(tenant, name)])
        return base + [self._reply(entry) for entry in entries if entry.refused is None]

    async def model(self, tenant: Tenant, name: str) -> ModelReply:
        """One of them.

        Raises:
            HttpFault: there is none for this tenant, or it is refused.
        """
        adapter = self.find(tenant, name)
        if adapter is None:
            return self._base_reply()
        entries = await self.entries([adapter])
        if not entries:
            raise unknown_model(name)
        if entries[0].refused is not None:
            raise _refused(entries[0].refused)
        return self._reply(entries[0])

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
            HttpFault: a check failed, or it has gone.
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
            raise _refused(str(error)) from error

    def knows(self, adapter: str) -> bool:
        """Whether there is such an adapter."""
        return adapter in self._names

    async def rescan(self) -> None:
        """Look for new, changed and gone adapters."""
        await self._from_disk(self.library.rescan)
        self._names = frozenset(self.library.names())

    async def begin(self, visit: Visit, wanted: Wanted) -> tuple[Work, Form]:
        """Put what is asked for into the engine's queue.

        Raises:
            HttpFault: it is refused; nothing of it is left anywhere.
        """
        tenant = visit.need_tenant()
        self.check_ready()
        adapter = self.find(tenant, wanted.model)
        visit.adapter, visit.stream = adapter or "base", bool(wanted.stream)
        check_size(wanted, self.settings)
        prompts, echoes = await self._read(wanted)
        asks = asks_of(visit, wanted, prompts, adapter, (self.settings, self.engine.context_tokens))
        visit.prompt_tokens = sum(map(len, prompts))
        try:
            admission = self.limits.admit(tenant, reserved_tokens(asks))
        except LimitError as error:
            raise of_limit(error) from error
        try:
            files = None if adapter is None else await self.files(adapter)
            streams = await self._submit(asks, files)
        except BaseException:
            self.limits.settle(admission, 0)
            raise
        work = Work(
            visit,
            streams,
            self.settings.request_seconds,
            lambda: self.limits.settle(admission, visit.used_tokens),
        )
        return work, self._form(visit, wanted, len(asks), echoes)

    def close(self) -> None:
        """End the threads that read prompts and adapters."""
        self._disk.shutdown(wait=False, cancel_futures=True)
        if self._tongue is not None:
            self._tongue[0].close()

    async def _from_disk(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._disk, work)

    def _opened(self, adapter: str, done: asyncio.Task[AdapterFiles]) -> None:
        del self._opening[adapter]
        if not done.cancelled():
            done.exception()  # whoever waited has heard of it, or has gone

    async def _read(self, wanted: Wanted) -> tuple[list[tuple[int, ...]], list[str] | None]:
        prompter, _ = self._speech()
        if isinstance(wanted, ChatRequest):
            return [await prompter.chat(wanted.messages)], None
        prompts = await prompter.texts(wanted.prompt)
        if not wanted.echo:
            return prompts, None
        texts = await prompter.echoes(wanted.prompt)
        return prompts, [text for text in texts for _ in range(wanted.n or 1)]

    async def _submit(
        self, asks: Sequence[Ask], files: AdapterFiles | None
    ) -> list[AsyncIterator[Event]]:
        streams: list[AsyncIterator[Event]] = []
        try:
            for ask in asks:
                streams.append(self.engine.submit(ask, files))
        except EngineError as error:
            await close_streams(streams)
            raise of_engine(error) from error
        return streams

    def _form(self, visit: Visit, wanted: Wanted, choices: int, echoes: list[str] | None) -> Form:
        kind = "chatcmpl" if isinstance(wanted, ChatRequest) else "cmpl"
        heading = Heading(f"{kind}-{visit.id}", wanted.model, self.fingerprint)
        _, texts = self._speech()
        if isinstance(wanted, ChatRequest):
            return ChatForm(heading, texts, choices, bool(wanted.logprobs))
        logprobs = wanted.logprobs is not None
        return CompletionForm(heading, texts, choices, logprobs, echoes)

    def _speech(self) -> tuple[Prompter, TokenTexts]:
        """Made when first needed: the engine has its tokenizer once it is ready."""
        if self._tongue is None:
            context = self.engine.context_tokens
            most = min(self.settings.prompt_tokens or context, context)
            tokenizer = self.engine.tokenizer
            self._tongue = Prompter(tokenizer, most), TokenTexts(tokenizer)
        return self._tongue

    @property
    def fingerprint(self) -> str:
        """Names the base's weights in every answer."""
        return f"laura-{self.engine.fingerprint[:12]}"

    def _base_reply(self) -> ModelReply:
        facts = {"record": short_record(self.library.base.record)}
        return self._model_reply(self.settings.base, int(self.started), None, facts)

    def _reply(self, entry: Entry) -> ModelReply:
        facts = {"record": short_record(entry.record), "warnings": list(entry.warnings)}
        return self._model_reply(entry.name, int(entry.created), self.settings.base, facts)

    def _model_reply(
        self, name: str, created: int, parent: str | None, facts: dict[str, Any]
    ) -> ModelReply:
        return ModelReply(
            id=name,
            object="model",
            created=created,
            owned_by="laura",
            root=self.settings.base,
            parent=parent,
            laura={"record": None, "warnings": [], **facts},
        )


def _refused(message: str) -> HttpFault:
    return HttpFault(400, message, "adapter_refused", "model")
