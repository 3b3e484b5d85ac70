"""A study with something on every page: analysis.json, claims.json, samples and the rest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeAlias

from laura.recipe.reading import read_recipe
from laura.recipe.shipped import find_recipe
from laura.results.store import StudyStore, write_json, write_lines_gz
from laura.results.task_result import Metric, TaskResult, samples_file

LORA = {"rank": 16, "alpha": 32.0, "targets": "all", "dropout": 0.0, "weight_decay": 0.0}
FULL: dict[str, Any] = {"weight_decay": 0.0, "attention_dropout": None, "residual_dropout": 0.0}
# Arm to method, rates, best rate, and settings that differ from the plain ones.
Arms: TypeAlias = dict[str, tuple[str, list[float], float, dict[str, Any]]]
ARMS: Arms = {
    "full": ("full", [1e-5, 3e-5, 1e-4], 3e-5, {}),
    "full-decay": ("full", [3e-5], 3e-5, {"weight_decay": 0.1}),
    "full-l2sp": ("full", [3e-5], 3e-5, {"weight_decay": 0.1, "weight_decay_toward": "base"}),
    "full-replay": ("full", [3e-5], 3e-5, {"replay": 0.1}),
    "lora-r16": ("lora", [1e-4, 3e-4, 1e-3], 3e-4, {}),
    "lora-r64": ("lora", [3e-4], 3e-4, {"rank": 64, "alpha": 128.0}),
    "lora-mlp": ("lora", [3e-4], 3e-4, {"targets": "mlp"}),
    "lora-alpha": ("lora", [1e-4, 3e-4], 3e-4, {"alpha": 8.0}),
}
ANALYSED = ("full", "lora-r16")  # arms whose weights were, where there are few
JUDGEMENT: dict[str, Any] = {
    "format": 2,
    "answer": "LoRA forgets less here; full finetuning learns no more.",
    "sentences": ["At 80k tokens both arms learn about the same."],
    "others": ["Decay keeps a little of what full finetuning forgets."],
    "caveats": ["200 questions cannot tell small differences apart."],
}
HOSTILE = "</script><img src=x onerror=alert(1)>&\"'"


def crowd() -> Arms:
    """Every arm of the paper's code experiments, as the recipe has them: seventeen."""
    found: Arms = {}
    for name, arm in read_recipe(find_recipe("micro/code-instruct")).arms.items():
        settings = arm.identity({"method", "learning_rates"})
        if arm.method == "lora":
            settings["alpha"] = arm.alpha_value
        rates = list(arm.learning_rates)
        found[name] = (arm.method, rates, rates[len(rates) // 2], settings)
    return found


def summary_of(builder: Any, arms: Arms = ARMS) -> dict[str, Any]:
    """summary.json of these arms."""
    short = {name: (method, rates, best) for name, (method, rates, best, _) in arms.items()}
    forgetting = ("hellaswag", "arc_challenge", "winogrande", "source_loss", "kl", "kl_reverse",
                  "kl_source")  # fmt: skip
    summary: dict[str, Any] = builder(
        forgetting=forgetting, arms=short, seeds=(0, 1), budgets=(20_000, 80_000)
    ).build()
    for arm in summary["arms"]:
        plain = LORA if arm["method"] == "lora" else FULL
        arm["settings"] = {**plain, **arms[arm["name"]][3]}
    return summary


def analysis_of(summary: dict[str, Any]) -> dict[str, Any]:
    """analysis.json as `laura compare` writes it."""
    points = [point for point in summary["points"] if point["selected"]]
    last = [point for point in points if point["budget"] == 80_000]
    analysed = ANALYSED if len(summary["arms"]) == len(ARMS) else {p["arm"] for p in points}
    ranks = {arm["name"]: arm["settings"].get("rank") for arm in summary["arms"]}
    sampled = [None, *(point for point in last if point["arm"] in analysed)]
    return {
        "format": 2,
        "tradeoff": _tradeoff(points),
        "efficiency": [
            {"arm": arm, "task": "gsm8k", "level": 0.05, "share": 0.5, "unit": "tokens",
             "needed": needed, "at_most": most, "interval": interval, "reached": 0.9,
             "rates": [3e-4], "seeds": 2, "n": 200}
            for arm, needed, most, interval in (
                ("full", 20_000.0, True, [20_000.0, 31_000.0]),
                ("lora-r16", 42_000.0, False, [30_000.0, None]),
                ("lora-r64", None, False, None),
            )
        ],
        "diversity": [_counts(point) for point in sampled],
        "diversity_differences": [
            {"extra": "many", "task": "gsm8k", "arms": [arm, None], "budget": 80_000,
             "measure": "distinct", "difference": change, "stderr": 0.3, "n": 100, "seeds": 2}
            for arm, change in (("full", -3.0), ("lora-r16", -1.5))
        ],
        "pass_at_k": [_passes(point) for point in sampled],
        "drift_fit": [{"measure": "kl", "forgetting": "mean", "r_squared": 0.71, "n": 30}],
        "spikes": [_spikes(run) for run in summary["runs"]],
        "spectra": [_spectra(p, ranks[p["arm"]]) for p in points if p["arm"] in analysed],
        "subspaces": [
            {"runs": [last[0]["run"], last[-1]["run"]], "name": f"model.layers.{layer}.mlp.up_proj",
             "layer": layer, "module": "up_proj", "k": 8 * (layer > 0),
             "overlap": 0.3 if layer else None, "noise_overlap": 0.03 if layer else None,
             "angles": None}
            for layer in range(3)
        ],
        "movement": [_moved(p, text) for p in last if p["arm"] in analysed
                     for text in ("target", "source")],
        "gaps": ["lora-r64 was sampled at no budget"],
    }  # fmt: skip


def _spikes(run: dict[str, Any]) -> dict[str, Any]:
    """One spike in every run of full finetuning at its highest rate."""
    found = run["arm"] == "full" and run["learning_rate"] == 1e-4
    keys = ("arm", "learning_rate", "seed")
    return {**{key: run[key] for key in keys}, "run": run["id"], "count": int(found),
            "worst": 1.25 if found else None, "steps": [12] * found, "n": 40}  # fmt: skip


def _tradeoff(points: list[dict[str, Any]]) -> dict[str, Any]:
    """The front: three arms at their best rate and largest budget."""
    front = []
    for arm in ("full", "lora-r16", "lora-r64"):
        own = [p for p in points if p["arm"] == arm and p["budget"] == 80_000]
        front.append(
            {"arm": arm, "learning_rate": own[0]["learning_rate"], "budget": 80_000,
             "learning": 0.08, "forgetting": 0.01, "seeds": [p["seed"] for p in own],
             "runs": [p["run"] for p in own]}
        )  # fmt: skip
    return {
        "learning": "gsm8k",
        "forgetting": "mean",
        "front": front,
        "area": {"full": {"value": 0.41, "interval": [0.3, 0.5], "seeds": 2},
                 "lora-r16": {"value": 0.52, "interval": None, "seeds": 2}},
    }  # fmt: skip


def _whose(point: dict[str, Any] | None) -> dict[str, Any]:
    keys = ("arm", "run", "seed", "learning_rate", "budget")
    own = {key: point[key] if point else None for key in keys}
    return {"extra": "many", "task": "gsm8k", "samples": 16, "temperature": 0.8, **own}


def _counts(point: dict[str, Any] | None) -> dict[str, Any]:
    level = 12.0 if point is None else 9.0 if point["arm"] == "full" else 10.5
    counts = {"distinct": level, "distinct_passed": level / 3, "distinct_failed": level / 2}
    counts |= {"self_bleu": 0.4, "answer_entropy": 1.9}
    return {
        **_whose(point),
        **{name: {"value": value, "stderr": 0.2, "n": 100} for name, value in counts.items()},
    }


def _passes(point: dict[str, Any] | None) -> dict[str, Any]:
    ks = [1, 4, 16]
    values = [0.05, 0.15, 0.4] if point is None else [0.1, 0.2, 0.3]
    at_k = {
        str(k): {"value": value, "stderr": 0.02, "n": 100}
        for k, value in zip(ks, values, strict=True)
    }
    return {**_whose(point), "at_k": at_k}


def _spectra(point: dict[str, Any], most: int | None) -> dict[str, Any]:
    lora = most is not None
    grown = 1 if lora else point["budget"] / 20_000
    matrices = []
    for layer in range(4):
        for module, shape in (("q_proj", [576, 576]), ("up_proj", [1536, 576])):
            level = 80 + 5 * layer if most is None else 0.75 * most
            rank = {"50": 2, "90": min(300, int(level * grown)), "99": 5}
            name = f"model.layers.{layer}.{module}"
            facts: dict[str, Any] = {
                "name": name, "layer": layer, "module": module, "shape": shape, "rank": rank,
                "noise_rank": {"50": 170, "90": 400, "99": 540}, "effective_rank": 31.5,
                "stable_rank": 4.0, "frobenius": 1.3, "spectral": 0.6,
                "relative_frobenius": 0.02, "relative_spectral": 0.05, "base": {"rank": rank},
                "tuned": {"rank": rank}, "intruders": layer if lora else 0,
            }  # fmt: skip
            if (layer, module) == (2, "q_proj"):
                values = [9 * 0.98**place for place in range(300)]
                facts["base"]["values"] = facts["tuned"]["values"] = values
                facts["values"] = [0.1 * value for value in values[:most]] + [0.0]
            matrices.append(facts)
    keys = ("run", "arm", "seed", "learning_rate", "budget", "step")
    return {**{key: point[key] for key in keys}, "warnings": [], "matrices": matrices}


def _moved(point: dict[str, Any], text: str) -> dict[str, Any]:
    keys = ("run", "arm", "seed", "learning_rate", "budget", "step")
    layers = [{"layer": layer, "cka": 1 - 0.01 * layer, "procrustes": 0.02 * layer,
               "csd": {"q_proj": 0.001, "up_proj": 0.003}} for layer in range(4)]  # fmt: skip
    return {**{key: point[key] for key in keys}, "text": text, "tokens": 900, "layers": layers}


def claims_value() -> dict[str, Any]:
    """claims.json with every verdict."""
    effect = {"value": 0.02, "unit": "share", "stderr": 0.005, "interval": [0.01, 0.03], "n": 600,
              "seeds": 2}  # fmt: skip
    evidence = {"setting": "synthetic", "arms": ["lora-r16", "full"], "what": "forgetting at 80k",
                "effect": effect, "verdict": "supported", "decides": True}  # fmt: skip
    common = {"source": "Biderman et al. 2024", "question": "tuned", "test": "Student's t"}

    def claim(id: str, statement: str, verdict: str, reason: str, **more: Any) -> dict[str, Any]:
        alone = {"alone": verdict, "reason": reason, **common}
        return {"id": id, "statement": statement, "verdict": verdict, **alone, **more}

    return {
        **JUDGEMENT,
        "comparisons": [
            {"arms": ["full", "lora-r16"], "budget": 80_000, "learning": effect,
             "forgetting": {**effect, "value": 0.018, "interval": [0.006, 0.031]},
             "equal_learning": {**effect, "value": -0.034, "interval": [-0.05, -0.01]},
             "levels": [0.02, 0.06], "edge": True},
            {"arms": ["full", "lora-r64"], "reason": "one seed only"},
        ],
        "claims": [
            claim("forgets-less", "LoRA forgets less than full finetuning.", "supported",
                  "the interval lies above 0", effect=effect, evidence=[evidence]),
            claim("learns-less", "LoRA learns less than full finetuning.", "contradicted",
                  "the interval lies below 0", effect=effect, edge=True),
            claim("learns-less-code", "LoRA learns less in code.", "undecided",
                  "not clear when all statements are counted", effect=effect,
                  alone="supported", would_decide="3 more seeds"),
            claim("rank-along", "Rank moves along the trade-off.", "mixed", "settings disagree"),
            claim("rate-ten-times", "LoRA needs a higher rate.", "suggested", "one seed chose"),
            claim("keeps-diversity", "LoRA keeps more distinct outputs.", "undecided",
                  "no samples", missing=["no task was sampled"], would_decide="measure.extras"),
        ],
    }  # fmt: skip


def recommendation_value() -> dict[str, Any]:
    """recommendation.json as `laura recommend` writes it."""
    effect = {"value": 0.06, "unit": "share", "stderr": 0.01, "interval": [0.04, 0.08], "n": 200,
              "seeds": 3}  # fmt: skip
    chosen = {"arm": "lora-r16", "method": "lora", "learning_rate": 3e-4, "budget": 80_000,
              "seeds": [0, 1, 2], "runs": ["a", "b", "c"], "confirmed": True, "learning": effect,
              "forgetting": {**effect, "value": 0.005}, "learnt": 0.06, "forgot": 0.005,
              "cost": {"tokens": 80_000, "train_seconds": 125.0}}  # fmt: skip
    other = {**chosen, "arm": "full", "method": "full", "why_not": "it may forget more than asked",
             "confirmed": False, "seeds": [0], "learning": None, "forgetting": None,
             "forgot": 0.355}  # fmt: skip
    return {
        "format": 2,
        "answer": "Take lora-r16 at 3e-4.",
        "study": "synthetic",
        "asked": {"max_forgetting": 0.02},
        "state": "recommended",
        "measures": {"learning": {"unit": "share"}, "forgetting": {"unit": "share"}},
        "candidates": 5,
        "chosen": chosen,
        "alternatives": [other],
        "confirm": "laura compare R --confirm full@3e-5",
        "not_tried": ["a higher rank"],
    }


def write_samples(study: Path, summary: dict[str, Any]) -> None:
    """Twenty questions with an answer of the base and of every run."""
    store = StudyStore(study)
    _write_task(store.base_evaluation("gsm8k"), "base", lambda index: index % 2 == 0)
    for point in summary["points"]:
        file = store.run(point["run"]).evaluation(point["step"], "gsm8k")
        _write_task(file, point["arm"], lambda index: index % 3 == 0)


def _write_task(file: Path, model: str, right: Any) -> None:
    items = [{"index": index, "exact_match": int(right(index))} for index in range(20)]
    metric = Metric(0.5, 0.1, True)
    write_json(file, TaskResult("gsm8k", "1", model, 20, {"exact_match": metric}, items).to_json())
    rows = [
        {"index": index, "sample": 0, "prompt": f"Question {index}: {HOSTILE}",
         "text": f"{model} says {index}\u202e " + "long " * 400, "passed": right(index)}
        for index in range(20)
    ]  # fmt: skip
    write_lines_gz(samples_file(file), rows)


def write_gallery(builder: Any, study: Path, arms: Arms | None = None) -> dict[str, Any]:
    """The whole study folder, without samples of other arms than ARMS; returns its summary."""
    summary = summary_of(builder, arms or ARMS)
    builder.write(study, summary)
    for name, value in (
        ("analysis", analysis_of(summary)),
        ("claims", claims_value()),
        ("recommendation", recommendation_value()),
    ):
        (study / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
    if arms is None:
        write_samples(study, summary)
    return summary
