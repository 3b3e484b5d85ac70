"""The plan of a scoring against reading every text alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from laura.engine import prefix_tree
from laura.engine.engine import Engine
from laura.engine.prefix_tree import ScoringPass, Text, plan
from laura.engine.requests import ScoreRequest

# Few different tokens and runs of them, so that texts share beginnings of every length.
RUNS = st.lists(st.tuples(st.integers(0, 1), st.integers(1, 40)), min_size=1, max_size=5)


def text_of(runs: list[tuple[int, int]], slot: int | None) -> Text:
    tokens = tuple(token for token, count in runs for _ in range(count))
    return Text(tokens, list(range(0, len(tokens), 3)), slot)


def text_before(passes: list[ScoringPass], one: ScoringPass, readings: list[Text]) -> list[int]:
    """Tokens of the stem that a pass follows, from the first on."""
    if one.follows is None:
        return []
    made = next(p for p in passes if p.keeps == one.follows)
    span = made.pieces[0].spans[0]
    own = readings[span.text].tokens[span.start : span.end]
    return [*text_before(passes, made, readings), *own]


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(RUNS, st.sampled_from([None, 0, 1])), min_size=1, max_size=12),
    st.sampled_from([30, 90, 400]),
    st.booleans(),
)
def test_every_asked_place_is_read_once_after_its_own_text(
    texts: list[tuple[list[tuple[int, int]], int | None]], row_tokens: int, share: bool
) -> None:
    unique = {(str(one.slot), one.tokens): one for one in (text_of(*runs) for runs in texts)}
    readings = [unique[key] for key in sorted(unique)]
    passes = plan(readings, row_tokens, share)
    found: dict[tuple[int, int], bool] = {}
    stems_made: set[int] = set()
    for one in passes:
        assert one.follows is None or one.follows in stems_made
        stems_made |= {one.keeps} if one.keeps is not None else set()
        before = text_before(passes, one, readings)
        # What each place of the row has before it, itself included, and its slot.
        seen: list[tuple[list[int], int | None]] = []
        for piece in one.pieces:
            upto: list[list[int]] = []
            for span in piece.spans:
                text = [] if span.before is None else list(upto[span.before])
                assert len(before) + len(text) == span.start
                for token in readings[span.text].tokens[span.start : span.end]:
                    text = [*text, token]
                    seen.append(([*before, *text], piece.slot))
                upto.append(text)
        assert len(seen) <= row_tokens or len(one.pieces) == 1
        for reading, number, place in one.asks:
            assert (reading, number) not in found
            found[reading, number] = True
            text, slot = seen[place]
            asked = readings[reading].asked[number]
            assert text == list(readings[reading].tokens[: asked + 1])
            assert slot == readings[reading].slot
            assert reading in one.needed
    assert len(found) == sum(len(reading.asked) for reading in readings)


def test_shared_beginnings_are_read_once() -> None:
    shots = tuple(range(100, 1300))
    readings = [
        Text((*shots, *(7, 8, 9) * 5, q, *range(30), *(c, c)), [1000])
        for q in range(20)
        for c in (1, 2, 3, 4)
    ]
    passes = plan(readings, 2048)
    tokens = sum(one.tokens for one in passes)
    assert tokens == 1200 + 15 + 20 * (31 + 4 * 2)
    assert sum(one.keeps is not None for one in passes) <= 2
    assert sum(one.tokens for one in plan(readings, 2048, share=False)) == 80 * (1200 + 15 + 33)


def test_deep_nesting_does_not_exhaust_the_stack() -> None:
    readings = [Text(tuple([1] * length), [length - 1]) for length in range(1, 3000, 4)]
    assert sum(len(one.asks) for one in plan(readings, 2048)) == len(readings)


@pytest.fixture
def questions() -> list[ScoreRequest]:
    """Shots that all share, questions, and four choices each."""
    shots = "question: what sat on the mat? answer: the cat. " * 6
    return [
        ScoreRequest(f"{shots}question: how many {word}? answer:", f" {choice} {word}")
        for word in ("cats", "dogs", "apples on a mat", "the")
        for choice in ("1", "2 and 3", "the dog", "an apple")
    ]


@pytest.mark.parametrize(("row_tokens", "block"), [(2048, 256), (160, 256), (160, 20), (24, 8)])
def test_scores_equal_those_of_texts_read_alone(
    tiny_model: Any,
    tiny_tokenizer: Any,
    questions: list[ScoreRequest],
    monkeypatch: pytest.MonkeyPatch,
    row_tokens: int,
    block: int,
) -> None:
    monkeypatch.setattr(prefix_tree, "BLOCK_TOKENS", block)
    engine = Engine(tiny_model, tiny_tokenizer, row_tokens=row_tokens)
    for request, answer in zip(questions, engine.score(questions), strict=True):
        before, after = engine.encoder.pair(request.context, request.continuation)
        with torch.no_grad():
            logits = tiny_model(torch.tensor([before + after])).logits[0].log_softmax(-1)
        places = range(len(before) - 1, len(before) + len(after) - 1)
        nats = [logits[p, t].item() for p, t in zip(places, after, strict=True)]
        assert answer.loglikelihood == pytest.approx(sum(nats), abs=1e-4)
