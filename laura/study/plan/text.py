"""A plan as text for the terminal, and the paper's own memory model. No torch.

The paper counts model state only, in bytes: no activations and no mixed precision, everything
float32 but a frozen base in bf16. Psi is the base's parameters, p the adapter's as a share of
them, N GPUs (Biderman et al. 2024, arXiv:2405.09673v2, appendix H, tables S14 to S16).

    Adam, full            4 Psi weights + 4 Psi gradients + 8 Psi moments = 16 Psi
    Lion, full            4 Psi + 4 Psi + 4 Psi                           = 12 Psi
    Adam, LoRA            2 Psi + 16 p Psi
    Lion, LoRA            2 Psi + 12 p Psi
    FSDP                  any of these / N a GPU
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from laura.results.progress import duration_text
from laura.results.text_table import table_lines
from laura.results.units import memory_text
from laura.study.claims.simulated import claims_lines
from laura.study.plan.memory import PARTS

# Bytes that one trained number takes: itself, its gradient, and what the optimiser keeps of it.
TRAINED_BYTES = {"Adam": 4 + 4 + 8, "Lion": 4 + 4 + 4}
FROZEN_BYTES = 2
SHARE = 0.01


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
    title = f"{plan['name']}: {base['model']}, {base['parameters'] / 1e9:.3f} B parameters"
    lines = [title + (f" in {base['quantization']}" if base["quantization"] else ""), ""]
    lines += ["Memory, most of each part", *_memory(plan), ""]
    for found in plan["fits"]:
        lines += [*fit_lines(found), ""]
    lines.append("Work")
    rows = [["arm", "trained", "share", "runs", "tokens", "operations", "time", "disk"]]
    for arm in plan["arms"]:
        rows.append(
            [
                arm["arm"],
                count_text(arm["trained_parameters"]),
                f"{arm['share']:.2%}",
                "elsewhere" if arm["external"] else str(arm["runs"]),
                count_text(arm["tokens"]),
                count_text(arm["flops"]),
                _time(arm["devices"][0]["seconds"]),
                memory_text(arm["checkpoint_bytes"]),
            ]
        )
    total = plan["totals"]
    rows.append(["all", "", "", *_sums(total)])
    lines += table_lines(rows)
    lines += ["", *longer_line(total), evaluation_line(total)]
    lines += [disk_line(total), *plan["notes"], "", *claims_lines(plan["decides"])]
    return "\n".join(lines)


def series_text(series: dict[str, Any]) -> str:
    """The plans of all settings of a series, and what they take together."""
    parts = [plan_text(plan) for plan in series["settings"].values()]
    total = series["totals"]
    rows = [["setting", "peak", "runs", "tokens", "operations", "time", "disk"]]
    for name, plan in series["settings"].items():
        rows.append([name, memory_text(plan["totals"]["peak"]), *_sums(plan["totals"])])
    rows.append(["all", memory_text(total["peak"]), *_sums(total)])
    words = [f"{series['name']}, all settings together", *table_lines(rows), ""]
    words += [*longer_line(total), evaluation_line(total), disk_line(total)]
    if total["unknown"]:
        names = ", ".join(total["unknown"])
        words.append(f"Without the training of {names}: give --setting and --epoch-tokens.")
    words += ["", *claims_lines(series["decides"])]
    return "\n\n\n".join([*parts, "\n".join(words)])


def fit_lines(found: dict[str, Any]) -> list[str]:
    """Which arms fit so many devices, with which lines of a recipe, and why the others do not."""
    count, arms, change = found["devices"], found["arms"], dict(found["change"])
    spread = {name: over for name, (over, _) in arms.items() if over > 1}
    if spread and len(spread) == len(arms):
        change["train"] = {**change.get("train", {}), "devices": max(spread.values())}
    title = f"On {count} device{'s' * (count > 1)} of {memory_text(found['memory'])}"
    if not arms:
        lines = [f"{title} no arm fits"]
    elif change:
        lines = [f"{title} with", *(f"  {line}" for line in _recipe_lines(change))]
    else:
        lines = [f"{title} as the recipe is"]
    rows = [["arm", "most of a device", "a run takes"]]
    rows += [
        [name, memory_text(size), f"{over} device{'s' * (over > 1)}"]
        for name, (over, size) in arms.items()
    ]
    lines += table_lines(rows, "  ") if arms else []
    lines += [f"  not {name}: {words}" for name, words in found["cannot"].items()]
    if 0 < len(spread) < len(arms):
        alone = f"--arm {' or '.join(spread)}"
        most = max(spread.values())
        lines.append(
            f"  Runs over several devices first, each by `laura train {alone}` with --set "
            f"train.devices={most}, into the folder in which `laura compare` then does the rest, a "
            "run a device. Where other arms have dropout, add --set arms.NAME.dropout=0 to the "
            "former, which does not train them. A list that grows (search.extend) would be trained "
            "on one device: set it to 0."
        )
    return lines


def _recipe_lines(change: dict[str, dict[str, Any]]) -> list[str]:
    """A change as a recipe says it."""
    lines = []
    for section, keys in change.items():
        values = ((k, v if isinstance(v, str) else json.dumps(v)) for k, v in keys.items())
        lines.append(f"{section}: {{{', '.join(f'{key}: {value}' for key, value in values)}}}")
    return lines


def evaluation_line(total: dict[str, Any]) -> str:
    """What measuring takes, as far as it can be told."""
    found = total["evaluation"]
    return (
        f"Measuring: {found['models']} models; {found['answers']:,} answers of at most "
        f"{count_text(found['generated_tokens'])} tokens, choices of "
        f"{count_text(found['read_tokens'])}, {count_text(found['flops'])} operations, "
        f"{_time(found['seconds'])} on one device (prompts, texts and lm-eval's tasks left out)"
    )


def disk_line(total: dict[str, Any]) -> str:
    """Disk by kind of file."""
    sizes = ", ".join(f"{key} {memory_text(size)}" for key, size in total["disk"].items())
    return f"Disk beside downloads, replay and samples, at most: {sizes}"


def _sums(total: dict[str, Any]) -> list[str]:
    return [
        str(total["runs"]), count_text(total["tokens"]), count_text(total["flops"]),
        _time(total["seconds"]), memory_text(total["disk"]["checkpoints"]),
    ]  # fmt: skip


def plan_line(plan_totals: dict[str, Any], peaks: dict[str, int]) -> str:
    """One line on what a comparison will take."""
    sizes = ", ".join(f"{name} {memory_text(peak)}" for name, peak in peaks.items())
    memory = f"memory beside torch's own {sizes}" if sizes else "nothing is trained"
    longer = f" (and up to {plan_totals['longer']} more)" if plan_totals["longer"] else ""
    return (
        f"Plan: {plan_totals['runs']} runs{longer}, {count_text(plan_totals['tokens'])} tokens, "
        f"{count_text(plan_totals['flops'])} operations; {memory}; "
        f"{memory_text(plan_totals['disk']['all'])} of disk at most"
    )


def longer_line(total: dict[str, Any]) -> list[str]:
    """How many runs may come on top of what is counted; nothing where none may."""
    if not total["longer"]:
        return []
    runs = f"{total['longer']} more run{'s' * (total['longer'] > 1)}"
    return [f"Not counted: up to {runs}, where a best rate is at the end of its list"]


def paper_rows(
    parameters: float, devices: Sequence[int], share: float = SHARE
) -> list[dict[str, Any]]:
    """The four rows of one of the paper's tables: {"case", "bytes": [a device, for each N]}.

    Args:
        parameters: Psi.
        devices: Each N.
        share: p.
    """
    rows = []
    for name, trained in TRAINED_BYTES.items():
        for case, each in ((name, trained), (f"{name}+LoRA", FROZEN_BYTES + trained * share)):
            rows.append({"case": case, "bytes": [each * parameters / n for n in devices]})
    return rows


def paper_text(parameters: float, devices: Sequence[int], share: float) -> str:
    """The paper's table for any number of parameters, share p and GPUs, in its own unit."""
    rows = [[f"{parameters / 1e9:g}B, p={share:g}", *(f"{n} GPU" for n in devices)]]
    for row in paper_rows(parameters, devices, share):
        rows.append([row["case"], *(f"{size / 1e9:.5g}" for size in row["bytes"])])
    title = "Model state of one GPU in GB of 10^9 bytes (Biderman et al. 2024, appendix H)"
    return "\n".join([title, *table_lines(rows)])


def _memory(plan: dict[str, Any]) -> list[str]:
    """A row for the training and one for the measuring of each arm on so many devices."""
    found = []
    for arm in plan["arms"]:
        for one in arm["devices"]:
            name = arm["arm"] + (f" /{one['devices']}" if len(arm["devices"]) > 1 else "")
            kinds = {"training": one["training"], "measuring": one["evaluation"]}
            found += [(f"{name}, {kind}", parts) for kind, parts in kinds.items() if parts]
    shown = [part for part in PARTS if any(parts.get(part) for _, parts in found)]
    rows = [["arm", *shown]]
    for name, parts in found:
        rows.append([name, *(memory_text(parts[p]) if p in parts else "" for p in shown)])
    return table_lines(rows)


def _time(seconds: list[float] | None) -> str:
    if seconds is None:
        return "?"
    least, most = (duration_text(math.ceil(value)) for value in seconds)
    return f"{least} to {most}"
