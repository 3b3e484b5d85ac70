"""An open study: its folder, its base, its data, and what can be done with them.

`compare` and `train` are short programs over this; both leave the same folder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from torch import Tensor

from laura.data.examples import Example
from laura.data.packing import IGNORED, Fitted, Row, add_document, fit
from laura.data.sources import stream_examples
from laura.data.templates import Encoded
from laura.engine.engine import Engine
from laura.evals.runner import Material, RowProvider, evaluate
from laura.evals.tasks import TASKS
from laura.models.activations import TEXTS, input_moments
from laura.models.device import pick_device, resolve_precision
from laura.models.external import find_external, write_note
from laura.recipe.reading import stored_recipe
from laura.recipe.sections import Arm, BudgetSection, Recipe, TrainSection
from laura.recipe.stages import stage_faults
from laura.results.errors import RecipeError, StoreError
from laura.results.progress import SILENT, Progress
from laura.results.store import (
    RunStore,
    StudyStore,
    content_hash,
    run_id,
    write_folder,
    write_json,
)
from laura.results.task_result import VALIDATION, TaskResult
from laura.study.claims.judgement import stored_evidence
from laura.study.evidence import Point, all_tasks, is_current, result_names
from laura.study.material import ExampleEncoder, StudyData
from laura.study.measuring import StudyEngines
from laura.study.questions import Grader, questions_of
from laura.study.ranks import ranks
from laura.study.replay import ReplayData
from laura.study.rewriting import rewrite
from laura.study.runs import (
    UNTRAINED,
    RunSpec,
    budget_marks,
    changed_arms,
    external_points,
    grader_of,
    template_identity,
)
from laura.study.sharing import BUSY, LOCK, claimed, held
from laura.study.steering import Steered
from laura.study.workbench import Workbench
from laura.training.batches import BatchPlan, plan_batches
from laura.training.learner import LossSum
from laura.training.on_policy import PolicyQuestions
from laura.training.remedies import objective_of
from laura.training.run import train_runs
from laura.training.schedules import refuse_long_warmup

# ----- checkpoints made elsewhere: they join a study without training -----


def epoch_size(train: Sequence[Encoded]) -> tuple[int, int]:
    """Tokens of all training examples, and how many of them are learnt."""
    learnt = sum(sum(one.supervised[1:]) for one in train)
    return sum(len(one.token_ids) for one in train), learnt


def marks_of(
    own: BudgetSection, whole: BudgetSection, epoch: tuple[int, int]
) -> list[dict[str, Any]]:
    """What stands in run.json of each budget point that checkpoints made elsewhere reached.

    The step is the point's place among those of the recipe, since nobody tells how many
    steps were taken; an epoch is taken to have the tokens of the recipe's `data.train`.

    Args:
        own: The points that were reached.
        whole: All points of the recipe.
        epoch: As `epoch_size` tells; not looked at where budgets are in tokens.
    """
    tokens, learnt = (1, 1) if own.tokens else epoch
    return [
        {"budget": point, "step": whole.listed.index(point) + 1, "tokens": round(point * tokens),
         "supervised_tokens": round(point * learnt)}
        for point in own.listed
    ]  # fmt: skip


def adopt(
    run: RunStore, arm: Arm, spec: RunSpec, steps: dict[float, int], base: Path, progress: Progress
) -> None:
    """Note in a run's folder where its checkpoints lie.

    Args:
        run: The run's folder.
        arm: The arm.
        spec: The rate the checkpoints were trained at, and their seed.
        steps: Step of each budget point.
        base: Folder of the study's base.
        progress: Told about downloads.
    """
    for point in external_points(arm, spec.learning_rate, spec.seed):
        step = steps[point.budget]
        weights = find_external(point, arm, base, progress)
        facts = {"step": step, "learning_rate": spec.learning_rate, "seed": spec.seed}
        fill = partial(write_note, point=point, weights=weights)
        write_folder(run.checkpoint(step), fill, facts)
    write_json(run.folder / "done.json", {"external": True, "points": sorted(steps.values())})


RUN_FORMAT = 1  # counts up when the same recipe would train other weights


@dataclass
class Session:
    """A study being carried out.

    Attributes:
        recipe: What to do.
        store: Where.
        bench: The base.
        data: What is read.
        rows: Benchmark rows.
        tasks: Title and version of each task that is not Laura's own, by result.
        replay: What the arms replay beside the data.
        engines: What answers the tasks; to be closed.
        data_dir: Folder of data sets that wins over the Hub.
        progress: Where to report.
        lock: Open file that holds the study's lock; None in a worker process, whose
            parent holds it.
        alone: Whether no other command worked there when it was opened.
    """

    recipe: Recipe
    store: StudyStore
    bench: Workbench
    data: StudyData
    rows: RowProvider
    tasks: dict[str, dict[str, str]]
    replay: ReplayData
    engines: StudyEngines
    data_dir: Path | None
    progress: Progress = SILENT
    lock: int | None = None
    alone: bool = True
    _plans: dict[str, BatchPlan] = field(default_factory=dict)

    def check(self, specs: Iterable[RunSpec]) -> None:
        """Find what would stop the study later: missing benchmark rows, unusable budgets.

        Raises:
            DataError: rows are missing, an example is too long, a budget is
                less than a step.
            RecipeError: a warm-up in steps is longer than its run.
            LauraError: a checkpoint made elsewhere is not what is said of it.
        """
        for name in all_tasks(self.recipe):
            # Tasks of lm-eval and of the user were made ready when the study was opened.
            if name in TASKS and TASKS[name].split:
                self.rows(name, TASKS[name].split)
        arms = self.recipe.arms
        kinds = {
            (
                str(s.budget),
                arms[s.arm].replay,
                arms[s.arm].rewritten,
                arms[s.arm].answers_each,
                arms[s.arm].external is None,
            ): s
            for s in specs
        }
        for spec in kinds.values():
            self._marks(spec)
            if arms[spec.arm].external is None:
                plan = self._plan(spec)
                refuse_long_warmup(self.recipe.train, plan.points, plan.hot)
        for arm in arms.values():
            self._questions(arm)
            for point in arm.external or []:
                find_external(point, arm, self.bench.base.folder, self.progress)

    def check_starts(self, specs: Iterable[RunSpec]) -> None:
        """Find runs that cannot begin where the setting before has ended.

        Raises:
            StoreError: there are some; all are named.
            RecipeError: the recipe there does not go with this one.
        """
        if self._before is None:
            return
        before, runs = self._before.name, [(spec.arm, spec.seed) for spec in specs]
        missing = [
            f"{arm} with seed {seed}" for arm, seed in runs if (arm, seed) not in self.starts
        ]
        if missing:
            raise StoreError(
                f"{self.recipe.name} cannot begin: {before} has no chosen checkpoint of "
                f"{', '.join(dict.fromkeys(missing))}. The report of {before} says why; carry it "
                "out to its end, or leave these arms or seeds out"
            )
        # Of a series this was told when it was read; a setting may also be given by itself.
        known = stored_recipe(self._before / "recipe.yaml")
        if faults := stage_faults(self.recipe, {before: known}):
            raise RecipeError(faults, self.recipe.name)

    @cached_property
    def starts(self) -> dict[tuple[str, int], Point]:
        """Where the setting before has ended, by arm and seed; empty until it was carried out."""
        folder = self._before
        if folder is None or not (folder / "study.json").is_file():
            return {}
        ended = stored_evidence(folder).chosen_points(everywhere=False)
        return {(point.arm, point.seed): point for point in ended}

    @property
    def _before(self) -> Path | None:
        """The folder of the setting that this one continues."""
        before = self.recipe.continues
        return None if before is None else self.store.folder.parent / before

    def _start(self, spec: RunSpec) -> Path | None:
        """The checkpoint that a run begins from; None for the base."""
        if self._before is None:
            return None
        self.check_starts([spec])
        point = self.starts[spec.arm, spec.seed]
        return StudyStore(self._before).run(point.run_id).checkpoint(point.step)

    def base_results(self) -> None:
        """Measure the base, before anything is trained."""
        words = "another laura process measures the base; waiting"
        with held(self.store.folder / "base" / LOCK, words, self.progress):
            self.measure(all_tasks(self.recipe), None)

    def run_store(self, spec: RunSpec) -> RunStore:
        """The folder of a run; its name is the hash of everything that determines it."""
        return self.store.run(run_id(self._identity(spec)))

    def wants(self, spec: RunSpec) -> bool:
        """Whether a run is not to be skipped, as things stand."""
        return not self._steered.now.skips(spec.arm, spec.learning_rate, spec.seed)

    def take_up(self) -> None:
        """Make what was added to the study part of its recipe."""
        self.recipe = self._steered.now.extended(self.recipe)

    def finished(self, spec: RunSpec) -> bool:
        """Whether a run has ended and every budget point it reached was measured."""
        run = self.run_store(spec)
        if run.state not in ("done", "diverged"):
            return False
        steps = [mark["step"] for mark in self._marks(spec)]
        there = [step for step in steps if run.checkpoint(step).is_dir()]
        changed = (replace(spec, arm=name) for name in changed_arms(self.recipe, spec.arm))
        return all(self._is_measured(run, step) for step in there) and all(
            self.finished(one) for one in changed
        )

    def carry_out(self, specs: Sequence[RunSpec], points: int | None = None) -> list[str]:
        """Train runs that differ in the learning rate alone in lock-step, then measure each.

        Args:
            specs: The runs.
            points: Of a single run: stop after so many of its budget points; None for all.

        Returns:
            The state of each, or `busy` where another process is at it.
        """
        with ExitStack() as held_runs:
            runs = [self.run_store(spec) for spec in specs]
            mine = [held_runs.enter_context(claimed(run.folder / LOCK)) for run in runs]
            own = [spec for spec, is_mine in zip(specs, mine, strict=True) if is_mine]
            if own:
                self._carry_out(own, points)
        pairs = zip(runs, mine, strict=True)
        return [run.state if is_mine else BUSY for run, is_mine in pairs]

    def _carry_out(self, specs: Sequence[RunSpec], points: int | None) -> None:
        runs, marks = [self.run_store(spec) for spec in specs], self._marks(specs[0])
        for spec, run in zip(specs, runs, strict=True):
            self._write_record(spec, run, marks)
        self._train(specs, runs, marks, None if points is None else marks[points - 1]["step"])
        for run in runs:
            for mark in marks:
                if run.checkpoint(mark["step"]).is_dir():
                    self.measure_point(run, mark["step"])
        for spec, run in zip(specs, runs, strict=True):
            for name in changed_arms(self.recipe, spec.arm):
                self._change(replace(spec, arm=name), run, marks)

    def _change(self, spec: RunSpec, source: RunStore, marks: list[dict[str, Any]]) -> None:
        """Make an arm's run of another's finished one, and measure it."""
        run, arm = self.run_store(spec), self.recipe.arms[spec.arm]
        assert arm.change is not None and arm.factor is not None
        self._write_record(spec, run, marks)
        for step in (mark["step"] for mark in marks):
            made, place = source.checkpoint(step), run.checkpoint(step)
            if made.is_dir() and not place.is_dir():
                facts = {"step": step, "learning_rate": spec.learning_rate, "seed": spec.seed}
                self.bench.change(made, place, arm.change, arm.factor, facts)
            if place.is_dir():
                self.measure_point(run, step)
        if source.state == "done":
            write_json(run.folder / "done.json", {"of": source.folder.name})
        elif source.state == "diverged":
            failure = {"kind": "diverged", "reason": source.reason}
            write_json(run.folder / "failed.json", failure)

    def _train(
        self,
        specs: Sequence[RunSpec],
        runs: list[RunStore],
        marks: list[dict[str, Any]],
        stop: int | None,
    ) -> None:
        pairs = zip(specs, runs, strict=True)
        left = [
            (s, run) for s, run in pairs if run.state not in ("done", "diverged") and self.wants(s)
        ]
        stops = stop is not None and stop < marks[-1]["step"]
        if not left or (stops and left[0][1].checkpoint(stop or 0).is_dir()):
            return
        first, arm = specs[0], self.recipe.arms[specs[0].arm]
        if arm.external is not None:
            steps = {mark["budget"]: mark["step"] for mark in marks}
            for spec, run in left:
                adopt(run, arm, spec, steps, self.bench.base.folder, self.progress)
            return
        rates = ", ".join(f"{spec.learning_rate:g}" for spec, _ in left)
        word = "rate" if len(left) == 1 else "rates"
        self.progress.say(f"{first.arm}, {word} {rates}, seed {first.seed}")
        train, rate = self.recipe.train, left[0][0].learning_rate
        moments = self._moments if arm.reads_activations else None
        start = self._start(first)
        questions = self._questions(arm)
        with (
            ranks(self.bench, arm, first.seed, train, rate, start),
            self.bench.adapted(arm, first.seed, train.devices, moments, start) as adapted,
        ):
            validate = validator(adapted.model, train, self.data)
            train_runs(
                adapted.model,
                [(run, spec.learning_rate) for spec, run in left],
                train,
                self._plan(first),
                rule=adapted.rule,
                seed=first.seed,
                write_weights=adapted.write_weights,
                validate=validate,
                objective=objective_of(arm),
                begin=adapted.begin,
                questions=questions,
                stop=stop,
                halt=lambda: not all(self.wants(spec) for spec, _ in left),
                title=f"training {first.arm} at {rates}",
                progress=self.progress,
            )
        for _, run in left:
            if run.state == "diverged":
                self.progress.say(f"{first.arm} diverged: {run.reason}")
        if stop is None:
            self._train(specs, runs, marks, None)  # those left when another one was skipped

    def measure(self, names: list[str], run: RunStore | None, step: int = 0) -> None:
        """Measure tasks or extras on a model; what stands is not measured again.

        Args:
            names: Tasks as the recipe names them, or extras.
            run: The run; None for the base.
            step: The run's checkpoint.

        Raises:
            CheckpointError: the checkpoint does not match its checksums.
            LauraError: an engine cannot take it.
        """
        checkpoint = None if run is None else run.checkpoint(step)
        out = self.store.base_evaluation if run is None else partial(run.evaluation, step)
        for engine, tasks in self.engines.dealt(names).items():
            with self.engines.opened(engine, checkpoint) as asked:
                evaluate(
                    asked.engine,
                    tasks,
                    Material(
                        self.recipe.measure, self.rows, self.data.documents, asked.reference,
                        self.data_dir,
                    ),
                    model_name="base" if run is None else run.folder.name,
                    out=out,
                    adapter=asked.adapter,
                    progress=self.progress,
                )  # fmt: skip

    def measure_point(self, run: RunStore, step: int) -> None:
        """Measure a checkpoint of a run, where that has not been done."""
        if not self._is_measured(run, step):
            self.measure(all_tasks(self.recipe), run, step)

    def _is_measured(self, run: RunStore, step: int) -> bool:
        for name in result_names(all_tasks(self.recipe)):
            path = run.evaluation(step, name)
            if not path.is_file():
                return False
            if name in self.tasks and not is_current(TaskResult.read(path), self.tasks):
                return False
        return True

    def _plan(self, spec: RunSpec) -> BatchPlan:
        arm = self.recipe.arms[spec.arm]
        fraction, budget = arm.replay, spec.budget.model_dump(mode="json")
        key = content_hash([budget, spec.seed, fraction, arm.rewritten, arm.answers_each])
        if key not in self._plans:
            self._plans.clear()  # a plan may be large; runs that share one follow each other
            train, replay = self.recipe.train, self.replay.mixture(fraction)
            encoded = self._rewritten if arm.rewritten else self.data.train
            fitted = self._fit(encoded) if arm.rewritten else self._fitted
            fitted = fitted.times(arm.answers_each)
            self._plans[key] = plan_batches(encoded, fitted, train, spec.budget, spec.seed, replay)
        return self._plans[key]

    @cached_property
    def _moments(self) -> dict[str, Tensor]:
        """What LoRA-Null and CorDA start from, read once for all their runs."""
        return input_moments(self.bench.base.model, self.replay.texts(TEXTS), self.progress)

    @property
    def arithmetic(self) -> list[str]:
        """Number formats in which this machine trains and measures."""
        device = pick_device(self.bench.device_name)
        asked = (self.recipe.train.precision, self.recipe.measure.precision)
        return [str(resolve_precision(one, device)) for one in asked]

    @property
    def epoch_tokens(self) -> int:
        """Tokens of one pass over the training examples."""
        return sum(self._fitted.lengths)

    @cached_property
    def _steered(self) -> Steered:
        return Steered(self.store.folder)

    @cached_property
    def _epoch(self) -> tuple[int, int]:
        """Size of an epoch of checkpoints made elsewhere, which asks for every example."""
        return epoch_size(self.data.train)

    @cached_property
    def _fitted(self) -> Fitted:
        """The training examples as documents that fit a row; the same for every run."""
        return self._fit(self.data.train)

    @cached_property
    def rewriting(self) -> str:
        """Hash of the rewritten answers, for run IDs."""
        return content_hash([one.token_ids for one in self._rewritten])

    @cached_property
    def _examples(self) -> list[Example]:
        """What is trained on, as it was read."""
        kept = {one.index for one in self.data.train}
        source = stream_examples(self.recipe.data.train, self.data_dir)
        return [example for example in source if example.index in kept]

    @property
    def _encoder(self) -> ExampleEncoder:
        recipe = self.recipe
        return ExampleEncoder(self.bench.base.tokenizer, recipe.data.template, recipe.regime)

    def _questions(self, arm: Arm) -> PolicyQuestions | None:
        """What an arm's model is asked while it is trained; None where it learns the data's."""
        if arm.remedy("policy") is None or not arm.is_trained:
            return None
        examples, encoder, grader = self._examples, self._encoder, None
        if (task := grader_of(self.recipe, arm)) is not None:
            grader = Grader(task, examples, self.recipe.measure, encoder.tokenizer, self.rows)
        return questions_of(arm, examples, encoder, grader)

    @cached_property
    def _rewritten(self) -> Sequence[Encoded]:
        """The training examples with the base's answers where these pass."""
        recipe, base = self.recipe, self.bench.base
        assert recipe.data.rewrite is not None
        precision = resolve_precision(recipe.measure.precision, base.model.device)
        encoder = self._encoder
        examples, passed = rewrite(
            self._examples,
            recipe.data.rewrite,
            recipe.measure,
            Engine(base.model, base.tokenizer, precision, progress=self.progress),
            encoder,
            self.rows,
            base.fingerprint,
            self.store.folder / "rewritten",
            self.progress,
        )
        self.progress.say(f"{passed} of {len(examples)} answers are the base's own")
        return encoder.to_learn(examples)

    def _fit(self, encoded: Sequence[Encoded]) -> Fitted:
        return fit(
            encoded,
            self.recipe.train.row_tokens,
            self.recipe.data.overlong,
            split_long=self.recipe.regime == "pretrain",
            progress=self.progress,
        )

    def _identity(self, spec: RunSpec) -> dict[str, Any]:
        recipe = self.recipe
        arm = recipe.arms[spec.arm].identity({"learning_rates", "replay"})
        train = recipe.train.identity(UNTRAINED)
        hot = spec.budget.points == "hot" and recipe.train.schedule == "trapezoidal"
        quantization, begun = recipe.base.quantization, self.starts.get((spec.arm, spec.seed))
        train["precision"] = self.arithmetic[0]
        return {
            "format": RUN_FORMAT,
            "base": self.bench.base.fingerprint,
            "dtype": recipe.base.dtype,
            "data": self.data.fingerprint,
            "tokenizer": self.data.encoding,
            "template": template_identity(recipe),
            "arm": [spec.arm, arm],
            "learning_rate": spec.learning_rate,
            "seed": spec.seed,
            "budget": spec.budget.model_dump(mode="json"),
            "train": train,
            # Hot points of a trapezoidal run were once cooled down; such runs are others.
            **({"hot": True} if hot else {}),
            **({"quantization": quantization} if quantization else {}),
            **self.replay.identity(recipe.arms[spec.arm]),
            **({"rewrite": self.rewriting} if recipe.arms[spec.arm].rewritten else {}),
            **({"continues": begun and [begun.run_id, begun.step]} if recipe.continues else {}),
            **({"grader": grader} if (grader := grader_of(recipe, recipe.arms[spec.arm])) else {}),
        }

    def _marks(self, spec: RunSpec) -> list[dict[str, Any]]:
        """Each budget point of a run: its step, and the tokens until then."""
        if self.recipe.arms[spec.arm].external is not None:
            epoch = (0, 0) if spec.budget.tokens else self._epoch
            return marks_of(spec.budget, self.recipe.budget, epoch)
        return budget_marks(self._plan(spec), spec.budget.listed)

    def _write_record(self, spec: RunSpec, run: RunStore, marks: list[dict[str, Any]]) -> None:
        path = run.folder / "run.json"
        if path.is_file():
            return
        record = {
            "id": run.folder.name,
            "arm": spec.arm,
            "learning_rate": spec.learning_rate,
            "seed": spec.seed,
            "points": marks,
            "identity": self._identity(spec),
        }
        write_json(path, record)


def validator(
    model: Any, train: TrainSection, data: StudyData
) -> Callable[[LossSum], float] | None:
    """Measures the model as it then is, in mean nats per token; None where nobody asks."""
    if train.validate_every is None:
        return None
    documents = data.documents[VALIDATION]

    def validate(loss_sum: LossSum) -> float:
        model.eval()
        total, count = 0.0, 0
        for one in documents:
            row, whole = Row([], [], [], [], []), len(one.token_ids)
            encoded = Encoded(one.index, one.token_ids, one.supervised, one.bytes)
            add_document(row, encoded, 0, whole)
            total += loss_sum(row)
            count += sum(label != IGNORED for label in row.labels)
        return total / count

    return validate
