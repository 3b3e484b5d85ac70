"""Replay in a recipe: what does not go together is told before anything is loaded."""

from __future__ import annotations

import pytest

from laura.recipe.reading import parse_recipe, recipe_yaml
from laura.results.errors import RecipeError
from tests.recipe.test_reading import GOOD

ARM = GOOD.replace("rank: 8,", "rank: 8, replay: 0.25,")


def with_replay(*sources: str, text: str = ARM) -> str:
    lines = "".join(f"\n    - {source}" for source in sources)
    return text.replace("  source_text: wikitext", f"  source_text: wikitext\n  replay:{lines}")


def faults(text: str) -> dict[str, str]:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text)
    return {fault.path: fault.problem for fault in caught.value.faults}


def test_any_number_of_weighted_sources_and_a_share_for_each_arm() -> None:
    text = with_replay(
        "c4",
        "{source: metamathqa, limit: 100, weight: 2}",
        "{source: base_samples, count: 10, tokens: 64, prompts: {source: c4, split: validation}}",
    )
    recipe = parse_recipe(text)
    assert [source.weight for source in recipe.data.replay] == [1, 2, 1]
    assert [source.is_sampled for source in recipe.data.replay] == [False, False, True]
    assert recipe.arms["lora"].replay == 0.25 and recipe.arms["full"].replay == 0
    assert parse_recipe(recipe_yaml(recipe)) == recipe
    assert recipe.data.replay_exhausted == "repeat"
    assert parse_recipe(GOOD).data.replay == []


@pytest.mark.parametrize(
    ("text", "path", "words"),
    [
        (ARM, "arms.lora.replay", "is 0.25, but data.replay names no source"),
        (with_replay("c4", text=GOOD), "data.replay", "is used by no arm"),
        (with_replay("c4").replace("0.25", "1.0"), "arms.lora.replay", "must be less than 1"),
        (with_replay("c4").replace("0.25", "-0.1"), "arms.lora.replay", "greater than or equal"),
        (with_replay("{source: c4, weight: 0}"), "data.replay.0.weight", "greater than 0, came 0"),
        (with_replay("{source: c4, weight: .inf}"), "data.replay.0.weight", "finite"),
        (with_replay("{source: ''}"), "data.replay.0.source", "at least 1 character"),
        (with_replay("c4", "{source: c4, weight: 2}"), "data.replay.1", "names a source twice"),
        (with_replay("{source: wikitext, limit: 9}"), "data.replay.0", "is data.source_text"),
        (with_replay("{source: gsm8k, split: test}"), "data.replay.0", "is data.test"),
        (with_replay("{source: base_samples}"), "data.replay.0.count", "is needed"),
        (with_replay("{source: c4, count: 5}"), "data.replay.0.count", "is only for source: base"),
        (with_replay("{source: c4, temperature: 2}"), "data.replay.0.temperature", "is only for"),
        (with_replay("{source: base_samples, count: 5, limit: 5}"), "data.replay.0.limit",
         "does not apply to source: base_samples"),
        (with_replay("{source: base_samples, count: 5, temperature: 0}"),
         "data.replay.0.temperature", "greater than or equal to 0.01"),
        (with_replay("{source: base_samples, count: 5, prompts: wikitext}"),
         "data.replay.0.prompts", "is data.source_text"),
        (with_replay("{source: c4, wieght: 2}"), "data.replay.0.wieght", "did you mean weight?"),
    ],
)  # fmt: skip
def test_faults_of_replay(text: str, path: str, words: str) -> None:
    found = faults(text)
    assert list(found) == [path] and words in found[path]


def test_faults_are_told_together() -> None:
    text = with_replay("{source: c4, count: 5}", "{source: base_samples}", text=GOOD)
    assert set(faults(text)) == {"data.replay", "data.replay.0.count", "data.replay.1.count"}
