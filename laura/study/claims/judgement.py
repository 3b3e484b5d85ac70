"""What a study says about the statements of the paper: `claims.json`. No torch.

`table.py` lists the claims; `verdicts.py` says by which rules they are judged.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from laura.errors import RecipeError, StoreError, UsageError, first_line
from laura.recipe import Recipe
from laura.results.schema import (
    ANALYSIS_FILE,
    CLAIMS_FILE,
    Analysis,
    Claim,
    ClaimRow,
    Estimated,
    JudgedSetting,
    Judgement,
    Verdict,
    read_optional,
    write_file,
)
from laura.store import SeriesStore, StudyStore
from laura.study.claims.settings import Setting
from laura.study.claims.table import CLAIMS
from laura.study.claims.verdicts import TOO_THIN, holm
from laura.study.effects import ALPHA, Effect
from laura.study.summary import Evidence, gather
from laura.study.verdict import build_verdict


def build_judgement(
    settings: Sequence[tuple[str, Evidence, Analysis | None]], missing: Sequence[str] = ()
) -> Judgement:
    """The content of `claims.json`: every claim judged over one or several settings.

    Args:
        settings: Name, evidence and analysis (None where there is none) of each; names
            differ.
        missing: What else there should be, in words; it comes first among the gaps.
    """
    read = [
        Setting(name, evidence, analysis.model_dump(mode="json") if analysis else {})
        for name, evidence, analysis in settings
    ]
    findings = [claim.look(read) for claim in CLAIMS]
    tested = [place for place, found in enumerate(findings) if found.p is not None]
    adjusted = dict(zip(tested, holm([findings[p].p or 0.0 for p in tested]), strict=True))
    rows = []
    for place, (claim, found) in enumerate(zip(CLAIMS, findings, strict=True)):
        p, effect = adjusted.get(place), found.effect
        rows.append(
            Claim(
                id=claim.id,
                statement=claim.statement,
                source=claim.source,
                question="tuned",
                test=claim.test,
                verdict=_verdict(found.toward if p is not None and p <= ALPHA else TOO_THIN),
                alone=_verdict(found.verdict),
                reason=found.reason,
                effect=None if effect is None else _estimated(effect, found.unit),
                p=found.p,
                joint_p=p,
                evidence=[_row(row) for row in found.evidence],
            )
        )
    told = build_verdict(settings[0][1]) if len(settings) == 1 else None
    return Judgement(
        answer=told["headline"] if told else f"{len(settings)} settings were judged together.",
        sentences=told["sentences"] if told else [],
        others=told["others"] if told else [],
        caveats=told["caveats"] if told else [],
        tested=len(tested),
        settings=[
            JudgedSetting(
                name=s.name, domain=s.domain, regime=s.regime, arms=[a.name for a in s.arms]
            )
            for s in read
        ],
        claims=rows,
        gaps=[*missing, *(gap for setting in read for gap in gaps_of(setting))],
    )


def _verdict(word: str) -> Verdict:
    return "undecided" if word == TOO_THIN else word  # type: ignore[return-value]


def _estimated(effect: Effect, unit: str) -> Estimated:
    return Estimated(
        value=effect.value,
        unit=unit,
        stderr=effect.stderr,
        interval=effect.interval(),
        n=effect.n,
        seeds=effect.seeds,
    )


def _row(row: dict[str, Any]) -> ClaimRow:
    effect = None
    if row.get("value") is not None:
        low, high = row["interval"]
        effect = Estimated(
            value=row["value"],
            unit=row["unit"],
            stderr=(high - low) / 4,
            interval=(low, high),
            n=row["n"],
            seeds=row["seeds"],
        )
    return ClaimRow(
        setting=row["setting"],
        arms=row.get("arms", []),
        what=row.get("what", ""),
        effect=effect,
        verdict=_verdict(row.get("verdict", TOO_THIN)),
        decides=row.get("decides", False),
        reason=row.get("reason", ""),
    )


def gaps_of(setting: Setting) -> list[str]:
    """Runs that did not finish, and arms with fewer seeds than the recipe asks for, in words."""
    evidence, gaps = setting.evidence, []
    for known, run in evidence.runs:
        if run.state != "done":
            told = f"{known['arm']} at {known['learning_rate']:g}, seed {known['seed']}"
            gaps.append(f"{setting.name}: {told}: {run.state}")
    wanted = len(evidence.recipe.seeds)
    for arm in setting.arms:
        if arm.name not in evidence.best:
            gaps.append(f"{setting.name}: {arm.name} has no finished run at the largest budget")
            continue
        for budget in setting.budgets:
            found = len(setting.points(arm, budget))
            if found < wanted:
                told = f"{arm.name} at budget {budget:,g} has {found} of {wanted} seeds"
                gaps.append(f"{setting.name}: {told}")
    return gaps


def read_study(folder: Path) -> tuple[str, Evidence, Analysis | None]:
    """A study folder as a setting: its name, evidence and analysis.

    Raises:
        StoreError: the folder holds no study, or a file in it is damaged.
    """
    evidence = stored_evidence(folder)
    return evidence.recipe.name, evidence, read_analysis(folder)


def stored_evidence(folder: Path) -> Evidence:
    """What a study folder holds, by the recipe in it.

    Raises:
        StoreError: the folder holds no study, or a file in it is damaged.
        RecipeError: its recipe is of another version of Laura.
    """
    if not is_carried_out(folder):
        raise StoreError(
            f"{folder} holds no study (recipe.yaml and study.json); give the folder that "
            "`laura compare` wrote"
        )
    return gather(StudyStore(folder), _recipe(folder / "recipe.yaml"))


def is_carried_out(folder: Path) -> bool:
    """Whether the runs of a study lie there, and not only what was made of them."""
    return (folder / "recipe.yaml").is_file() and (folder / "study.json").is_file()


def read_analysis(folder: Path) -> Analysis | None:
    """A study's analysis.json; None where there is none.

    Raises:
        UsageError: it is of an older format.
        StoreError: it is damaged.
    """
    return read_optional(Analysis, folder / ANALYSIS_FILE)


def write_claims(folder: Path, evidence: Evidence | None = None) -> Judgement:
    """Judge the claims of one study folder and write its `claims.json`.

    Args:
        folder: The study folder.
        evidence: What it holds, where it has been read already.

    Raises:
        StoreError: as `read_study`, or the file cannot be written.
    """
    if evidence is None:
        setting = read_study(folder)
    else:
        setting = (evidence.recipe.name, evidence, read_analysis(folder))
    found = build_judgement([setting])
    write_file(folder / CLAIMS_FILE, found)
    return found


def judge_series(folder: Path) -> Judgement:
    """The claims over all settings of a series together, each under its name there.

    A setting that is damaged or not carried out is a gap, and the others are judged.

    Raises:
        StoreError: `series.json` is damaged.
    """
    settings, missing = [], []
    for name, study in SeriesStore(folder).settings().items():
        if not is_carried_out(study.folder):
            missing.append(f"{name}: was not carried out")
            continue
        try:
            settings.append((name, *read_study(study.folder)[1:]))
        except (RecipeError, StoreError, UsageError) as error:
            # Whoever moves the folder must find the same words.
            told = first_line(error).replace(f"{folder}/", "")
            missing.append(f"{name}: is left out, since {told}")
    return build_judgement(settings, missing)


def write_series_claims(folder: Path) -> Judgement:
    """Judge the claims of all settings of a series together and write its `claims.json`.

    Raises:
        StoreError: as `judge_series`, or the file cannot be written.
    """
    found = judge_series(folder)
    write_file(folder / CLAIMS_FILE, found)
    return found


def _recipe(path: Path) -> Recipe:
    """The recipe of a study, whose user's task files need not lie here any more."""
    import yaml

    from laura.recipe_faults import validate

    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise StoreError(f"{path} cannot be read ({error}); restore it") from error
    if not isinstance(data, dict):
        raise StoreError(f"{path} holds no recipe; restore it")
    recipe, faults = validate(Recipe, data)
    if recipe is None:
        raise RecipeError(faults, str(path))
    return recipe
