"""A base and adapters on it, loaded into this process for `laura chat`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from laura.data.templates import chat_prompts
from laura.engine.adapter_slots import Slot
from laura.engine.model_runner import FusedRunner
from laura.engine.requests import GenerateRequest
from laura.engine.sampler import check_settings, draw_of
from laura.engine.scheduler import Scheduler, StepOutput, TokenSequence
from laura.models.adapter_files import read_adapter
from laura.models.device import cache_budget, keep_freed_memory, resolve_precision
from laura.models.encoding import Encoder
from laura.models.load import Base, load_base
from laura.models.oft import with_turns
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
        runner = FusedRunner(
            base.model,
            resolve_precision("auto", base.model.device),
            slots=max(1, len(read)),
            max_rank=max((settings.largest_rank for settings, _ in read.values()), default=1),
        )
        memory = cache_budget(base.model.device)
        self._scheduler = Scheduler(runner, base.tokenizer, cache_bytes=memory)
        self._slots: dict[str, Slot | None] = {BASE: None}
        for name, (settings, tensors) in read.items():
            turned = with_turns(settings, tensors)
            self._slots[name] = runner.slots.place(name, name, settings, turned)
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
            self._sequence(name, messages, sampling): replies[name]
            for name, messages in conversations.items()
        }
        try:
            self._run(asked)
        finally:
            for one in asked:
                self._scheduler.drop(one)

    def _run(self, asked: Mapping[TokenSequence, Reply]) -> None:
        waiting = list(asked)
        # A step that is broken off would leave rows of which nobody knows how long they are.
        with interrupts_postponed() as rest:
            while waiting or self._scheduler.busy:
                rest()
                waiting = [one for one in waiting if not self._scheduler.add(one)]
                for output in self._scheduler.step():
                    _tell(output, asked[output.sequence])

    def _sequence(self, name: str, messages: Messages, sampling: Sampling) -> TokenSequence:
        text = self._prompt(messages)
        tokens = len(self._base.tokenizer.encode(text))
        most = self._scheduler.context_tokens
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
        return TokenSequence(
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


def _tell(output: StepOutput, reply: Reply) -> None:
    reply.text += output.delta.text
    if output.fault:
        reply.finish, reply.error = "failed", output.fault
    elif output.finish:
        reply.finish = "length" if output.finish == "length" else "stop"
        reply.tokens = len(output.sequence.tokens)


def _member(name: str, folder: Path, base: Base) -> Member:
    if not (folder / RECORD_FILE).is_file():
        return Member(name, False)
    record = read_record(folder)
    warnings = record.warnings
    if record.base.fingerprint != base.fingerprint:
        warnings = (
            f"{RECORD_FILE} says that it was trained on {record.base.model} with other weights "
            "than this base",
        )
    return Member(name, False, short_record(record), warnings)
