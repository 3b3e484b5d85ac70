"""Drafts against a plain search, what a pass allots them, and what is told of them."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from laura.models.continuation import Continuation, News, extend
from laura.models.drafts import FIRST_TRUST, LENGTHS, MOST_DRAFTED, NEWEST, Drafts, allot
from laura.models.live_text import TextStream
from laura.models.sampling import Draw
from laura.models.slots import FEWEST_TOKENS

CPU_FREE_ROWS, VOCABULARY = 16, 12


def plain_search(tokens: Sequence[int], most: int) -> tuple[int, list[int]]:
    """Length of the longest known end, and what stood behind it last, read on as it grows."""
    for length in LENGTHS:
        for place in range(len(tokens) - 1, length - 1, -1):
            if list(tokens[place - length : place]) == list(tokens[len(tokens) - length :]):
                grown = list(tokens)
                for i in range(most):
                    grown.append(grown[place + i])
                return length, grown[len(tokens) :]
    return 0, []


def test_what_stood_behind_the_same_tokens_last_is_found_as_by_a_plain_search() -> None:
    source = random.Random(0)
    found = set()
    for _ in range(300):
        tokens = [source.randrange(source.choice([2, 5, 20])) for _ in range(30)]
        prompt = source.randrange(1, 30)
        drafts = Drafts(tokens[:prompt])
        for place in range(prompt, 30):
            length, expected = plain_search(tokens[:place], 5)
            draft, trust = drafts.next(5)
            assert draft == expected
            assert trust == (drafts._trust[length] if length else 0.0)
            found.add(length)
            drafts.add(tokens[place])
    assert found == {0, *LENGTHS}


def test_what_repeats_itself_is_drafted_beyond_its_end() -> None:
    assert Drafts([7, 1, 2, 1, 2]).next(6) == ([1, 2, 1, 2, 1, 2], FIRST_TRUST[2])
    assert Drafts([3]).next(6) == ([], 0.0)
    assert Drafts([3, 3]).next(0) == ([], FIRST_TRUST[1])


def test_trust_follows_how_often_a_draft_was_right() -> None:
    drafts = Drafts([1, 2, 3, 4, 1, 2, 3])
    drafts.add(4)
    right = FIRST_TRUST[3] + NEWEST * (1 - FIRST_TRUST[3])
    assert drafts.next(1) == ([1], pytest.approx(right))
    drafts.add(9)
    assert drafts._trust[3] == pytest.approx(right * (1 - NEWEST))
    assert drafts._trust[2] == FIRST_TRUST[2], "only the length that drafted is judged"
    assert drafts.next(3) == ([], 0.0)


def looping(right: int = 40) -> Drafts:
    """One whose drafts were right so often."""
    drafts = Drafts([1, 2] * 3)
    for number in range(right):
        drafts.add(1 + number % 2)
    return drafts


def test_few_rows_are_filled_with_drafts_and_many_are_not() -> None:
    assert 1 + MOST_DRAFTED < FEWEST_TOKENS, "a draft goes the way of its answer's own token"
    assert list(map(len, allot([(looping(), 100)], 1, CPU_FREE_ROWS))) == [MOST_DRAFTED]
    assert allot([(looping(), 2)], 1, CPU_FREE_ROWS) == [[1, 2]], "no more than there is room for"
    assert allot([(looping(), 100)] * 40, 40, CPU_FREE_ROWS) == [[]] * 40
    assert allot([(looping(), 100)], 500, CPU_FREE_ROWS) == [[]], "beside prompts"
    eight = list(map(len, allot([(looping(), 100)] * 8, 8, CPU_FREE_ROWS)))
    assert 8 < sum(eight) < 8 * MOST_DRAFTED and max(eight) - min(eight) <= 1


def test_those_who_are_likely_to_be_right_are_drafted_first() -> None:
    doubtful = Drafts([1, 2, 3, 1])
    for _ in range(3):  # each time something else follows
        for token in (random.Random(5).randrange(50, 99), 1):
            doubtful.add(token)
    taken = allot([(doubtful, 100), (looping(), 100), (Drafts([1]), 100)], 12, CPU_FREE_ROWS)
    assert (len(taken[0]), taken[2]) == (0, []) and len(taken[1]) > 1


def asked(draft: Sequence[int], **more: object) -> tuple[Continuation, Sequence[int]]:
    settings: dict[str, object] = {"owner": "t", "prompt": (0,), "limit": 9, **more}
    one = Continuation(**settings)  # type: ignore[arg-type]
    one.text = TextStream(lambda ids: "".join("abcdefghijkl"[i] for i in ids), one.stop)
    return one, draft


def logits_of(*choices: int) -> Tensor:
    """What the model would choose behind each token."""
    return torch.eye(VOCABULARY)[list(choices)] * 3


def text_of(news: Sequence[News], one: Continuation) -> str:
    return "".join(own.told.text for own in news if own.of is one)


def test_a_draft_is_told_as_far_as_the_model_chooses_the_same() -> None:
    first, second, third = asked([3, 4, 9]), asked([]), asked([5])
    news = extend([first, second, third], logits_of(3, 4, 5, 6, 1, 2, 7))
    assert first[0].tokens == [3, 4, 5], "the model's own token stands for the wrong one"
    assert (second[0].tokens, third[0].tokens) == ([1], [2])
    assert text_of(news, first[0]) == "def"
    whole = asked([3, 4])
    extend([whole], logits_of(3, 4, 5))
    assert whole[0].tokens == [3, 4, 5]


def test_an_answer_that_ends_in_its_draft_is_told_no_further() -> None:
    full, ended, stopped = asked([3, 4], limit=2), asked([3, 4]), asked([3, 4, 5], stop=("de",))
    ended[0].stops = frozenset({3})
    news = extend([full, ended, stopped], logits_of(3, 4, 5, 3, 4, 5, 3, 4, 5, 6))
    assert full[0].tokens == [3, 4] and ended[0].tokens == [3] and stopped[0].tokens == [3, 4]
    last = {own.of: own.finish for own in news}
    assert [last[one] for one, _ in (full, ended, stopped)] == ["length", "stop", "stop"]
    assert text_of(news, stopped[0]) == "" and text_of(news, full[0]) == "de"


def test_what_is_not_finite_behind_a_draft_is_asked_anew_and_not_told() -> None:
    one, other = asked([3, 4]), asked([3])
    logits = logits_of(3, 4, 5, 3, 4)
    logits[1], logits[3] = float("nan"), float("inf")
    news = extend([one, other], logits)
    assert one[0].tokens == [3] and not other[0].tokens
    assert [bool(own.fault) for own in news] == [False, True]


def test_one_number_is_drawn_for_every_token_that_is_told() -> None:
    source = random.Random(4)
    one = asked([3, 4, 9, 9], draw=Draw(1e-6, source=source))
    extend([one], logits_of(3, 4, 5, 6, 7))
    assert one[0].tokens == [3, 4, 5]
    expected = random.Random(4)
    for _ in range(3):
        expected.random()
    assert source.random() == expected.random()


def test_every_drafted_token_has_scores_of_its_own() -> None:
    one = asked([3, 4], top=2)
    logits = torch.randn(3, VOCABULARY, generator=torch.Generator().manual_seed(1))
    logits[0, 3], logits[1, 4] = 9.0, 9.0
    news = extend([one], logits)
    nats = logits.log_softmax(-1)
    scores = [score for own in news for score in own.told.scores]
    assert [token for token, _, _ in scores] == [3, 4, int(logits[2].argmax())]
    for row, (token, value, best) in enumerate(scores):
        assert value == pytest.approx(nats[row, token].item(), abs=1e-6)
        assert [i for i, _ in best] == nats[row].topk(2).indices.tolist()
