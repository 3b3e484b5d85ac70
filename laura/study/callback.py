"""Measuring learning and forgetting inside a transformers Trainer or TRL run.

    from laura.study.callback import LauraCallback

    trainer = SFTTrainer(...)
    trainer.add_callback(LauraCallback("mine.yaml", arm="lora", trainer=trainer))

The recipe says what is measured, at which points of its budget, and how the arm is set up;
the trainer trains. The study folder is one like any other: `laura report`, `spectra`,
`claims` and `compare` read it, and runs of several trainers may share it.

At each point the weights are saved into the study and measured there by a copy of the
base, exactly as a checkpoint of `laura compare` is, and what it learned and forgot goes through the
trainer's own log to wherever its loss goes. The copy needs memory beside the
trainer; `device="cpu"` keeps it off the accelerator.
"""

from __future__ import annotations

import shutil
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from laura.models.device import peak_memory_bytes
from laura.models.load import quiet_transformers
from laura.recipe.reading import read_recipe
from laura.recipe.sections import AdapterArm, Recipe
from laura.results.errors import UsageError
from laura.results.progress import SILENT, Progress
from laura.results.store import MANIFEST, RunStore, read_json, run_id, write_folder, write_json
from laura.study.opening import open_study
from laura.study.rebuilding import write_summary
from laura.study.session import Session
from laura.study.tracking import score_rows

if TYPE_CHECKING:
    from transformers import Trainer

# What of the trainer's arguments decides the weights, beside the recipe's arm.
ARGUMENTS = (
    "learning_rate", "seed", "per_device_train_batch_size", "gradient_accumulation_steps",
    "num_train_epochs", "max_steps", "lr_scheduler_type", "warmup_steps", "weight_decay",
    "optim", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "bf16", "fp16",
)  # fmt: skip


class LauraCallback(TrainerCallback):  # type: ignore[misc]
    """Measures a model in training at the points of a recipe's budget.

    Args:
        recipe: A recipe, or its file. Its `budget` lists where is measured; its `data`
            serve the measures, and are not what the trainer trains on.
        arm: The arm of the recipe that the trainer trains.
        study: The study folder; None for studies/NAME.
        data_dir: Folder of data sets that wins over the Hub.
        device: Where the copy of the base measures; None for the best there is.
        progress: Where to report.
        trainer: Whose log is told the scores of each point and their changes from the base, as
            `eval_learning/TASK`, `eval_forgetting/TASK`, `.../change` and `.../stderr`; None
            where only the study shall have them. (transformers hands callbacks no trainer.)

    Raises:
        RecipeError: the recipe has faults.
        UsageError: it has no such arm.
    """

    def __init__(
        self,
        recipe: Recipe | str | Path,
        arm: str,
        *,
        study: Path | None = None,
        data_dir: Path | None = None,
        device: str | None = None,
        progress: Progress = SILENT,
        trainer: Trainer | None = None,
    ) -> None:
        read = recipe if isinstance(recipe, Recipe) else read_recipe(recipe, data_dir=data_dir)
        if arm not in read.arms:
            raise UsageError(f"the recipe has no arm {arm!r}; it has: {', '.join(read.arms)}")
        self.recipe, self.arm, self.data_dir = read, arm, data_dir
        self.study = study or Path("studies") / read.name
        self._device, self._progress, self._trainer = device, progress, trainer
        self._open = ExitStack()
        self._session: Session | None = None
        self._run = RunStore(self.study)
        self._record: dict[str, Any] = {}
        self._marks: list[dict[str, Any]] = []
        self._left: list[float] = []
        self._logged = time.monotonic()

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Open the study and measure the base.

        Raises:
            UsageError: the trainer does what the recipe does not say.
        """
        if not state.is_world_process_zero:
            return
        self._open.close()  # a training that ended in an error has left it open
        self._check(args, given["model"])
        session = self._open.enter_context(
            open_study(self.recipe, self.study, self.data_dir, self._device, self._progress)
        )
        self._session = session
        identity = {
            "base": session.bench.base.fingerprint,
            "arm": [self.arm, self.recipe.arms[self.arm].model_dump(mode="json")],
            "trainer": {name: str(getattr(args, name, None)) for name in ARGUMENTS},
            **session.replay.identity(self.recipe.arms[self.arm]),
        }
        self._run = session.store.run(run_id(identity))
        self._record = {
            "id": self._run.folder.name,
            "arm": self.arm,
            "learning_rate": args.learning_rate,
            "seed": args.seed,
            "identity": identity,
        }
        # A trainer that continues has reached some points before.
        record = self._run.folder / "run.json"
        known = read_json(record)["points"] if record.is_file() else []
        self._marks = [mark for mark in known if mark["step"] <= state.global_step]
        done = {mark["budget"] for mark in self._marks}
        budget = self.recipe.budget
        points = budget.listed
        self._left = [float(point) for point in points if point not in done]
        self._run.keep_metrics(lambda row: row["step"] <= state.global_step)
        session.base_results()
        self._logged = time.monotonic()

    def on_log(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Keep the training loss."""
        loss = (given.get("logs") or {}).get("loss")
        if self._session is None or loss is None:
            return
        now = time.monotonic()
        tokens = int(state.num_input_tokens_seen)
        before = self._run.metrics()
        passed = tokens - (before[-1]["tokens"] if before else 0)
        self._run.append_metrics(
            {
                "leg": "trainer",
                "step": state.global_step,
                "loss": float(loss),
                "tokens": tokens,
                "seconds": now - self._logged,
                "tokens_per_second": passed / (now - self._logged),
                "flops": 0.0,
                "peak_memory_bytes": peak_memory_bytes(args.device),
            }
        )
        self._logged = now

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Save and measure where a point of the budget has been reached."""
        if self._session is None or not self._left:
            return
        tokens = int(state.num_input_tokens_seen)
        # An epoch's last step may stand a rounding error below the whole number.
        reached = tokens if self.recipe.budget.tokens else state.epoch + 1e-6
        if reached < self._left[0]:
            return
        while self._left and reached >= self._left[0]:
            point = self._left.pop(0)
        step = state.global_step
        mark = {"budget": point, "step": step, "tokens": tokens, "supervised_tokens": tokens}
        self._marks.append(mark)
        write_json(self._run.folder / "run.json", {**self._record, "points": self._marks})
        facts = {"step": step, "learning_rate": args.learning_rate, "seed": args.seed}
        self._keep(given["model"], step, facts)
        self._session.measure_point(self._run, step)
        self._tell(mark, control)
        self._logged = time.monotonic()

    def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Write the study's summary and close it."""
        if self._session is None:
            return
        if self._left:
            points = ", ".join(f"{point:g}" for point in self._left)
            self._progress.say(f"the trainer ended before these points of the budget: {points}")
        if self._marks:
            write_json(self._run.folder / "done.json", {"trainer": True})
        write_summary(self._session.store, self.recipe)
        self._session = None
        self._open.close()

    def _check(self, args: Any, model: Any) -> None:
        arm, faults = self.recipe.arms[self.arm], []
        adapted = hasattr(model, "peft_config")
        if adapted != isinstance(arm, AdapterArm):
            trained = "an adapter" if adapted else "the whole model"
            faults.append(f"the trainer trains {trained}, the arm's method is {arm.method}")
        if args.learning_rate not in arm.learning_rates:
            rates = ", ".join(f"{rate:g}" for rate in arm.learning_rates)
            rate = f"{args.learning_rate:g}"
            faults.append(f"its learning rate {rate} is not among the arm's: {rates}")
        if args.seed not in self.recipe.seeds:
            seeds = ", ".join(map(str, self.recipe.seeds))
            faults.append(f"its seed {args.seed} is not among the recipe's: {seeds}")
        if self.recipe.budget.tokens and not counts_tokens(args):
            faults.append(
                "the budget is in tokens, which the trainer counts only with "
                "include_num_input_tokens_seen='all'"
            )
        if faults:
            raise UsageError(f"the trainer and the recipe differ: {'; '.join(faults)}")

    def _tell(self, mark: dict[str, Any], control: Any) -> None:
        """Log a point's scores; trackers of transformers show `eval_` as a section of its own."""
        if self._trainer is None or self._session is None:
            return
        rows = score_rows(self._session.store, self._run, {"points": [mark]}, self.recipe, ())
        numbers = {f"eval_{key}": one for _, row in rows.values() for key, one in row.items()}
        due = control.should_log
        self._trainer.log(numbers)
        control.should_log = due  # the step's own loss is still to come

    def _keep(self, model: Any, step: int, facts: dict[str, Any]) -> None:
        """Save the weights of a point; results of other weights at that step are dropped."""
        folder = self._run.checkpoint(step)
        before = read_json(folder / MANIFEST)["sha256"] if (folder / MANIFEST).is_file() else None
        with quiet_transformers():
            write_folder(folder, lambda aside: self._save(model, aside), facts)
        if before != read_json(folder / MANIFEST)["sha256"]:
            shutil.rmtree(self._run.evaluation(step, "any").parent, ignore_errors=True)

    def _save(self, model: Any, folder: Path) -> None:
        assert self._session is not None
        model.save_pretrained(folder)
        if not hasattr(model, "peft_config"):
            self._session.bench.base.tokenizer.save_pretrained(folder)


def counts_tokens(args: Any) -> bool:
    """Whether a trainer counts the tokens it has seen."""
    return getattr(args, "include_num_input_tokens_seen", "no") not in (False, "no")
