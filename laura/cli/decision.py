"""The commands that conclude: `laura claims`, `recommend`, and `gate` for pipelines."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import laura
from laura.cli.console import Console
from laura.cli.options import STUDY, argument, option
from laura.results.errors import EXIT_GATE, EvidenceError, UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from laura.results.schema import Candidate, Estimated, Judgement, Recommendation
    from laura.study.claims.settings import Setting

_COLOURS = {"supported": "green", "contradicted": "red", "mixed": "yellow"}


@dataclass(frozen=True, kw_only=True)
class BoundOptions:
    """What is asked of a configuration."""

    study: Path = argument(**STUDY)
    max_forgetting: str | None = option(metavar="X")
    """Forget at most X: 0.02, 2% or '2 points' of the score; '0.1 nats' of a loss."""
    min_learning: str | None = option(metavar="Y")
    """Gain at least Y over the base, written alike; by default anything above 0."""
    memory: str | None = option(metavar="SIZE")
    """Peak memory of training as measured, such as 16GB."""
    arm: str | None = option(metavar="NAME")
    """Only this arm."""


@dataclass(frozen=True, kw_only=True)
class ClaimsOptions:
    """What is judged."""

    studies: list[Path] = argument(metavar="STUDY...")
    """Study folder, or a series'; several are judged together."""
    out: Path | None = option(
        metavar="FILE", show_default="STUDY/claims.json; of several studies nowhere"
    )
    """Where the JSON goes."""


def claims(console: Console, options: ClaimsOptions) -> None:
    """Judge the paper's statements by a study.

    A statement is supported when the 95 % interval of its effect, over items and seeds,
    lies inside what it says, contradicted when inside its opposite, mixed when settings
    disagree, and else undecided. Several studies (code and math, instruct and pretrain)
    answer statements that one cannot.

    \b
    Example:
      laura claims studies/micro studies/micro-math
    """
    from laura.results.schema import write_file
    from laura.results.store import SeriesStore
    from laura.study.claims import judgement

    studies, out = options.studies, options.out
    series = len(studies) == 1 and bool(SeriesStore(studies[0]).settings())
    if len(studies) == 1 and out is None:
        write = judgement.write_series_claims if series else judgement.write_claims
        found = write(studies[0])
    elif series:
        found = judgement.judge_series(studies[0])
    else:
        read = [judgement.read_setting(folder) for folder in studies]
        found = judgement.judge(_named(read, studies))
    if out is not None:
        write_file(out, found)
    console.answer(found.model_dump(mode="json"), claims_table(found))


def _named(read: list[Setting], folders: list[Path]) -> list[Setting]:
    """Settings under names that differ: the recipes', or else the folders'."""
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise UsageError("a study is named twice; name each once")
    if len({one.name for one in read}) == len(read):
        return read
    return [replace(one, name=str(folder)) for folder, one in zip(folders, read, strict=True)]


def claims_table(found: Judgement) -> RenderableType:
    """The claims with verdict, effect and interval, for a terminal."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from laura.report.formats import estimated
    from laura.report.pages.overview import EDGE, open_words

    names = ", ".join(setting.name for setting in found.settings)
    table = Table(title=Text(f"Claims, judged by {names}"), title_justify="left")
    for heading in ("claim", "verdict", "effect", "why"):
        table.add_column(heading)
    for claim in found.claims:
        if not claim.missing:
            why = [part for part in (claim.reason.rstrip("."), open_words(claim)) if part]
            table.add_row(
                Text(claim.statement),
                Text(
                    claim.verdict + (" (edge)" if claim.edge else ""),
                    style=_COLOURS.get(claim.verdict, "dim"),
                ),
                Text(estimated(claim.effect) if claim.effect else ""),
                Text(". ".join(why)),
            )
    notes = (
        f"{found.tested} of {len(found.claims)} claims could be tested; verdicts count all of "
        "them (Holm, 5 %). Intervals: 95 %."
    )
    if any(claim.edge for claim in found.claims):
        notes += f" {EDGE[0].upper()}{EDGE[1:]}."
    parts: list[RenderableType] = [Text(found.answer, style="bold"), Text()]
    parts += [table] if table.rows else []
    parts.append(Text(notes, style="dim"))
    silent = [f"{one.id}: {'; '.join(one.missing)}" for one in found.claims if one.missing]
    for title, lines in (
        ("What this design could not judge", silent),
        ("Missing", found.gaps),
    ):
        if lines:
            parts.append(Text(f"\n{title}", style="bold"))
            parts += [Text(f" - {line}") for line in lines]
    return Group(*parts)


@dataclass(frozen=True, kw_only=True)
class RecommendOptions(BoundOptions):
    """Where what was chosen goes."""

    out: Path | None = option(metavar="FILE", show_default="STUDY/recommended.yaml")
    """Where the ready recipe goes."""
    adapter: Path | None = option(metavar="DIR")
    """Copy the weights there too, with their record (laura.json)."""


def recommend(console: Console, options: RecommendOptions) -> None:
    """Say which configuration to take, and why.

    Every measured configuration that could keep the bound is named, also with one seed; the
    best is suggested, with the command that confirms it on fresh seeds. It is recommended
    once their whole interval keeps the bound. Where nothing does, it says so and exits with 2.

    \b
    Example:
      laura recommend studies/micro --max-forgetting 5% --adapter best
    """
    found = laura.recommend(**vars(options))
    console.answer(found.model_dump(mode="json"), recommendation_text(found))


@dataclass(frozen=True, kw_only=True)
class GateOptions(BoundOptions):
    """What must be signed besides."""

    adapter: Path | None = option(exists=True, file_okay=False, metavar="DIR")
    """The adapter that shall go out, written by `recommend --adapter`; for --require-signature."""
    require_signature: Path | None = option(metavar="PUBLIC.pem")
    """It must be signed with this key's private half, and be what the study measured."""


def gate(console: Console, options: GateOptions) -> int | None:
    """Judge like `recommend`, as an exit code.

    0: a configuration surely keeps the bounds. 4: none that was measured does, or the adapter
    is not the signed one. 2: the best one is not confirmed yet (the command that would is
    told), or the command is mistaken. Nothing is written.

    \b
    Example:
      laura gate studies/micro --arm lora-r16 --max-forgetting '2 points'
    """
    from laura.api import constraint

    bounds = dict(vars(options))
    adapter, key = bounds.pop("adapter"), bounds.pop("require_signature")
    if (adapter is None) != (key is None):
        raise UsageError("give --adapter DIR and --require-signature PUBLIC.pem together")
    study, asked = bounds.pop("study"), constraint(**bounds)
    from laura.study.recommend import (
        answer_of,
        describe,
        not_met_text,
        recommendation_of,
        signature_fault,
    )
    from laura.study.recommend import recommend as choose

    decision = choose(study, asked)
    if decision.sure is not None:
        words = f"passed: {describe(decision.sure)} surely keeps the bounds"
    elif decision.state == "suggested":
        raise EvidenceError(
            f"neither passed nor failed: {answer_of(decision)} Its interval does not settle "
            f"the bound. Confirm it: {decision.confirm}"
        )
    else:
        words = f"not passed: {not_met_text(decision)}"
    fault = None
    if decision.sure is not None and adapter is not None:
        fault = signature_fault(decision.sure, adapter, key)
        words = words if fault is None else f"not passed: {fault}"
    passed = decision.sure is not None and fault is None
    found = recommendation_of(decision, None, None).model_dump(mode="json")
    console.answer({"passed": passed, "reason": words, **found}, words)
    return None if passed else EXIT_GATE


def recommendation_text(found: Recommendation) -> str:
    """A recommendation for people: the answer first."""
    from laura.study.recommend import replay_text

    chosen = found.chosen
    assert chosen is not None, "a decision without one is refused before"
    units = {side: found.measures[side]["unit"] for side in ("learning", "forgetting")}
    lines = [found.answer, ""]
    for verb, side, interval, mean in (
        ("learnt", "learning", chosen.learning, chosen.learnt),
        ("forgot", "forgetting", chosen.forgetting, chosen.forgot),
    ):
        # What was chosen on its own seeds has no interval of its own until it is confirmed.
        told = interval if found.state == "recommended" else None
        tasks = ", ".join(found.measures[side]["tasks"])
        lines.append(f"  {verb:<8}{_effect(told, mean, units[side])} ({tasks})")
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
        lines += [_alternative(one, units) for one in found.alternatives]
    if found.replay:
        lines.append("\nReplay")
        lines += [f" - {replay_text(law)}" for law in found.replay]
    lines.append("\nNot tried")
    lines += [f" - {told}" for told in found.not_tried]
    lines.append(f"\nRecipe: {found.recipe}")
    if found.adapter:
        lines.append(f"Weights: {found.adapter}")
    return "\n".join(lines)


def _alternative(one: Candidate, units: dict[str, str]) -> str:
    from laura.results.units import budget_text, rate_text
    from laura.study.claims.answer import signed

    learnt, forgot = signed(one.learnt, units["learning"]), signed(one.forgot, units["forgetting"])
    seeds = f"{len(one.seeds)} seed{'' if len(one.seeds) == 1 else 's'}"
    return (
        f" - {one.arm} at {rate_text(one.learning_rate)}, budget {budget_text(one.budget)}: "
        f"learnt {learnt}, "
        f"forgot {forgot} ({seeds}); {one.why_not}"
    )


def _effect(told: Estimated | None, mean: float, unit: str) -> str:
    from laura.study.claims.answer import signed

    text = f"{signed(mean, unit)} {'points' if unit == 'share' else unit}"
    if told is None:
        return text
    low, high = (signed(end, unit) for end in told.interval)
    return f"{text} ({low} to {high}, n = {told.n})"


def _cost_text(cost: dict[str, Any]) -> str:
    from laura.results.progress import duration_text
    from laura.results.units import memory_text

    told = f"{cost['tokens']:,} tokens"
    if "train_seconds" in cost:
        told += f", {duration_text(cost['train_seconds'])} of training"
        if cost.get("peak_memory_bytes"):
            told += f", {memory_text(cost['peak_memory_bytes'])} at most"
        if cost["budgets_of_the_run"][1:]:
            told += f" (the whole run, with {len(cost['budgets_of_the_run'])} budget points)"
    return told
