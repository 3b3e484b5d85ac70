"""A plan as text for the terminal. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from laura.progress import duration_text
from laura.study.plan_paper import paper_rows

TRAINING = (
    "runtime", "weights", "adapter", "anchor", "gradients", "optimiser", "activations", "logits",
    "working", "allocator", "peak",
)  # fmt: skip
EVALUATION = ("runtime", "weights", "adapter", "cache", "logits", "working", "peak")


def size_text(count: float | None) -> str:
    """Bytes as people read them, in powers of ten as the paper's tables."""
    if count is None:
        return "?"
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return (
                f"{count / size:.3g} {unit}"
                if count < 1e3 * size
                else f"{count / size:,.0f} {unit}"
            )
    return f"{count:.0f} B"


def count_text(count: float | None) -> str:
    """A count as 1.23 M, or ? where unknown."""
    if count is None:
        return "?"
    for unit, size in (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f}"


def plan_text(plan: dict[str, Any]) -> str:
    """All of a plan: memory, work, disk and what to know about them."""
    base = plan["base"]
    lines = [f"{plan['name']}: {base['model']}, {base['parameters'] / 1e9:.3f} B parameters", ""]
    lines += _memory("Memory of training, most of each part", plan, "training", TRAINING)
    lines += ["", *_memory("Memory of measuring", plan, "evaluation", EVALUATION)]
    lines += ["", "Work"]
    rows = [["arm", "trained", "share", "runs", "tokens", "operations", "time", "checkpoints"]]
    for arm in plan["arms"]:
        rows.append(
            [
                arm["arm"],
                count_text(arm["trained_parameters"]),
                f"{arm['share']:.2%}",
                str(arm["runs"]),
                count_text(arm["tokens"]),
                count_text(arm["flops"]),
                _time(arm["devices"][0]["seconds"]),
                size_text(arm["checkpoint_bytes"]),
            ]
        )
    total = plan["totals"]
    rows.append(
        ["all", "", "", str(total["runs"]), count_text(total["tokens"]), count_text(total["flops"]),
         _time(total["seconds"]), size_text(total["disk"]["checkpoints"])]
    )  # fmt: skip
    lines += _table(rows)
    disk = ", ".join(f"{key} {size_text(size)}" for key, size in total["disk"].items())
    lines += ["", f"Disk, at most: {disk}", *plan["notes"]]
    return "\n".join(lines)


def plan_line(plan_totals: dict[str, Any], peaks: dict[str, int]) -> str:
    """One line on what a comparison will take."""
    memory = ", ".join(f"{name} {size_text(peak)}" for name, peak in peaks.items())
    return (
        f"Plan: {plan_totals['runs']} runs, {count_text(plan_totals['tokens'])} tokens, "
        f"{count_text(plan_totals['flops'])} operations; memory beside torch's own {memory}; "
        f"{size_text(plan_totals['disk']['all'])} of disk at most"
    )


def paper_text(parameters: float, devices: Sequence[int], share: float) -> str:
    """The paper's table for any number of parameters, share p and GPUs."""
    head = [f"{parameters / 1e9:g}B, p={share:g}", *(f"{n} GPU" for n in devices)]
    rows = [head]
    for row in paper_rows(parameters, devices, share):
        rows.append([row["case"], *(f"{size / 1e9:.5g} GB" for size in row["bytes"])])
    return "\n".join(["Model state of one GPU (Biderman et al. 2024, appendix H)", *_table(rows)])


def _memory(title: str, plan: dict[str, Any], kind: str, parts: Sequence[str]) -> list[str]:
    columns = [
        (arm["arm"] + (f" /{one['devices']}" if len(arm["devices"]) > 1 else ""), one[kind])
        for arm in plan["arms"]
        for one in arm["devices"]
    ]
    rows = [[title, *(name for name, _ in columns)]]
    for part in parts:
        if any(found[part] for _, found in columns):
            rows.append([f"  {part}", *(size_text(found[part]) for _, found in columns)])
    return _table(rows)


def _time(seconds: list[float] | None) -> str:
    if seconds is None:
        return "?"
    least, most = (duration_text(value) for value in seconds)
    return f"{least} to {most}"


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
