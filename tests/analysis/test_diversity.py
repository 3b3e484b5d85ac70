"""Diversity against brute force, scipy and sacrebleu."""

from __future__ import annotations

import itertools
import random
import statistics as naive
from typing import Any

import pytest
import sacrebleu
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from laura.analysis import diversity

OUTPUTS = st.lists(st.sampled_from("abcd"), min_size=1, max_size=8)


@given(OUTPUTS, st.data())
def test_rarefied_is_the_mean_over_all_choices(outputs: list[str], data: Any) -> None:
    size = data.draw(st.integers(1, len(outputs)))
    choices = list(itertools.combinations(outputs, size))
    expected = naive.fmean(len(set(choice)) for choice in choices)
    assert diversity.rarefied(outputs, size) == pytest.approx(expected)


def test_rarefied_does_not_depend_on_how_many_were_drawn() -> None:
    """A model that always answers as often one way as another: few or many, the same number."""
    generator = random.Random(0)
    means = [
        naive.fmean(diversity.rarefied(generator.choices("abcdefgh", k=n), 5) for _ in range(4000))
        for n in (5, 12, 40)
    ]
    exact = 8 * (1 - (7 / 8) ** 5)  # each of 8 outputs is missed with chance (7/8)^5
    assert means == pytest.approx([exact] * 3, abs=0.05)


def test_rarefied_of_too_many_is_refused() -> None:
    with pytest.raises(ValueError, match="size is 1 to the number of outputs, 2; came 3"):
        diversity.rarefied(["a", "b"], 3)


@given(OUTPUTS)
def test_entropy_equals_scipy(answers: list[str]) -> None:
    expected = stats.entropy([answers.count(one) for one in set(answers)])
    assert diversity.entropy(answers) == pytest.approx(float(expected), abs=1e-12)


@pytest.mark.parametrize(
    "texts",
    [
        ["def f(x):\n    return x + 1", "def f(x):\n    return x", "def g(y):\n    return y * 2"],
        ["a b c d e", "a b c d e", "a b c d f", "z"],
        ["the same words here"] * 4,
    ],
)
def test_self_bleu_is_the_mean_over_all_others(texts: list[str]) -> None:
    """Naively: every text against every other one, however often it stands there."""
    scores = [
        sacrebleu.sentence_bleu(text, texts[:i] + texts[i + 1 :], use_effective_order=True).score
        for i, text in enumerate(texts)
    ]
    assert diversity.self_bleu(texts) == pytest.approx(naive.fmean(scores) / 100)


def _rows(texts: str, passed: str) -> list[dict[str, Any]]:
    return [
        {"index": 7, "text": text, "passed": mark == "1"}
        for text, mark in zip(texts, passed, strict=True)
    ]


def test_a_prompt_is_split_by_passing() -> None:
    found = diversity.prompt_numbers(_rows("aabbbcdd", "11111000"))
    assert (found["index"], found["samples"], found["passed"]) == (7, 8, 5)
    assert (found["distinct"], found["distinct_passed"], found["distinct_failed"]) == (4, 2, 2)
    assert found["rarefied_passed"] == 2  # all five of them
    assert found["rarefied_failed"] is None  # three are fewer than five
    assert found["rarefied"] == pytest.approx(diversity.rarefied("aabbbcdd", 5))
    none = diversity.prompt_numbers(_rows("aa", "00"))
    assert none["distinct_passed"] is None and none["rarefied"] == 1 and none["self_bleu"] == 1


def test_answers_are_the_extracted_ones() -> None:
    rows = _rows("abc", "100")
    math = [{**row, "answer": "5"} for row in rows]
    assert diversity.prompt_numbers(math)["answer_entropy"] == 0
    assert diversity.prompt_numbers(math)["distinct"] == 3
    assert diversity.prompt_numbers(rows)["answer_entropy"] == pytest.approx(stats.entropy([1] * 3))


def test_means_and_differences_leave_out_prompts_without_the_number() -> None:
    values = {"a": [1, 2, None, 4], "b": [2, 4, 3, None]}
    sides = [
        {i: {"distinct_passed": value} for i, value in enumerate(own)} for own in values.values()
    ]
    mean = diversity.over_prompts(sides[0].values(), "distinct_passed")
    assert mean is not None and (mean.value, mean.n) == (pytest.approx(7 / 3), 3)
    found = diversity.difference(*sides, "distinct_passed")
    expected = stats.ttest_rel([2, 4], [1, 2])
    assert found is not None and found.value == 1.5 and found.n == 2
    assert found.value / found.stderr == pytest.approx(expected.statistic)
    assert diversity.difference({0: {"distinct": 1}}, {0: {"distinct": 2}}, "distinct") is None
