"""What the commands take apart and how they word their answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from laura.results.errors import UsageError

if TYPE_CHECKING:
    from laura.cli.console import Desk
    from laura.cli.doctor import Finding
    from laura.results.schema import Summary


def task_names(text: str) -> list[str]:
    """Names out of `a,b`.

    Raises:
        UsageError: none, or one given twice.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise UsageError("--tasks is empty; name at least one, as in --tasks hellaswag,gsm8k")
    if len(set(names)) != len(names):
        raise UsageError(f"--tasks names a task twice: {text}")
    return names


def adapter_names(given: Sequence[str]) -> dict[str, Path]:
    """Adapters by name, of `DIR` or `NAME=DIR`; a name is as much of its path as is needed.

    Raises:
        UsageError: a folder does not exist, or a name is taken twice.
    """
    named: dict[str, Path] = {}
    plain: list[Path] = []
    for text in given:
        name, _, rest = text.partition("=")
        # A folder of such a name is meant as it stands.
        if Path(text).expanduser().is_dir():
            name, rest = "", ""
        path = Path(rest or text).expanduser()
        if not path.is_dir():
            raise UsageError(f"--adapter {text}: there is no folder {path}; give DIR or NAME=DIR")
        if not rest:
            plain.append(path)
        elif name in named or name in ("base", "", ".", "..") or "/" in name:
            raise UsageError(f"--adapter {text}: the name {name!r} is taken or cannot be one")
        else:
            named[name] = path
    depth = 1
    whole = [path.resolve() for path in plain]
    if len(set(whole)) < len(whole):
        raise UsageError("--adapter names a folder twice")
    while len({path.parts[-depth:] for path in whole}) < len(whole):
        depth += 1
    for path in whole:
        name = "-".join(path.parts[-depth:]).removeprefix(f"{path.anchor}-")
        if name in named or name == "base":
            raise UsageError(f"--adapter {path}: {name!r} is taken; give it a name, NAME=DIR")
        named[name] = path
    return named


def answer_training(desk: Desk, answer: dict[str, Any]) -> None:
    """Show one training: its runs, how they ended, and where they lie."""
    lines = [f"{run['id']}: {run['state']}, in {run['folder']}" for run in answer["runs"]]
    desk.answer({**answer, "summary": without_curves(answer["summary"])}, "\n".join(lines))


def without_curves(summary: Summary) -> dict[str, Any]:
    """The summary without the training curves, which are long and lie in summary.json."""
    return summary.model_dump(mode="json", exclude={"runs": {"__all__": {"loss_curve"}}})


def scores_text(answer: dict[str, Any]) -> str:
    """Scores of an evaluation, one metric a line."""
    return "\n".join(
        f"{task:<14} {name:<16} {metric['value']:.4f} ± {metric['stderr']:.4f}  (n={found['n']})"
        for task, found in answer.items()
        for name, metric in found["metrics"].items()
    )


def models_text(answer: dict[str, Any]) -> str:
    """Scores of several models, an adapter's with its change against the base."""
    lines = []
    for model, found in answer.items():
        lines.append(model)
        for task, one in found.items():
            for name, metric in one["metrics"].items():
                line = f"  {task:<14} {name:<16} {metric['value']:.4f} ± {metric['stderr']:.4f}"
                lines.append(f"{line}  (n={one['n']}){_change_text(metric.get('change'))}")
    return "\n".join(lines)


def _change_text(change: dict[str, Any] | None) -> str:
    if change is None:
        return ""
    text = f"  {change['value']:+.4f} ± {change['stderr']:.4f}"
    if "interval" in change:
        low, high = change["interval"]
        text += f", 95% {low:+.4f} to {high:+.4f}"
    return text


def facts_text(answer: dict[str, Any]) -> str:
    """An answer as lines of `name: value`."""
    return "\n".join(
        f"{name}: {value:.6g}" if isinstance(value, float) else f"{name}: {value}"
        for name, value in answer.items()
    )


def finding_text(finding: Finding) -> str:
    """One finding of the doctor, with its advice below."""
    mark = {"ok": "ok     ", "limited": "limited", "missing": "MISSING"}[finding.state]
    advice = f"\n{'':28}-> {finding.advice}" if finding.advice else ""
    return f"{mark}  {finding.name:<17}  {finding.found}{advice}"
