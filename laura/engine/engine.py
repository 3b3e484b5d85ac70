"""What every measurement asks of a model: log-likelihoods, answers, losses, divergences.

The engine runs whatever the model currently is, adapters attached or not, and
leaves it as it was. Documents are packed into rows without padding, logits exist
only where they are asked for and in chunks, so memory is bounded and a result
does not depend on its neighbours in the batch.

Shapes: T tokens of a packed row, N asked places of it, W hidden width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from laura.data.end_tokens import end_tokens
from laura.engine.decoding import Answer, Generation, Segments
from laura.engine.evaluating import evaluating
from laura.engine.key_values import Geometry, geometry_of
from laura.engine.narrow import narrow
from laura.engine.reading import Text, by_place, read_along, read_once, supervised
from laura.engine.requests import (
    FORGET,
    Direction,
    GenerateAnswer,
    GenerateFound,
    GenerateRequest,
    ScoreAnswer,
    ScoreFound,
    ScoreRequest,
    TokenDocument,
)
from laura.engine.sampling import check_settings, choose, draw_of
from laura.models.device import autocast, cache_budget, linear, pass_tokens
from laura.models.encoding import Encoder
from laura.models.lora import route
from laura.models.losses import CHUNK_POSITIONS, output_head
from laura.results.errors import ModelError, UsageError
from laura.results.progress import SILENT, Progress

Reference = nn.Module | Callable[[], AbstractContextManager[object]]
Found = Callable[[int, list[tuple[float, bool]]], None]


class Engine:
    """Runs a model for measurement, in this process.

    Args:
        model: A causal language model with attention "laura".
        tokenizer: Its tokenizer.
        precision: float32, or bfloat16 for mixed precision; sums of logarithms are
            float32 in both, and so are the logits of next tokens and divergences.
        row_tokens: Most tokens of a pass over packed texts; None for what suits the device.
        progress: Where work is reported.
        cache_bytes: Memory for the keys and values of `generate`; None for a share
            of what the device has free.
        adapters: Name to LoRA slot. Where it is empty, the model answers as it
            currently is, adapter attached or not; else a request without an
            adapter is answered by the base.

    Raises:
        ModelError: the model's output map is not a plain one.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        precision: torch.dtype = torch.float32,
        row_tokens: int | None = None,
        progress: Progress = SILENT,
        cache_bytes: int | None = None,
        adapters: Mapping[str, int] | None = None,
    ) -> None:
        self.model, self.tokenizer, self.precision = model, tokenizer, precision
        self.progress = progress
        self.adapters = dict(adapters or {})
        self.encoder = Encoder(tokenizer, model.config)
        self.head = output_head(model)
        self.device = self.head.weight.device
        self.row_tokens = row_tokens or pass_tokens(self.device)
        self.cache_bytes = cache_bytes or cache_budget(self.device)

    def score(
        self,
        requests: Sequence[ScoreRequest],
        *,
        known: Mapping[int, ScoreAnswer] | None = None,
        found: ScoreFound = FORGET,
    ) -> list[ScoreAnswer]:
        """Log-likelihood of every continuation, encoded exactly as lm-eval 0.4.13 does.

        What several requests read is computed once. The passes depend on the requests
        only, not on what is known, so an attempt that goes on finds the same numbers.

        Args:
            requests: What is scored.
            known: Answers of an earlier attempt, by number.
            found: Told every other answer as soon as it is there.

        Raises:
            DataError: a continuation has no tokens, or more than the model reads.
            UsageError: a request names an adapter the engine does not have.
        """
        known = known or {}
        texts: dict[tuple[int | None, tuple[int, ...]], Text] = {}
        parts: list[tuple[Text, int, int]] = []
        for number, request in enumerate(requests):
            context, continuation = self.encoder.pair(request.context, request.continuation)
            tokens = (context + continuation)[-(self.encoder.context_tokens + 1) :]
            key = (self._slot(request.adapter), tuple(tokens[:-1]))
            text = texts.setdefault(key, Text(key[1], key[0]))
            parts.append((text, len(text.asked), len(continuation)))
            text.asked += range(len(key[1]) - len(continuation), len(key[1]))
            text.targets += continuation
            text.requests.append(number)
        answers: dict[int, ScoreAnswer] = dict(known)
        wanted = list(texts.values())

        def deal(place: int, nats: list[tuple[float, bool]]) -> None:
            for number in wanted[place].requests:
                _, start, count = parts[number]
                own = nats[start : start + count]
                total = -sum(one for one, _ in own)
                answer = ScoreAnswer(total, all(best for _, best in own), count)
                if number not in answers:
                    answers[number] = answer
                    found(number, answer)

        done = {i for i, t in enumerate(wanted) if all(n in known for n in t.requests)}
        self._measure(wanted, "scoring", done, deal)
        return [answers[number] for number in range(len(requests))]

    def generate(
        self,
        requests: Sequence[GenerateRequest],
        *,
        known: Mapping[int, GenerateAnswer] | None = None,
        found: GenerateFound = FORGET,
    ) -> list[GenerateAnswer]:
        """Answers to prompts, which are encoded and cut from the left as lm-eval does.

        Args:
            requests: What is continued.
            known: Answers of an earlier attempt, by number.
            found: Told every other answer as soon as it has ended.

        Raises:
            UsageError: max_new_tokens is below 1 or leaves no room for a prompt, a
                sampling setting is out of range, or an adapter is unknown.
            DataError: a prompt is empty.
        """
        answers = dict(known or {})
        waiting = [
            self._answer(number, request)
            for number, request in enumerate(requests)
            if number not in answers
        ]

        def done(answer: Answer) -> None:
            answers[answer.number] = self._finished(answer)
            found(answer.number, answers[answer.number])

        if waiting:
            with (
                evaluating([self.model], self.precision, keep=[self.head]),
                narrow(self.model),
                self.progress.bar("generating", len(waiting), "answers") as bar,
            ):
                Generation(
                    self._read_on,
                    self._pick,
                    self._texts,
                    done,
                    geometry=self._geometry(),
                    end_ids=end_tokens(
                        self.tokenizer, getattr(self.model, "generation_config", None)
                    ),
                    budget_bytes=self.cache_bytes,
                    row_tokens=self.row_tokens,
                    device=self.device,
                    bar=bar,
                ).run(waiting)
        return [answers[number] for number in range(len(requests))]

    def document_losses(
        self, documents: Sequence[TokenDocument], adapter: str | None = None
    ) -> list[list[float]]:
        """Nats of every supervised token of every document, in order.

        The first token of a document is never among them.
        """
        slot = self._slot(adapter)
        texts = [supervised(document, slot) for document in documents]
        results: list[list[float]] = [[] for _ in texts]

        def deal(place: int, nats: list[tuple[float, bool]]) -> None:
            results[place] = [one for one, _ in nats]

        self._measure(texts, "measuring loss", set(), deal)
        return results

    def document_divergences(
        self,
        documents: Sequence[TokenDocument],
        reference: Reference,
        adapter: str | None = None,
        directions: Sequence[Direction] = ("forward",),
    ) -> dict[Direction, list[list[float]]]:
        """Divergences in nats where a supervised token is predicted, in one pass.

        Over the full vocabulary. `forward` is KL(reference || model), that is
        sum_v p_ref(v) (log p_ref(v) - log p(v)); `reverse` is KL(model || reference).
        Logits are float32 whatever the precision: rounding them to bfloat16 alone adds
        about 5e-4 nats (SmolLM2-135M on GSM8K), which would hide small divergences.

        Args:
            documents: What both models read.
            reference: Another model with the same vocabulary, or a callable whose
                context makes this model the reference (adapters switched off).
            adapter: Name of the engine's adapter that is measured.
            directions: Which divergences.

        Raises:
            ModelError: the vocabularies have different sizes.
        """
        module = reference if isinstance(reference, nn.Module) else self.model
        switch = nullcontext if isinstance(reference, nn.Module) else reference
        reference_head = output_head(module)
        if reference_head.weight.shape[0] != self.head.weight.shape[0]:
            raise ModelError(
                f"the reference has {reference_head.weight.shape[0]} tokens in its vocabulary, "
                f"the model {self.head.weight.shape[0]}; a divergence needs the same vocabulary"
            )
        texts = [supervised(document, None) for document in documents]
        readings = [text.reading for text in texts]
        results = {way: [[0.0] * len(text.asked) for text in texts] for way in directions}
        slot = self._slot(adapter)
        tokens = sum(len(reading.tokens) for reading in readings if reading.asked)
        with (
            evaluating([self.model, module], self.precision, keep=[self.head, reference_head]),
            self.progress.bar("measuring divergence", tokens, "tokens") as bar,
        ):
            for one, inputs, places in read_once(readings, self.row_tokens, self.device):
                with self._routed([(slot, one.tokens)]):
                    hidden = self._trunk(self.model, inputs)[places]
                with switch():
                    expected_hidden = self._trunk(module, inputs)[places]
                for start in range(0, len(places), CHUNK_POSITIONS):
                    part = slice(start, start + CHUNK_POSITIONS)
                    expected = self._log_probabilities(reference_head, expected_hidden[part])
                    given = self._log_probabilities(self.head, hidden[part])
                    for way, found in results.items():
                        p, q = (expected, given) if way == "forward" else (given, expected)
                        nats = (p.exp() * (p - q)).sum(-1).tolist()
                        for (reading, place, _), value in zip(one.asks[part], nats, strict=True):
                            found[reading][place] = value
                bar.advance(one.tokens)
        return results

    def _measure(self, texts: Sequence[Text], title: str, done: set[int], found: Found) -> None:
        """Tell `found` the nats of every asked target, and whether it was the most likely."""
        left = {i: len(text.asked) for i, text in enumerate(texts) if i not in done}
        nats = {i: [(0.0, False)] * count for i, count in left.items()}
        for i in [i for i, count in left.items() if not count]:
            found(i, [])
        passes = read_along([text.reading for text in texts], self.row_tokens, self.device, done)
        with (
            evaluating([self.model], self.precision),
            self.progress.bar(title, passes.tokens, "tokens") as bar,
        ):
            for one, inputs in passes:
                with self._routed([(piece.slot, piece.tokens) for piece in one.pieces]):
                    states = self._trunk(self.model, inputs)
                for reading, number, value in self._asked(texts, one.asks, states):
                    if reading in done:
                        continue
                    nats[reading][number] = value
                    left[reading] -= 1
                    if not left[reading]:
                        found(reading, nats.pop(reading))
                bar.advance(one.tokens)

    def _asked(
        self, texts: Sequence[Text], asks: Sequence[tuple[int, int, int]], states_TW: Tensor
    ) -> Iterator[tuple[int, int, tuple[float, bool]]]:
        """Nats and greediness of the targets of a pass; logits of a place are computed once."""
        asks = sorted(asks, key=lambda ask: ask[2])
        for part in by_place(asks, CHUNK_POSITIONS):
            places = sorted({place for _, _, place in part})
            row = {place: i for i, place in enumerate(places)}
            logits = self._logits(self.head, states_TW[torch.tensor(places, device=self.device)])
            rows = torch.tensor([row[place] for _, _, place in part], device=self.device)
            targets = [texts[reading].targets[number] for reading, number, _ in part]
            target = torch.tensor(targets, device=self.device)
            nats = (logits.logsumexp(-1)[rows] - logits[rows, target]).tolist()
            best = (logits.argmax(-1)[rows] == target).tolist()
            for (reading, number, _), *value in zip(part, nats, best, strict=True):
                yield reading, number, (value[0], value[1])

    def _answer(self, number: int, request: GenerateRequest) -> Answer:
        check_settings(request)
        return Answer(
            number,
            tuple(self.encoder.prompt(request.prompt, request.max_new_tokens)),
            tuple(text for text in request.stop if text),
            request.max_new_tokens,
            self._slot(request.adapter),
            draw_of(request),
            [] if request.logprobs else None,
        )

    def _finished(self, answer: Answer) -> GenerateAnswer:
        tokens = answer.tokens[:-1] if answer.finish == "end" else answer.tokens
        text = self.tokenizer.decode(tokens, skip_special_tokens=True)
        for stop in answer.stop:
            text = text.split(stop)[0]
        ids = tuple(answer.tokens)
        return GenerateAnswer(text, len(ids), answer.finish, tuple(answer.logprobs or ()), ids)

    def _slot(self, adapter: str | None) -> int | None:
        if adapter is None:
            return None
        if adapter not in self.adapters:
            raise UsageError(
                f"there is no adapter {adapter!r}; loaded are {', '.join(self.adapters) or 'none'}"
            )
        return self.adapters[adapter]

    def _routed(self, segments: Segments) -> AbstractContextManager[object]:
        """Passes through these slots, where the engine has adapters; else the model as it is."""
        if not self.adapters:
            return nullcontext()
        # Neighbours of one slot go through its matrices together.
        runs = groupby(segments, key=lambda segment: segment[0])
        merged = [(slot, sum(tokens for _, tokens in run)) for slot, run in runs]
        if len(merged) == 1:
            return route(self.model, merged[0][0])
        return route(self.model, segments=merged)

    def _geometry(self) -> Geometry:
        exact = self.precision == torch.float32
        return geometry_of(self.model.config, self.head.weight.dtype if exact else self.precision)

    def _texts(self, token_lists: list[list[int]]) -> list[str]:
        return list(self.tokenizer.batch_decode(token_lists, skip_special_tokens=False))

    def _read_on(
        self, token_ids: Tensor, position_ids: Tensor, decode: Any, segments: Segments
    ) -> Tensor:
        inputs = {"input_ids": token_ids, "position_ids": position_ids, "decode": decode}
        with self._routed(segments):
            return self._states(self.model, inputs)

    def _pick(self, hidden_NW: Tensor, answers: list[Answer]) -> list[tuple[int, float]]:
        # In bfloat16 the best logits are often equal and the lowest id would win.
        logits = self._logits(self.head, hidden_NW)
        tokens = choose(logits, [answer.draw for answer in answers])
        nats = [0.0] * len(tokens)
        if any(answer.logprobs is not None for answer in answers):
            chosen = logits.gather(1, torch.tensor(tokens, device=self.device)[:, None])[:, 0]
            nats = (chosen - logits.logsumexp(-1)).tolist()
        return list(zip(tokens, nats, strict=True))

    def _trunk(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """Hidden states (T, W) of a pass over one row."""
        return self._states(model, inputs)[0]

    def _states(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """Hidden states (B, T, W) of a pass."""
        with autocast(self.device, self.precision):
            output = model.get_decoder()(**inputs, use_cache=False)
        hidden: Tensor = output.last_hidden_state
        return hidden

    def _logits(self, head: nn.Linear, hidden_NW: Tensor) -> Tensor:
        """Logits (N, V), float32; the head's own number format does the arithmetic."""
        return linear(hidden_NW.to(head.weight.dtype), head.weight).float()

    def _log_probabilities(self, head: nn.Linear, hidden_NW: Tensor) -> Tensor:
        return self._logits(head, hidden_NW).log_softmax(-1)
