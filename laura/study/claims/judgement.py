"""What a study or a series concludes: `claims.json`, the one object every output speaks from.

`table.py` lists the claims; `verdicts.py` says by which rules they are judged; `answer.py`
puts them into words. No torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from laura.recipe.reading import stored_recipe
from laura.results.errors import LauraError, StoreError, first_line
from laura.results.schema import (
    ANALYSIS_FILE,
    CLAIMS_FILE,
    Analysis,
    Claim,
    Estimated,
    JudgedSetting,
    Judgement,
    Verdict,
    read_file,
    write_file,
)
from laura.results.statistics import ALPHA, holm
from laura.results.store import SeriesStore, StudyStore
from laura.study.claims.answer import (
    answer_of,
    caveats_of,
    compare_pair,
    pairs_of,
    sentences_of,
)
from laura.study.claims.claimed import Claimed
from laura.study.claims.settings import Setting
from laura.study.claims.table import claims_on
from laura.study.claims.verdicts import Finding, would_decide
from laura.study.evidence import Evidence
from laura.study.summary import gather


def judge(settings: Sequence[Setting], missing: Sequence[str] = ()) -> Judgement:
    """Everything that is concluded from one or several settings.

    Args:
        settings: Their names differ.
        missing: What else there should be, in words; it comes first among the gaps.

    Returns:
        The content of `claims.json`; nothing in it depends on the time or the machine.
    """
    claims = judge_claims(settings)
    by_id = {claim.id: claim for claim in claims}
    alone = settings[0] if len(settings) == 1 else None
    pairs = pairs_of(alone) if alone else []
    comparisons = [compare_pair(alone, *pair, together=len(pairs)) for pair in pairs if alone]
    sentences, others = sentences_of(alone, by_id, comparisons) if alone else ([], [])
    answer = answer_of(settings, by_id, comparisons)
    return Judgement(
        answer=answer.text,
        verdict=answer.verdict,
        missing=answer.missing,
        options=answer.options,
        more_runs=answer.runs,
        named=list(answer.named),
        sentences=sentences,
        others=others,
        caveats=caveats_of(alone) if alone else [],
        comparisons=comparisons,
        tested=sum(claim.p is not None for claim in claims),
        settings=[
            JudgedSetting(
                name=s.name, domain=s.domain, regime=s.regime, arms=[arm.name for arm in s.arms]
            )
            for s in settings
        ],
        claims=claims,
        gaps=[*missing, *(gap for setting in settings for gap in gaps_of(setting))],
    )


def judge_claims(settings: Sequence[Setting]) -> list[Claim]:
    """Every statement, with its joint verdict (Holm over all that were tested)."""
    claims = claims_on(settings)
    findings = [claim.judge(settings) for claim in claims]
    tested = [place for place, found in enumerate(findings) if found.p is not None]
    adjusted = dict(zip(tested, holm([findings[p].p or 0.0 for p in tested]), strict=True))
    return [
        _claim(claim, found, adjusted.get(place), len(tested))
        for place, (claim, found) in enumerate(zip(claims, findings, strict=True))
    ]


def _claim(claim: Claimed, found: Finding, joint: float | None, tested: int) -> Claim:
    sure = joint is not None and joint <= ALPHA
    verdict: Verdict = found.toward if sure else "undecided"
    one = found.statement
    reason = found.reason
    if verdict != found.verdict:
        reason = f"{found.verdict} by itself, but not among {tested} that were tested: {reason}"
    undecided = verdict == "undecided" and one is not None
    return Claim(
        id=claim.id,
        statement=claim.statement,
        source=claim.source,
        question=claim.question,
        test=claim.test,
        verdict=verdict,
        alone=found.verdict,
        reason=reason,
        missing=found.missing,
        would_decide=would_decide(one, tested) if undecided and one else "",
        effect=Estimated.of(one.contrast, one.unit) if one else None,
        edge=found.edge,
        p=found.p,
        joint_p=joint,
        evidence=found.rows,
    )


def gaps_of(setting: Setting) -> list[str]:
    """Runs that did not finish, and arms with fewer seeds than the recipe asks for, in words."""
    evidence, gaps = setting.evidence, []
    for run in evidence.runs:
        if run.state != "done":
            told = f"{run.arm} at {run.learning_rate:g}, seed {run.seed}"
            gaps.append(f"{setting.name}: {told}: {run.state}")
    wanted = len(evidence.recipe.seeds)
    for arm in setting.arms:
        found = len(evidence.best.get(arm.name, {}))
        if found < wanted:
            told = f"{arm.name} has {found} of {wanted} seeds with every rate ended"
            gaps.append(f"{setting.name}: {told}")
    return gaps


def read_setting(folder: Path) -> Setting:
    """A study folder as a setting.

    Raises:
        StoreError: the folder holds no study, or a file in it is damaged.
        RecipeError: its recipe is of another version of Laura.
        UsageError: a file is of an older format.
    """
    evidence = stored_evidence(folder)
    return Setting(evidence.recipe.name, evidence, read_analysis(folder))


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
    return gather(StudyStore(folder), stored_recipe(folder / "recipe.yaml"))


def is_carried_out(folder: Path) -> bool:
    """Whether the runs of a study lie there, and not only what was made of them."""
    return (folder / "recipe.yaml").is_file() and (folder / "study.json").is_file()


def read_analysis(folder: Path) -> Analysis | None:
    """A study's analysis.json; None where there is none.

    Raises:
        StoreError: it is damaged.
        UsageError: it is of an older format.
    """
    path = folder / ANALYSIS_FILE
    return read_file(Analysis, path) if path.is_file() else None


def write_claims(folder: Path, evidence: Evidence | None = None) -> Judgement:
    """Judge a study folder and write its `claims.json`.

    Args:
        folder: The study folder.
        evidence: What it holds, where it has been read already.

    Raises:
        LauraError: as `read_setting`, or the file cannot be written.
    """
    evidence = evidence or stored_evidence(folder)
    found = judge([Setting(evidence.recipe.name, evidence, read_analysis(folder))])
    write_file(folder / CLAIMS_FILE, found)
    return found


def judge_series(folder: Path, known: Mapping[str, Evidence] | None = None) -> Judgement:
    """What all settings of a series say together, each under its name there.

    A setting that is damaged or not carried out is a gap, and the others are judged.

    Args:
        folder: The series.
        known: What settings hold that have been read already.

    Raises:
        StoreError: `series.json` is damaged.
    """
    settings, missing = [], []
    for name, study in SeriesStore(folder).settings().items():
        if not is_carried_out(study.folder):
            missing.append(f"{name}: was not carried out")
            continue
        try:
            evidence = (known or {}).get(name) or stored_evidence(study.folder)
            settings.append(Setting(name, evidence, read_analysis(study.folder)))
        except LauraError as error:
            # Whoever moves the folder must find the same words.
            told = first_line(error).replace(f"{folder}/", "")
            missing.append(f"{name}: is left out, since {told}")
    return judge(settings, missing)


def write_series_claims(folder: Path, known: Mapping[str, Evidence] | None = None) -> Judgement:
    """Judge all settings of a series together and write its `claims.json`.

    Args:
        folder: The series.
        known: What settings hold that have been read already.

    Raises:
        StoreError: as `judge_series`, or the file cannot be written.
    """
    found = judge_series(folder, known)
    write_file(folder / CLAIMS_FILE, found)
    return found
