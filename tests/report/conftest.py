"""A study that never ran: a builder of summary.json and of the folder around it."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from laura.report import html
from laura.report.figures import CHARTS, DrawnChart, draw_figures
from laura.report.study import Study, read_study
from tests.report.gallery import JUDGEMENT, crowd, write_gallery

# Title and metric; the base's score, how far the largest budget moves it, how many times as far
# with full finetuning, and whether the rate matters.
TASKS: dict[str, tuple[str, str, float, float, float, bool]] = {
    "gsm8k": ("GSM8K, strict match", "exact_match", 0.02, 0.06, 1.1, False),
    "target_loss": ("Target loss", "nats_per_token", 1.31, -0.35, 1, False),
    "hellaswag": ("HellaSwag, acc_norm", "acc_norm", 0.42, -0.02, 2, True),
    "arc_challenge": ("ARC-Challenge, acc_norm", "acc_norm", 0.29, 0.01, -1, False),
    "winogrande": ("WinoGrande, acc", "acc", 0.53, -0.012, 1, True),
    "source_loss": ("Source loss", "nats_per_token", 3.12, 0.09, 2.2, True),
    "kl": ("KL(base || tuned)", "nats_per_token", 0.0, 0.12, 1.8, True),
    "kl_reverse": ("KL(tuned || base)", "nats_per_token", 0.0, 0.1, 1.7, True),
    "kl_source": ("KL(base || tuned) on source text", "nats_per_token", 0.0, 0.08, 2, True),
}
ARMS = {"lora-r16": ("lora", [1e-4, 3e-4, 1e-3], 3e-4), "full": ("full", [1e-5, 3e-5, 1e-4], 3e-5)}


FORGETTING = ("hellaswag", "arc_challenge", "winogrande", "source_loss", "kl")


class Builder:
    """Builds a summary whose numbers move as in a real study; every gap is a switch."""

    def __init__(
        self,
        *,
        learning: tuple[str, ...] = ("gsm8k", "target_loss"),
        forgetting: tuple[str, ...] = FORGETTING,
        seeds: tuple[int, ...] = (0, 1, 2),
        budgets: tuple[int, ...] = (20_000, 40_000, 80_000),
        arms: dict[str, tuple[str, list[float], float | None]] | None = None,
        diverged: tuple[tuple[str, float], ...] = (("full", 1e-4),),
        missing: tuple[str, ...] = (),
    ) -> None:
        self.learning, self.forgetting = learning, forgetting
        self.seeds, self.budgets, self.diverged, self.missing = seeds, budgets, diverged, missing
        self.arms = dict(ARMS) if arms is None else arms
        self.random = random.Random(7)

    def build(self) -> dict[str, Any]:
        runs, points = [], []
        for arm, (_, rates, best) in self.arms.items():
            for rate in rates:
                for seed in self.seeds if rate == best else self.seeds[:1]:
                    for budget in self.budgets:
                        run = self.run(arm, rate, seed, budget, rate == best)
                        runs.append(run)
                        if run["state"] == "done":
                            points.append(self.point(run))
        measured = [*self.learning, *self.forgetting]
        return {
            "format": 2,
            "name": "synthetic",
            "domain": "math",
            "regime": "instruct",
            "laura": "0.1.0",
            "base": {
                "model": "smollm2-135m-instruct-q4",
                "fingerprint": "ab" * 32,
                "parameters": 134_515_008,
                "scores": with_mean(
                    {task: self.score(task, TASKS[task][2]) for task in measured}, self.accuracies
                ),
            },
            "measure": {"learning": list(self.learning), "forgetting": list(self.forgetting)},
            "tasks": self.tasks(measured),
            "budget": {"unit": "tokens", "points": list(self.budgets), "mode": "separate"},
            "arms": [
                {
                    "name": name,
                    "method": method,
                    "settings": {"rank": 16, "alpha": 32.0} if method == "lora" else {},
                    "trainable_parameters": 4_884_480 if method == "lora" else 134_515_008,
                    "rates": rates,
                    "best": {} if best is None else {str(seed): best for seed in self.seeds},
                    "edge": "high" if best == max(rates) else "",
                }
                for name, (method, rates, best) in self.arms.items()
            ],
            "runs": runs,
            "points": points,
        }

    @property
    def accuracies(self) -> list[str]:
        return [task for task in self.forgetting if is_share(task)]

    def tasks(self, measured: list[str]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for task in measured:
            (title, metric, *_), share = TASKS[task], is_share(task)
            found[task] = {"name": task, "title": title, "metric": metric, "n": 200,
                           "unit": "share" if share else "nats per token",
                           "higher_is_better": share}  # fmt: skip
        if self.accuracies:
            short = ", ".join(TASKS[task][0].split(",")[0] for task in self.accuracies)
            found["mean"] = {
                "name": "mean", "title": f"Source tasks: {short}", "unit": "share",
                "higher_is_better": True, "n": 200 * len(self.accuracies),
            }  # fmt: skip
        found["validation_loss"] = {
            "name": "validation_loss", "title": "Validation loss", "unit": "nats per token",
            "higher_is_better": False, "n": 200,
        }  # fmt: skip
        return found

    def run(self, arm: str, rate: float, seed: int, budget: int, selected: bool) -> dict[str, Any]:
        diverged = (arm, rate) in self.diverged
        steps = range(1, 41)
        curve = [
            [step * budget / 40, 1.6 - 0.35 * (1 - 0.93**step) + self.random.gauss(0, 0.03)]
            for step in steps
        ]
        if diverged:
            curve = [[x, y + 0.02 * place**2] for place, (x, y) in enumerate(curve[:20])]
        return {
            "id": hashlib.sha256(f"{arm}-{rate}-{seed}-{budget}".encode()).hexdigest()[:12],
            "arm": arm,
            "learning_rate": rate,
            "seed": seed,
            "budget": budget,
            "state": "diverged" if diverged else "done",
            "reason": "loss left the finite numbers at step 20" if diverged else "",
            "loss_curve": curve,
            "selected": selected,
        }

    def score(self, task: str, value: float) -> dict[str, Any]:
        share = is_share(task)
        stderr = (value * (1 - value) / 200) ** 0.5 if share else 0.03
        return {"value": value, "stderr": stderr, "n": 200}

    def point(self, run: dict[str, Any]) -> dict[str, Any]:
        full = self.arms[run["arm"]][0] == "full"
        grown = (run["budget"] / 80_000) ** 0.6
        heat = {0: 0.6, 1: 1.0, 2: 1.4}[
            min(2, self.arms[run["arm"]][1].index(run["learning_rate"]))
        ]
        scores, changes = {}, {}
        for task in [*self.learning, *self.forgetting]:
            if task in self.missing:
                continue
            *_, base, move, further, heated = TASKS[task]
            change = move * grown * (heat if heated else 1) * (further if full else 1)
            change += self.random.gauss(0, 0.006 if is_share(task) else 0.008)
            scores[task] = self.score(task, max(0.0, base + change))
            changes[task] = {"value": change, "stderr": 0.012, "n": 200}
        loss = 1.3 - 0.3 * grown + 0.08 * abs(heat - 1) + self.random.gauss(0, 0.003)
        return {
            **{key: run[key] for key in ("arm", "learning_rate", "seed", "budget", "selected")},
            "run": run["id"],
            "tokens": run["budget"],
            "supervised_tokens": run["budget"] // 2,
            "step": run["budget"] // 2000,
            "scores": {
                "validation_loss": {"value": loss, "stderr": 0.02, "n": 200},
                **with_mean(scores, self.accuracies),
            },
            "changes": with_mean(changes, self.accuracies),
        }

    @staticmethod
    def write(study: Path, summary: dict[str, Any], costs: bool = True) -> Path:
        """Make the study folder with recipe and costs."""
        study.mkdir()
        (study / "claims.json").write_text(json.dumps(JUDGEMENT), encoding="utf-8")
        (study / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
        (study / "recipe.yaml").write_text("name: synthetic\n# <script>alert(1)</script>\n")
        if costs:
            (study / "cost.json").write_text(json.dumps(cost_value(summary)), encoding="utf-8")
        return study


def is_share(task: str) -> bool:
    return TASKS[task][1] != "nats_per_token"


@pytest.fixture(scope="session")
def builder() -> type[Builder]:
    """The class itself, for fixtures that outlive one test."""
    return Builder


@pytest.fixture(scope="session")
def full_study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A study with something on every page, as the report reads it."""
    folder = tmp_path_factory.mktemp("gallery") / "study"
    write_gallery(Builder, folder)
    return read_study(folder)


@pytest.fixture(scope="session")
def crowd_study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """The same with the seventeen arms of the paper's code experiments."""
    folder = tmp_path_factory.mktemp("crowd") / "study"
    write_gallery(Builder, folder, crowd())
    return read_study(folder)


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """Folder, Markdown and HTML of a study with something on every page."""
    folder = tmp_path_factory.mktemp("drawn") / "study"
    write_gallery(Builder, folder)
    return (folder, *both(folder))


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports without figures, where these are not looked at: drawing takes nearly all the time."""
    monkeypatch.setattr(html, "draw_figures", no_figures)


@pytest.fixture
def build() -> Callable[..., dict[str, Any]]:
    """build(**gaps) -> the value of a summary.json."""
    return lambda **gaps: Builder(**gaps).build()


@pytest.fixture
def make_study(tmp_path: Path) -> Callable[..., Path]:
    """make_study(summary, costs=True) -> a study folder with recipe and costs."""
    return lambda summary, costs=True: Builder.write(tmp_path / "study", summary, costs)


def both(study: Path) -> tuple[str, str]:
    """Markdown and HTML of a study, its figures drawn once."""
    kept: dict[str, Any] = {}

    def once(*given: Any) -> Any:
        return kept or kept.update(draw_figures(*given)) or kept

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(html, "draw_figures", once)
        markdown, page = html.write_report(study, form="md"), html.write_report(study)
    return markdown.read_text(encoding="utf-8"), page.read_text(encoding="utf-8")


def no_figures(*_: Any) -> dict[str, DrawnChart]:
    return {chart.name: DrawnChart(**vars(chart)) for chart in CHARTS}


def with_mean(scores: dict[str, Any], tasks: list[str]) -> dict[str, Any]:
    """Add the plain mean of the tasks, where all are there."""
    if not tasks or any(task not in scores for task in tasks):
        return scores
    own, k = [scores[task] for task in tasks], len(tasks)
    mean = {
        "value": sum(one["value"] for one in own) / k,
        "stderr": sum(one["stderr"] ** 2 for one in own) ** 0.5 / k,
        "n": sum(one["n"] for one in own),
    }
    return {**scores, "mean": mean}


def cost_value(summary: dict[str, Any]) -> dict[str, Any]:
    return {
        "format": 2,
        "machine": {"processor": "test & test", "cores": 2},
        "runs": [
            {
                **{key: run[key] for key in ("id", "arm", "learning_rate", "seed")},
                "train_seconds": 125.0,
                "tokens_per_second": 310.5,
                "peak_memory_bytes": 5 * 2**30,
                "flops": 3.1e13,
            }
            for run in summary["runs"]
        ],
        "evaluation_seconds": 3725.0,
    }
