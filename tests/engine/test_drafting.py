"""Drafts against a plain search, what a pass allots them, what is told of them and kept."""

from __future__ import annotations

import itertools
import math
import random
import time
from collections.abc import Sequence
from typing import Any

import pytest

from laura.engine import drafting as module
from laura.engine.adapter_slots import FEWEST_TOKENS
from laura.engine.drafting import (
    GOES_ON,
    MOST_DRAFTED,
    SOURCES,
    TOKEN_BITS,
    WORTH,
    Drafter,
    DraftSource,
    NgramTable,
    NgramTables,
    allot,
)
from laura.engine.scheduler import TokenSequence
from tests.engine.alone import MLP, made_adapter, serving, tiny

CPU_FREE_ROWS, VOCABULARY = 12, 12


def plain_search(
    tokens: Sequence[int], before: Sequence[Sequence[int]], most: int
) -> tuple[DraftSource | None, list[int]]:
    """The first source that knows the end, and what it tells, by looking through everything."""
    for source in SOURCES:
        told = _said(tokens, before, most) if source.earlier else _own(tokens, source.length, most)
        if told and (not source.earlier or _last(tokens[-source.length :], before, source.length)):
            return source, told
    return None, []


def _own(tokens: Sequence[int], length: int, most: int) -> list[int]:
    """What stood behind the last place with the same end, read on as it grows."""
    for place in range(len(tokens) - 1, length - 1, -1):
        if list(tokens[place - length : place]) == list(tokens[len(tokens) - length :]):
            grown = list(tokens)
            for i in range(most):
                grown.append(grown[place + i])
            return grown[len(tokens) :]
    return []


def _said(tokens: Sequence[int], before: Sequence[Sequence[int]], most: int) -> list[int]:
    grown = list(tokens)
    while len(grown) < len(tokens) + most:
        behind = _last(grown[-3:], before, 3) or _last(grown[-2:], before, 2)
        if not behind:
            break
        grown.append(behind[0])
    return grown[len(tokens) :]


def _last(end: Sequence[int], before: Sequence[Sequence[int]], length: int) -> list[int]:
    """The token behind the last such end of all answers, if there is one."""
    for answer in reversed(before):
        for place in range(len(answer) - 1, length - 1, -1):
            if list(answer[place - length : place]) == list(end):
                return [answer[place]]
    return []


def test_drafts_are_what_a_plain_search_through_everything_finds() -> None:
    source = random.Random(0)
    found = set()
    for _ in range(300):
        kinds, said, before = source.choice([2, 5, 9, 20]), NgramTable(), list[list[int]]()
        for _ in range(source.randrange(3)):
            before.append([source.randrange(kinds) for _ in range(30)])
            said.add(before[-1], 0)
        tokens = [source.randrange(kinds) for _ in range(30)]
        prompt = source.randrange(1, 30)
        drafts = Drafter(tokens[:prompt], said)
        for place in range(prompt, 30):
            origin, expected = plain_search(tokens[:place], before, 5)
            draft, trust = drafts.next(5)
            assert draft == expected
            assert trust == (0.0 if origin is None else drafts._trust[origin])
            found.add(origin)
            drafts.add(tokens[place])
    assert found == {None, *SOURCES}


def looping(right: int = 40) -> Drafter:
    """One whose drafts were right so often."""
    drafts = Drafter([1, 2] * 3)
    for number in range(right):
        drafts.add(1 + number % 2)
    return drafts


def test_few_rows_are_filled_with_drafts_and_many_are_not() -> None:
    assert 1 + MOST_DRAFTED < FEWEST_TOKENS, "a draft goes the way of its answer's own token"
    assert list(map(len, allot([(looping(), 100)], 1, CPU_FREE_ROWS))) == [MOST_DRAFTED]
    assert allot([(looping(), 2)], 1, CPU_FREE_ROWS) == [[1, 2]], "no more than there is room for"
    assert allot([(looping(), 100)] * 40, 40, CPU_FREE_ROWS) == [[]] * 40
    assert allot([(looping(), 100)], 512, CPU_FREE_ROWS) == [[]], "beside prompts"
    assert allot([(looping(), 100)] * 8, 8, CPU_FREE_ROWS) == [looping().next(6)[0]] * 8
    doubtful = [(Drafter([1, 2, 3, 1, 2, 3]), 100)] * 8
    assert allot(doubtful, 8, CPU_FREE_ROWS) == [[]] * 8, "twice the rows for half as many more"
    assert sum(map(len, allot(doubtful[:5], 5, CPU_FREE_ROWS))) == 3, "up to eight rows"


def test_no_other_allotment_brings_more_for_its_time() -> None:
    """Against all there are, by a formula of its own for the time of a pass."""
    source = random.Random(2)
    seen = set()
    for _ in range(60):
        answers = [looping(source.randrange(40)) for _ in range(3)]
        for one in answers:
            one._trust = dict.fromkeys(SOURCES, source.choice([0.3, 0.6, 0.9, 0.99]))
        rows, most = source.choice([3, 4, 5, 6, 8, 14]), source.choice([1, 3, 6])
        taken = tuple(map(len, allot([(one, most) for one in answers], rows, CPU_FREE_ROWS)))

        def rate(counts: tuple[int, ...], rows: int = rows, answers: Any = answers) -> float:
            brought = sum(
                one.next(1)[1] * max(one.next(1)[1], GOES_ON) ** depth
                for one, count in zip(answers, counts, strict=True)
                for depth in range(count)
            )
            computed = max(8, math.ceil((rows + sum(counts)) / 8) * 8)
            return (rows + brought) / (CPU_FREE_ROWS + computed + 0.75 * sum(counts))

        best = max(map(rate, itertools.product(range(most + 1), repeat=3)))
        none = (0, 0, 0)
        assert taken == none if best <= WORTH * rate(none) else rate(taken) == pytest.approx(best)
        seen.add(sum(taken))
    assert len(seen) > 4


def test_only_an_answer_is_remembered_and_its_newest_place_counts() -> None:
    table = NgramTable()
    table.add([1, 2, 3, 4, 5], start=3)
    assert table.after([1, 2]) is None, "inside the prompt"
    assert (table.after([1, 2, 3]), table.after([2, 3]), table.after([3, 4])) == (4, 4, 5)
    assert table.on([9, 9, 2, 3], 5) == [4, 5]
    table.add([1, 2, 3, 7], start=3)
    assert table.on([1, 2, 3], 5) == [7]
    assert table.on([3], 5) == [] == table.on([], 5)


def test_large_tokens_are_not_mistaken_for_others() -> None:
    table, large = NgramTable(), 2**TOKEN_BITS - 1
    table.add([large, large, 1], 0)
    for end in ([0, large], [large, 0], [1, large, large], [large - 1, large], [large]):
        assert table.after(end) is None
    assert table.after([large, large]) == 1


def test_memory_is_bounded_and_the_oldest_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_NGRAMS", 10)
    monkeypatch.setattr(module, "MOST_TABLES", 3)
    table = NgramTable()
    table.add([1, 2, 3], 2)
    for first in range(10, 100, 3):
        table.add([first, first + 1, first + 2], 0)
        table.add([1, 2, 3], 2)  # seen again and again
        assert len(table) <= 10
    assert table.after([1, 2]) == 3 and table.after([10, 11]) is None
    tables = NgramTables()
    kept = tables.of("a")
    for name in "bcacda":
        tables.of(name)
    assert tables.of("a") is kept
    assert len(tables._of) == 3 and "b" not in tables._of


def test_a_very_long_answer_is_remembered_at_once() -> None:
    """All tenants wait meanwhile; one by one, 200,000 tokens took most of a minute."""
    table = NgramTable()
    table.add(range(20_000), 0)
    started = time.perf_counter()
    table.add(range(200_000), 0)
    assert time.perf_counter() - started < 1
    assert len(table) <= module.MOST_NGRAMS and table.after([199_997, 199_998]) == 199_999


def test_neither_tenants_nor_adapters_hear_of_one_another(tiny_tokenizer: Any) -> None:
    prompt = tuple(tiny_tokenizer.encode("question: how many cats? answer"))
    with serving(tiny(), tiny_tokenizer, cache_bytes=2**25, slots=2) as engine:
        slots = [
            engine.runner.slots.place(n, n, *made_adapter(i, 4, MLP)) for i, n in enumerate("xy")
        ]

        def steps(owner: str, slot: Any) -> int:
            """How many an answer takes."""
            assert engine.add(TokenSequence(owner, prompt, 40, slot, ignore_end=True))
            count = 0
            while engine.busy:
                engine.step()
                count += 1
            return count

        first = {(owner, slot): steps(owner, slot) for owner in "ab" for slot in (None, *slots)}
        for slot in (None, *slots):
            assert first["a", slot] == first["b", slot], "as if nobody had asked before"
        assert len(engine.ngrams._of) == 6
        again = {key: steps(*key) for key in first}
        for key, count in again.items():
            assert count < 15 < first[key], "its own answer is known by heart"
