"""The commands that end in advice: `laura recommend`, and `laura gate` for pipelines."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from laura.cli_options import JsonOption
from laura.door import opened
from laura.errors import EXIT_GATE, EvidenceError, UsageError

if TYPE_CHECKING:
    from laura.study.recommend import Wish

StudyArgument = Annotated[Path, typer.Argument(metavar="STUDY", help="Study folder.")]
ForgettingOption = Annotated[
    float | None,
    typer.Option(
        "--max-forgetting",
        metavar="X",
        help="Forget at most X, as a share: 0.02 is two points. The whole interval must keep it.",
    ),
]
LearningOption = Annotated[
    float | None,
    typer.Option(
        "--min-learning",
        metavar="Y",
        help="Gain at least Y over the base, its whole interval; by default anything above 0.",
    ),
]
MemoryOption = Annotated[
    str | None,
    typer.Option(
        "--memory", metavar="SIZE", help="Peak memory of training as measured, such as 16GB."
    ),
]
SeedsOption = Annotated[
    int,
    typer.Option(
        "--seeds-at-least", metavar="N", min=2, help="Seeds a configuration needs to count."
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
    seeds: SeedsOption = 3,
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

    Only what was run with enough seeds is considered. A bound must hold for the whole
    interval, which allows for having chosen among several. Where the evidence is too thin,
    or nothing keeps the bound, it says so, says what to run, and exits with 2.

    \b
    Example:
      laura recommend studies/micro --max-forgetting 0.05 --adapter best
    """
    with opened(json) as desk:
        wish = _wish(max_forgetting, min_learning, memory, seeds, arm)
        from laura.store import write_json
        from laura.study.handover import decision_json, write_recipe, write_weights
        from laura.study.recommend import NOT_MET, not_met_text
        from laura.study.recommend import recommend as decide

        decision = decide(study, wish)
        if decision.state == NOT_MET:
            raise EvidenceError(not_met_text(decision))
        recipe = out or study / "recommended.yaml"
        written = {"recipe": str(recipe), "adapter": None if adapter is None else str(adapter)}
        # First what may be refused, then what cannot.
        if adapter is not None:
            write_weights(decision, study, adapter)
        write_recipe(decision, recipe)
        write_json(study / "recommendation.json", decision_json(decision))
        value = {**decision_json(decision), **written}
        desk.answer(value, _text(value))


def gate(
    study: StudyArgument,
    max_forgetting: ForgettingOption = None,
    min_learning: LearningOption = None,
    memory: MemoryOption = None,
    seeds: SeedsOption = 3,
    arm: ArmOption = None,
    json: JsonOption = False,
) -> None:
    """Judge like `recommend`, as an exit code.

    0: a configuration keeps the bounds. 4: the evidence suffices, and none does. 2: the
    evidence is too thin, or the command is mistaken. Nothing is written.

    \b
    Example:
      laura gate studies/micro --arm lora-r16 --max-forgetting 0.02
    """
    with opened(json) as desk:
        wish = _wish(max_forgetting, min_learning, memory, seeds, arm)
        from laura.study.handover import decision_json
        from laura.study.recommend import RECOMMENDED, describe, not_met_text
        from laura.study.recommend import recommend as decide

        decision = decide(study, wish)
        passed = decision.state == RECOMMENDED
        if decision.chosen is not None:
            words = f"passed: {describe(decision.chosen)}"
        else:
            words = f"not passed: {not_met_text(decision)}"
        desk.answer({"passed": passed, "reason": words, **decision_json(decision)}, words)
    if not passed:
        raise typer.Exit(EXIT_GATE)


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


def _wish(
    max_forgetting: float | None,
    min_learning: float | None,
    memory: str | None,
    seeds: int,
    arm: str | None,
) -> Wish:
    limit = None if memory is None else memory_bytes(memory)
    from laura.study.recommend import Wish

    return Wish(max_forgetting, min_learning, limit, seeds, arm)


def _text(value: dict[str, Any]) -> str:
    """A recommendation for people."""
    chosen, measures = value["chosen"], value["measures"]
    lines = [f"Take {_configuration(chosen)}, {len(chosen['seeds'])} seeds:"]
    for side in ("learning", "forgetting"):
        tasks = ", ".join(measures[side]["tasks"])
        lines.append(f"  {side:<11}{_estimate(chosen[side])} {measures[side]['unit']} ({tasks})")
    lines.append(f"  cost       {_cost_text(chosen['cost'])}")
    lines.append(
        f"\nChosen among {value['candidates']} configurations; intervals hold for all of them "
        "together with 95 %."
    )
    lines.append("The estimate of what was chosen as best is a little too good.")
    if value["alternatives"]:
        lines.append("\nNearest alternatives")
        for one in value["alternatives"]:
            numbers = f"learning {one['learning']['value']:+.3f}"
            numbers += f", forgetting {one['forgetting']['value']:+.3f}"
            lines.append(f" - {_configuration(one)}: {numbers}; {one['why_not']}")
    lines.append("\nNot tried")
    lines += [f" - {told}" for told in value["not_tried"]]
    lines.append(f"\nRecipe: {value['recipe']}")
    if value["adapter"]:
        lines.append(f"Weights: {value['adapter']}")
    return "\n".join(lines)


def _configuration(one: dict[str, Any]) -> str:
    return f"{one['arm']}, learning rate {one['learning_rate']:g}, budget {one['budget']:,g}"


def _estimate(effect: dict[str, Any]) -> str:
    value, low, high = (n + 0.0 for n in (effect["value"], *effect["interval"]))
    return f"{value:+.3f} ({low:+.3f} to {high:+.3f}, n={effect['n']})"


def _cost_text(cost: dict[str, Any]) -> str:
    from laura.progress import duration_text
    from laura.units import memory_text

    told = f"{cost['tokens']:,} tokens"
    if "train_seconds" in cost:
        told += f", {duration_text(cost['train_seconds'])} of training"
        if cost["peak_memory_bytes"]:
            told += f", {memory_text(cost['peak_memory_bytes'])} at most"
        points = cost["budgets_of_the_run"]
        if len(points) > 1:
            told += f" (the whole run, with {len(points)} budget points)"
    return told
