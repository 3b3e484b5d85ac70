"""What every measurement asks of a model: log-likelihoods, answers, losses, divergences.

The engine runs whatever the model currently is, adapters attached or not, and
leaves it as it was; within a measurement it is brought into a state for that (`evaluating`,
`narrow`). Documents are packed into rows without padding, logits exist
only where they are asked for and in chunks, so memory is bounded and a result
does not depend on its neighbours in the batch.

Shapes: T tokens of a packed row, N asked places of it, W hidden width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from laura.engine.detokenizer import text_of
from laura.engine.model_runner import ModuleRunner
from laura.engine.prefix_tree import (
    SHORTEST_PREFIX,
    ScoringPass,
    Text,
    inputs_of,
    plan,
    supervised,
)
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
from laura.engine.sampler import check_settings, draw_of
from laura.engine.scheduler import PREFIX_SHARE, Finish, Scheduler, TokenSequence
from laura.models.device import cache_budget, linear, pass_tokens
from laura.models.encoding import Encoder
from laura.models.layers import exchanged
from laura.models.lora import lora_layers
from laura.models.losses import CHUNK_POSITIONS, output_head
from laura.results.errors import ModelError, UsageError
from laura.results.progress import SILENT, Bar, Progress

# A shared prefix is a second part of every step's attention: it should save so many tokens of
# reading.
LEAST_SAVED = 256
# Few large blocks: nobody waits for a row of another length here.
BLOCK_TOKENS = 2**15

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
        self.runner = ModuleRunner(model, precision, routed=bool(self.adapters))
        self.device = self.runner.device
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
            text = texts.setdefault(key, Text(key[1], slot=key[0]))
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
        numbers = {
            self._sequence(request): number
            for number, request in enumerate(requests)
            if number not in answers
        }

        def done(one: TokenSequence, finish: Finish) -> None:
            answers[numbers[one]] = self._answer(one, finish)
            found(numbers[one], answers[numbers[one]])

        if numbers:
            with (
                evaluating([self.model], self.precision, keep=[self.runner.head]),
                narrow(self.model),
                self.progress.bar("generating", len(numbers), "answers") as bar,
            ):
                self._run(list(numbers), done, bar)
        return [answers[number] for number in range(len(requests))]

    def _run(
        self,
        sequences: list[TokenSequence],
        done: Callable[[TokenSequence, Finish], None],
        bar: Bar,
    ) -> None:
        """Continue all sequences to their ends."""
        waiting = share_prefixes(sequences)
        # Samples of one prompt read it once; nothing else waits for the prefix cache.
        repeated = len({(one.slot, one.prompt) for one in waiting}) < len(waiting)
        scheduler = Scheduler(
            self.runner,
            self.tokenizer,
            cache_bytes=self.cache_bytes,
            prefix_share=PREFIX_SHARE if repeated else 0,
            part_tokens=self.row_tokens,
            worth_waiting=self.encoder.context_tokens,
            must_be_finite=False,
        )
        cache = scheduler.kv_cache
        rows = [cache.capacity(one.room) for one in waiting]
        prefixes = [len(one.prefix.prompt) for one in waiting if one.prefix]
        # However little memory is given, one sequence finds room at a time.
        least = self.runner.geometry.row_bytes(max(rows) + max(prefixes, default=0))
        cache.budget_bytes = max(cache.budget_bytes, least)
        cache.block_tokens = min(BLOCK_TOKENS, sum(rows))
        while waiting or scheduler.busy:
            while waiting and scheduler.add(waiting[-1]):
                waiting.pop()
            share = 0.0  # told once a step: a bar takes longer than a token of a tiny model
            for output in scheduler.step():
                one = output.sequence
                share += 1 / one.limit
                if output.finish:
                    share += 1 - len(one.tokens) / one.limit
                    done(one, output.finish)
            bar.advance(share)

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
        head, reference_head = self.runner.head, output_head(module)
        if reference_head.weight.shape[0] != head.weight.shape[0]:
            raise ModelError(
                f"the reference has {reference_head.weight.shape[0]} tokens in its vocabulary, "
                f"the model {head.weight.shape[0]}; a divergence needs the same vocabulary"
            )
        texts = [supervised(document, None) for document in documents]
        results = {way: [[0.0] * len(text.asked) for text in texts] for way in directions}
        slot = self._slot(adapter)
        # Nothing is shared, so that both models can read the same inputs.
        passes = plan(texts, self.row_tokens, share=False)
        with (
            evaluating([self.model, module], self.precision, keep=[head, reference_head]),
            self.progress.bar("measuring divergence", _tokens(passes), "tokens") as bar,
        ):
            for one, inputs in inputs_of(texts, passes, self.device):
                places = torch.tensor([place for _, _, place in one.asks], device=self.device)
                with self.runner.through([(slot, one.tokens)]):
                    hidden = self.runner.states(inputs)[places]
                with switch():
                    expected_hidden = self.runner.states(inputs, module)[places]
                for start in range(0, len(places), CHUNK_POSITIONS):
                    part = slice(start, start + CHUNK_POSITIONS)
                    expected = self.runner.logits(expected_hidden[part], module).log_softmax(-1)
                    given = self.runner.logits(hidden[part]).log_softmax(-1)
                    for way, found in results.items():
                        p, q = (expected, given) if way == "forward" else (given, expected)
                        nats = (p.exp() * (p - q)).sum(-1).tolist()
                        for (text, number, _), value in zip(one.asks[part], nats, strict=True):
                            found[text][number] = value
                bar.advance(one.tokens)
        return results

    def _measure(self, texts: Sequence[Text], title: str, done: set[int], found: Found) -> None:
        """Tell `found` the nats of every asked target, and whether it was the most likely."""
        left = {i: len(text.asked) for i, text in enumerate(texts) if i not in done}
        nats = {i: [(0.0, False)] * count for i, count in left.items()}
        for i in [i for i, count in left.items() if not count]:
            found(i, [])
        passes = [one for one in plan(texts, self.row_tokens) if one.needed - done]
        with (
            evaluating([self.model], self.precision),
            self.progress.bar(title, _tokens(passes), "tokens") as bar,
        ):
            for one, inputs in inputs_of(texts, passes, self.device):
                with self.runner.through([(piece.slot, piece.tokens) for piece in one.pieces]):
                    states = self.runner.states(inputs)
                for place, number, value in self._asked(texts, one.asks, states):
                    if place in done:
                        continue
                    nats[place][number] = value
                    left[place] -= 1
                    if not left[place]:
                        found(place, nats.pop(place))
                bar.advance(one.tokens)

    def _asked(
        self, texts: Sequence[Text], asks: Sequence[tuple[int, int, int]], states_TW: Tensor
    ) -> Iterator[tuple[int, int, tuple[float, bool]]]:
        """Nats and greediness of the targets of a pass; logits of a place are computed once."""
        asks = sorted(asks, key=lambda ask: ask[2])
        every = list(dict.fromkeys(place for _, _, place in asks))
        for start in range(0, len(every), CHUNK_POSITIONS):
            row = {place: i for i, place in enumerate(every[start : start + CHUNK_POSITIONS])}
            part = [ask for ask in asks if ask[2] in row]
            logits = self.runner.logits(states_TW[torch.tensor(list(row), device=self.device)])
            rows = torch.tensor([row[place] for _, _, place in part], device=self.device)
            targets = [texts[text].targets[number] for text, number, _ in part]
            target = torch.tensor(targets, device=self.device)
            nats = (logits.logsumexp(-1)[rows] - logits[rows, target]).tolist()
            best = (logits.argmax(-1)[rows] == target).tolist()
            for (text, number, _), *value in zip(part, nats, best, strict=True):
                yield text, number, (value[0], value[1])

    def _sequence(self, request: GenerateRequest) -> TokenSequence:
        check_settings(request)
        return TokenSequence(
            "evaluation",
            tuple(self.encoder.prompt(request.prompt, request.max_new_tokens)),
            request.max_new_tokens,
            self._slot(request.adapter),
            draw_of(request),
            tuple(text for text in request.stop if text),
            0 if request.logprobs else None,
            streamed=False,
        )

    def _answer(self, one: TokenSequence, finish: Finish) -> GenerateAnswer:
        tokens = one.tokens[:-1] if finish == "end" else one.tokens
        text, ids = text_of(self.tokenizer, tokens, one.stop), tuple(one.tokens)
        return GenerateAnswer(text, len(ids), finish, tuple(one.logprobs), ids)

    def _slot(self, adapter: str | None) -> int | None:
        if adapter is None:
            return None
        if adapter not in self.adapters:
            raise UsageError(
                f"there is no adapter {adapter!r}; loaded are {', '.join(self.adapters) or 'none'}"
            )
        return self.adapters[adapter]


def _tokens(passes: Sequence[ScoringPass]) -> int:
    return sum(one.tokens for one in passes)


def share_prefixes(sequences: Sequence[TokenSequence]) -> list[TokenSequence]:
    """Give sequences of one slot whose prompts begin alike a shared prefix, where that saves more
    reading than it costs.

    Returns:
        The sequences, those with one prefix together; whoever should begin first stands last:
        the longest, so that no long one runs alone in the end.
    """
    groups: dict[tuple[object, tuple[int, ...]], list[TokenSequence]] = {}
    for one in reversed(sequences):
        groups.setdefault((one.slot, one.prompt[:SHORTEST_PREFIX]), []).append(one)
    families, alone = list[list[TokenSequence]](), list[TokenSequence]()
    for members in groups.values():
        distinct = list({one.prompt: None for one in members})
        length, first = common_prefix(distinct), members[0]
        if length * (len(distinct) - 1) < LEAST_SAVED:
            alone += members
            continue
        prefix = TokenSequence("evaluation", first.prompt[:length], 0, first.slot)
        for one in members:
            one.prefix = prefix
        families.append(members)
    families += [alone] if alone else []
    for members in families:
        members.sort(key=lambda one: one.room)
    families.sort(key=lambda members: members[-1].room)
    return [one for members in families for one in members]


def common_prefix(prompts: Sequence[tuple[int, ...]]) -> int:
    """Tokens that all prompts share at their beginning and that are worth sharing.

    Every prompt keeps at least one token of its own; 0 for a single prompt and for
    a prefix shorter than `SHORTEST_PREFIX`.
    """
    if len(prompts) < 2:
        return 0
    low, high = min(prompts), max(prompts)
    most = min(len(prompt) for prompt in prompts) - 1
    length = next((i for i in range(most) if low[i] != high[i]), most)
    return length if length >= SHORTEST_PREFIX else 0


@contextmanager
def evaluating(
    models: Sequence[nn.Module], precision: torch.dtype, keep: Sequence[nn.Module] = ()
) -> Iterator[None]:
    """Within the block: no dropout, no gradients, matrices ready in `precision`.

    Training modes and weights are put back at the end, also after an error.

    Args:
        models: Models in use; the same one may come twice.
        precision: See `lowered_weights`.
        keep: Modules whose weights stay as they are.
    """
    distinct = list(dict.fromkeys(models))
    modes = [(module, module.training) for model in distinct for module in model.modules()]
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        try:
            for model in distinct:
                model.eval()
                stack.enter_context(lowered_weights(model, precision, keep))
            yield
        finally:
            for module, mode in modes:
                module.training = mode


@contextmanager
def lowered_weights(
    model: nn.Module, precision: torch.dtype, keep: Sequence[nn.Module] = ()
) -> Iterator[None]:
    """Within the block, matrices stand ready in `precision`; afterwards the originals do.

    Autocast would cast every frozen matrix again in every pass, which takes longer
    than a step of generation itself. Embeddings, vectors and the modules of `keep`
    stay as they are. Costs one copy of the matrices in `precision`; nothing for float32.
    """
    changed: list[tuple[nn.Module, str, nn.Parameter]] = []
    try:
        for module in model.modules() if precision != torch.float32 else ():
            if isinstance(module, nn.Embedding) or module in keep:
                continue
            for name, parameter in list(module.named_parameters(recurse=False)):
                if parameter.dim() >= 2 and parameter.dtype == torch.float32:
                    changed.append((module, name, parameter))
                    lower = nn.Parameter(parameter.detach().to(precision), requires_grad=False)
                    module._parameters[name] = lower
        yield
    finally:
        for module, name, parameter in changed:
            module._parameters[name] = parameter


class NarrowLinear(nn.Module):
    """A Linear that shares its weight with another and is never trained."""

    def __init__(self, original: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = original.weight, original.bias

    def forward(self, x: Tensor) -> Tensor:
        """The map's output, (..., out)."""
        return linear(x, self.weight, self.bias)


@contextmanager
def narrow(model: nn.Module) -> Iterator[None]:
    """Within the block, Linears are fast for few rows (`device.linear`), then as they were.

    Plain ones are exchanged, those with adapters are told.
    """
    adapted = list(lora_layers(model).values())
    before = [layer.product for layer in adapted]
    try:
        for layer in adapted:
            layer.product = linear
        with exchanged(model, lambda one: NarrowLinear(one) if type(one) is nn.Linear else None):
            yield
    finally:
        for layer, product in zip(adapted, before, strict=True):
            layer.product = product
