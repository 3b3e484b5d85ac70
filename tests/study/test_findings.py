"""analysis.json of a made-up study whose truth is known, and of studies that lack things."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from laura.recipe.reading import parse_recipe, recipe_yaml
from laura.results.store import StudyStore, write_json
from laura.results.task_result import Item, TaskResult, summarise
from laura.study.extras import analysis_file
from laura.study.findings import build_findings, write_findings
from laura.study.rebuilding import rebuild
from laura.study.summary import gather

ROOT = Path(__file__).parents[2]
RECIPE = """
name: made
base: {model: x}
data: {train: x, test: y, source_text: z}
budget: {tokens: [1000, 2000, 4000]}
arms:
  full: {method: full, learning_rates: [1e-4, 1e-3]}
  lora: {method: lora, learning_rates: [1e-3, 1e-2]}
search: {seeds: first}
seeds: [0, 1, 2]
analysis: {spectra: all}
measure:
  learning: [gsm8k, target_loss]
  forgetting: [winogrande, hellaswag, kl, kl_source]
  extras:
    drawn: {task: gsm8k, samples: 6, temperature: 0.5, k: [1, 3]}
"""
ITEMS = 60
STEPS = {1000: 1, 2000: 2, 4000: 4}
METRICS = {"gsm8k": "exact_match", "winogrande": "acc", "hellaswag": "acc_norm"}


def result(task: str, model: str, values: np.ndarray) -> TaskResult:
    """A task result with one value an item; losses get tokens that differ."""
    if task in METRICS:
        metric, up = METRICS[task], True
        items: list[Item] = [{"index": i, metric: float(v)} for i, v in enumerate(values)]
    else:
        metric, up = "nats_per_token", False
        items = [
            {"index": i, "nats": float(v * (5 + i % 3)), "tokens": 5 + i % 3, "bytes": 9}
            for i, v in enumerate(values)
        ]
    return TaskResult(task, "1", model, len(items), {metric: summarise(items, metric, up)}, items)


class Made:
    """A study folder: learning x grows with budget and rate, full forgets 0.5 x, LoRA 0.2 x."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.store = folder, StudyStore(folder)
        self.recipe = parse_recipe(RECIPE)
        self.noise = np.random.default_rng(0)

    def write(self) -> None:
        folder = self.folder
        facts = {"tasks": {"drawn": {"title": "t", "version": "v"}}, "base": {}}
        write_json(folder / "study.json", facts)
        (folder / "recipe.yaml").write_text(recipe_yaml(self.recipe), encoding="utf-8")
        self.measure(self.store.base_evaluation, "base", 0.0, 0.0)
        self.sample(self.store.base_evaluation("drawn"), "base", 3)
        for arm in self.recipe.arms:
            rates = self.recipe.arms[arm].learning_rates
            for rate, seed in [(rates[0], 0), *((rates[1], seed) for seed in (0, 1, 2))]:
                self.run(arm, rate, seed, high=rate == rates[1])

    def run(self, arm: str, rate: float, seed: int, high: bool) -> None:
        name = f"{arm}-{rate:g}-{seed}"
        run = self.store.run(name)
        points = [
            {"budget": b, "step": s, "tokens": b, "supervised_tokens": b} for b, s in STEPS.items()
        ]
        known = {"id": name, "arm": arm, "learning_rate": rate, "seed": seed, "points": points}
        write_json(run.folder / "run.json", known)
        write_json(run.folder / "done.json", {})
        for budget, step in STEPS.items():
            learnt = (0.2 if high else 0.1) * (1 + np.log2(budget / 1000))
            forgot = learnt * (0.5 if arm == "full" else 0.2)
            self.measure(partial(run.evaluation, step), name, learnt, forgot)
        self.sample(run.evaluation(4, "drawn"), name, 2)

    def measure(self, place: Any, model: str, learnt: float, forgot: float) -> None:
        def around(mean: float) -> np.ndarray:
            return mean + self.noise.normal(0, 0.02, ITEMS)

        values = {
            "gsm8k": around(0.1 + learnt),
            "target_loss": around(3 - learnt),
            "validation_loss": around(3 - learnt),
            "winogrande": around(0.9 - forgot),
            "hellaswag": around(0.8 - forgot),
            "kl": around(forgot) if model != "base" else np.zeros(ITEMS),
            "kl_source": around(forgot**0.5) if model != "base" else np.zeros(ITEMS),
        }
        for task, own in values.items():
            result(task, model, own).write(place(task))

    def sample(self, path: Path, model: str, kinds: int) -> None:
        """Six answers to each of five prompts, of so many kinds; every third is right."""
        rows = [
            {"index": i, "sample": n, "text": f"answer {n % kinds}", "answer": str(n % kinds),
             "passed": n % 3 == 0}
            for i in range(5) for n in range(6)
        ]  # fmt: skip
        items = [{"index": i, "samples": 6, "passes": 2, "pass@1": 1 / 3} for i in range(5)]
        metrics = {"pass@1": summarise(items, "pass@1", True)}
        TaskResult("drawn", "v", model, 5, metrics, items).write(path, rows)

    def findings(self) -> dict[str, Any]:
        found = build_findings(gather(self.store, self.recipe), self.store)
        return found.model_dump(mode="json")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study") / "made"
    Made(folder).write()
    return folder


@pytest.fixture
def made(whole: Path, tmp_path: Path) -> Made:
    """A study of one's own, to be damaged."""
    return Made(shutil.copytree(whole, tmp_path / "made"))


def test_the_truth_is_found(made: Made) -> None:
    found = made.findings()
    assert found["gaps"] == []
    tradeoff = found["tradeoff"]
    assert (tradeoff["learning"], tradeoff["forgetting"]) == ("gsm8k", "mean")
    area = tradeoff["area"]
    assert area["full"]["value"] < area["lora"]["value"] < 1
    needed = [row for row in found["efficiency"] if row["task"] == "gsm8k"]
    assert len(needed) == 6 and {row["unit"] for row in needed} == {"tokens"}
    for row in needed:
        # Learning is 0.2 (1 + log2 of thousands of tokens), and its largest is 0.6.
        assert row["needed"] == pytest.approx(1000 * 2 ** (row["share"] * 3 - 1), rel=0.06)
        assert row["interval"][0] <= row["needed"] <= row["interval"][1] and row["seeds"] == 3
    losses = [row for row in found["efficiency"] if row["task"] == "target_loss"]
    assert [row["needed"] for row in losses] == pytest.approx(
        [row["needed"] for row in needed], rel=0.1
    )
    assert len(found["drift"]) == 2 * 4 * 3 * 2
    fits = {row["measure"]: row["r_squared"] for row in found["drift_fit"]}
    assert fits["kl"] > 0.98 and fits["kl_source"] > 0.9


RUNS = {
    (arm, rate): [f"{arm}-{rate:g}-{seed}" for seed in seeds]
    for arm, rates in (("full", (1e-4, 1e-3)), ("lora", (1e-3, 1e-2)))
    for rate, seeds in zip(rates, ((0,), (0, 1, 2)), strict=True)
}


def values(path: Path, task: str) -> np.ndarray:
    return np.array(list(TaskResult.read(path).values(METRICS[task]).values()))


def tables_of(made: Made) -> dict[Any, np.ndarray]:
    """Every item's score by (run or "base", step, task)."""
    found = {
        (run, step, task): values(made.store.run(run).evaluation(step, task), task)
        for runs in RUNS.values() for run in runs for step in (1, 2, 4) for task in METRICS
    }  # fmt: skip
    base = {("base", 0, task): values(made.store.base_evaluation(task), task) for task in METRICS}
    return found | base


def test_the_front_is_of_means_over_seeds_and_names_them(made: Made) -> None:
    tables = tables_of(made)

    def mean(runs: list[str], step: int, task: str) -> float:
        return float(np.mean([tables[run, step, task].mean() for run in runs]))

    every = {}
    for (arm, rate), runs in RUNS.items():
        for budget, step in STEPS.items():
            learnt = mean(runs, step, "gsm8k") - mean(["base"], 0, "gsm8k")
            lost = [mean(["base"], 0, t) - mean(runs, step, t) for t in ("winogrande", "hellaswag")]
            every[arm, rate, budget] = learnt, float(np.mean(lost))
    expected = {
        key for key, (learnt, lost) in every.items()
        if not any(x >= learnt and y <= lost and (x, y) != (learnt, lost)
                   for x, y in every.values())
    }  # fmt: skip
    front = made.findings()["tradeoff"]["front"]
    assert {(p["arm"], p["learning_rate"], p["budget"]) for p in front} == expected
    assert len(front) == len(expected) > 3
    for point in front:
        learnt, lost = every[point["arm"], point["learning_rate"], point["budget"]]
        assert (point["learning"], point["forgetting"]) == pytest.approx((learnt, lost), abs=1e-9)
        runs = RUNS[point["arm"], point["learning_rate"]]
        assert point["runs"] == runs and point["seeds"] == [int(run[-1]) for run in runs]


def test_intervals_of_areas_are_those_of_a_naive_bootstrap(made: Made) -> None:
    """Items and seeds drawn one draw after the other; the area by its definition."""
    found, tables = made.findings()["tradeoff"]["area"], tables_of(made)
    generator = np.random.default_rng(9)

    def cells(arm: str, items: dict[str, Any], draw: Any) -> list[tuple[float, float]]:
        base = {task: tables["base", 0, task][items[task]].mean() for task in METRICS}
        points = []
        for (own, _), runs in RUNS.items():
            if own == arm:
                chosen = draw(len(runs))
                for step in (1, 2, 4):
                    moved = {
                        task: np.mean([tables[runs[n], step, task][items[task]].mean()
                                       for n in chosen]) - base[task]
                        for task in METRICS
                    }  # fmt: skip
                    lost = -(moved["winogrande"] + moved["hellaswag"]) / 2
                    points.append((moved["gsm8k"], lost))
        return points

    def area(points: list[tuple[float, float]], most: tuple[float, float]) -> float:
        grid = np.linspace(0, most[0], 3001)[1:] - most[0] / 6000
        least = np.full(len(grid), most[1])
        for learnt, lost in points:
            least[grid <= learnt] = np.minimum(least[grid <= learnt], np.clip(lost, 0, most[1]))
        return float((most[1] - least).mean() / most[1])

    whole = {task: np.arange(ITEMS) for task in METRICS}
    measured = [p for arm in ("full", "lora") for p in cells(arm, whole, np.arange)]
    most = max(x for x, _ in measured), max(y for _, y in measured)
    for arm in ("full", "lora"):
        assert found[arm]["value"] == pytest.approx(
            area(cells(arm, whole, np.arange), most), abs=2e-3
        )
        drawn = []
        for _ in range(600):
            items = {task: generator.integers(0, ITEMS, ITEMS) for task in METRICS}
            own = cells(arm, items, lambda k: generator.integers(0, k, k))
            drawn.append(area(own, most))
        ends = np.quantile(drawn, [0.025, 0.975])
        width = ends[1] - ends[0]
        assert found[arm]["interval"] == pytest.approx(list(ends), abs=0.2 * width + 2e-3)


def test_samples_are_counted_and_the_counts_are_kept(made: Made) -> None:
    found = made.findings()
    rows = {(row["arm"], row["seed"]): row for row in found["diversity"]}
    assert len(rows) == 7 and rows[None, None]["run"] is None
    assert rows["full", 1]["distinct"] == {"value": 2, "stderr": 0, "n": 5}
    assert rows[None, None]["distinct"]["value"] == 3
    assert rows["lora", 0]["answer_entropy"]["value"] == pytest.approx(np.log(2))
    assert rows["lora", 0]["distinct_passed"]["value"] == 2  # answers 0 and 3
    assert rows["lora", 0]["rarefied_passed"] is None  # two are fewer than five
    assert rows["lora", 0]["rarefied_to"] == 5 and rows["lora", 0]["self_bleu_of"] == 6
    curve = found["pass_at_k"][0]["at_k"]
    assert {k: one["value"] for k, one in curve.items()} == {
        "1": pytest.approx(1 / 3), "3": pytest.approx(1 - 4 / 20)
    }  # fmt: skip
    change = next(
        row for row in found["diversity_differences"]
        if row["arms"] == ["lora", None] and row["measure"] == "distinct"
    )  # fmt: skip
    assert (change["difference"], change["seeds"], change["n"]) == (-1, 3, 5)
    kept = analysis_file(made.store.base_evaluation("drawn"))
    assert kept == made.folder / "base" / "analysis" / "drawn.diversity.json" and kept.is_file()
    made.sample(made.store.base_evaluation("drawn"), "base", 4)  # measured again: counted again
    assert made.findings()["diversity"][0]["distinct"]["value"] == 4
    kept.write_text("{", encoding="utf-8")
    assert made.findings()["diversity"][0]["distinct"]["value"] == 4


def test_what_is_missing_is_named_and_nothing_crashes(made: Made) -> None:
    runs = made.folder / "runs"
    (runs / "full-0.001-1" / "done.json").unlink()
    write_json(runs / "full-0.001-1" / "failed.json", {"kind": "diverged", "reason": "x"})
    (runs / "full-0.001-2" / "evals" / "00000004" / "gsm8k.json").unlink()
    for name in ("00000001", "00000002"):
        for path in (runs / "lora-0.01-0" / "evals" / name).iterdir():
            path.unlink()
        for seed in (1, 2):
            for path in (runs / f"lora-0.01-{seed}" / "evals" / name).iterdir():
                path.unlink()
    other = runs / "lora-0.01-1" / "evals" / "00000004" / "target_loss.json"
    value = json.loads(other.read_text(encoding="utf-8"))
    value["items"][0]["nats"] = None
    write_json(other, value)
    (runs / "lora-0.01-1" / "evals" / "00000004" / "drawn.samples.jsonl.gz").unlink()
    (runs / "lora-0.01-2" / "evals" / "00000004" / "drawn.json").unlink()
    (runs / "full-0.001-0" / "evals" / "00000004" / "drawn.samples.jsonl.gz").write_bytes(b"x")
    made.store.base_evaluation("drawn").unlink()
    spectra = runs / "lora-0.01-0" / "analysis" / "00000004" / "spectra.json"
    matrix = {"name": "m", "layer": 0, "module": "q_proj", "shape": [4, 4], "rank": {"90": 2}}
    entry = {"format": 1, "run": "lora-0.01-0", "arm": "lora", "seed": 0, "learning_rate": 0.01,
             "budget": 4000, "step": 4, "matrices": [matrix]}  # fmt: skip
    write_json(spectra, entry)
    half = runs / "lora-0.01-2" / "analysis" / "00000004" / "spectra.json"
    write_json(half, {key: value for key, value in entry.items() if key != "arm"})
    damaged = runs / "lora-0.01-1" / "analysis" / "00000004" / "spectra.json"
    damaged.parent.mkdir(parents=True, exist_ok=True)
    damaged.write_text("{", encoding="utf-8")
    found = made.findings()
    told = "\n".join(found["gaps"])
    for words in (
        "full at 0.001, seed 1 (run full-0.001-1) is diverged, not done",
        "gsm8k is missing, not whole, or of other items than the base's, for full at 0.001, "
        "seed 2, budget 4,000 (run full-0.001-2)",
        "target_loss is missing, not whole, or of other items than the base's, for lora at 0.01, "
        "seed 1, budget 4,000",
        "lora at 0.01, seed 2 (run lora-0.01-2) was not measured at budget 1,000",
        "gsm8k was measured at different budgets: full at 1,000, 2,000, 4,000; lora at 4,000",
        "drawn was not measured on the base",
        "drawn was not measured on lora at 0.01, seed 2",
        "samples of drawn on lora at 0.01, seed 1",
        "samples of drawn on full at 0.001, seed 0",
        "spectra.json is not JSON",
        "spectra.json is damaged: arm: Field required",
    ):
        assert words in told, told
    assert str(made.folder) not in told
    [one] = found["spectra"]
    assert (one["run"], one["budget"], one["matrices"][0]["rank"]) == (
        "lora-0.01-0", 4000, {"90": 2}
    )  # fmt: skip
    json.dumps(found, allow_nan=False)


def test_an_arm_with_one_point_and_a_base_without_scores(made: Made) -> None:
    runs = made.folder / "runs"
    for run in runs.glob("lora*"):
        for path in run.glob("evals/*/*.json"):
            if run.name != "lora-0.01-0" or path.parent.name != "00000004":
                path.unlink()
    found = made.findings()
    assert "lora has one point only, so it has no curve of learning and forgetting" in found["gaps"]
    assert found["tradeoff"]["front"]
    made.store.base_evaluation("winogrande").unlink()
    found = made.findings()
    assert found["tradeoff"] is None
    assert "winogrande was not measured on the base, or not whole" in found["gaps"]
    assert found["efficiency"]


def test_a_study_without_any_run(made: Made) -> None:
    for path in (made.folder / "runs").glob("*/run.json"):
        path.unlink()
    found = made.findings()
    assert found["tradeoff"] == {
        "learning": "gsm8k", "forgetting": "mean", "front": [], "area": {},
    }  # fmt: skip
    assert found["efficiency"] == found["drift"] == found["spectra"] == found["subspaces"] == []
    assert "full has no finished run at the largest budget, so no best rate" in found["gaps"]


def test_loss_spikes_of_a_trunk_and_of_its_branches(made: Made) -> None:
    """A spike of the trunk is told once, though two branches go on from it."""

    def rows(leg: str, first: int, last: int, spike: int) -> list[dict[str, Any]]:
        noise = np.random.default_rng(first).normal(0, 0.01, last - first)
        losses = 2 + noise + 4.0 * (np.arange(first, last) == spike)
        steps = range(first, last)
        return [{"leg": leg, "step": s, "loss": x} for s, x in zip(steps, losses, strict=True)]

    assert made.findings()["spikes"] == []
    legs = [
        *rows("trunk-1", 1, 41, 30),
        *rows("branch-1", 41, 51, 0),
        *rows("trunk-2", 41, 81, 60),
        *rows("branch-2", 81, 101, 90),
    ]
    path = made.store.run("lora-0.01-1").metrics_file
    path.write_text("".join(json.dumps(row) + "\n" for row in legs), encoding="utf-8")
    (found,) = made.findings()["spikes"]
    assert found.pop("worst") == pytest.approx(4, abs=0.05)
    assert found == {
        "run": "lora-0.01-1", "arm": "lora", "learning_rate": 0.01, "seed": 1, "count": 3,
        "steps": [30, 60, 90], "n": 110,
    }  # fmt: skip


def test_it_is_rebuilt_from_the_folder_alone_without_torch(made: Made) -> None:
    write_json(
        made.folder / "analysis" / "subspaces.json",
        {"matrices": [{"runs": ["a", "b"], "name": "q", "k": 2, "overlap": 0.5}]},
    )
    written = write_findings(gather(made.store, made.recipe), made.store)
    assert [(one.name, one.overlap) for one in written.subspaces] == [("q", 0.5)]
    before = (made.folder / "analysis.json").read_bytes()
    (made.folder / "analysis.json").unlink()
    code = (
        "import sys, pathlib; from laura.study.rebuilding import rebuild\n"
        f"rebuild(pathlib.Path({str(made.folder)!r}))\n"
        "print('torch' in sys.modules)"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "False"
    assert (made.folder / "analysis.json").read_bytes() == before


def test_an_unreadable_recipe_leaves_the_file_as_it_is(made: Made, tmp_path: Path) -> None:
    said: list[str] = []

    class Heard:
        def bar(self, *_: Any) -> Any: ...

        def say(self, text: str) -> None:
            said.append(text)

    rebuild(tmp_path / "nowhere", Heard())
    assert said == []
    for text in ("name: [", "name: x\nwhat: 1\n", "- 1\n"):
        (made.folder / "recipe.yaml").write_text(text, encoding="utf-8")
        rebuild(made.folder, Heard())
    assert len(said) == 3 and "analysis.json and claims.json of" in said[0]


def test_items_that_turned_are_counted_at_the_best_rate(whole: Path) -> None:
    """Beside a loop over the files: scores are chances here, as of several samples."""
    made = Made(whole)
    rows = {(r["arm"], r["budget"], r["task"]): r for r in made.findings()["transitions"]}
    assert {task for _, _, task in rows} == {"mean", "winogrande", "hellaswag"}
    assert len(rows) == 2 * 3 * 3
    forgotten = []
    for task, metric in (("winogrande", "acc"), ("hellaswag", "acc_norm")):
        before = TaskResult.read(made.store.base_evaluation(task)).values(metric)
        shares = []
        for seed in range(3):
            run = made.store.run(f"full-0.001-{seed}")
            after = TaskResult.read(run.evaluation(4, task)).values(metric)
            shares.append(sum(b * (1 - after[i]) for i, b in before.items()) / len(before))
        row = rows["full", 4000, task]["forgotten"]
        assert row["value"] == pytest.approx(sum(shares) / 3)
        assert (row["n"], row["seeds"]) == (ITEMS, 3)
        forgotten.append(row["value"])
    assert rows["full", 4000, "mean"]["forgotten"]["value"] == pytest.approx(sum(forgotten) / 2)
    assert rows["full", 4000, "mean"]["luck"] is None, "nothing tells how many choices there are"
