"""One run over several devices: each holds a part of the weights (FSDP2), and takes its passes.

torch's `fully_shard` spreads every decoder layer, and the rest, over the processes of a group,
one a device; a layer is whole on each only while it is at work. What trains all weights spreads
gradients and the optimiser's memory with them: elementwise rules, so that each process steps
its own part as if there were no others. LoRA adapters are small: every process has them whole,
and their gradients are summed. Of a step's passes process r takes r, r + N, r + 2N, ...; their
sums are the same as on one device but for the order of adding.

Only the first process knows the run: the data, the schedule, the folder. What all must do at
once it does as an order (`_by_all`), which the others, in `follow`, do too. So a Ctrl-C or a full
disk is a matter of the first alone, and what it writes is what one device would write.

Source: Zhao et al. 2023, arXiv:2304.11277; `torch.distributed.fsdp.fully_shard`.
Ran on processors (gloo), never on GPUs (NCCL).
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from laura.data.packing import IGNORED, Row
from laura.models.device import collectives
from laura.models.layers import decoder_layers, drops
from laura.models.lean import lean
from laura.models.lora import lora_layers
from laura.models.losses import CROSS_ENTROPY, Objective, output_head
from laura.recipe.sections import TrainSection
from laura.results.errors import ModelError
from laura.results.interrupts import interrupts_postponed
from laura.training.checkpoints import read_state, restore, state_tensors, write_state
from laura.training.learner import Learner, passes
from laura.training.optimisers import StepRule

# The first process may write a large model to a slow disk before its next order.
ORDER_PATIENCE = timedelta(days=7)
# The pass of a process for which none is left: all take part in each, or all would wait.
IDLE = [Row([0], [IGNORED], [0], [1], [0])]

Given = ParamSpec("Given")
Result = TypeVar("Result")


def _by_all(
    method: Callable[Concatenate[Shards, Given], Result],
) -> Callable[Concatenate[Shards, Given], Result]:
    """Makes a method of the first process one that the others carry out with it."""

    @functools.wraps(method)
    def ordered(self: Shards, /, *given: Given.args, **named: Given.kwargs) -> Result:
        self.tell((method.__name__, given))
        self.idle = False
        result = method(self, *given, **named)
        self.idle = True
        return result

    return ordered


@contextmanager
def joined(store: Path, rank: int, devices: list[str]) -> Iterator[None]:
    """Within the block this process is one of a group.

    Args:
        store: A file that is not there yet, by which they find one another.
        rank: Which this is, counted from 0.
        devices: Device of each.
    """
    # They talk within this machine alone, whatever its name resolves to.
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    device = torch.device(devices[rank])
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(
        collectives(device), init_method=f"file://{store}", rank=rank, world_size=len(devices)
    )
    try:
        yield
    finally:
        dist.destroy_process_group()


class Shards(Learner):
    """The part of this process in what a run trains; to be used in `with`.

    Args:
        model: As for `Learner`, the same in every process of the group, its parts already
            those that train (`lean`). It stays spread out: load it again for anything else.
        section: The recipe's `train`.
        learning_rate: Peak rate.
        rule: How the parameters are stepped.
        objective: What the gradients follow; it reads no base.

    Attributes:
        rank: Which process of the group this is; 0 gives the orders.
        world: How many there are.
        idle: Whether no order is being carried out.

    Raises:
        ModelError: the model drops at random, which each process would do its own way.
    """

    def __init__(
        self,
        model: Any,
        section: TrainSection,
        learning_rate: float,
        rule: StepRule,
        objective: Objective = CROSS_ENTROPY,
    ) -> None:
        if any(drops(module) for module in model.modules()):
            raise ModelError(
                "the model drops at random while it is trained, and over several devices each "
                "would draw its own; set the arm's dropout, attention_dropout and "
                "residual_dropout to 0, or train.devices to 1"
            )
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self._orders = dist.new_group(backend="gloo", timeout=ORDER_PATIENCE)
        layers = lora_layers(model).values()
        adapters = [p for layer in layers for p in layer.parameters() if p.requires_grad]
        self._spread = not adapters  # whether what is trained is spread out, too
        self._mesh = init_device_mesh(next(model.parameters()).device.type, (self.world,))
        self._root: Any = _Trainee(model)
        for part in (*decoder_layers(model), self._root):
            fully_shard(part, mesh=self._mesh, ignored_params=set(adapters))
        super().__init__(model, section, learning_rate, rule, objective)
        for tensor in (*adapters, *self._buffers.values()):
            dist.broadcast(tensor.detach(), 0)  # PiSSA's start may round otherwise elsewhere
        self.idle = True
        self._read: dict[str, Tensor] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Shards:
        self._rest = self._stack.enter_context(interrupts_postponed())
        return self

    def __exit__(self, *_: object) -> None:
        with self._stack:
            if self.idle:  # else one of them has failed, and the rest would not hear
                self.tell(None)

    def tell(self, order: tuple[str, tuple[Any, ...]] | None) -> None:
        """From the first process, have the others do something; None ends their part."""
        if self.rank == 0:
            dist.broadcast_object_list([order], 0, self._orders)

    def follow(self) -> None:
        """From any other process, do what the first one orders."""
        while True:
            order: list[Any] = [None]
            dist.broadcast_object_list(order, 0, self._orders)
            if order[0] is None:
                return
            name, given = order[0]
            getattr(self, name)(*given)

    def gradients(self, batch: list[Row], labels: int) -> Tensor:
        """See `Learner.gradients`; a Ctrl-C that came since is raised before."""
        self._rest()
        return self._gradients(batch, labels)

    def loss_sum(self, row: Row) -> float:
        """See `Learner.loss_sum`; a Ctrl-C that came since is raised before."""
        self._rest()
        return self._loss_sum(row)

    @_by_all
    def clip(self) -> float:
        """See `Learner.clip`."""
        return super().clip()

    @_by_all
    def step(self, rate: float) -> None:
        """See `Learner.step`."""
        super().step(rate)

    def save(self, folder: Path, facts: dict[str, Any]) -> None:
        """See `Learner.save`: the first process gathers all parts and writes them."""
        write_state(folder, self._whole_state(), facts)

    def load(self, folder: Path) -> dict[str, Any]:
        """See `Learner.load`: the first process reads, and hands out the parts."""
        facts, self._read = read_state(folder, self._state)
        self._restore([(name, tensor.shape, tensor.dtype) for name, tensor in self._read.items()])
        return facts

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Within the block the model of the first process holds whole weights, in host memory.

        Those of LoRA's base stay spread out: nobody writes them.
        """
        whole = self._whole_weights() if self._spread else {}
        places = [
            (module._parameters, name, parameter)
            for module in self.model.modules()
            for name, parameter in module._parameters.items()
            if parameter in whole
        ]
        for parameters, name, parameter in places:
            parameters[name] = whole[parameter]
        try:
            yield
        finally:
            for parameters, name, parameter in places:
                parameters[name] = parameter

    @_by_all
    def _gradients(self, batch: list[Row], labels: int) -> Tensor:
        mine = list(passes(batch, self.section))[self.rank :: self.world]
        rounds = -(-len(batch) // (self.section.rows_per_pass * self.world))
        # FSDP takes the mean over the processes, and gloo knows no other factor.
        share = labels / self.world if self._spread else labels
        total = torch.zeros((), device=self.device)
        for number in range(rounds):
            total += self._learn(mine[number] if number < len(mine) else IDLE, share)
        if self._spread:
            for name, parameter in super()._trained().items():
                self.parameters[name].grad = parameter.grad.to_local()  # type: ignore[union-attr]
                parameter.grad = None
        else:
            self._add_up()
        dist.all_reduce(total)
        return total

    def _add_up(self) -> None:
        """Sum the gradients of all processes, in one message."""
        own = list(self.parameters.values())
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in own]
        together = torch.cat([part.flatten() for part in parts])
        dist.all_reduce(together)
        for p, part in zip(own, together.split([p.numel() for p in own]), strict=True):
            p.grad = part.view_as(p)

    @_by_all
    def _loss_sum(self, row: Row) -> float:
        loss = super().loss_sum(row)
        self._root.reshard()  # a pass without gradients leaves it whole
        return loss

    @_by_all
    def _whole_state(self) -> dict[str, Tensor]:
        layout = dict(self.model.named_parameters())

        def whole(name: str, part: Tensor) -> Tensor:
            of = layout.get(name)
            if not isinstance(of, DTensor) or part.dim() == 0:  # a count of steps
                return part
            spread = DTensor.from_local(
                part, self._mesh, of.placements, shape=of.shape, stride=of.stride()
            )
            tensor = spread.full_tensor()
            return tensor if self.rank == 0 else part

        return state_tensors(self._state, self.optimiser, whole)

    @_by_all
    def _restore(self, read: list[tuple[str, torch.Size, torch.dtype]]) -> None:
        layout, parts = dict(self.model.named_parameters()), dict[str, Tensor]()
        for full_name, shape, dtype in read:
            empty = torch.empty(shape, dtype=dtype, device=self.device)
            tensor = empty.copy_(self._read.pop(full_name)) if self.rank == 0 else empty
            dist.broadcast(tensor, 0)
            of = layout.get(full_name.split("/", 1)[1])
            if isinstance(of, DTensor) and tensor.dim():
                cut = distribute_tensor(tensor, self._mesh, of.placements, src_data_rank=None)
                tensor = cut.to_local().clone()
            parts[full_name] = tensor
        restore(parts, self._state, self.optimiser)

    @_by_all
    def _whole_weights(self) -> dict[nn.Parameter, nn.Parameter]:
        """Whole copies of all parameters, in the first process."""
        copies = {}
        for parameter in self.model.parameters():
            tensor = parameter.full_tensor()
            if self.rank == 0:
                copies[parameter] = nn.Parameter(tensor.cpu(), parameter.requires_grad)
        return copies

    def _trained(self) -> dict[str, nn.Parameter]:
        """What this process steps: its parts of what is spread out, and the adapters."""
        return {
            name: nn.Parameter(p.to_local().detach()) if isinstance(p, DTensor) else p
            for name, p in super()._trained().items()
        }

    def _loss(self, inputs: dict[str, Any], labels: Tensor) -> Tensor:
        loss: Tensor = self._root(functools.partial(self._joined_loss, inputs, labels))
        return loss

    def _joined_loss(self, inputs: dict[str, Any], labels: Tensor) -> Tensor:
        """The loss, joined to all that is trained: processes add up like pieces."""
        loss = super()._loss(inputs, labels).clone()  # FSDP hooks into it, which no view bears
        if not (labels != IGNORED).any():
            loss = loss + 0 * output_head(self.model).weight.sum()
        return loss

    @_by_all
    def _put_in(self) -> None:
        super()._put_in()

    @_by_all
    def _take_out(self) -> None:
        super()._take_out()

    def _sum(self, tensor: Tensor) -> Tensor:
        dist.all_reduce(tensor)
        return tensor

    def _norm(self, gradients: list[Tensor]) -> Tensor:
        norm = super()._norm(gradients)
        return self._sum(norm.square()).sqrt() if self._spread else norm


class _Trainee(nn.Module):
    """The model, and one forward pass around all that a loss computes with it.

    FSDP gathers weights around a forward pass, and the loss reads the output map's by itself.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, loss: Callable[[], Tensor]) -> Tensor:
        """What `loss` gives."""
        return loss()


def follow(
    model: Any,
    section: TrainSection,
    learning_rate: float,
    rule: StepRule,
    objective: Objective = CROSS_ENTROPY,
) -> None:
    """Train along with the first process of the group, until it has ended; as `train_runs`."""
    model.train()
    with lean(model, section.recompute):
        Shards(model, section, learning_rate, rule, objective).follow()
