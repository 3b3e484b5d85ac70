"""Turns of groups."""

from __future__ import annotations

from laura.serve.turns import Turns


def test_a_turn_lasts_while_nobody_else_waits() -> None:
    now = [0.0]
    turns = Turns(2.0, lambda: now[0])
    assert turns.may_enter("a", True) and turns.may_enter("b", True)
    turns.enter("a")
    turns.enter("a")
    assert turns.may_enter("a", True) and not turns.may_enter("b", True)
    now[0] = 5.0
    assert turns.may_enter("a", False) and not turns.may_enter("a", True)
    turns.leave()
    assert not turns.may_enter("b", True), "one still runs"
    turns.leave()
    assert turns.may_enter("b", True) and not turns.may_enter("a", True)
    turns.enter("b")
    assert turns.running == 1 and turns.may_enter("b", True) and not turns.may_enter("a", True)
    now[0] = 7.0
    assert not turns.may_enter("b", True)
