"""Cross-entropy over a large vocabulary without ever holding all its logits.

Logits exist only for positions that have a label, one chunk at a time, and
their gradient is taken while the chunk is at hand. Memory is chunk x vocabulary
(group x vocabulary when the output map is trained), whatever the number of tokens.

What a remedy makes of the slopes by the logits, softmax minus one-hot, is an `Objective`: each
token's is multiplied by a weight, and that of a divergence from the base is added, in
closed form too, from the base's hidden states at the same positions.

Shapes: N labelled positions, C hidden width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from laura.models.device import copy_to
from laura.models.reference import BaseBeside
from laura.results.errors import ModelError

CHUNK_POSITIONS = 128
# Positions whose slopes enter the gradient of the output map together, a multiple of
# the chunk: each product passes over the whole (V, C) gradient once.
GROUP_POSITIONS = 512
# Words of the vocabulary whose gradient is taken at once: a product of all of them would
# be a second copy of the output map.
BLOCK_WORDS = 8192
IGNORED = -100


@dataclass(frozen=True)
class BaseLosses:
    """How hard N labels are for the base.

    Attributes:
        tokens_N: Nats of each.
        examples_N: Their mean over the labels of the same document.
        median: Of such means, over the first documents of the run.
    """

    tokens_N: Tensor
    examples_N: Tensor
    median: float

    def part(self, place: slice) -> BaseLosses:
        """Of some of the labels."""
        return BaseLosses(self.tokens_N[place], self.examples_N[place], self.median)


@dataclass(frozen=True)
class BaseStates:
    """What the base makes of N labelled positions.

    Attributes:
        hidden_NC: Its last hidden states.
        head: Its output map, which may be the model's own.
        weight_VC: That map's weight in the pass's arithmetic, as the states are.
        losses: How hard the labels are, where that is asked.
        softcap: See `capped`.
    """

    hidden_NC: Tensor
    head: nn.Linear
    weight_VC: Tensor
    losses: BaseLosses | None
    softcap: float | None = None

    def part(self, place: slice) -> BaseStates:
        """Of some of the positions."""
        losses = None if self.losses is None else self.losses.part(place)
        return BaseStates(self.hidden_NC[place], self.head, self.weight_VC, losses, self.softcap)

    def log_probabilities(self) -> Tensor:
        """Its distributions, (N, V), float32."""
        logits = (self.hidden_NC @ self.weight_VC.T).float()
        return capped(logits, self.softcap).log_softmax(-1)


@dataclass(frozen=True)
class Tokens:
    """Labelled positions as a token weight sees them.

    Attributes:
        probabilities_NV: The model's distributions, float32, not to be changed.
        targets_N: The tokens that came.
        base: How hard they are for the base, where the remedy reads it.
    """

    probabilities_NV: Tensor
    targets_N: Tensor
    base: BaseLosses | None = None


TokenWeights = Callable[[Tokens], Tensor]
"""N factors of the tokens' gradients."""
Slope = Callable[[Tensor, Tensor], Tensor]
"""The model's probabilities and the base's log-probabilities, (N, V), to a divergence's slope.

The latter may be written over."""
Advantages = Callable[[Tensor], Tensor]
"""Rewards of S answers to each of Q questions, (Q, S), to what each counts in the gradient."""


@dataclass(frozen=True)
class Objective:
    """What is followed instead of plain cross-entropy; losses that are told stay plain.

    Attributes:
        token_weights: How much each token's gradient counts; None for all alike.
        normalised: Whether their mean over a step is made 1.
        weighs_base: Whether they read the base's losses.
        slope: Of a divergence from the base; None for none.
        strength: Factor of the divergence.
        reference: The base, where either reads it.
        median: See `BaseLosses`.
        advantages: Where the model's own answers are graded: what each then counts.
        factors_N: Of one pass: by which each label's gradient is multiplied.
        told: Of one pass: what the base reads instead of what the model does, and as many labels.
    """

    token_weights: TokenWeights | None = None
    normalised: bool = False
    weighs_base: bool = False
    slope: Slope | None = None
    strength: float = 0.0
    reference: BaseBeside | None = None
    median: float = 1.0
    advantages: Advantages | None = None
    factors_N: Tensor | None = None
    told: tuple[dict[str, Any], Tensor] | None = None

    def part(self, place: slice) -> Objective:
        """Of some of the labels."""
        return self if self.factors_N is None else replace(self, factors_N=self.factors_N[place])

    @property
    def reads_base(self) -> bool:
        """Whether it asks what the base makes of the same tokens."""
        return self.weighs_base or self.slope is not None


CROSS_ENTROPY = Objective()


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_NC: Tensor,
        weight_VC: Tensor,
        labels_N: Tensor,
        dtype: torch.dtype,
        objective: Objective,
        base: BaseStates | None,
        softcap: float | None,
    ) -> Tensor:
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        hidden, weight = hidden_NC.to(dtype), weight_VC.to(dtype)
        grad_hidden = torch.empty_like(hidden_NC) if wants_hidden else None
        grad_weight: Tensor | None = None
        total = hidden_NC.new_zeros((), dtype=torch.float32)
        count, chunk, group = len(hidden), CHUNK_POSITIONS, GROUP_POSITIONS
        slopes = hidden.new_empty(min(group, count), len(weight)) if wants_weight else None
        for start in range(0, count, chunk):
            part = slice(start, start + chunk)
            if not (wants_hidden or wants_weight):
                logits = capped((hidden[part] @ weight.T).float(), softcap)
                total += cross_entropy(logits, labels_N[part], reduction="sum")
                continue
            own = None if base is None else base.part(part)
            logits = hidden[part] @ weight.T
            followed = objective.part(part)
            loss, exact = _loss_and_slope(logits, labels_N[part], followed, own, softcap)
            total += loss
            first = start % group
            place = None if slopes is None else slopes[first : first + len(exact)]
            slope = exact.to(dtype) if place is None else place.copy_(exact)
            if grad_hidden is not None:
                grad_hidden[part] = slope @ weight
            done = start + len(slope)
            if slopes is not None and (done == count or done % group == 0):
                used = first + len(slope)
                grad_weight = _add_product(
                    grad_weight, slopes[:used], hidden[done - used : done], weight_VC.dtype
                )
        ctx.save_for_backward(grad_hidden, grad_weight)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        # In place: the gradient of a large output map is not held twice.
        grad_hidden, grad_weight = ctx.saved_tensors
        return (
            None if grad_hidden is None else grad_hidden.mul_(grads[0]),
            None if grad_weight is None else grad_weight.mul_(grads[0]),
            None,
            None,
            None,
            None,
            None,
        )


def capped(logits: Tensor, softcap: float | None) -> Tensor:
    """c tanh(logit / c) where a model caps its logits at c (Gemma 2, arXiv:2408.00118)."""
    return logits if softcap is None else torch.tanh(logits / softcap) * softcap


def _loss_and_slope(
    logits_NV: Tensor,
    labels_N: Tensor,
    objective: Objective,
    base: BaseStates | None,
    softcap: float | None,
) -> tuple[Tensor, Tensor]:
    """Sum of the losses; the gradient of what is followed by the logits, float32."""
    logits, target = capped(logits_NV.float(), softcap), labels_N[:, None]
    bend = None if softcap is None else 1 - (logits / softcap).square()
    highest = logits.amax(dim=-1, keepdim=True)
    chosen = logits.gather(1, target)
    # One exponential serves both the normaliser and the softmax.
    weights = logits.sub_(highest).exp_()
    norm = weights.sum(dim=-1, keepdim=True)
    slope = weights.div_(norm)
    factors, pull = objective.factors_N, None
    if objective.token_weights is not None:
        known = None if base is None else base.losses
        factors = objective.token_weights(Tokens(slope, labels_N, known))
    if objective.slope is not None:
        assert base is not None
        pull = objective.slope(slope, base.log_probabilities())
    slope.scatter_add_(1, target, torch.full_like(chosen, -1))
    if factors is not None:
        slope.mul_(factors[:, None])
    if pull is not None:
        slope.add_(pull, alpha=objective.strength)
    if bend is not None:
        slope.mul_(bend)
    return (norm.log() + highest - chosen).sum(), slope


def _add_product(
    total_VC: Tensor | None, slopes_PV: Tensor, hidden_PC: Tensor, dtype: torch.dtype
) -> Tensor:
    """`total` plus slopes^T hidden; without a total, the product is the sum so far."""
    words = slopes_PV.shape[1]
    empty = hidden_PC.new_empty
    result = empty(words, hidden_PC.shape[1], dtype=dtype) if total_VC is None else total_VC
    for start in range(0, words, BLOCK_WORDS):
        block = slice(start, start + BLOCK_WORDS)
        product = slopes_PV[:, block].T @ hidden_PC
        if total_VC is None:
            result[block] = product
        else:
            result[block] += product
    return result


def loss_sum(
    hidden_NC: Tensor,
    head: nn.Linear,
    labels_N: Tensor,
    dtype: torch.dtype,
    objective: Objective = CROSS_ENTROPY,
    base: BaseStates | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Sum of the negative log-likelihoods of N labels, in nats.

    Args:
        hidden_NC: Last hidden states at the labelled positions only.
        head: The model's output map, weight (V, C); tied or not.
        labels_N: Token ids to be predicted, all valid.
        dtype: Arithmetic of the products; sums are float32 throughout.
        objective: What the gradient follows; the sum itself is plain.
        base: The base's view of the same positions, where the objective reads it.
        softcap: See `capped`.

    Returns:
        A float32 scalar; divide by N for the mean.
    """
    if hidden_NC.shape[0] == 0:
        return hidden_NC.float().sum()  # zero, but still joined to the graph
    # Adapters leave the output map alone: it is cast once.
    weight_VC = base.weight_VC if base is not None and base.head is head else head.weight
    if not torch.is_grad_enabled():
        # Within a Function, only what requires a gradient tells whether one is wanted.
        hidden_NC, weight_VC = hidden_NC.detach(), weight_VC.detach()
    result: Tensor = _ChunkedCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden_NC, weight_VC, labels_N, dtype, objective, base, softcap
    )
    return result


def output_head(model: Any) -> nn.Linear:
    """The model's output map, checked to be a plain one.

    Raises:
        ModelError: the model scales its logits, which chunking would skip.
    """
    for name in ("logit_scale", "logits_scaling"):
        value = getattr(model.config, name, None)
        if value not in (None, 1.0, 1):
            raise ModelError(
                f"the model sets {name}={value}, which Laura does not compute; "
                "use a model whose logits are head(hidden), capped or not"
            )
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear) or head.bias is not None:
        raise ModelError("the model's output map is not a Linear without bias; it is not supported")
    return head


def softcap_of(model: Any) -> float | None:
    """At what the model caps its logits, see `capped`."""
    cap: float | None = getattr(model.config, "final_logit_softcapping", None)
    return cap


def packed_loss_sum(
    model: Any,
    inputs: dict[str, Any],
    labels_T: Tensor,
    dtype: torch.dtype,
    objective: Objective = CROSS_ENTROPY,
) -> Tensor:
    """Loss of one packed row: hidden states everywhere, logits only where labelled.

    Args:
        model: A causal language model.
        inputs: Keyword arguments of its decoder (input_ids, position_ids, documents).
        labels_T: Target predicted at each position of the row, -100 for none.
        dtype: Arithmetic of the output map.
        objective: What the gradient follows.

    Returns:
        Sum of nats over the labelled positions, a float32 scalar.
    """
    return packed_loss_sums(model, inputs, labels_T, dtype, [objective])[0]


def packed_loss_sums(
    model: Any,
    inputs: dict[str, Any],
    labels_T: Tensor,
    dtype: torch.dtype,
    objectives: Sequence[Objective] = (),
) -> Tensor:
    """Losses of one packed row that is read B times, say with another adapter each.

    Args:
        model: A causal language model.
        inputs: As for `packed_loss_sum`, with input_ids of shape (B, T).
        labels_T: Target predicted at each position, the same for all; on the processor, where it
            is found out which have one, so that an accelerator is not waited for.
        dtype: Arithmetic of the output map.
        objectives: What the gradient of each follows, of one base; none for plain losses.

    Returns:
        Sums of nats over the labelled positions, shape (B), float32.
    """
    base = None
    objectives = objectives or [CROSS_ENTROPY] * len(inputs["input_ids"])
    if torch.is_grad_enabled() and objectives[0].reads_base:
        base = base_states(objectives[0], *(objectives[0].told or (inputs, labels_T)), dtype)
    hidden_BTC = model.get_decoder()(**inputs, use_cache=False).last_hidden_state
    places = (labels_T != IGNORED).nonzero().squeeze(1)
    labels, head = copy_to(labels_T[places], hidden_BTC.device), output_head(model)
    places = copy_to(places, hidden_BTC.device)
    sums = [
        loss_sum(hidden_TC[places], head, labels, dtype, objective, base, softcap_of(model))
        for hidden_TC, objective in zip(hidden_BTC.unbind(), objectives, strict=True)
    ]
    return torch.stack(sums)


@torch.no_grad()
def base_states(
    objective: Objective, inputs: dict[str, Any], labels_T: Tensor, dtype: torch.dtype
) -> BaseStates:
    """What the base makes of the labelled positions of a packed row.

    Args:
        objective: It names the base.
        inputs: As for `packed_loss_sums`; a row that several runs read goes through the base once.
        labels_T: As there.
        dtype: Arithmetic of the output map.
    """
    reference = objective.reference
    assert reference is not None
    hidden_TC = reference.hidden({**inputs, "input_ids": inputs["input_ids"][:1]})
    places = (labels_T != IGNORED).nonzero().squeeze(1)
    device = hidden_TC.device
    hidden_NC = hidden_TC[copy_to(places, device)].to(dtype)
    head, softcap = output_head(reference.model), softcap_of(reference.model)
    weight_VC = head.weight.to(dtype)
    if not objective.weighs_base:
        return BaseStates(hidden_NC, head, weight_VC, None, softcap)
    labels = copy_to(labels_T[places], device)
    chunks = zip(hidden_NC.split(CHUNK_POSITIONS), labels.split(CHUNK_POSITIONS), strict=True)
    losses = [
        cross_entropy(capped((h @ weight_VC.T).float(), softcap), own, reduction="none")
        for h, own in chunks
    ]
    lengths = torch.tensor(inputs["documents"].lengths)
    documents = torch.arange(len(lengths)).repeat_interleave(lengths)[places]
    means = _means(torch.cat(losses), copy_to(documents, device), len(lengths))
    known = BaseLosses(torch.cat(losses), means, objective.median)
    return BaseStates(hidden_NC, head, weight_VC, known, softcap)


def _means(values_N: Tensor, groups_N: Tensor, count: int) -> Tensor:
    """The mean of the group that each value belongs to, (N)."""
    sums = values_N.new_zeros(2, count)
    sums.index_add_(1, groups_N, torch.stack([values_N, torch.ones_like(values_N)]))
    return (sums[0] / sums[1])[groups_N]
