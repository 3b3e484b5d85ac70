"""Events as answers: where tokens begin, what a whole answer is the sum of."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from laura.engine.detokenizer import Score, TextDelta
from laura.serve.answers import CompletionSerializer, Offsets
from laura.serve.context import RequestContext
from laura.serve.engines import Ended, PromptScores
from laura.serve.prompts import TokenTexts
from tests.conftest import make_tiny_tokenizer

TINY = make_tiny_tokenizer()
TEXTS = TokenTexts(TINY)
HEADING = {"id": "cmpl-1", "created": 1, "model": "m", "system_fingerprint": "laura-x"}


@given(st.text(max_size=40), st.integers(0, 40))
def test_a_token_begins_where_the_text_before_it_ends(text: str, cut: int) -> None:
    ids = TINY.encode(text, add_special_tokens=False)
    pieces = [TEXTS.bytes_of(one) or b"" for one in ids]
    naive = []
    for place in range(len(ids)):
        before = b"".join(pieces[:place])
        naive.append(len(before.decode(errors="ignore")))
    offsets = Offsets()
    # The text may come before the tokens that it is of, and in any pieces.
    first = offsets.add([], text[:cut])
    assert first + offsets.add(pieces, text[cut:]) == naive


def test_tokens_that_are_not_in_the_text_take_no_room() -> None:
    assert Offsets().add([b"<s>", b" he", b"llo", b"</s>"], "hello") == [0, 0, 2, 5]


def form(logprobs: bool = True, echoes: Any = ("a cat",)) -> CompletionSerializer:
    return CompletionSerializer(HEADING, TEXTS, 1, logprobs, echoes)


def whole(one: CompletionSerializer, *events: Any) -> Any:
    chunks = [*one.begin(), *[c for e in events if (c := one.chunk(0, e))]]
    return one.whole(chunks, RequestContext("POST", "/")).choices[0]


def scored(text: str, top: int = 1) -> list[Score]:
    ids = TINY.encode(text, add_special_tokens=False)
    return [(one, -1.0 - i, ((one, -1.0 - i),)[:top]) for i, one in enumerate(ids)]


def test_an_end_token_without_a_score_still_has_its_entry() -> None:
    """lm-eval takes the last entry for the answer's and drops it."""
    prompt = scored("a cat")
    prompt[0] = (prompt[0][0], None, ())
    choice = whole(form(), PromptScores(tuple(prompt)), Ended("stop", len(prompt), 1))
    assert choice.text == "a cat" and choice.finish_reason == "stop"
    logprobs = choice.logprobs
    assert logprobs.token_logprobs == [None, *[one[1] for one in prompt[1:]], None]
    assert len(logprobs.tokens) == len(prompt) + 1 == len(logprobs.top_logprobs)
    assert logprobs.text_offset[-1] == len("a cat")


def test_what_json_cannot_write_becomes_openais_least_number() -> None:
    token = (5, float("-inf"), ((6, float("nan")), (7, -0.5)))
    choice = whole(form(echoes=None), TextDelta("x", (token,)), Ended("stop", 2, 1))
    assert choice.logprobs.token_logprobs == [-9999.0]
    assert sorted(choice.logprobs.top_logprobs[0].values()) == [-9999.0, -9999.0, -0.5]


def test_a_rival_that_is_written_alike_keeps_the_likelier_number() -> None:
    token = (5, -3.0, ((5, -3.0),))
    choice = whole(form(echoes=None), TextDelta("x", (token,)), Ended("stop", 2, 1))
    assert choice.logprobs.top_logprobs == [{TEXTS.text_of(5): -3.0}]
