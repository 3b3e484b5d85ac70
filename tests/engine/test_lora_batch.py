"""Joined maps with a plan of a pass against every token computed alone from its adapter's files."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from laura.engine import adapter_slots
from laura.engine.adapter_slots import (
    Lookup,
    LoraBatch,
    Slot,
    SlotRun,
    Slots,
    lora_batch_of,
    slot_order,
)
from laura.engine.model_runner import FusedLinear, fuse_linears
from laura.models.adapter_files import PREFIX
from laura.models.lora import LoraSettings
from laura.models.oft import OFT_TURN
from tests.engine.alone import ATTENTION, MLP, made_adapter, made_rotation, tiny

CPU = torch.device("cpu")
KINDS = ((4, (*ATTENTION, *MLP)), (2, ATTENTION[:3:2]), (3, MLP), (5, ATTENTION[3:]))
TURNS = ((16, (*ATTENTION, *MLP)), (16, (*ATTENTION, *MLP)), (4, MLP), (8, ATTENTION[1:4]))
Segments = list[tuple[Slot | None, int]]
Files = dict[Slot, tuple[LoraSettings, dict[str, Tensor]]]


class Setting:
    """Nine adapters in arrays of 6, 1, 1 and 1 slots, and four of OFT in 2, 1 and 1."""

    def __init__(self) -> None:
        self.model = tiny()
        self.joined, self.current = fuse_linears(tiny(), torch.float32)
        self.slots = Slots([one.group for one in self.joined], 13, 16, torch.float32, CPU)
        kinds = [KINDS[max(0, number - 5)] for number in range(9)]
        made = [made_adapter(i, *kind) for i, kind in enumerate(kinds)]
        made += [made_rotation(i, *kind) for i, kind in enumerate(TURNS)]
        self.files: Files = {
            self.slots.place(str(i), "", *adapter): adapter for i, adapter in enumerate(made)
        }
        self.placed = list(self.files)

    def alone(self, joined: FusedLinear, slot: Slot | None, x_I: Tensor, plain_O: Tensor) -> Tensor:
        """One token's outputs, map by map, in float64."""
        parts = list(plain_O.double().split(joined.group.outputs))
        if slot is not None:
            settings, tensors = self.files[slot]
            for number, name in enumerate(joined.group.names):
                if name in settings.targets and settings.block_size:
                    turn_nbb = tensors[f"{PREFIX}{name}.{OFT_TURN}"].double()
                    blocks = x_I.double().view(len(turn_nbb), 1, -1)
                    weight = self.model.get_submodule(name).weight.double()
                    parts[number] = parts[number] + weight @ (blocks @ turn_nbb).flatten()
                elif name in settings.targets:
                    a, b = (tensors[f"{PREFIX}{name}.lora_{x}.weight"].double() for x in "AB")
                    scale = settings.for_module(name)[1]
                    parts[number] = parts[number] + scale * (b @ (a @ x_I.double()))
        return torch.cat(parts)

    def check(self, segments: Segments) -> LoraBatch:
        """The batch of a pass, by which every token has gone through its adapter."""
        total = sum(tokens for _, tokens in segments)
        plan = lora_batch_of(segments, CPU)
        owners = [slot for slot, tokens in segments for _ in range(tokens)]
        for one in self.joined[:4]:
            x = torch.randn(total, one.group.inputs)
            self.current.batch = LoraBatch()
            plain = one(x)
            self.current.batch = plan
            found = one(x)
            for token, slot in enumerate(owners):
                expected = self.alone(one, slot, x[token], plain[token]).float()
                torch.testing.assert_close(found[token], expected, atol=1e-4, rtol=1e-5)
        return plan


@pytest.fixture(params=[True, False], ids=["lookups", "products"])
def looks_up(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """As on a processor, and as on a GPU."""
    monkeypatch.setattr(adapter_slots, "looks_up_adapters", lambda device: request.param)
    return bool(request.param)


def test_every_token_goes_through_its_adapter(looks_up: bool) -> None:
    torch.manual_seed(0)
    setting, source, seen = Setting(), random.Random(0), set()
    for turn in range(12):
        some = [source.choice([None, *setting.placed]) for _ in range(source.choice([1, 3, 9, 30]))]
        if turn % 2:
            some.sort(key=slot_order)
        lengths = [1, 9, 9, 20, 60]
        parts = [(source.choice([None, *setting.placed]), source.choice(lengths)) for _ in range(3)]
        plan = setting.check([*((slot, 1) for slot in some), *parts[: turn % 4]])
        assert bool(plan.lookups) <= looks_up
        assert looks_up <= (plan.gather is None)
        seen |= {type(run) for run in plan.rotated}
    assert seen == ({Lookup, SlotRun} if looks_up else {SlotRun})


def test_a_plan_that_stays_follows_its_slots(looks_up: bool) -> None:
    """Adapters come and go between two passes of the same answers."""
    setting = Setting()
    placed, current = setting.placed, setting.current
    segments: Segments = [(placed[4], 4), (placed[5], 4)]
    one, plans = setting.joined[0], []
    x = torch.randn(8, one.group.inputs)
    plain = one(x)
    expected = [
        setting.alone(one, placed[4 + token // 4], x[token], plain[token]) for token in range(8)
    ]
    for change in (None, "0", "2", "1", "new", "3", None):
        if change == "new":
            setting.slots.place("new", "", *made_adapter(99, *KINDS[0]))
        elif change:
            assert setting.slots.remove(change)
        current.prepare(segments, CPU)
        plans.append(current.batch)
        torch.testing.assert_close(one(x), torch.stack(expected).float(), atol=1e-4, rtol=1e-5)
    assert 1 < len({id(plan) for plan in plans}) < 7
    assert placed[5].array.views
    current.clear()
    assert not placed[5].array.views and not (current.batch.aligned or current.batch.lookups)
