"""`laura.json`: what is known of an adapter or checkpoint, beside its files. No torch.

It travels with the weights, so that whoever serves or judges them knows the base, the
recipe, the scores with their errors, and which of the paper's statements held there.
Written by `laura recommend --adapter`; `write_record` and `read_record` are the only ones
that touch the file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from laura.errors import StoreError
from laura.recipe_section import Section
from laura.store import disk_faults, write_text

RECORD_FILE = "laura.json"
Count = Annotated[int, Field(ge=0)]
NotNegative = Annotated[float, Field(ge=0)]


class BaseOfRecord(Section):
    """The model the weights belong to; `fingerprint` is a hash of its weights."""

    model: str = Field(min_length=1)
    fingerprint: str = Field(min_length=1)
    parameters: Count | None = None


class Score(Section):
    """A number with its standard error over `n` items."""

    value: float
    stderr: NotNegative
    n: Count


class TaskScores(Section):
    """One task on the base and on these weights; `change` is tuned minus base, paired."""

    title: str
    unit: str
    higher_is_better: bool
    base: Score | None
    tuned: Score
    change: Score | None


class Estimated(Section):
    """Learning or forgetting of the configuration over its seeds.

    `value` is above zero where something was learnt, or forgotten. The interval holds the
    errors over items and seeds, at a level that allows for the choice among candidates.
    """

    tasks: list[str] = Field(min_length=1)
    unit: str
    value: float
    stderr: NotNegative
    interval: tuple[float, float]
    level: float = Field(gt=0, lt=1)
    n: Count
    seeds: Count


class ClaimOfRecord(Section):
    """The verdict on one statement, as in `claims.json`."""

    id: str
    statement: str
    verdict: Literal["supported", "contradicted", "too thin"]
    reason: str


class Record(Section):
    """The content of `laura.json`.

    `recipe` is the study's, with every default filled in, as it was read by the version
    that trained; `budget` is in `budget_unit`; `weights` maps each file to its SHA-256.
    """

    format: Literal[1] = 1
    study: str
    base: BaseOfRecord
    recipe: dict[str, Any]
    arm: str
    method: str
    learning_rate: float = Field(gt=0)
    seed: Count
    budget: float = Field(gt=0)
    budget_unit: Literal["tokens", "epochs"]
    tokens: Count
    step: Count
    run: str
    scores: dict[str, TaskScores]
    learning: Estimated
    forgetting: Estimated
    claims: list[ClaimOfRecord]
    versions: dict[str, str]
    weights: dict[str, str]


def write_record(folder: Path, record: Record) -> None:
    """Write `laura.json` into a folder of weights.

    Raises:
        StoreError: the folder cannot be written.
    """
    write_text(folder / RECORD_FILE, record.model_dump_json(indent=1) + "\n")


def read_record(folder: Path) -> Record:
    """Read and check the `laura.json` of a folder of weights.

    Raises:
        StoreError: there is none, or it is not whole; every fault is listed.
    """
    path = folder / RECORD_FILE
    with disk_faults(path):
        text = path.read_bytes()
    return parse_record(text, path)


def parse_record(text: bytes, path: Path) -> Record:
    """Check the content of a `laura.json`; the path is for the message.

    Raises:
        StoreError: as `read_record`.
    """
    try:
        return Record.model_validate_json(text)
    except ValidationError as error:
        faults = [
            f"{'.'.join(map(str, item['loc'])) or 'file'}: {item['msg']}"
            for item in error.errors(include_url=False)
        ]
        raise StoreError(
            f"{path} is no record of format 1 that this version can read: "
            f"{'; '.join(faults)}. Write it again with `laura recommend STUDY --adapter DIR`"
        ) from error
