"""A series of tasks: where each stage begins, and what is left of the tasks at the end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from laura.evals import tasks as evals
from laura.recipe.reading import Series, parse_recipe, read_study
from laura.recipe.sections import BaseSection
from laura.report.pages.overview import overview
from laura.report.study import Study
from laura.results.errors import CheckpointError, RecipeError, StoreError
from laura.results.statistics import crossed
from laura.results.store import SeriesStore
from laura.results.task_result import VALIDATION, Metric, TaskResult
from laura.study import stages, workbench
from laura.study.claims.answer import sentences_of
from laura.study.claims.settings import Setting
from laura.study.compare import compare, compare_series, train
from laura.study.evidence import Evidence, Point, RunFacts
from laura.study.findings import build_findings
from laura.study.summary import build_summary, evidence_of
from tests.study.conftest import one_thread
from tests.study.fabricated import claims, rebuilt, setting

TEXT = """
name: tasks
common:
  base: {model: micro}
  data: {source_text: micro-source}
  budget: {tokens: [800]}
  arms:
    full: {method: full, learning_rates: [1e-5, 4e-3]}
    held: {method: full, learning_rates: [1e-3], penalty: kl, penalty_strength: 1}
    lora: {method: lora, rank: 4, learning_rates: [4e-3]}
  train: {batch_tokens: 256, row_tokens: 256, precision: fp32}
  search: {extend: 0}
  seeds: [0]
  measure: {forgetting: [source_loss], limit: 2, loss_documents: 4, loss_tokens: 64}
settings:
  first:
    data:
      train: {source: micro-code, split: train, limit: 40}
      validation: {source: micro-code, split: validation, limit: 4}
    measure: {learning: [micro_code]}
  second:
    continues: first
    data:
      train: {source: micro-math, split: train, limit: 40}
      validation: {source: micro-math, split: validation, limit: 4}
    arms: {full: {learning_rates: [1e-3]}}
    measure: {learning: [micro_math, micro_code]}
"""


# ----- where a stage begins -----


@pytest.fixture(scope="module")
def carried(tmp_path_factory: pytest.TempPathFactory) -> tuple[Series, SeriesStore]:
    folder = tmp_path_factory.mktemp("series")
    (folder / "series.yaml").write_text(TEXT, encoding="utf-8")
    series = read_study(folder / "series.yaml")
    assert isinstance(series, Series)
    with one_thread():
        compare_series(series, folder=folder / "study")
    return series, SeriesStore(folder / "study")


def checkpoint(store: SeriesStore, stage: str, arm: str) -> Path:
    """Of the run that had the least validation loss."""
    study = store.setting(stage)
    points = json.loads(study.summary_file.read_text())["points"]
    own = [point for point in points if point["arm"] == arm]
    best = min(own, key=lambda point: float(point["scores"][VALIDATION]["value"]))
    assert best["selected"]
    return study.run(best["run"]).checkpoint(best["step"])


def weights(folder: Path) -> dict[str, torch.Tensor]:
    (file,) = folder.glob("*.safetensors")
    return load_file(file)


def plain(series: Series, base: str, arm: str, place: Path) -> dict[str, torch.Tensor]:
    """What a run of the second stage's recipe comes to that begins from a base."""
    changes = {"continues": None, "base": BaseSection(model=base)}
    recipe = series.settings["second"].model_copy(update=changes)
    with one_thread():
        made = train(recipe, arm=arm, study=place / arm)
    (folder,) = made["runs"][0]["checkpoints"]
    return weights(Path(folder))


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
def test_full_finetuning_goes_on_as_a_plain_run_from_the_chosen_checkpoint(
    carried: tuple[Series, SeriesStore], tmp_path: Path
) -> None:
    series, store = carried
    ours = {arm: weights(checkpoint(store, "second", arm)) for arm in ("full", "held")}
    starts = {arm: str(checkpoint(store, "first", arm)) for arm in ours}
    assert same(ours["full"], plain(series, starts["full"], "full", tmp_path))
    # A plain run is held to the checkpoint that is its base, a stage to the base itself.
    assert not same(ours["held"], plain(series, starts["held"], "held", tmp_path))


@pytest.mark.slow
def test_an_adapter_is_trained_on_beside_the_same_base(
    carried: tuple[Series, SeriesStore], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against a plain run whose A and B are drawn as the first stage left them."""
    series, store = carried
    before, attach = weights(checkpoint(store, "first", "lora")), workbench.attach

    def drawn(model: Any, *given: Any, **asked: Any) -> Any:
        names = attach(model, *given, **asked)
        for name in names:
            layer = model.get_submodule(name)
            for key, own in (("lora_A", layer.A), ("lora_B", layer.B)):
                own.data[0] = before[f"base_model.model.{name}.{key}.weight"]
        return names

    monkeypatch.setattr(workbench, "attach", drawn)
    ours = weights(checkpoint(store, "second", "lora"))
    assert same(ours, plain(series, "micro", "lora", tmp_path)) and not same(ours, before)


@pytest.mark.slow
def test_a_stage_does_not_begin_without_the_one_before(
    carried: tuple[Series, SeriesStore], tmp_path: Path
) -> None:
    series, store = carried
    second = series.settings["second"]
    with pytest.raises(StoreError, match="first has no chosen checkpoint of full with seed 0, he"):
        compare(second, study=tmp_path / "settings" / "second")
    more = second.model_copy(update={"seeds": [0, 7]})
    with pytest.raises(StoreError, match=r"of full with seed 7, held with seed 7, lora with .*7"):
        compare(more, study=store.setting("second").folder)
    arms = {**second.arms, "lora": second.arms["lora"].model_copy(update={"rank": 2})}
    with pytest.raises(RecipeError, match=r"arms\.lora\.rank: is 2, in first 4"):
        compare(second.model_copy(update={"arms": arms}), study=store.setting("second").folder)
    start = checkpoint(store, "first", "lora")
    (file,) = start.glob("*.safetensors")
    whole = file.read_bytes()
    file.write_bytes(whole[:-8])
    try:
        rate = {"arm": "lora", "learning_rate": 2e-3}
        with pytest.raises(CheckpointError):
            train(second, **rate, study=store.setting("second").folder)
    finally:
        file.write_bytes(whole)


# ----- what is left at the end -----

TASKS = ("humaneval", "gsm8k", "mbpp")
ITEMS = 30
# How many items are right after each stage, on each task so far, with each of three seeds.
RIGHT = [
    [[20, 21, 25]],
    [[10, 14, 15], [25, 25, 28]],
    [[8, 11, 11], [19, 22, 19], [30, 27, 30]],
]
RECIPE = """
name: {name}
base: {{model: m}}
data: {{train: x, test: x}}
budget: {{tokens: [9000]}}
arms: {{lora: {{method: lora, learning_rates: [1e-3]}}}}
measure: {{learning: [{tasks}], forgetting: [hellaswag]}}
"""


def right(count: int) -> list[int]:
    return [1] * count + [0] * (ITEMS - count)


def result(task: str, count: int) -> TaskResult:
    metric = evals.TASKS[task].metric
    items = [{"index": index, metric: value} for index, value in enumerate(right(count))]
    return TaskResult(task, "1", "m", ITEMS, {metric: Metric(count / ITEMS, 0.1, True)}, items)


def stage(at: int, seeds: int = 3) -> Evidence:
    """What the study of a stage holds."""
    tasks = TASKS[: at + 1][::-1]
    recipe = parse_recipe(RECIPE.format(name=f"stage{at}", tasks=", ".join(tasks)))
    recipe = recipe.model_copy(update={"continues": f"stage{at - 1}" if at else None})
    runs, points = [], []
    for seed in range(seeds):
        mark = {"budget": 9000, "step": 4, "tokens": 9000, "supervised_tokens": 9}
        known = {"id": f"{at}-{seed}", "arm": "lora", "learning_rate": 1e-3, "seed": seed,
                 "points": [mark]}  # fmt: skip
        own = {task: result(task, RIGHT[at][i][seed]) for i, task in enumerate(TASKS[: at + 1])}
        loss = {"nats_per_token": Metric(1.0, 0.1, False)}
        own[VALIDATION] = TaskResult(VALIDATION, "1", "m", 1, loss, [])
        runs.append(RunFacts(known, "done"))
        points.append(Point(known, results=own, **mark))
    facts = {
        "base": {"model": "m", "fingerprint": "m"},
        "trainable_parameters": {"lora": 1},
    }
    return evidence_of(
        recipe, facts, {t: result(t, 3) for t in (*TASKS, "hellaswag")}, runs, points
    )


@pytest.fixture
def beside(monkeypatch: pytest.MonkeyPatch) -> None:
    """The earlier stages' folders, which only their names stand for."""
    monkeypatch.setattr(stages, "stored_evidence", lambda folder: stage(int(folder.name[-1])))


@pytest.mark.usefixtures("beside")
def test_op_and_bwt_are_those_of_a_table_by_hand() -> None:
    gaps: list[str] = []
    (row,) = stages.build_stages(stage(2), Path("stage2"), gaps)
    assert (gaps, row.settings) == ([], ["stage0", "stage1", "stage2"])
    assert row.tasks == list(TASKS)
    # 22, 13 and 10 of 30 items on the first task; 26 and 20 on the second; 29 on the third.
    assert [[round(30 * one, 6) for one in own] for own in row.scores] == [
        [22], [13, 26], [10, 20, 29]
    ]  # fmt: skip
    assert row.overall.value == pytest.approx((10 + 20 + 29) / 90)
    assert row.backward.value == pytest.approx((10 - 22 + 20 - 26) / 60)
    assert (row.overall.n, row.backward.n, row.overall.seeds) == (90, 60, 3)
    changes = [
        np.array([np.subtract(right(end), right(then)) for end, then in zip(*pair, strict=True)])
        for pair in ((RIGHT[2][0], RIGHT[0][0]), (RIGHT[2][1], RIGHT[1][1]))
    ]
    paired = crossed([change / 2 for change in changes], [0.5, 0.5])
    assert row.backward.interval == pytest.approx(paired.interval())
    assert row.backward.interval[1] < 0


@pytest.mark.usefixtures("beside")
def test_it_is_told_in_sentences_and_in_the_report(tmp_path: Path) -> None:
    evidence = stage(2)
    found = build_findings(evidence, SeriesStore(tmp_path).setting("stage2"))
    told, _ = sentences_of(Setting("stage2", evidence, found), {}, [])
    assert told[0].startswith("After stage0, stage1, stage2: lora has OP 65.6 points (")
    assert "BWT -30 points (" in told[0]
    study = Study(build_summary(evidence), found)
    text = repr(overview(study))
    assert "BWT, points" in text and "'−30.0'" in text and "after stage1" in text


def test_runs_of_stages_are_not_taken_for_independent() -> None:
    """What both settings say together has a wider interval where one continues the other."""
    own = {"seeds": range(3), "domain": "code"}
    one, other = (
        setting({"full": 0.6, "lora": 0.4}, number=n, name=f"stage{n}", own=own) for n in (0, 1)
    )
    changed = other.evidence.recipe.model_copy(update={"continues": "stage0"})
    apart, after = (
        claims(one, second)["learns-less-code"].effect
        for second in (other, rebuilt(other, recipe=changed))
    )
    assert apart is not None and after is not None and apart.value == after.value
    assert after.stderr > apart.stderr


@pytest.mark.usefixtures("beside")
def test_what_cannot_be_told_is_a_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    gaps: list[str] = []
    assert stages.build_stages(stage(0), Path("stage0"), gaps) == [] == gaps
    assert stages.build_stages(stage(2, seeds=2), Path("stage2"), gaps) == []

    def gone(folder: Path) -> Evidence:
        raise StoreError(f"{folder} holds no study")

    monkeypatch.setattr(stages, "stored_evidence", gone)
    assert stages.build_stages(stage(1), Path("x/stage1"), gaps) == []
    assert gaps == [
        "no OP and BWT of lora: 2 seeds measured for everything compared; 3 are needed",
        "nothing is told of the series: x/stage0 holds no study",
    ]
