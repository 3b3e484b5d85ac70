"""What every measurement asks of a model: log-likelihoods, answers, losses, divergences.

The engine runs whatever the model currently is, adapters attached or not, and
leaves it as it was. Documents are packed into rows without padding, logits exist
only where they are asked for and in chunks, so memory is bounded and a result
does not depend on its neighbours in the batch.

Shapes: T tokens of a packed row, N asked places of it, W hidden width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from laura.errors import DataError, ModelError
from laura.models.attention import Documents
from laura.models.decoding import Answer, Generation, packs
from laura.models.device import autocast
from laura.models.encoding import Encoder
from laura.models.evaluating import evaluating
from laura.models.key_values import Geometry
from laura.models.losses import CHUNK_POSITIONS, output_head
from laura.models.requests import (
    GenerateAnswer,
    GenerateRequest,
    ScoreAnswer,
    ScoreRequest,
    TokenDocument,
)
from laura.progress import SILENT, Progress

CACHE_BYTES = 3 * 2**29

Found = TypeVar("Found")
Reference = nn.Module | Callable[[], AbstractContextManager[object]]


@dataclass
class _Asked:
    """Tokens to read, and the places after which a target is asked for."""

    token_ids: list[int]
    places: list[int] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class _Row:
    members: list[int]
    inputs: dict[str, Any]
    places: Tensor
    targets: Tensor


class Engine:
    """Runs a model for measurement.

    Args:
        model: A causal language model with attention "laura".
        tokenizer: Its tokenizer.
        precision: float32, or bfloat16 for mixed precision; sums of logarithms are
            float32 in both, and so are the logits of greedy choices and divergences.
        row_tokens: Most tokens of a pass over packed documents.
        progress: Where work is reported.
        cache_bytes: Memory for the keys and values of `generate`.

    Raises:
        ModelError: the model's output map is not a plain one.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        precision: torch.dtype = torch.float32,
        row_tokens: int = 2048,
        progress: Progress = SILENT,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self.model, self.tokenizer, self.precision = model, tokenizer, precision
        self.row_tokens, self.progress, self.cache_bytes = row_tokens, progress, cache_bytes
        self.encoder = Encoder(tokenizer, model.config)
        self.head = output_head(model)
        self.device = self.head.weight.device

    def score(self, requests: Sequence[ScoreRequest]) -> list[ScoreAnswer]:
        """Log-likelihood of every continuation, encoded exactly as lm-eval 0.4.13 does.

        Requests that read the same tokens are computed once.

        Raises:
            DataError: a continuation has no tokens, or more than the model reads.
        """
        asked: dict[tuple[int, ...], _Asked] = {}
        parts: list[tuple[int, int, int]] = []
        numbers: dict[tuple[int, ...], int] = {}
        for request in requests:
            context, continuation = self.encoder.pair(request.context, request.continuation)
            tokens = (context + continuation)[-(self.encoder.context_tokens + 1) :]
            key = tuple(tokens[:-1])
            document = asked.setdefault(key, _Asked(tokens[:-1]))
            number = numbers.setdefault(key, len(numbers))
            count, start = len(continuation), len(document.places)
            document.places += range(len(key) - count, len(key))
            document.targets += continuation
            parts.append((number, start, count))
        found = self._measure(list(asked.values()), "scoring")
        answers = []
        for number, start, count in parts:
            places = found[number][start : start + count]
            total = -sum(nats for nats, _ in places)
            answers.append(ScoreAnswer(total, all(best for _, best in places), count))
        return answers

    def generate(self, requests: Sequence[GenerateRequest]) -> list[GenerateAnswer]:
        """Greedy answers; prompts are encoded and cut from the left as lm-eval does.

        Raises:
            UsageError: max_new_tokens is below 1 or leaves no room for a prompt.
            DataError: a prompt is empty.
        """
        if not requests:
            return []
        answers = [
            Answer(
                self.encoder.prompt(request.prompt, request.max_new_tokens),
                tuple(text for text in request.stop if text),
                request.max_new_tokens,
            )
            for request in requests
        ]
        with (
            evaluating([self.model], self.precision, keep=[self.head]),
            self.progress.bar("generating", len(requests), "answers") as bar,
        ):
            Generation(
                self._read_on,
                self._most_likely,
                self._texts,
                geometry=self._geometry(),
                end_ids=self._end_ids(),
                budget_bytes=self.cache_bytes,
                row_tokens=self.row_tokens,
                device=self.device,
                bar=bar,
            ).run(answers)
        return [self._finished(answer) for answer in answers]

    def document_losses(self, documents: Sequence[TokenDocument]) -> list[list[float]]:
        """Nats of every supervised token of every document, in order.

        The first token of a document is never among them.
        """
        asked = [_supervised(document) for document in documents]
        return [[nats for nats, _ in places] for places in self._measure(asked, "measuring loss")]

    def document_divergences(
        self, documents: Sequence[TokenDocument], reference: Reference
    ) -> list[list[float]]:
        """KL(reference || model) in nats where a supervised token is predicted.

        Over the full vocabulary: sum_v p_ref(v) (log p_ref(v) - log p(v)). Logits are
        float32 whatever the precision: rounding them to bfloat16 alone adds about
        5e-4 nats (SmolLM2-135M on GSM8K), which would hide small divergences.

        Args:
            documents: What both models read.
            reference: Another model with the same vocabulary, or a callable whose
                context makes this model the reference (adapters switched off).

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
        asked = [_supervised(document) for document in documents]
        results: list[list[float]] = [[] for _ in asked]
        with (
            evaluating([self.model, module], self.precision, keep=[self.head, reference_head]),
            self.progress.bar("measuring divergence", _worth_reading(asked), "documents") as bar,
        ):
            for row in self._rows(asked):
                hidden = self._hidden(self.model, row)
                with switch():
                    reference_hidden = self._hidden(module, row)
                nats: list[float] = []
                for part in _chunks(len(row.targets)):
                    expected = self._log_probabilities(reference_head, reference_hidden[part])
                    found = self._log_probabilities(self.head, hidden[part])
                    nats += (expected.exp() * (expected - found)).sum(-1).tolist()
                _deal(nats, row, asked, results)
                bar.advance(len(row.members))
        return results

    def _geometry(self) -> Geometry:
        config = self.model.config
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None)
        width = width or config.hidden_size // config.num_attention_heads
        exact = self.precision == torch.float32
        kept = self.head.weight.dtype if exact else self.precision
        return Geometry(config.num_hidden_layers, heads, width, kept)

    def _end_ids(self) -> frozenset[int]:
        config = getattr(self.model, "generation_config", None)
        listed = getattr(config, "eos_token_id", None)
        ids = list(listed) if isinstance(listed, list | tuple) else [listed]
        return frozenset(i for i in [*ids, self.tokenizer.eos_token_id] if i is not None)

    def _finished(self, answer: Answer) -> GenerateAnswer:
        tokens = answer.tokens[:-1] if answer.finish == "end" else answer.tokens
        text = self.tokenizer.decode(tokens, skip_special_tokens=True)
        for stop in answer.stop:
            text = text.split(stop)[0]
        return GenerateAnswer(text, len(answer.tokens), answer.finish)

    def _texts(self, token_lists: list[list[int]]) -> list[str]:
        return list(self.tokenizer.batch_decode(token_lists, skip_special_tokens=False))

    def _read_on(self, token_ids: Tensor, position_ids: Tensor, decode: Any) -> Tensor:
        inputs = {"input_ids": token_ids, "position_ids": position_ids, "decode": decode}
        with autocast(self.device, self.precision):
            output = self.model.get_decoder()(**inputs, use_cache=False)
        hidden: Tensor = output.last_hidden_state
        return hidden

    def _most_likely(self, hidden_NW: Tensor) -> Tensor:
        # In bfloat16 the best logits are often equal and the lowest id would win.
        return self._logits(self.head, hidden_NW).argmax(-1)

    def _measure(self, asked: Sequence[_Asked], title: str) -> list[list[tuple[float, bool]]]:
        """Nats of every asked target, and whether it was the most likely token."""
        results: list[list[tuple[float, bool]]] = [[] for _ in asked]
        with (
            evaluating([self.model], self.precision),
            self.progress.bar(title, _worth_reading(asked), "documents") as bar,
        ):
            for row in self._rows(asked):
                hidden = self._hidden(self.model, row)
                found: list[tuple[float, bool]] = []
                for part in _chunks(len(row.targets)):
                    logits, target = self._logits(self.head, hidden[part]), row.targets[part]
                    chosen = logits.gather(1, target[:, None]).squeeze(1)
                    nats = (logits.logsumexp(-1) - chosen).tolist()
                    best = (logits.argmax(-1) == target).tolist()
                    found += zip(nats, best, strict=True)
                _deal(found, row, asked, results)
                bar.advance(len(row.members))
        return results

    def _rows(self, asked: Sequence[_Asked]) -> Iterator[_Row]:
        """Pack what has to be read, longest first, so that time left is not underestimated."""
        order = sorted(range(len(asked)), key=lambda i: -len(asked[i].token_ids))
        order = [i for i in order if asked[i].places]
        for pack in packs([len(asked[i].token_ids) for i in order], self.row_tokens):
            members = [order[position] for position in pack]
            ids: list[int] = []
            positions: list[int] = []
            places: list[int] = []
            targets: list[int] = []
            for i in members:
                places += [len(ids) + place for place in asked[i].places]
                targets += asked[i].targets
                positions += range(len(asked[i].token_ids))
                ids += asked[i].token_ids
            inputs = {
                "input_ids": torch.tensor([ids], device=self.device),
                "position_ids": torch.tensor([positions], device=self.device),
                "documents": Documents([len(asked[i].token_ids) for i in members]),
            }
            place = torch.tensor(places, device=self.device)
            yield _Row(members, inputs, place, torch.tensor(targets, device=self.device))

    def _hidden(self, model: Any, row: _Row) -> Tensor:
        """Hidden states (N, W) at the asked places of a row."""
        with autocast(self.device, self.precision):
            output = model.get_decoder()(**row.inputs, use_cache=False)
        hidden: Tensor = output.last_hidden_state[0][row.places]
        return hidden

    def _logits(self, head: nn.Linear, hidden_NW: Tensor) -> Tensor:
        """Logits (N, V), float32; the head's own number format does the arithmetic."""
        return linear(hidden_NW.to(head.weight.dtype), head.weight).float()

    def _log_probabilities(self, head: nn.Linear, hidden_NW: Tensor) -> Tensor:
        return self._logits(head, hidden_NW).log_softmax(-1)


def _supervised(document: TokenDocument) -> _Asked:
    if len(document.token_ids) != len(document.supervised):
        raise DataError(
            f"document {document.index} has {len(document.token_ids)} tokens and "
            f"{len(document.supervised)} supervision marks; both must be equally many"
        )
    targets = [i for i, asked in enumerate(document.supervised) if asked and i > 0]
    return _Asked(
        document.token_ids[:-1], [i - 1 for i in targets], [document.token_ids[i] for i in targets]
    )


def _worth_reading(asked: Sequence[_Asked]) -> int:
    return sum(bool(document.places) for document in asked)


def _chunks(count: int) -> Iterator[slice]:
    for start in range(0, count, CHUNK_POSITIONS):
        yield slice(start, start + CHUNK_POSITIONS)


def _deal(
    found: Sequence[Found], row: _Row, asked: Sequence[_Asked], results: list[list[Found]]
) -> None:
    """Give the findings of a packed row back to its documents."""
    start = 0
    for i in row.members:
        results[i] = list(found[start : start + len(asked[i].places)])
        start += len(asked[i].places)
