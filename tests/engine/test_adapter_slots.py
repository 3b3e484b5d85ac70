"""Slots: who leaves, what is refused, what it costs."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from laura.engine.adapter_slots import Slots
from laura.engine.model_runner import fuse_linears
from laura.results.errors import AdapterError
from tests.engine.alone import ATTENTION, MLP, made_adapter, tiny


def slots_of(most: int = 3, max_rank: int = 8) -> Slots:
    joined, _ = fuse_linears(tiny(), torch.float32)
    return Slots([one.group for one in joined], most, max_rank, torch.float32, torch.device("cpu"))


def own_bytes(adapter: Any) -> int:
    return sum(tensor.numel() * 4 for tensor in adapter[1].values())


def test_the_least_recently_used_leaves_and_pinned_and_used_stay() -> None:
    slots = slots_of()
    one, two, three = (slots.place(name, name, *made_adapter(1, 4, MLP)) for name in "abc")
    slots.use(one)
    slots.leave(one)
    two.pinned = True
    slots.place("d", "d", *made_adapter(2, 4, MLP))
    assert set(slots.held) == {"a", "b", "d"} and three.name not in slots.held
    slots.use(one)
    slots.place("e", "e", *made_adapter(3, 2, ATTENTION))
    assert set(slots.held) == {"a", "b", "e"}
    slots.use(slots.held["e"])
    assert not slots.room_for("f")
    with pytest.raises(AdapterError, match="all 3 are in use or pinned"):
        slots.place("f", "f", *made_adapter(3, 2, ATTENTION))
    assert not slots.remove("e") and not slots.remove("nobody")
    slots.leave(slots.held["e"])
    assert slots.remove("e") and slots.room_for("f")


def test_other_bytes_under_the_same_name_are_another_adapter() -> None:
    slots = slots_of()
    old = slots.place("a", "1", *made_adapter(1, 4, MLP))
    assert slots.find("a", "1") is old and slots.find("a", "2") is None
    slots.use(old)
    assert not slots.room_for("a")
    slots.leave(old)
    new = slots.place("a", "2", *made_adapter(2, 4, MLP))
    assert slots.held == {"a": new} and slots.find("a", "1") is None


def test_memory_is_the_adapters_own_and_a_fifth_at_most() -> None:
    slots, seen = slots_of(most=16), 0
    kinds = [(2, ATTENTION), (8, MLP), (3, ("self_attn.q_proj",)), (5, (*ATTENTION, *MLP))]
    for number in range(60):
        rank, targets = kinds[number % 4 if number < 30 else 1]
        slots.place(str(number), str(number), *made_adapter(number, rank, targets))
        held = sum(slot.bytes for slot in slots.held.values())
        assert held <= slots.bytes <= 1.2 * held
        seen = max(seen, slots.bytes)
    assert len(slots.held) == 16
    adapter = made_adapter(0, 5, (*ATTENTION, *MLP))
    assert slots_of().place("x", "x", *adapter).bytes == own_bytes(adapter)
    for name in list(slots.held):
        slots.remove(name)
    assert slots.bytes == 0


def test_what_does_not_fit_is_refused_and_nothing_is_touched() -> None:
    slots = slots_of(most=1)
    slots.place("good", "good", *made_adapter(1, 4, MLP))
    before = {k: t.clone() for k, t in slots.held["good"].array.tensors.items()}
    settings, tensors = made_adapter(2, 4, MLP)
    name = "base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"
    broken = {
        "is not finite": {**tensors, name: tensors[name] / 0},
        r"has shape \(9, 4\)": {**tensors, name: torch.zeros(9, 4)},
    }
    for message, wrong in broken.items():
        with pytest.raises(AdapterError, match=message):
            slots.place("bad", "bad", settings, wrong)
    with pytest.raises(AdapterError, match="rank 9 at"):
        slots.place("bad", "bad", *made_adapter(2, 9, MLP))
    dora = type(settings)(rank=4, targets=settings.targets, dora=True)
    with pytest.raises(AdapterError, match="DoRA"):
        slots.place("bad", "bad", dora, tensors)
    foreign = type(settings)(rank=4, targets=("model.layers.7.mlp.up_proj",))
    with pytest.raises(AdapterError, match="made for another base"):
        slots.place("bad", "bad", foreign, tensors)
    assert list(slots.held) == ["good"]
    assert all(before[k].equal(t) for k, t in slots.held["good"].array.tensors.items())
