"""Measured inside transformers' Trainer: the same numbers as of the saved checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from laura.recipe.reading import parse_recipe
from laura.results.errors import UsageError
from laura.results.store import StudyStore, read_json
from laura.study.callback import LauraCallback

pytestmark = pytest.mark.filterwarnings(
    "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning",
    "ignore:.pin_memory. argument is set as true:UserWarning",
    "ignore:Model has .tie_word_embeddings=True. and a tied layer:UserWarning",
)
EPOCHS = ("budget.tokens=null", "budget.epochs=[1,2]")


def make_trainer(model: Any, place: Path, **changed: Any) -> Trainer:
    """Of two epochs of eight short texts."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(3, 90, (8, 12), generator=generator)
    data = [{"input_ids": row, "labels": row} for row in rows]
    settings: dict[str, Any] = {
        "output_dir": str(place / "trainer"),
        "num_train_epochs": 2,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "seed": 0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
    }
    arguments = TrainingArguments(**{**settings, **changed})
    return Trainer(model=model, args=arguments, train_dataset=data)


def train(model: Any, callback: LauraCallback, place: Path, **changed: Any) -> None:
    trainer = make_trainer(model, place, **changed)
    trainer.add_callback(callback)
    trainer.train()


def adapter(folder: Path, **choices: Any) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(folder)
    settings: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", **choices}
    config = LoraConfig(**settings, task_type="CAUSAL_LM")
    return get_peft_model(model, config)


@pytest.mark.parametrize("choices", [{}, {"modules_to_save": ["lm_head"]}], ids=["plain", "whole"])
def test_an_adapter_in_training(
    recipe_text: str, tiny_folder: Path, tmp_path: Path, choices: dict[str, Any]
) -> None:
    recipe = parse_recipe(recipe_text, EPOCHS)
    study = tmp_path / "study"
    trained = adapter(tiny_folder, **choices)
    train(trained, LauraCallback(recipe, "lora", study=study), tmp_path)
    summary = read_json(StudyStore(study).summary_file)
    assert [(p["budget"], p["step"]) for p in summary["points"]] == [(1.0, 2), (2.0, 4)]
    assert summary["runs"][0]["state"] == "done" and len(summary["runs"][0]["loss_curve"]) == 4
    # The last point is the model the trainer holds: its loss, computed by transformers alone.
    documents = _documents(recipe, study)
    expected = _loss(trained, documents)
    assert summary["points"][-1]["scores"]["target_loss"]["value"] == pytest.approx(
        expected, rel=1e-5
    )
    with trained.disable_adapter():
        base = _loss(trained, documents)
    assert summary["base"]["scores"]["target_loss"]["value"] == pytest.approx(base, rel=1e-5)
    assert summary["points"][-1]["scores"]["kl"]["value"] > 0


def test_a_whole_model_in_training(recipe_text: str, tiny_folder: Path, tmp_path: Path) -> None:
    recipe = parse_recipe(recipe_text, EPOCHS)
    study = tmp_path / "study"
    model = AutoModelForCausalLM.from_pretrained(tiny_folder)
    callback = LauraCallback(recipe, "full", study=study)
    train(model, callback, tmp_path, learning_rate=1e-3)
    summary = read_json(StudyStore(study).summary_file)
    expected = _loss(model, _documents(recipe, study))
    assert summary["points"][-1]["scores"]["target_loss"]["value"] == pytest.approx(
        expected, rel=1e-5
    )
    # A second run joins the study: the folder was left unlocked.
    lora = LauraCallback(recipe, "lora", study=study)
    train(adapter(tiny_folder), lora, tmp_path)
    arms = {point["arm"] for point in read_json(StudyStore(study).summary_file)["points"]}
    assert arms == {"full", "lora"}


def test_the_trainer_logs_what_was_learned_and_forgot(
    recipe_text: str, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the trainer's own history and in TensorBoard, the tracker it reports to."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    recipe, study, events = parse_recipe(recipe_text, EPOCHS), tmp_path / "study", tmp_path / "told"
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(events))
    trainer = make_trainer(adapter(tiny_folder), tmp_path, report_to=["tensorboard"])
    trainer.add_callback(LauraCallback(recipe, "lora", study=study, trainer=trainer))
    trainer.train()
    summary = read_json(StudyStore(study).summary_file)
    told = [row for row in trainer.state.log_history if "eval_learning/target_loss" in row]
    assert [row["step"] for row in told] == [point["step"] for point in summary["points"]] == [2, 4]
    accumulator = EventAccumulator(str(events)).Reload()
    losses = [event.step for event in accumulator.Scalars("train/loss")]
    assert losses == [1, 2, 3, 4]
    for task, side in (("target_loss", "learning"), ("source_loss", "forgetting")):
        scores = [point["scores"][task] for point in summary["points"]]
        base = summary["base"]["scores"][task]["value"]
        for key, values in (
            (f"{side}/{task}", [score["value"] for score in scores]),
            (f"{side}/{task}/stderr", [score["stderr"] for score in scores]),
            (f"{side}/{task}/change", [score["value"] - base for score in scores]),
        ):
            assert [row[f"eval_{key}"] for row in told] == pytest.approx(values, abs=1e-9)
            read = accumulator.Scalars(f"eval/{key}")
            assert [event.step for event in read] == [2, 4]
            assert [event.value for event in read] == pytest.approx(values, abs=1e-6)


def test_what_the_recipe_does_not_say_is_refused(
    recipe_text: str, tiny_folder: Path, tmp_path: Path
) -> None:
    recipe = parse_recipe(recipe_text)
    callback = LauraCallback(recipe, "full", study=tmp_path / "study")
    with pytest.raises(UsageError) as caught:
        train(adapter(tiny_folder), callback, tmp_path, learning_rate=5e-2, seed=9)
    for words in ("an adapter", "0.05", "seed 9", "include_num_input_tokens_seen"):
        assert words in str(caught.value)
    with pytest.raises(UsageError, match="no arm 'x'"):
        LauraCallback(recipe, "x")


def _documents(recipe: Any, study: Path) -> list[Any]:
    """The held-out documents of the study's target loss."""
    from laura.study.opening import open_study

    with open_study(recipe, study, None, "cpu") as session:
        return list(session.data.documents["target_loss"])


def _loss(model: Any, documents: list[Any]) -> float:
    """Nats a supervised token, by a plain forward pass of each document."""
    total, count = 0.0, 0
    model.eval()
    for document in documents:
        ids = torch.tensor([document.token_ids])
        with torch.no_grad():
            nats = torch.nn.functional.cross_entropy(
                model(ids).logits[0, :-1].float(), ids[0, 1:], reduction="none"
            )
        wanted = torch.tensor(document.supervised[1:])
        total += float(nats[wanted].sum())
        count += int(wanted.sum())
    return total / count
