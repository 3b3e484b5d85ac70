"""Write the demo data that comes with Laura: word problems and plain text.

    python scripts/make_word_problems.py [FOLDER]

Writes `word_problems.jsonl.gz` (fields split, question, answer) and
`source_text.jsonl.gz` (field text) into FOLDER, by default
`laura/data/builtin`. The same script always writes the same content. Problems
are drawn from the templates below, the text is `scripts/plain_text.txt`; all of
it was written for Laura and carries Laura's licence.
"""

from __future__ import annotations

import gzip
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
TARGET = HERE.parent / "laura" / "data" / "builtin"
SPLITS = {"train": 400, "validation": 60, "test": 100}
SEED = "laura word problems 1"

NAMES = (
    "Ada Bruno Carla Dario Elif Farid Greta Hugo Imani Jonas Kira Liam Maya Nadia Oscar Priya "
    "Quentin Rosa Samir Tilda Umar Vera Wanda Yusuf Zoe Anders Bella Chidi Dilara Emil"
).split()
FRUITS = ("apples", "pears", "plums", "oranges", "peaches", "lemons", "figs", "mangoes")
SMALL = ("marbles", "stickers", "buttons", "shells", "stamps", "coins", "beads", "cards")
BAKED = ("muffins", "rolls", "cookies", "pretzels", "waffles", "scones", "bagels", "pies")
GOODS = ("notebooks", "pens", "candles", "scarves", "mugs", "plants", "posters", "caps")
PLACES = ("school", "library", "club", "museum", "garden centre", "sports hall", "theatre")

Problem = tuple[str, list[str], int]
Template = Callable[[random.Random], Problem]


def _two_names(chance: random.Random) -> tuple[str, str]:
    first, second = chance.sample(NAMES, 2)
    return first, second


def _give_and_find(chance: random.Random) -> Problem:
    name, friend = _two_names(chance)
    thing = chance.choice(SMALL)
    start, given, found = chance.randint(20, 90), chance.randint(3, 18), chance.randint(4, 30)
    left = start - given
    question = (
        f"{name} has {start} {thing}. {name} gives {given} of them to {friend} and then finds "
        f"{found} more. How many {thing} does {name} have now?"
    )
    lines = [
        f"After the gift {name} has {start} - {given} = {left} {thing}.",
        f"After finding more {name} has {left} + {found} = {left + found} {thing}.",
    ]
    return question, lines, left + found


def _boxes_and_loose(chance: random.Random) -> Problem:
    name = chance.choice(NAMES)
    thing = chance.choice(FRUITS)
    boxes, each, loose = chance.randint(3, 12), chance.randint(4, 15), chance.randint(2, 20)
    packed = boxes * each
    question = (
        f"{name} packs {thing} into {boxes} boxes with {each} in every box. {loose} {thing} are "
        f"left over. How many {thing} were there at the start?"
    )
    lines = [
        f"The boxes hold {boxes} * {each} = {packed} {thing}.",
        f"With the ones left over there were {packed} + {loose} = {packed + loose} {thing}.",
    ]
    return question, lines, packed + loose


def _change(chance: random.Random) -> Problem:
    name = chance.choice(NAMES)
    thing = chance.choice(GOODS)
    count, price = chance.randint(2, 9), chance.randint(2, 11)
    cost = count * price
    note = chance.choice([value for value in (20, 50, 100) if value > cost])
    question = (
        f"{name} buys {count} {thing} at {price} dollars each and pays with a {note} dollar note. "
        f"How many dollars does {name} get back?"
    )
    lines = [
        f"The {thing} cost {count} * {price} = {cost} dollars.",
        f"{name} gets back {note} - {cost} = {note - cost} dollars.",
    ]
    return question, lines, note - cost


def _share_out(chance: random.Random) -> Problem:
    name = chance.choice(NAMES)
    thing = chance.choice(BAKED)
    people, each, eaten = chance.randint(3, 9), chance.randint(2, 9), chance.randint(2, 12)
    shared = people * each
    question = (
        f"{name} bakes {shared + eaten} {thing}. The family eats {eaten} of them, and the rest is "
        f"shared equally between {people} neighbours. How many {thing} does each neighbour get?"
    )
    lines = [
        f"After the family has eaten there are {shared + eaten} - {eaten} = {shared} {thing}.",
        f"Each neighbour gets {shared} / {people} = {each} {thing}.",
    ]
    return question, lines, each


def _times_as_many(chance: random.Random) -> Problem:
    name, friend = _two_names(chance)
    thing = chance.choice(SMALL)
    start, times = chance.randint(5, 30), chance.randint(2, 6)
    more = start * times
    question = (
        f"{name} collected {start} {thing}. {friend} collected {times} times as many. How many "
        f"{thing} did they collect together?"
    )
    lines = [
        f"{friend} collected {start} * {times} = {more} {thing}.",
        f"Together they collected {start} + {more} = {start + more} {thing}.",
    ]
    return question, lines, start + more


def _two_wages(chance: random.Random) -> Problem:
    name = chance.choice(NAMES)
    place, work = chance.choice(PLACES), chance.choice(("babysitting", "tutoring", "gardening"))
    hours, pay = chance.randint(3, 9), chance.randint(8, 16)
    others, other_pay = chance.randint(2, 7), chance.randint(6, 15)
    first, second = hours * pay, others * other_pay
    question = (
        f"{name} works {hours} hours at the {place} for {pay} dollars an hour and {others} hours "
        f"{work} for {other_pay} dollars an hour. How many dollars does {name} earn in total?"
    )
    lines = [
        f"At the {place} {name} earns {hours} * {pay} = {first} dollars.",
        f"With {work} {name} earns {others} * {other_pay} = {second} dollars.",
        f"In total {name} earns {first} + {second} = {first + second} dollars.",
    ]
    return question, lines, first + second


def _pages_left(chance: random.Random) -> Problem:
    name = chance.choice(NAMES)
    days, pages, left = chance.randint(3, 12), chance.randint(8, 30), chance.randint(10, 90)
    read = days * pages
    question = (
        f"A book has {read + left} pages. {name} reads {pages} pages a day for {days} days. How "
        f"many pages are left to read?"
    )
    lines = [
        f"{name} has read {days} * {pages} = {read} pages.",
        f"There are {read + left} - {read} = {left} pages left.",
    ]
    return question, lines, left


def _savings_goal(chance: random.Random) -> Problem:
    name = chance.choice(NAMES)
    thing = chance.choice(("bicycle", "guitar", "tent", "telescope", "camera", "skateboard"))
    saved, week, weeks = chance.randint(10, 60), chance.randint(4, 15), chance.randint(3, 12)
    missing = week * weeks
    question = (
        f"{name} wants a {thing} that costs {saved + missing} dollars. {name} has {saved} dollars "
        f"and saves {week} dollars every week. After how many weeks can {name} buy the {thing}?"
    )
    lines = [
        f"{name} still needs {saved + missing} - {saved} = {missing} dollars.",
        f"That takes {missing} / {week} = {weeks} weeks.",
    ]
    return question, lines, weeks


def _rows_of_chairs(chance: random.Random) -> Problem:
    place = chance.choice(PLACES)
    rows, seats, taken = chance.randint(5, 14), chance.randint(6, 15), chance.randint(8, 28)
    total = rows * seats
    question = (
        f"The {place} sets up {rows} rows of {seats} chairs for a concert. {total - taken} chairs "
        f"are taken. How many chairs stay empty?"
    )
    lines = [
        f"There are {rows} * {seats} = {total} chairs.",
        f"{total} - {total - taken} = {taken} chairs stay empty.",
    ]
    return question, lines, taken


def _drive(chance: random.Random) -> Problem:
    name = chance.choice(NAMES)
    town = chance.choice(("coast", "mountains", "lake", "capital", "border", "airport"))
    fast, hours = chance.randint(50, 90), chance.randint(2, 5)
    slow, more = chance.randint(20, 45), chance.randint(1, 4)
    first, second = fast * hours, slow * more
    words = "hour" if more == 1 else "hours"
    question = (
        f"On the way to the {town} {name} drives {hours} hours at {fast} kilometres an hour and "
        f"then {more} {words} at {slow} kilometres an hour. How many kilometres is the whole way?"
    )
    lines = [
        f"The first part is {hours} * {fast} = {first} kilometres.",
        f"The second part is {more} * {slow} = {second} kilometres.",
        f"The whole way is {first} + {second} = {first + second} kilometres.",
    ]
    return question, lines, first + second


def _half_price(chance: random.Random) -> Problem:
    name = chance.choice(NAMES)
    thing = chance.choice(GOODS)
    half, count = chance.randint(2, 14), chance.randint(3, 9)
    total = half * count
    question = (
        f"A shop sells {thing} for {half * 2} dollars each. In the sale they cost half as much. "
        f"{name} buys {count} in the sale. How many dollars does {name} pay?"
    )
    lines = [
        f"In the sale one costs {half * 2} / 2 = {half} dollars.",
        f"{name} pays {count} * {half} = {total} dollars.",
    ]
    return question, lines, total


def _farm_legs(chance: random.Random) -> Problem:
    name = chance.choice(NAMES)
    four = chance.choice(("sheep", "cows", "goats", "horses"))
    two = chance.choice(("hens", "ducks", "geese", "turkeys"))
    many, few = chance.randint(3, 20), chance.randint(4, 25)
    question = (
        f"{name} keeps {many} {four} and {few} {two}. Each of the {four} has 4 legs and each of "
        f"the {two} has 2. How many legs is that altogether?"
    )
    lines = [
        f"The {four} have {many} * 4 = {many * 4} legs.",
        f"The {two} have {few} * 2 = {few * 2} legs.",
        f"Altogether that is {many * 4} + {few * 2} = {many * 4 + few * 2} legs.",
    ]
    return question, lines, many * 4 + few * 2


def _profit(chance: random.Random) -> Problem:
    name = chance.choice(NAMES)
    thing = chance.choice(BAKED)
    count, price = chance.randint(10, 30), chance.randint(2, 6)
    cost = chance.randint(5, count * price - 5)
    taken = count * price
    question = (
        f"{name} sells {count} {thing} at {price} dollars each. The ingredients cost {cost} "
        f"dollars. How many dollars of profit does {name} make?"
    )
    lines = [
        f"{name} takes in {count} * {price} = {taken} dollars.",
        f"The profit is {taken} - {cost} = {taken - cost} dollars.",
    ]
    return question, lines, taken - cost


def _ages(chance: random.Random) -> Problem:
    name, friend = _two_names(chance)
    age, older, years = chance.randint(6, 20), chance.randint(2, 12), chance.randint(2, 15)
    question = (
        f"{name} is {age} years old. {friend} is {older} years older. How old will {friend} be in "
        f"{years} years?"
    )
    lines = [
        f"{friend} is now {age} + {older} = {age + older} years old.",
        f"In {years} years {friend} will be {age + older} + {years} = {age + older + years}.",
    ]
    return question, lines, age + older + years


def _bus_stops(chance: random.Random) -> Problem:
    start, out, enter = chance.randint(20, 45), chance.randint(3, 15), chance.randint(2, 14)
    last = chance.randint(2, 5)
    after, then = start - out, start - out + enter
    place = chance.choice(PLACES)
    question = (
        f"A bus leaves with {start} passengers. At the {place} {out} get off and {enter} get on. "
        f"At the next stop {last} more get off. How many passengers are on the bus then?"
    )
    lines = [
        f"After {out} get off there are {start} - {out} = {after} passengers.",
        f"After {enter} get on there are {after} + {enter} = {then} passengers.",
        f"After the next stop there are {then} - {last} = {then - last} passengers.",
    ]
    return question, lines, then - last


def _garden_fence(chance: random.Random) -> Problem:
    name = chance.choice(NAMES)
    long, wide, price = chance.randint(16, 30), chance.randint(3, 15), chance.randint(2, 9)
    side, around = long + wide, 2 * (long + wide)
    question = (
        f"{name} puts a fence around a garden that is {long} metres long and {wide} metres wide. "
        f"One metre of fence costs {price} dollars. How many dollars does the fence cost?"
    )
    lines = [
        f"One long and one short side are {long} + {wide} = {side} metres.",
        f"All the way around it is 2 * {side} = {around} metres.",
        f"The fence costs {around} * {price} = {around * price} dollars.",
    ]
    return question, lines, around * price


def _full_shelves(chance: random.Random) -> Problem:
    place = chance.choice(PLACES)
    shelves, each = chance.randint(4, 9), chance.randint(20, 30)
    boxes, inside = chance.randint(2, 6), chance.randint(5, 11)
    total, moved = shelves * each, boxes * inside
    stay = total - moved
    question = (
        f"A shelf at the {place} holds {each} books, and there are {shelves} full shelves. "
        f"{boxes} boxes with {inside} books each are taken away. How many books stay?"
    )
    lines = [
        f"The shelves hold {shelves} * {each} = {total} books.",
        f"The boxes take {boxes} * {inside} = {moved} books away.",
        f"{total} - {moved} = {stay} books stay.",
    ]
    return question, lines, stay


def _teams(chance: random.Random) -> Problem:
    girls, boys = chance.randint(8, 40), chance.randint(8, 40)
    size = chance.choice((3, 4, 5, 6))
    boys += -(girls + boys) % size
    total = girls + boys
    place = chance.choice(PLACES)
    question = (
        f"{girls} girls and {boys} boys come to the sports day of the {place}. They form teams of "
        f"{size}. How many teams are there?"
    )
    lines = [
        f"There are {girls} + {boys} = {total} children.",
        f"They form {total} / {size} = {total // size} teams.",
    ]
    return question, lines, total // size


TEMPLATES: tuple[Template, ...] = (
    _give_and_find,
    _boxes_and_loose,
    _change,
    _share_out,
    _times_as_many,
    _two_wages,
    _pages_left,
    _savings_goal,
    _rows_of_chairs,
    _drive,
    _half_price,
    _farm_legs,
    _profit,
    _ages,
    _bus_stops,
    _garden_fence,
    _full_shelves,
    _teams,
)


def word_problems() -> list[dict[str, str]]:
    """All rows in order: every question once, templates in turn."""
    chance = random.Random(SEED)
    questions: dict[str, str] = {}
    while len(questions) < sum(SPLITS.values()):
        template = TEMPLATES[len(questions) % len(TEMPLATES)]
        question, lines, answer = template(chance)
        questions.setdefault(question, "\n".join([*lines, f"#### {answer}"]))
    pairs = list(questions.items())
    chance.shuffle(pairs)
    splits = [name for name, count in SPLITS.items() for _ in range(count)]
    return [
        {"split": split, "question": question, "answer": answer}
        for split, (question, answer) in zip(splits, pairs, strict=True)
    ]


def plain_text() -> list[dict[str, str]]:
    """The paragraphs of `plain_text.txt`, each on one line."""
    paragraphs = (HERE / "plain_text.txt").read_text(encoding="utf-8").split("\n\n")
    return [{"text": " ".join(part.split())} for part in paragraphs if part.strip()]


def write(folder: Path) -> None:
    """Write both files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {"word_problems.jsonl.gz": word_problems(), "source_text.jsonl.gz": plain_text()}
    for name, rows in files.items():
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / name).write_bytes(gzip.compress(lines.encode("utf-8"), mtime=0))
        sys.stdout.write(f"{folder / name}: {len(rows)} rows\n")


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else TARGET)
