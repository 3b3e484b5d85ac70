"""What is kept of earlier answers: bounded, the newest first, each tenant and adapter apart."""

from __future__ import annotations

import time
from typing import Any

import pytest

from laura.engine import drafting as module
from laura.engine.drafting import TOKEN_BITS, NgramTable, NgramTables
from laura.engine.sequence import TokenSequence
from tests.engine.alone import MLP, made_adapter, one_answer, serving, tiny


def test_only_an_answer_is_remembered_and_its_newest_place_counts() -> None:
    said = NgramTable()
    said.add([1, 2, 3, 4, 5], start=3)
    assert said.after([1, 2]) is None, "inside the prompt"
    assert (said.after([1, 2, 3]), said.after([2, 3]), said.after([3, 4])) == (4, 4, 5)
    assert said.on([9, 9, 2, 3], 5) == [4, 5]
    said.add([1, 2, 3, 7], start=3)
    assert said.on([1, 2, 3], 5) == [7]
    assert said.on([3], 5) == [] == said.on([], 5)


def test_large_tokens_are_not_mistaken_for_others() -> None:
    said, large = NgramTable(), 2**TOKEN_BITS - 1
    said.add([large, large, 1], 0)
    for end in ([0, large], [large, 0], [1, large, large], [large - 1, large], [large]):
        assert said.after(end) is None
    assert said.after([large, large]) == 1


def test_memory_is_bounded_and_the_oldest_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_NGRAMS", 10)
    monkeypatch.setattr(module, "MOST_TABLES", 3)
    said = NgramTable()
    said.add([1, 2, 3], 2)
    for first in range(10, 100, 3):
        said.add([first, first + 1, first + 2], 0)
        said.add([1, 2, 3], 2)  # seen again and again
        assert len(said) <= 10
    assert said.after([1, 2]) == 3 and said.after([10, 11]) is None
    books = NgramTables()
    kept = books.of("a")
    for name in "bcacda":
        books.of(name)
    assert books.of("a") is kept
    assert len(books._of) == 3 and "b" not in books._of


def test_a_very_long_answer_is_remembered_at_once() -> None:
    """All tenants wait meanwhile; one by one, 200,000 tokens took most of a minute."""
    said = NgramTable()
    said.add(range(20_000), 0)
    started = time.perf_counter()
    said.add(range(200_000), 0)
    assert time.perf_counter() - started < 1
    assert len(said) <= module.MOST_NGRAMS and said.after([199_997, 199_998]) == 199_999


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


def test_nothing_is_remembered_of_a_fault_or_without_drafts(tiny_tokenizer: Any) -> None:
    settings, tensors = made_adapter(9, 4, MLP)
    huge = {name: tensor * 1e25 for name, tensor in tensors.items()}
    prompt = tuple(tiny_tokenizer.encode("the dog ran"))
    with serving(tiny(), tiny_tokenizer, cache_bytes=2**25) as engine:
        slot = engine.runner.slots.place("huge", "huge", settings, huge)
        assert one_answer(engine, TokenSequence("t", prompt, 9, slot)).fault
        one_answer(engine, TokenSequence("t", prompt, 0, scores_prompt=True))
        assert sum(map(len, engine.ngrams._of.values())) == 0
        engine.drafts = False
        one_answer(engine, TokenSequence("u", prompt, 9, ignore_end=True))
        assert ("u", "") not in engine.ngrams._of
