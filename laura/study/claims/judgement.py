"""What a study says about the statements of the paper: `claims.json`. No torch.

`table.py` lists the claims; `verdicts.py` says by which rules they are judged.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from laura.errors import RecipeError, StoreError, first_line
from laura.recipe import Recipe
from laura.store import SeriesStore, StudyStore, read_json, write_json
from laura.study.choosing import choice_gaps
from laura.study.claims.settings import Setting
from laura.study.claims.table import CLAIMS
from laura.study.claims.verdicts import TOO_THIN, holm
from laura.study.effects import ALPHA, LEVEL, MIN_ITEMS, MIN_SEEDS
from laura.study.summary import Evidence, gather

CLAIMS_FILE, ANALYSIS_FILE = "claims.json", "analysis.json"
# What the claims read of each entry of analysis.json.
_NEEDED = {
    "matched": ("arms", "level", "difference", "interval", "seeds", "n"),
    "diversity": ("extra", "arm", "seed", "learning_rate", "budget", "samples", "distinct"),
    "diversity_differences": ("extra", "arms", "measure", "budget", "stderr"),
    "spectra": ("arm", "seed", "learning_rate", "budget", "matrices"),
    "matrices": ("layer", "module", "shape", "rank", "noise_rank"),
}


def build_claims(
    settings: Sequence[tuple[str, Evidence, dict[str, Any] | None]], missing: Sequence[str] = ()
) -> dict[str, Any]:
    """The content of `claims.json`: every claim judged over one or several settings.

    Args:
        settings: Name, evidence and analysis (None where there is none) of each; names
            differ.
        missing: What else there should be, in words; it comes first among the gaps.

    Returns:
        `{"format": 1, "level", "tested", "settings", "rules", "claims", "gaps"}`; nothing
        in it depends on the time or the machine.
    """
    read = [Setting(name, evidence, analysis or {}) for name, evidence, analysis in settings]
    findings = [claim.look(read) for claim in CLAIMS]
    tested = [place for place, found in enumerate(findings) if found.p is not None]
    adjusted = dict(zip(tested, holm([findings[p].p or 0.0 for p in tested]), strict=True))
    rows = []
    for place, (claim, found) in enumerate(zip(CLAIMS, findings, strict=True)):
        p = adjusted.get(place)
        sure = p is not None and p <= ALPHA
        effect = found.effect
        rows.append(
            {
                "id": claim.id,
                "statement": claim.statement,
                "source": claim.source,
                "verdict": found.verdict,
                "reason": found.reason,
                "effect": effect.value if effect else None,
                "unit": found.unit,
                "interval": list(effect.interval()) if effect else None,
                "level": LEVEL,
                "n": effect.n if effect else 0,
                "seeds": effect.seeds if effect else 0,
                "test": claim.test,
                "p": found.p,
                "holm": {"p": p, "verdict": found.toward if sure else TOO_THIN},
                "evidence": found.evidence,
            }
        )
    return {
        "format": 1,
        "level": LEVEL,
        "tested": len(tested),
        "settings": [
            {
                "name": s.name,
                "domain": s.domain,
                "regime": s.regime,
                "arms": [a.name for a in s.arms],
            }
            for s in read
        ],
        "rules": {"seeds": MIN_SEEDS, "items": MIN_ITEMS, "familywise": ALPHA},
        "claims": rows,
        "gaps": [*missing, *(gap for setting in read for gap in gaps_of(setting))],
    }


def gaps_of(setting: Setting) -> list[str]:
    """Runs that did not finish, and arms with fewer seeds than the recipe asks for, in words."""
    evidence, gaps = setting.evidence, []
    for run in evidence.runs:
        if run.state != "done":
            told = f"{run.arm} at {run.learning_rate:g}, seed {run.seed}"
            gaps.append(f"{setting.name}: {told}: {run.state}")
    gaps += [f"{setting.name}: {gap}" for gap in choice_gaps(evidence)]
    for arm in setting.arms:
        wanted = len(evidence.best.get(arm.name, {}))
        for budget in setting.budgets:
            found = len(setting.points(arm, budget))
            if found < wanted:
                told = f"{arm.name} at budget {budget:,g} has {found} of {wanted} seeds"
                gaps.append(f"{setting.name}: {told}")
    return gaps


def read_study(folder: Path) -> tuple[str, Evidence, dict[str, Any] | None]:
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


def read_analysis(folder: Path) -> dict[str, Any] | None:
    """A study's analysis.json; None where there is none.

    Raises:
        StoreError: it is damaged, or of a format that this version does not know.
    """
    path = folder / ANALYSIS_FILE
    if not path.is_file():
        return None
    value = read_json(path)
    if not isinstance(value, dict) or value.get("format") != 1:
        raise StoreError(f"{path} is no analysis of format 1; delete it and run the command again")
    fault = _analysis_fault(value)
    if fault:
        raise StoreError(f"{path}: {fault}; delete the file and run the command again")
    return value


def write_claims(folder: Path, evidence: Evidence | None = None) -> dict[str, Any]:
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
    found = build_claims([setting])
    write_json(folder / CLAIMS_FILE, found)
    return found


def judge_series(folder: Path) -> dict[str, Any]:
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
        except (RecipeError, StoreError) as error:
            # Whoever moves the folder must find the same words.
            told = first_line(error).replace(f"{folder}/", "")
            missing.append(f"{name}: is left out, since {told}")
    return build_claims(settings, missing)


def write_series_claims(folder: Path) -> dict[str, Any]:
    """Judge the claims of all settings of a series together and write its `claims.json`.

    Raises:
        StoreError: as `judge_series`, or the file cannot be written.
    """
    found = judge_series(folder)
    write_json(folder / CLAIMS_FILE, found)
    return found


def _analysis_fault(value: dict[str, Any]) -> str:
    """What the claims would stumble over; empty where there is nothing."""
    tradeoff = value.get("tradeoff") or {}
    if not isinstance(tradeoff, dict):
        return "tradeoff is not an object"
    parts = [("matched", tradeoff.get("matched"))]
    parts += [(part, value.get(part)) for part in ("diversity", "diversity_differences", "spectra")]
    for part, rows in parts:
        fault = _rows_fault(part, rows or [])
        if fault:
            return fault
    spectra = value.get("spectra") or []
    return next(filter(None, (_rows_fault("matrices", row["matrices"]) for row in spectra)), "")


def _rows_fault(part: str, rows: Any) -> str:
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        return f"{part} is not a list of objects"
    for row in rows:
        missing = [key for key in _NEEDED[part] if key not in row]
        if missing:
            return f"an entry of {part} lacks {', '.join(missing)}"
    return ""


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
