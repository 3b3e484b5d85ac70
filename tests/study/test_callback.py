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
)
EPOCHS = ("budget.tokens=null", "budget.epochs=[1,2]")


def train(
    folder: Path, model: Any, callback: LauraCallback, place: Path, **changed: Any
) -> Trainer:
    """Two epochs of eight short texts."""
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
    trainer = Trainer(model=model, args=arguments, train_dataset=data, callbacks=[callback])
    trainer.train()
    return trainer


def adapter(folder: Path) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(folder)
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(model, config)


def test_an_adapter_in_training(recipe_text: str, tiny_folder: Path, tmp_path: Path) -> None:
    recipe = parse_recipe(recipe_text, EPOCHS)
    study = tmp_path / "study"
    trained = adapter(tiny_folder)
    train(tiny_folder, trained, LauraCallback(recipe, "lora", study=study), tmp_path)
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
    train(tiny_folder, model, callback, tmp_path, learning_rate=1e-3)
    summary = read_json(StudyStore(study).summary_file)
    expected = _loss(model, _documents(recipe, study))
    assert summary["points"][-1]["scores"]["target_loss"]["value"] == pytest.approx(
        expected, rel=1e-5
    )
    # A second run joins the study: the folder was left unlocked.
    lora = LauraCallback(recipe, "lora", study=study)
    train(tiny_folder, adapter(tiny_folder), lora, tmp_path)
    arms = {point["arm"] for point in read_json(StudyStore(study).summary_file)["points"]}
    assert arms == {"full", "lora"}


def test_what_the_recipe_does_not_say_is_refused(
    recipe_text: str, tiny_folder: Path, tmp_path: Path
) -> None:
    recipe = parse_recipe(recipe_text)
    callback = LauraCallback(recipe, "full", study=tmp_path / "study")
    with pytest.raises(UsageError) as caught:
        train(tiny_folder, adapter(tiny_folder), callback, tmp_path, learning_rate=5e-2, seed=9)
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
