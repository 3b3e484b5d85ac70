"""The scripts behind docs/evidence: pure noise, the throughput table, the remedies' tables."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from laura.analysis.spectra import noise_rank
from laura.results.schema import Area, Comparison, Estimated, Judgement
from laura.results.store import SeriesStore, write_json
from scripts import noise_spectra, remedy_tables, throughput_table

ROOT = Path(__file__).resolve().parents[1]


def test_noise_spectra_are_those_of_the_sum() -> None:
    found = noise_spectra.noise_spectra(size=120, seed=4)
    draw = np.random.default_rng(4)
    a, b = draw.standard_normal((120, 120)), draw.standard_normal((120, 120))

    def eigen(matrix: np.ndarray) -> np.ndarray:
        return np.sqrt(np.linalg.eigvalsh(matrix @ matrix.T)[::-1])

    for name, matrix in (("A", a), ("cB", 0.1 * b), ("A + cB", a + 0.1 * b)):
        assert found["spectra"][name] == pytest.approx(eigen(matrix), rel=1e-6, abs=1e-6)
        assert found["rank"][name] == pytest.approx(noise_rank(120, 120, 0.9), abs=2)
    assert [row["c"] for row in found["difference"]][::12] == pytest.approx([1e-6, 1])
    last = found["difference"][-1]["value"]
    assert last == pytest.approx(np.abs(eigen(a + b) - eigen(a)).mean(), rel=1e-6)


def test_a_small_perturbation_moves_the_spectrum_as_little_as_it_is() -> None:
    """Between the lines c and c²: about linear while c is small, then faster."""
    found = noise_spectra.noise_spectra(size=200)
    values = {round(np.log10(row["c"]), 1): row["value"] for row in found["difference"]}
    assert values[-4] / values[-6] == pytest.approx(100, rel=0.02)
    for exponent in (-6, -4, -2):
        assert 10.0 ** (2 * exponent) < values[exponent] < 10.0**exponent
    assert values[0] / values[-1] > 20


def test_the_script_writes_numbers_and_figure(tmp_path: Path) -> None:
    script = ROOT / "scripts" / "noise_spectra.py"
    call = [sys.executable, str(script), "--size", "30", "--out", str(tmp_path / "noise")]
    ended = subprocess.run(call, cwd=ROOT, env={"PYTHONPATH": str(ROOT), "PATH": ""},
                           capture_output=True, text=True, check=True)  # fmt: skip
    assert "c 1.0e+00" in ended.stdout
    assert sorted(path.suffix for path in (tmp_path / "noise").iterdir()) == [
        ".json", ".png", ".svg",
    ]  # fmt: skip
    assert len(json.loads((tmp_path / "noise/noise_spectra.json").read_text())["difference"]) == 13
    assert "mean absolute difference" in (tmp_path / "noise/noise_spectra.svg").read_text()


def test_throughput_table_of_a_series(tmp_path: Path) -> None:
    store = SeriesStore(tmp_path)
    store.write("t", ["batch-1", "batch-2", "batch-4"])
    for name, arms in (("batch-1", ("full", "lora")), ("batch-2", ("full",))):
        runs = [
            {"id": arm, "arm": arm, "learning_rate": 1e-3, "seed": 0, "flops": 1,
             "tokens_per_second": 1000 * (1 + n), "peak_memory_bytes": 2e9 / (1 + n),
             "train_seconds": 1}
            for n, arm in enumerate(arms)
        ]  # fmt: skip
        costs = {"format": 2, "machine": {}, "runs": runs, "evaluation_seconds": 1}
        write_json(store.setting(name).folder / "cost.json", costs)
    assert throughput_table.tables(tmp_path) == (
        "| tokens/s | batch-1 | batch-2 |\n|---|---:|---:|\n"
        "| full | 1,000 | 1,000 |\n| lora | 2,000 | - |\n\n"
        "| peak GB | batch-1 | batch-2 |\n|---|---:|---:|\n"
        "| full | 2.00 | 2.00 |\n| lora | 1.00 | - |\n"
    )
    with pytest.raises(SystemExit, match=r"no cost\.json"):
        throughput_table.tables(tmp_path / "elsewhere")


def test_the_bill_of_materials_is_closed() -> None:
    """Every package once, with a version; what is needed is in it, and something needs each."""
    script = ROOT / "scripts" / "sbom.py"
    ended = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, check=True
    )
    bill = json.loads(ended.stdout)
    root = bill["metadata"]["component"]
    refs = [root["bom-ref"], *(one["bom-ref"] for one in bill["components"])]
    assert len(set(refs)) == len(refs) and root["name"] == "laura-lab"
    assert {one["ref"] for one in bill["dependencies"]} == set(refs)
    needed = {one for entry in bill["dependencies"] for one in entry["dependsOn"]}
    assert needed == set(refs) - {root["bom-ref"]}
    assert {"fastapi", "torch", "ruamel-yaml"} <= {one["name"] for one in bill["components"]}


def test_the_lock_holds_every_package_by_hash_at_its_tested_version() -> None:
    lock = (ROOT / "deploy/requirements.txt").read_text(encoding="utf-8")
    entries = re.findall(
        r"^([a-z0-9.-]+)==(\S+)[^\n]*((?:\\\n +--hash=sha256:[0-9a-f]{64} ?)+)$", lock, re.M
    )
    locked = {name: version for name, version, _ in entries}
    assert len(entries) == len(re.findall(r"^[a-z]", lock, re.M)) > 80
    pins = dict(re.findall(r"^(\S+)==(\S+)$", (ROOT / "constraints.txt").read_text("utf-8"), re.M))
    assert not {n: v for n, v in locked.items() if pins.get(n, v) != v}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["signing"]]
    assert {canonicalize_name(Requirement(one).name) for one in wanted} <= locked.keys()


def test_remedies_are_ranked_by_what_the_judge_says() -> None:
    """Files hold the plain arm minus the remedy; the table turns that round, and sorts."""

    def beside(arm: str, difference: float, alone: float, joint: float) -> Comparison:
        interval = (difference - alone, difference + alone)
        found = Estimated(
            value=difference, unit="share", stderr=0.01, interval=interval, n=960, seeds=5
        )
        held = (difference - joint, difference + joint)
        return Comparison(arms=("lora", arm), equal_learning=found, joint=held)

    judged = Judgement(
        answer="",
        comparisons=[
            beside("worse", -0.3, 0.02, 0.04),
            Comparison(arms=("lora", "idle"), reason="idle has not surely learnt anything"),
            beside("alone", 0.1, 0.02, 0.2),
            beside("even", 0.01, 0.02, 0.04),
            beside("sure", 0.2, 0.02, 0.04),
        ],
    )
    areas = {"sure": Area(value=0.96, interval=(0.94, 0.98), seeds=5)}
    rows = [
        [cell.strip() for cell in row.strip("|").split("|")]
        for row in remedy_tables.ranking(judged, areas)[2:]
    ]
    assert [(row[0], row[-1]) for row in rows] == [
        ("sure", "**forgets less**"),
        ("alone", "**forgets less, alone**"),
        ("even", "not told apart"),
        ("worse", "**forgets more**"),
        ("idle", "nothing: idle has not surely learnt anything"),
        ("lora", "the plain arm"),
    ]
    assert rows[0][4:7] == [
        "−20.0 points (−22.0 to −18.0)",
        "−24.0 to −16.0",
        "0.96 (0.94 to 0.98)",
    ]
