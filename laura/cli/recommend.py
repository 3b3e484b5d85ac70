"""The commands that end in advice: `laura recommend`, and `laura gate` for pipelines."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from laura.cli.console import opened
from laura.cli.options import JsonOption
from laura.results.errors import EXIT_GATE, EvidenceError, UsageError

if TYPE_CHECKING:
    from laura.results.schema import Constraint, Estimated, Recommendation

StudyArgument = Annotated[Path, typer.Argument(metavar="STUDY", help="Study folder.")]
ForgettingOption = Annotated[
    str | None,
    typer.Option(
        "--max-forgetting",
        metavar="X",
        help="Forget at most X: 0.02, 2% or '2 points' of the score; '0.1 nats' of a loss.",
    ),
]
LearningOption = Annotated[
    str | None,
    typer.Option(
        "--min-learning",
        metavar="Y",
        help="Gain at least Y over the base, written alike; by default anything above 0.",
    ),
]
MemoryOption = Annotated[
    str | None,
    typer.Option(
        "--memory", metavar="SIZE", help="Peak memory of training as measured, such as 16GB."
    ),
]
ArmOption = Annotated[str | None, typer.Option("--arm", metavar="NAME", help="Only this arm.")]
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12,
          "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}  # fmt: skip


def recommend(
    study: StudyArgument,
    max_forgetting: ForgettingOption = None,
    min_learning: LearningOption = None,
    memory: MemoryOption = None,
    arm: ArmOption = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FILE",
            help="Where the ready recipe goes.",
            show_default="STUDY/recommended.yaml",
        ),
    ] = None,
    adapter: Annotated[
        Path | None,
        typer.Option(
            "--adapter",
            metavar="DIR",
            help="Copy the weights there too, with their record (laura.json).",
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Say which configuration to take, and why.

    Every measured configuration that could keep the bound is named, also with one seed; the
    best is suggested, with the command that confirms it on fresh seeds. It is recommended
    once their whole interval keeps the bound. Where nothing does, it says so and exits with 2.

    \b
    Example:
      laura recommend studies/micro --max-forgetting 5% --adapter best
    """
    with opened(json) as desk:
        constraint = _constraint(max_forgetting, min_learning, memory, arm)
        from laura.results.schema import RECOMMENDATION_FILE, write_file
        from laura.study.handover import recommendation_of, write_recipe, write_weights
        from laura.study.recommend import not_met_text
        from laura.study.recommend import recommend as choose

        decision = choose(study, constraint)
        if decision.chosen is None:
            raise EvidenceError(not_met_text(decision))
        recipe = out or study / "recommended.yaml"
        # First what may be refused, then what cannot.
        if adapter is not None:
            write_weights(decision, study, adapter)
        write_recipe(decision, recipe)
        found = recommendation_of(decision, recipe, adapter)
        write_file(study / RECOMMENDATION_FILE, found)
        desk.answer(found.model_dump(mode="json"), _text(found))


def gate(
    study: StudyArgument,
    max_forgetting: ForgettingOption = None,
    min_learning: LearningOption = None,
    memory: MemoryOption = None,
    arm: ArmOption = None,
    json: JsonOption = False,
) -> None:
    """Judge like `recommend`, as an exit code.

    0: a configuration surely keeps the bounds. 4: none that was measured does. 2: the best
    one is not confirmed yet (the command that would is told), or the command is mistaken.
    Nothing is written.

    \b
    Example:
      laura gate studies/micro --arm lora-r16 --max-forgetting '2 points'
    """
    with opened(json) as desk:
        constraint = _constraint(max_forgetting, min_learning, memory, arm)
        from laura.study.handover import recommendation_of
        from laura.study.recommend import answer_of, describe, not_met_text
        from laura.study.recommend import recommend as choose

        decision = choose(study, constraint)
        passed = decision.sure is not None
        if decision.state == "suggested" and not passed:
            raise EvidenceError(
                f"neither passed nor failed: {answer_of(decision)} Its interval does not settle "
                f"the bound. Confirm it: {decision.confirm}"
            )
        if decision.sure is not None:
            words = f"passed: {describe(decision.sure)} surely keeps the bounds"
        else:
            words = f"not passed: {not_met_text(decision)}"
        found = recommendation_of(decision, None, None).model_dump(mode="json")
        desk.answer({"passed": passed, "reason": words, **found}, words)
    if not passed:
        raise typer.Exit(EXIT_GATE)


def bound(option: str, text: str | None) -> float | None:
    """A bound out of `0.02`, `2%`, `2 points` or `0.1 nats`, in the unit of the measure.

    Raises:
        UsageError: it is no bound, or 1 or more without a unit: is `2` two points or all?
    """
    if text is None:
        return None
    found = re.fullmatch(r"([-+]?(?:\d+\.?\d*|\.\d+)(?:e-?\d+)?)\s*(%|points?|nats)?", text.strip())
    if not found:
        raise UsageError(f"{option} takes a bound such as 0.02, 2% or '2 points', came {text!r}")
    value, unit = float(found[1]), found[2] or ""
    if not unit and abs(value) >= 1:
        raise UsageError(
            f"{option} {text} has no unit: write {text}% or '{text} points' of a score, or "
            f"'{text} nats' of a loss"
        )
    return value / 100 if unit in ("%", "point", "points") else value


def memory_bytes(text: str) -> int:
    """Bytes out of `16GB`, `16GiB`, `800MB` or a plain number.

    Raises:
        UsageError: it is no size.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?", text.strip().lower())
    size = float(found[1]) * _UNITS[found[2] or ""] if found else 0
    if not 1 <= size < 1e18:
        raise UsageError(f"--memory takes a size such as 16GB or 800MB, came {text!r}")
    return int(size)


def _constraint(
    max_forgetting: str | None, min_learning: str | None, memory: str | None, arm: str | None
) -> Constraint:
    limits = bound("--max-forgetting", max_forgetting), bound("--min-learning", min_learning)
    limit = None if memory is None else memory_bytes(memory)
    from laura.results.schema import Constraint

    return Constraint(max_forgetting=limits[0], min_learning=limits[1], memory_bytes=limit, arm=arm)


def _text(found: Recommendation) -> str:
    """A recommendation for people: the answer first."""
    chosen = found.chosen
    assert chosen is not None, "a decision without one is refused before"
    lines = [found.answer, ""]
    for side, told, mean in (("learnt", chosen.learning, chosen.learnt),
                             ("forgot", chosen.forgetting, chosen.forgot)):  # fmt: skip
        measure = found.measures["learning" if side == "learnt" else "forgetting"]
        tasks, unit = ", ".join(measure["tasks"]), measure["unit"]
        # What was chosen on its own seeds has no interval of its own until it is confirmed.
        shown = told if found.state == "recommended" else None
        lines.append(f"  {side:<8}{_effect(shown, mean, unit)} ({tasks})")
    lines.append(f"  cost    {_cost_text(chosen.cost)}")
    if found.state == "suggested":
        lines.append("\nSuggested by its mean over the seeds it was chosen on. To confirm it:")
        lines.append(f"  {found.confirm}")
    elif chosen.confirmed:
        lines.append("\nConfirmed on fresh seeds, which had no part in the choice.")
    else:
        lines.append(
            f"\nIts interval holds together with those of all {found.candidates} configurations."
        )
    if found.alternatives:
        lines.append("\nAlternatives")
        for one in found.alternatives:
            units = [found.measures[side]["unit"] for side in ("learning", "forgetting")]
            numbers = (
                f"learnt {_signed(one.learnt, units[0])}, forgot {_signed(one.forgot, units[1])}"
            )
            seeds = f"{len(one.seeds)} seed{'' if len(one.seeds) == 1 else 's'}"
            lines.append(
                f" - {one.arm} at {one.learning_rate:g}, budget {one.budget:,g}: {numbers} "
                f"({seeds}); {one.why_not}"
            )
    lines.append("\nNot tried")
    lines += [f" - {told}" for told in found.not_tried]
    lines.append(f"\nRecipe: {found.recipe}")
    if found.adapter:
        lines.append(f"Weights: {found.adapter}")
    return "\n".join(lines)


def _effect(told: Estimated | None, mean: float, unit: str) -> str:
    if told is None:
        return f"{_signed(mean, unit)} {'points' if unit == 'share' else unit}"
    low, high = told.interval
    unit_words = "points" if unit == "share" else unit
    return (
        f"{_signed(mean, unit)} {unit_words} ({_signed(low, unit)} to {_signed(high, unit)}, "
        f"n = {told.n})"
    )


def _signed(value: float, unit: str) -> str:
    from laura.study.claims.answer import signed

    return signed(value, unit)


def _cost_text(cost: dict[str, Any]) -> str:
    from laura.results.progress import duration_text
    from laura.results.units import memory_text

    told = f"{cost['tokens']:,} tokens"
    if "train_seconds" in cost:
        told += f", {duration_text(cost['train_seconds'])} of training"
        if cost.get("peak_memory_bytes"):
            told += f", {memory_text(cost['peak_memory_bytes'])} at most"
        points = cost["budgets_of_the_run"]
        if len(points) > 1:
            told += f" (the whole run, with {len(points)} budget points)"
    return told
