"""Joined maps with a plan of a pass against every token computed alone."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor

from laura.models.live_maps import JoinedMaps, join_maps
from laura.models.live_plan import plan_of, slot_order
from laura.models.slots import Slot, Slots
from tests.models.live_twin import ATTENTION, MLP, made_adapter, tiny

CPU = torch.device("cpu")
KINDS = ((4, (*ATTENTION, *MLP)), (2, ATTENTION[:3:2]), (3, MLP), (5, ATTENTION[3:]))


def setting() -> tuple[list[JoinedMaps], Any, list[Slot], Slots]:
    """Nine adapters in shelves of 6, 1, 1 and 1 places, one of them given up again."""
    joined, board = join_maps(tiny(), torch.float32)
    slots = Slots([one.group for one in joined], 9, 8, torch.float32, CPU)
    kinds = [KINDS[max(0, number - 5)] for number in range(9)]
    placed = [slots.place(str(i), "", *made_adapter(i, *kind)) for i, kind in enumerate(kinds)]
    return joined, board, placed, slots


def alone(joined: JoinedMaps, slot: Slot | None, x_I: Tensor, plain_O: Tensor) -> Tensor:
    """One token's outputs, map by map, in float64."""
    parts = list(plain_O.double().split(joined.group.outputs))
    if slot is not None and joined.group.names[0] in slot.shelf.down:
        inner = x_I.double() @ slot.shelf.down[joined.group.names[0]][slot.place].double()
        for number, name in enumerate(joined.group.names):
            if name in slot.shelf.up:
                up = slot.shelf.up[name][slot.place].double()
                parts[number] = parts[number] + inner[: len(up)] @ up
                inner = inner[len(up) :]
    return torch.cat(parts)


def check(segments: list[tuple[Slot | None, int]], joined: list[JoinedMaps], board: Any) -> Any:
    board.plan = type(board.plan)()
    total = sum(tokens for _, tokens in segments)
    plan = plan_of(segments, CPU)
    for one in joined[:4]:
        x = torch.randn(total, one.group.inputs)
        board.plan = type(plan)()
        plain = one(x)
        board.plan = plan
        found, token = one(x), 0
        for slot, tokens in segments:
            for _ in range(tokens):
                expected = alone(one, slot, x[token], plain[token]).float()
                torch.testing.assert_close(found[token], expected, atol=1e-4, rtol=1e-5)
                token += 1
    return plan


def test_every_token_goes_through_its_adapter() -> None:
    torch.manual_seed(0)
    joined, board, placed, _ = setting()
    source = random.Random(0)
    for turn in range(12):
        some = [source.choice([None, *placed]) for _ in range(source.choice([1, 3, 9, 30]))]
        if turn % 2:
            some.sort(key=slot_order)
        parts = [(source.choice([None, *placed]), source.choice([1, 9, 9, 20])) for _ in range(3)]
        check([*((slot, 1) for slot in some), *parts[: turn % 4]], joined, board)


@pytest.mark.parametrize("each", [4, 5, 12])
def test_sorted_tokens_of_equal_number_are_not_moved(each: int) -> None:
    joined, board, placed, _ = setting()
    segments: list[tuple[Slot | None, int]] = [(None, 1), *((slot, each) for slot in placed[:6])]
    plan = check(segments, joined, board)
    assert plan.gather is None
    assert [(run.first, run.count, run.each, run.start) for run in plan.aligned] == [
        (0, 6, each, 1)
    ]


def test_unequal_numbers_are_filled_up_and_idle_places_bridged() -> None:
    joined, board, placed, slots = setting()
    slots.remove("3")
    counts = {0: 1, 1: 3, 2: 1, 4: 2, 5: 4}
    segments: list[tuple[Slot | None, int]] = [
        (placed[number], 1) for number, count in counts.items() for _ in range(count)
    ]
    plan = check(segments, joined, board)
    assert not plan.aligned
    assert [(run.count, run.each) for run in plan.padded] == [(6, 4)]
    long = [(placed[0], 200), (placed[1], 9), (placed[2], 9)]
    plan = check(long, joined, board)
    assert [(run.count, run.each) for run in plan.aligned] == [(1, 200), (2, 9)]
    mixed = [(placed[i], 1 if i % 2 else 20) for i in (5, 0, 2, 1, 4)]
    plan = check(mixed, joined, board)
    assert [run.each for run in plan.aligned] == [20, 20, 20]
    assert [(run.count, run.each) for run in plan.padded] == [(1, 4), (1, 4)], "never one token"


def test_a_plan_that_stays_follows_its_slots() -> None:
    """Adapters come and go between two passes of the same answers."""
    joined, board, placed, slots = setting()
    segments: list[tuple[Slot | None, int]] = [(placed[4], 4), (placed[5], 4)]
    one, plans = joined[0], []
    x = torch.randn(8, one.group.inputs)
    plain = one(x)
    expected = [alone(one, placed[4 + token // 4], x[token], plain[token]) for token in range(8)]
    for change in (None, "0", "2", "1", "new", "3", None):
        if change == "new":
            slots.place("new", "", *made_adapter(99, *KINDS[0]))
        elif change:
            assert slots.remove(change)
        board.prepare(segments, CPU)
        plans.append(board.plan)
        torch.testing.assert_close(one(x), torch.stack(expected).float(), atol=1e-4, rtol=1e-5)
    assert 1 < len({id(plan) for plan in plans}) < 7
    assert placed[5].shelf.views
    board.clear()
    assert not placed[5].shelf.views and not board.plan.aligned
