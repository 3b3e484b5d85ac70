"""Spectra of all updates of a layer, Laura beside one torch.linalg.svdvals a matrix.

    python benchmarks/spectra.py                         # a layer of Llama-2-7B
    python benchmarks/spectra.py --hidden 512 --inner 1376   # small, to see that it runs

Prints seconds by shape with the goals, whether the ranks are identical, and the peak
memory. Ends with 1 where a rank differs and float64 says that it is Laura's that is wrong.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from sides import start

HERE = Path(__file__).resolve().parent
FOLDERS = [HERE, HERE.parent]
SECONDS = 3600.0
SQUARE_GOAL, WIDE_GOAL, MEMORY_GOAL = 2.0, 3.0, 3.0
OUTLIERS = 32


def shapes(hidden: int, inner: int) -> dict[str, tuple[int, int]]:
    """The linear maps of a Llama layer by name, (out, in)."""
    attention = {f"self_attn.{name}_proj": (hidden, hidden) for name in "qkvo"}
    mlp = {f"mlp.{name}_proj": (inner, hidden) for name in ("gate", "up")}
    return {**attention, **mlp, "mlp.down_proj": (hidden, inner)}


def update(rows: int, columns: int, kind: str) -> torch.Tensor:
    """What is added to a matrix.

    `noise` is independent. `trained` is noise whose rows and columns differ in size, and
    32 strong directions: a slowly falling spectrum behind a few large values, as
    finetuning leaves it.
    """
    noise = torch.randn(rows, columns)
    if kind == "noise":
        return 1e-4 * noise
    noise *= torch.exp(0.3 * torch.randn(rows, 1)) * torch.exp(0.3 * torch.randn(1, columns))
    strengths = torch.linspace(9, 0.3, OUTLIERS) * min(rows, columns) ** 0.5
    left, right = (torch.linalg.qr(torch.randn(n, OUTLIERS)).Q for n in (rows, columns))
    return 1e-4 * (noise + (left * strengths) @ right.T)


def write_models(folder: Path, hidden: int, inner: int, kind: str) -> None:
    """A base and a tuned model of one layer, float32."""
    torch.manual_seed(0)
    base, tuned = {}, {}
    for name, (rows, columns) in shapes(hidden, inner).items():
        key = f"model.layers.0.{name}.weight"
        base[key] = 0.02 * torch.randn(rows, columns)
        tuned[key] = base[key] + update(rows, columns, kind)
    for name, tensors in (("base", base), ("tuned", tuned)):
        (folder / name).mkdir()
        save_file(tensors, folder / name / "model.safetensors")


def side(program: str, folder: Path, threads: int, *more: str) -> dict[str, Any]:
    """One side's result; ends the benchmark where it failed."""
    command = [sys.executable, str(HERE / program), "--base", str(folder / "base")]
    found = start(
        [*command, "--tuned", str(folder / "tuned"), *more],
        folder / "result.json",
        threads=threads,
        folders=FOLDERS,
        seconds=SECONDS,
    )
    if "failed" in found:
        sys.exit(f"{program} failed: {found['failed']}")
    return found


def tell(ours: dict[str, Any], theirs: dict[str, Any], options: argparse.Namespace) -> list[str]:
    """Print the table; returns the matrices whose ranks differ."""
    by_shape: dict[tuple[int, int], list[str]] = {}
    for name, shape in shapes(options.hidden, options.inner).items():
        by_shape.setdefault(shape, []).append(f"model.layers.0.{name}")
    seconds = {"Laura": 0.0, "svdvals": 0.0}
    say(f"{'shape':<14}{'matrices':>9}{'Laura':>10}{'svdvals':>10}{'ratio':>8}  goal")
    for (rows, columns), names in by_shape.items():
        mine, other = (
            sum(side["matrices"][n]["seconds"] for n in names) for side in (ours, theirs)
        )
        seconds["Laura"] += mine
        seconds["svdvals"] += other
        goal = SQUARE_GOAL if rows == columns else WIDE_GOAL
        word = "reached" if other / mine >= goal else "NOT reached"
        count = len(names)
        say(
            f"{f'{rows}x{columns}':<14}{count:>9}{mine / count:>8.2f} s{other / count:>8.2f} s"
            f"{other / mine:>7.1f}x  {goal:g}x, {word}"
        )
    mine, other = seconds.values()
    say(f"{'the layer':<23}{mine:>8.2f} s{other:>8.2f} s{other / mine:>7.1f}x")
    largest = 4 * max(rows * columns for rows, columns in by_shape)
    held = ours["peak_bytes"] / largest
    word = "reached" if held < MEMORY_GOAL else "NOT reached"
    say(
        f"peak memory: Laura {held:.2f} of the largest matrix in float32 (goal below "
        f"{MEMORY_GOAL:g}, {word}), svdvals {theirs['peak_bytes'] / largest:.2f}"
    )
    pairs = {n: (found, theirs["matrices"][n]) for n, found in ours["matrices"].items()}
    off = max(abs(a["effective_rank"] / b["effective_rank"] - 1) for a, b in pairs.values())
    differing = [n for n, (a, b) in pairs.items() if a["rank"] != b["rank"]]
    same = 3 * len(pairs) - sum(
        a["rank"][e] != b["rank"][e] for a, b in pairs.values() for e in a["rank"]
    )
    say(f"ranks at 50, 90 and 99 %: {same} of {3 * len(pairs)} identical")
    say(f"effective rank within a share of {off:.0e}")
    return differing


def judge(names: list[str], ours: dict[str, Any], folder: Path, threads: int) -> bool:
    """Who is right where ranks differ, by svdvals in float64; whether Laura always is."""
    if not names:
        return True
    only = ",".join(names)
    exact = side("peers/torch_svdvals.py", folder, threads, "--double", "--only", only)["matrices"]
    right = True
    for name in names:
        mine, truth = ours["matrices"][name]["rank"], exact[name]["rank"]
        right = right and mine == truth
        say(f"{name}: Laura {mine}, float64 {truth}" + ("" if mine == truth else ", WRONG"))
    return right


def say(text: str) -> None:
    """One line, at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main() -> int:
    """Measure and print; 1 where Laura's ranks are wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--inner", type=int, default=11008)
    parser.add_argument("--update", choices=["trained", "noise"], default="trained")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, help="write every number here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_models(folder, options.hidden, options.inner, options.update)
        say(f"updates: {options.update}; {options.threads} threads, torch {torch.__version__}")
        ours = side("workers/laura_spectra.py", folder, options.threads)
        theirs = side("peers/torch_svdvals.py", folder, options.threads)
        differing = tell(ours, theirs, options)
        right = judge(differing, ours, folder, options.threads)
    if options.output:
        options.output.write_text(json.dumps({"laura": ours, "svdvals": theirs}))
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
