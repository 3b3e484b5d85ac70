"""Runs that share everything but the learning rate, in lock-step on one model.

Each run has its own parameters, optimiser, clipping and folder; the model, its frozen
weights and their casts, and the batches are there once. Two ways to take a step's gradients:

- in turn (`loop.in_turn`): each run's parameters are put into the model and its passes
  taken, one run after another. Every number is the one that a run by itself computes, bit by
  bit, dropout included, and the activations of only one run exist at a time.
- together (`Together`): the LoRA adapters of all runs stand in slots side by side and the
  rows go through the model once for each, in one pass. Sums round otherwise, as they do with
  other `rows_per_pass`; the activations of all runs exist at once. It pays where a pass is too
  small to keep the device busy; `device.gains_from_larger_passes` says on which.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from laura.data.packing import Row
from laura.models.device import autocast, gains_from_larger_passes
from laura.models.layers import drops
from laura.models.lora import LoraLinear, lora_layers, route
from laura.models.losses import packed_loss_sums
from laura.training.learner import labels_of, model_inputs, passes
from laura.training.loop import Gradients, Meanwhile, Trainer, in_turn


class ParameterSet:
    """One run's own copy of what is trained, to be put into the model when it is its turn.

    Args:
        model: What requires a gradient is copied.
    """

    def __init__(self, model: nn.Module) -> None:
        self._places: list[tuple[nn.Module, str, nn.Parameter]] = []
        copies: dict[nn.Parameter, nn.Parameter] = {}  # one may stand in several places
        for module in model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                if parameter.requires_grad:
                    if parameter not in copies:
                        copies[parameter] = nn.Parameter(parameter.detach().clone())
                    self._places.append((module, name, copies[parameter]))

    def lend(self) -> None:
        """Put the copies into the model; those that stood there stay with their own set."""
        for module, name, parameter in self._places:
            setattr(module, name, parameter)


def gradients_for(model: Any) -> Gradients:
    """How a cohort's gradients are taken on this model and its device."""
    if gains_from_larger_passes(model.device) and fits_together(model):
        return Together(model)
    return in_turn


def fits_together(model: nn.Module) -> bool:
    """Whether all that is trained are plain LoRA adapters, and nothing is drawn at random.

    Draws would differ from those of a run by itself.
    """
    if any(drops(module) for module in model.modules()):
        return False
    adapters = [p for m in model.modules() if type(m) is LoraLinear for p in (m.A, m.B)]
    return len(adapters) == sum(p.requires_grad for p in model.parameters())


class Together:
    """Gradients of several runs from passes that hold the rows of a step once for each.

    Args:
        model: Its LoRA layers have one slot each.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._layers = lora_layers(model)
        self._trainers: list[Trainer] = []
        self._adapters: list[_Adapters] = []

    def __call__(
        self, trainers: Sequence[Trainer], batch: list[Row], meanwhile: Meanwhile
    ) -> Iterator[tuple[Trainer, float, float]]:
        """See `loop.Gradients`."""
        if len(trainers) == 1:
            yield from in_turn(trainers, batch, meanwhile)
            return
        started = time.perf_counter()
        if self._trainers != list(trainers):
            # A run has dropped out, or caught up with the others.
            self._trainers = list(trainers)
            self._adapters = [
                _Adapters(layer, key, [t.learner.parameters[f"{name}.{key}"] for t in trainers])
                for name, layer in self._layers.items()
                for key in ("A", "B")
            ]
        first, count, learnt = trainers[0].learner, len(trainers), labels_of(batch)
        self._set_scales(count)
        for adapters in self._adapters:
            adapters.lend()
        totals = torch.zeros(count, device=first.device)
        for rows in passes(batch, first.section):
            inputs, labels = model_inputs(rows, first.device)
            inputs["input_ids"] = inputs["input_ids"].expand(count, -1)
            shares = [(slot, len(labels)) for slot in range(count)]
            # The route stays until the gradients are there: a layer may be passed once more.
            with route(self._model, segments=shares):
                with autocast(first.device, first.dtype):
                    objectives = [trainer.learner.objective for trainer in trainers]
                    losses = packed_loss_sums(self._model, inputs, labels, first.dtype, objectives)
                (losses.sum() / learnt).backward()
            totals += losses.detach()
        for adapters in self._adapters:
            adapters.hand_out_gradients()
        self._set_scales(1)
        meanwhile()
        loss_sums = totals.tolist()
        seconds = (time.perf_counter() - started) / count
        for trainer, loss_sum in zip(trainers, loss_sums, strict=True):
            yield trainer, loss_sum, seconds

    def _set_scales(self, count: int) -> None:
        for layer in self._layers.values():
            layer.scales = layer.scales[:1] * count


class _Adapters:
    """One matrix of one layer for several runs, in one storage of which each owns a part."""

    def __init__(self, layer: LoraLinear, key: str, own: list[nn.Parameter]) -> None:
        self._layer, self._key, self._own = layer, key, own
        self._all = nn.Parameter(torch.cat([parameter.detach() for parameter in own]))
        for parameter, part in zip(own, self._all.detach().split(1), strict=True):
            parameter.data = part

    def lend(self) -> None:
        setattr(self._layer, self._key, self._all)

    def hand_out_gradients(self) -> None:
        assert self._all.grad is not None
        for parameter, part in zip(self._own, self._all.grad.split(1), strict=True):
            parameter.grad = part
        self._all.grad = None
