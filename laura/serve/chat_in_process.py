"""A base and adapters on it, loaded into this process for `laura chat`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from laura.data.templates import chat_prompts
from laura.engine.continuation import Continuation, News
from laura.engine.live import LiveEngine
from laura.engine.requests import GenerateRequest
from laura.engine.sampling import check_settings, draw_of
from laura.models.adapter_files import read_adapter
from laura.models.device import cache_budget, keep_freed_memory, resolve_precision
from laura.models.encoding import Encoder
from laura.models.load import Base, load_base
from laura.models.slots import Slot
from laura.results.errors import UsageError
from laura.results.interrupts import interrupts_postponed
from laura.results.progress import SILENT, Progress
from laura.results.schema import RECORD_FILE, read_record
from laura.serve.chatting import Member, Messages, Reply, Sampling
from laura.serve.library import short_record

BASE = "base"  # no adapter can be called so


class LoadedPanel:
    """Answers with the engine of the server: all models in one batch, word by word.

    Args:
        model: Registry name, folder, GGUF file or Hub id of the base.
        adapters: Name to folder of a PEFT adapter on it.
        device: Device name; None for the best there is.
        progress: Where loading is reported.

    Raises:
        ModelError: the base cannot be used.
        AdapterError: an adapter does not fit it, or the engine cannot carry it (DoRA).
        StoreError: an adapter's laura.json is damaged.
    """

    def __init__(
        self,
        model: str,
        adapters: Mapping[str, Path],
        device: str | None = None,
        progress: Progress = SILENT,
    ) -> None:
        read = {name: read_adapter(folder) for name, folder in adapters.items()}
        keep_freed_memory()
        base = self._base = load_base(model, device=device, progress=progress)
        self._engine = LiveEngine(
            base.model,
            base.tokenizer,
            precision=resolve_precision("auto", base.model.device),
            slots=max(1, len(read)),
            max_rank=max((settings.largest_rank for settings, _ in read.values()), default=1),
            cache_bytes=cache_budget(base.model.device),
        )
        self._slots: dict[str, Slot | None] = {BASE: None}
        for name, (settings, tensors) in read.items():
            self._slots[name] = self._engine.slots.place(name, name, settings, tensors)
        self._encoder = Encoder(base.tokenizer, base.model.config)
        self._has_template = bool(getattr(base.tokenizer, "chat_template", None))
        self.members = [Member(BASE, True)]
        self.members += [_member(name, folder, base) for name, folder in adapters.items()]

    def ask(
        self,
        conversations: dict[str, Messages],
        sampling: Sampling,
        replies: dict[str, Reply],
    ) -> None:
        """Answer every conversation; see `Panel`.

        Raises:
            UsageError: a conversation leaves no room for its answer.
        """
        asked = {
            self._continuation(name, messages, sampling): replies[name]
            for name, messages in conversations.items()
        }
        with self._engine:
            try:
                self._run(asked)
            finally:
                for one in asked:
                    self._engine.drop(one)

    def _run(self, asked: Mapping[Continuation, Reply]) -> None:
        waiting = list(asked)
        # A step that is broken off would leave rows of which nobody knows how long they are.
        with interrupts_postponed() as rest:
            while waiting or self._engine.busy:
                rest()
                waiting = [one for one in waiting if not self._engine.add(one)]
                for news in self._engine.step():
                    _tell(news, asked[news.of])

    def _continuation(self, name: str, messages: Messages, sampling: Sampling) -> Continuation:
        text = self._prompt(messages)
        tokens = len(self._base.tokenizer.encode(text))
        most = self._engine.context_tokens
        if tokens + sampling.max_tokens > most:
            raise UsageError(
                f"the conversation has {tokens} tokens and the answer may have "
                f"{sampling.max_tokens}, but this base reads {most} together; begin anew with "
                "/clear, or lower --max-tokens"
            )
        request = GenerateRequest(
            text,
            (),
            sampling.max_tokens,
            temperature=sampling.temperature,
            seed=sampling.seed,
        )
        check_settings(request)
        return Continuation(
            owner="chat",
            prompt=tuple(self._encoder.prompt(text, sampling.max_tokens)),
            limit=sampling.max_tokens,
            slot=self._slots[name],
            draw=draw_of(request),
        )

    def _prompt(self, messages: Messages) -> str:
        if self._has_template:
            return chat_prompts(self._base.tokenizer)(messages)
        # Such a base was never taught what a conversation is: each question stands alone.
        return messages[-1]["content"] + "\n\n"


def _tell(news: News, reply: Reply) -> None:
    reply.text += news.told.text
    if news.fault:
        reply.finish, reply.error = "failed", news.fault
    elif news.finish:
        reply.finish, reply.tokens = news.finish, len(news.of.tokens)


def _member(name: str, folder: Path, base: Base) -> Member:
    if not (folder / RECORD_FILE).is_file():
        return Member(name, False)
    record = read_record(folder)
    warnings: tuple[str, ...] = ()
    if record.base.fingerprint != base.fingerprint:
        warnings = (
            f"{RECORD_FILE} says that it was trained on {record.base.model} with other weights "
            "than this base",
        )
    return Member(name, False, short_record(record), warnings)
