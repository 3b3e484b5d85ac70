"""A base and adapters on it, loaded into this process for `laura chat`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from laura.data.templates import chat_prompts, end_tokens
from laura.errors import UsageError
from laura.models.adapters import load_adapters
from laura.models.device import resolve_precision
from laura.models.engine import Engine
from laura.models.load import Base, load_base
from laura.models.requests import GenerateAnswer, GenerateRequest
from laura.progress import SILENT, Progress
from laura.record import RECORD_FILE, read_record
from laura.serve.chatting import Member, Messages, Reply, Sampling
from laura.serve.short_record import short_record

BASE = "base"  # no adapter can be called so


class LoadedPanel:
    """Answers with the engine of evaluation: all models in one batch.

    Args:
        model: Registry name, folder, GGUF file or Hub id of the base.
        adapters: Name to folder of a PEFT adapter on it.
        device: Device name; None for the best there is.
        progress: Where loading is reported.

    Raises:
        ModelError: the base cannot be used.
        AdapterError: an adapter does not fit it.
        StoreError: an adapter's laura.json is damaged.
    """

    def __init__(
        self,
        model: str,
        adapters: Mapping[str, Path],
        device: str | None = None,
        progress: Progress = SILENT,
    ) -> None:
        base = load_base(model, device=device, progress=progress)
        if adapters:
            load_adapters(base.model, list(adapters.values()))
        slots = {name: slot for slot, name in enumerate(adapters)}
        precision = resolve_precision("auto", base.model.device)
        self._engine = Engine(base.model, base.tokenizer, precision, adapters=slots)
        self._base = base
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
        names = list(conversations)
        requests = [self._request(name, conversations[name], sampling) for name in names]

        def found(number: int, answer: GenerateAnswer) -> None:
            reply = replies[names[number]]
            reply.text, reply.tokens = answer.text, answer.tokens
            reply.finish = "length" if answer.finish == "length" else "stop"

        self._engine.generate(requests, found=found)

    def _request(self, name: str, messages: Messages, sampling: Sampling) -> GenerateRequest:
        adapter = None if name == BASE else name
        prompt = self._prompt(messages)
        tokens = len(self._base.tokenizer.encode(prompt))
        most = self._engine.encoder.context_tokens
        if tokens + sampling.max_tokens > most:
            raise UsageError(
                f"the conversation has {tokens} tokens and the answer may have "
                f"{sampling.max_tokens}, but this base reads {most} together; begin anew with "
                "/clear, or lower --max-tokens"
            )
        return GenerateRequest(
            prompt,
            self._stops(),
            sampling.max_tokens,
            temperature=sampling.temperature,
            seed=sampling.seed,
            adapter=adapter,
        )

    def _prompt(self, messages: Messages) -> str:
        if self._has_template:
            return chat_prompts(self._base.tokenizer)(messages)
        # Such a base was never taught what a conversation is: each question stands alone.
        return messages[-1]["content"] + "\n\n"

    def _stops(self) -> tuple[str, ...]:
        """Special tokens that end an answer in the chat template, beside the end token."""
        if not self._has_template:
            return ()
        tokenizer = self._base.tokenizer
        return tuple(tokenizer.convert_ids_to_tokens(sorted(end_tokens(tokenizer))))


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
