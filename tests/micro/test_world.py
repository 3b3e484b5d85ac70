"""The micro world: its questions ask what was read, in forms and combinations that were not."""

from __future__ import annotations

import math
from itertools import islice
from typing import Any

import pytest

from laura.evals.tasks import load
from laura.micro.pronouns import DAYS
from laura.micro.settings import LIMITS, WorldSettings
from laura.micro.world import SHARES, World
from laura.results.errors import DataError

PIECES = (" plums", "return", " x", "7", "####")
DOCUMENTS = 6000


@pytest.fixture(scope="module")
def world() -> World:
    return World()


@pytest.fixture(scope="module")
def read(world: World) -> str:
    """Much of the source text, one document a line or more."""
    rows = islice(world.documents("train", PIECES), DOCUMENTS)
    return "\n\n".join(row.get("text", "") for row in rows)


def test_the_same_settings_give_the_same_world(world: World) -> None:
    again, other = World(WorldSettings()), World(WorldSettings(seed=1))
    first = list(islice(world.documents("train", PIECES), 50))
    assert list(islice(again.documents("train", PIECES), 50)) == first
    assert list(islice(world.documents("held out", PIECES), 50)) != first
    assert again.facts.questions() == world.facts.questions()
    assert other.facts.questions() != world.facts.questions()
    assert other.events.questions() != world.events.questions()
    assert other.pronouns.questions() != world.pronouns.questions()


def test_questions_have_the_real_tasks_form_and_enough_of_them(world: World) -> None:
    made = {
        "arc_challenge": world.facts.questions(),
        "hellaswag": world.events.questions(),
        "winogrande": world.pronouns.questions(),
    }
    for task, rows in made.items():
        questions = [load(task).question(row, index) for index, row in enumerate(rows)]
        # At 0.85, the least a base may have, the standard error is at most 0.02.
        assert math.sqrt(0.85 * 0.15 / len(rows)) <= 0.02, task
        assert len({(q.requests, q.gold) for q in questions}) >= 0.8 * len(rows)
        golds = [question.gold for question in questions]
        for choice in set(golds):
            share = golds.count(choice) / len(golds)
            expected = 1 / len(questions[0].requests)
            assert abs(share - expected) < 4 * math.sqrt(expected * (1 - expected) / len(golds))


def test_facts_asked_were_stated_but_never_answered(world: World, read: str) -> None:
    for row in world.facts.questions():
        assert f"Question: {row['question']}" not in read
        texts = row["choices"]["text"]
        assert len(set(texts)) == len(texts) == 4
    taught = [f for facts in world.facts.of.values() for f in facts if not f.asked]
    answered = [f"Question: {f.question}\nAnswer: {f.value}" in read for f in taught]
    assert sum(answered) > 0.7 * len(taught)
    asked = [f for facts in world.facts.of.values() for f in facts if f.asked]
    assert len(asked) == len(taught)


def test_events_asked_are_new_combinations_with_their_true_end(world: World, read: str) -> None:
    for row in world.events.questions():
        told = f"{row['activity_label']}: {row['ctx_a']} Then she"
        assert told not in read
        true = row["endings"][int(row["label"])].rstrip(".")
        place = row["ctx_a"].split(" to the ")[1].split(".")[0]
        alike = [e for e in world.events.all if e.title == row["activity_label"]]
        event = next(e for e in alike if e.place == place)
        steps = event.steps("")
        assert true in steps[2:]
        assert len(set(row["endings"])) == 4
        # The same deed elsewhere ends otherwise, and that is among the wrong endings.
        step = steps.index(true)
        elsewhere = {f"{e.steps('')[step]}." for e in alike} - {f"{true}."}
        assert elsewhere <= set(row["endings"])


def test_pronoun_questions_have_their_true_person_and_new_pairs(world: World, read: str) -> None:
    documents = read.split("\n\n")
    for row in world.pronouns.questions():
        person = row[f"option{row['answer']}"]
        sentence = row["sentence"].replace("_", person)
        day = next(day for day in DAYS if sentence.startswith(f"{day} "))
        first, rest = sentence.removeprefix(f"{day} ").split(" ", 1)
        schema = next(s for s in world.pronouns.schemas if rest.startswith(f"{s.deed} "))
        role = next(r for r in (0, 1) if rest.endswith(f"{schema.causes[r]}."))
        assert (person == first) == (role == 0)
    for first, second in world.pronouns.asked_pairs:
        meeting = (f"{first} {s.deed} {second} because" for s in world.pronouns.schemas)
        met = [phrase for phrase in meeting if any(phrase in text for text in documents)]
        assert not met


def test_common_things_are_met_more_often_than_rare_ones(world: World, read: str) -> None:
    animals = world.facts.animals
    common = sum(read.count(f" {name} ") for name in animals[:20])
    rare = sum(read.count(f" {name} ") for name in animals[-20:])
    assert rare > 0 and 3 < common / rare < 12
    assert [round(w, 6) for w in WorldSettings(rarity=4).weights(3)] == [4, 2, 1]


def test_a_share_of_the_world_comes_first(world: World) -> None:
    early = list(islice(world.documents("early", PIECES, share=0.1), 3000))
    text = "\n".join(row.get("text", "") for row in early)
    known = world.facts.animals[: round(0.1 * len(world.facts.animals))]
    assert all(f" {name} " in text for name in known)
    assert not any(f" {name} " in text for name in world.facts.animals[len(known) :])


def test_every_kind_of_document_has_its_share_and_every_piece_is_shown(world: World) -> None:
    rows: list[dict[str, Any]] = list(islice(world.documents("train", PIECES), 3000))
    chats = [row for row in rows if "messages" in row]
    assert abs(len(chats) / len(rows) - SHARES["chat"]) < 0.02
    assert sum(SHARES.values()) == pytest.approx(1)
    loose = "".join(row["messages"][0]["content"] for row in chats)
    assert all(piece.strip() in loose for piece in PIECES)


@pytest.mark.parametrize("name", LIMITS)
@pytest.mark.parametrize("side", [0, 1])
def test_settings_out_of_range_are_told(name: str, side: int) -> None:
    value = LIMITS[name][side] + (-1 if side == 0 else 1)
    with pytest.raises(DataError, match=rf"{name} must be .* to .*, came"):
        WorldSettings(**{name: value})
    WorldSettings(**{name: LIMITS[name][side]})


def test_all_faults_of_settings_come_together() -> None:
    with pytest.raises(DataError, match=r"entities.*names"):
        WorldSettings(entities=1, names=1000)


@pytest.mark.parametrize("seed", range(5))
def test_the_smallest_world_has_questions(seed: int) -> None:
    low = {name: int(LIMITS[name][0]) for name in ("entities", "events", "names")}
    world = World(WorldSettings(seed=seed, **low))
    assert world.facts.questions() and world.events.questions() and world.pronouns.questions()
    assert len(list(islice(world.documents("train", PIECES), 200))) == 200
