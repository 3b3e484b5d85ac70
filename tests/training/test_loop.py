"""The loop against a naive one, and against being killed."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from laura.data.packing import Row, fit
from laura.data.templates import Encoded
from laura.models.adapters import attach
from laura.models.lora import LoraSettings, detach
from laura.recipe.sections import BudgetSection, TrainSection
from laura.results.errors import CheckpointError, DataError
from laura.results.progress import Silent
from laura.results.store import RunStore, read_json
from laura.training.batches import BatchPlan, plan_batches
from laura.training.checkpoints import read_state, state_tensors, write_state
from laura.training.flops import count_work, step_flops
from laura.training.learner import Learner, LossSum, model_inputs
from laura.training.optimisers import StepRule
from laura.training.run import train_runs
from laura.training.schedules import plan_legs, rate_factor

HERE = Path(__file__).parent


def make_examples(count: int = 40) -> list[Encoded]:
    """Random documents of 8 to 30 tokens whose second half is learnt."""
    source = random.Random(5)
    examples = []
    for index in range(count):
        length = source.randint(8, 30)
        ids = [source.randint(3, 511) for _ in range(length)]
        examples.append(Encoded(index, ids, [i >= length // 2 for i in range(length)], length))
    return examples


def make_section(**changes: Any) -> TrainSection:
    """Small steps in float32."""
    settings = {"batch_tokens": 128, "row_tokens": 64, "precision": "fp32", "warmup": 0.2}
    return TrainSection(**{**settings, **changes})


def make_plan(section: TrainSection, tokens: tuple[int, ...] = (1200,)) -> Any:
    """Batches for these budgets."""
    budget = BudgetSection(tokens=list(tokens))
    examples = make_examples()
    return plan_batches(examples, fit(examples, section.row_tokens), section, budget, seed=7)


def train(model: Any, folder: Path, section: TrainSection, plan: Any, **changes: Any) -> str:
    """Train with weights kept as one safetensors file."""
    settings: dict[str, Any] = {"seed": 7, "write_weights": weight_writer(model), **changes}
    rate = settings.pop("learning_rate", 1e-3)
    return train_runs(model, [(RunStore(folder), rate)], section, plan, **settings)[0]


def weight_writer(model: Any) -> Any:
    """Writes what is trained."""
    from safetensors.torch import save_file

    def write(folder: Path) -> None:
        trained = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
        save_file(trained, folder / "weights.safetensors")

    return write


def weights(folder: Path, step: int) -> dict[str, torch.Tensor]:
    """Weights kept at a step."""
    return load_file(RunStore(folder).checkpoint(step) / "weights.safetensors")


def naive_loss(model: Any, batch: list[Row]) -> torch.Tensor:
    """Mean nats of the learnt tokens of a step, document by document."""
    total, count = torch.zeros(()), 0
    for row in batch:
        ids, labels = torch.tensor(row.token_ids), torch.tensor(row.labels)
        pieces = zip(ids.split(row.lengths), labels.split(row.lengths), strict=True)
        for piece, target in pieces:
            logits = model(piece[None]).logits[0]
            total = total + torch.nn.functional.cross_entropy(
                logits, target, ignore_index=-100, reduction="sum"
            )
            count += int((target >= 0).sum())
    return total / count


# The second limit lies above every norm: nothing is clipped, by torch's rule too.
@pytest.mark.parametrize(("decay", "clip"), [(0.0, 0.5), (0.1, 1e3)])
def test_training_equals_a_naive_loop_over_documents(
    tiny_model: Any, tmp_path: Path, decay: float, clip: float
) -> None:
    from tests.conftest import make_tiny_model

    section = make_section(clip=clip)
    plan = make_plan(section)
    assert train(tiny_model, tmp_path, section, plan, rule=StepRule(decay)) == "done"

    naive = make_tiny_model()
    naive.set_attn_implementation("eager")
    optimiser = torch.optim.AdamW(naive.parameters(), lr=1e-3, weight_decay=decay)
    leg = plan_legs(section, plan.points)[0]
    losses, norms = [], []
    for step, batch in enumerate(plan.batches):
        loss = naive_loss(naive, batch)
        optimiser.param_groups[0]["lr"] = 1e-3 * rate_factor(section, leg, step)
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(naive.parameters(), clip)))
        optimiser.step()
        optimiser.zero_grad()
        losses.append(float(loss.detach()))
    rows = RunStore(tmp_path).metrics()
    assert all((norm > clip) == (clip == 0.5) for norm in norms)
    assert [row["gradient_norm"] for row in rows] == pytest.approx(norms, rel=1e-3)
    assert [row["loss"] for row in rows] == pytest.approx(losses, rel=1e-4)
    assert losses[-1] < losses[0]
    kept = weights(tmp_path, plan.points[-1])
    for name, parameter in naive.named_parameters():
        torch.testing.assert_close(kept[name], parameter.detach(), atol=2e-4, rtol=1e-3)


def test_the_loss_does_not_depend_on_how_a_step_is_cut_into_passes(tmp_path: Path) -> None:
    from tests.conftest import make_tiny_model

    curves = []
    for passes in (1, 2):
        section = make_section(rows_per_pass=passes)
        folder = tmp_path / str(passes)
        train(make_tiny_model(), folder, section, make_plan(section))
        curves.append([row["loss"] for row in RunStore(folder).metrics()])
    assert curves[0] == pytest.approx(curves[1], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("optimiser", "schedule"), [("adamw", "cosine"), ("lion", "trapezoidal")])
def test_killed_at_several_moments_ends_bit_identical(
    tmp_path: Path, optimiser: str, schedule: str
) -> None:
    """SIGKILL to the whole process after the n-th progress report, LoRA with dropout."""
    script = HERE / "killed_run.py"

    def run(folder: Path, kill_at: int) -> int:
        command = [sys.executable, str(script), str(folder), optimiser, schedule, str(kill_at)]
        return subprocess.run(command, capture_output=True, timeout=120, check=False).returncode

    assert run(tmp_path / "whole", 0) == 0
    for kill_at in (2, 5, 3, 4):
        assert run(tmp_path / "killed", kill_at) == -9
    assert run(tmp_path / "killed", 0) == 0
    whole, killed = RunStore(tmp_path / "whole"), RunStore(tmp_path / "killed")
    points = json.loads((whole.folder / "done.json").read_text())["points"]
    assert len(points) == 2
    for point in points:
        one, other = weights(whole.folder, point), weights(killed.folder, point)
        assert all(torch.equal(one[name], other[name]) for name in one)
    keep = ("leg", "step", "loss", "gradient_norm", "learning_rate", "tokens")
    tables = [[{k: row[k] for k in keep} for row in run.metrics()] for run in (whole, killed)]
    assert tables[0] == tables[1]
    assert not (killed.folder / "resume").exists()


class Interrupter(Silent):
    """Raises KeyboardInterrupt at the n-th report, as Ctrl-C would."""

    def __init__(self, left: int) -> None:
        self.left = left

    @contextmanager
    def bar(self, title: str, total: float, unit: str = "") -> Iterator[Interrupter]:
        """Be the bar as well."""
        yield self

    def advance(self, amount: float = 1.0) -> None:
        """Count one report."""
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt

    def note(self, text: str) -> None:
        """Nothing to show."""


def test_ctrl_c_before_the_weights_of_a_point_are_kept_does_not_lose_them(tmp_path: Path) -> None:
    from tests.conftest import make_tiny_model

    section = make_section()
    plan = make_plan(section)
    last = plan.points[-1]
    train(make_tiny_model(), tmp_path / "whole", section, plan)
    with pytest.raises(KeyboardInterrupt):
        train(make_tiny_model(), tmp_path / "cut", section, plan, progress=Interrupter(1 + last))
    assert not RunStore(tmp_path / "cut").checkpoint(last).exists()
    assert train(make_tiny_model(), tmp_path / "cut", section, plan) == "done"
    one, other = weights(tmp_path / "whole", last), weights(tmp_path / "cut", last)
    assert all(torch.equal(one[name], other[name]) for name in one)


class Validator:
    """Loss of one document as the model then is; Ctrl-C in the middle of the n-th, if asked."""

    def __init__(self, model: Any, stop_at: int = 0) -> None:
        self.model, self.stop_at, self.calls = model, stop_at, 0

    def __call__(self, loss_sum: LossSum) -> float:
        self.model.eval()
        self.calls += 1
        if self.calls == self.stop_at:
            signal.raise_signal(signal.SIGINT)
        ids = make_examples(1)[0].token_ids
        places = list(range(len(ids)))
        return loss_sum(Row(ids, [*ids[1:], -100], places, [len(ids)], [0])) / places[-1]


SAME = ("leg", "step", "loss", "gradient_norm", "learning_rate", "tokens", "validation_loss")


def table(folder: Path) -> list[dict[str, Any]]:
    """What a run's metrics say but for time and memory."""
    rows = RunStore(folder).metrics()
    return [{key: row[key] for key in SAME if key in row} for row in rows]


def test_the_next_rows_are_made_before_the_device_is_waited_for(
    tiny_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    section, done = make_section(), list[str]()
    plan = make_plan(section, (600,))

    class Watched(Sequence[list[Row]]):
        def __len__(self) -> int:
            return len(plan.batches)

        def __getitem__(self, step: Any) -> Any:
            done.append(f"rows {step}")
            return plan.batches[step]

    def gradients(self: Learner, batch: list[Row], labels: int) -> torch.Tensor:
        done.append("gradients")
        return launched(self, batch, labels)

    def clip(self: Learner) -> float:
        done.append("clip")
        return waited(self)

    launched, waited = Learner.gradients, Learner.clip
    monkeypatch.setattr(Learner, "gradients", gradients)
    monkeypatch.setattr(Learner, "clip", clip)
    assert train(tiny_model, tmp_path, section, replace(plan, batches=Watched())) == "done"
    steps = len(plan.batches)
    wanted = ["rows 0"]
    for step in range(steps):
        wanted += ["gradients", *[f"rows {step + 1}"] * (step + 1 < steps), "clip"]
    assert steps > 3 and done == wanted


def test_ctrl_c_in_a_validation_keeps_the_step_before_it(tmp_path: Path) -> None:
    from tests.conftest import make_tiny_model

    section = make_section(schedule="trapezoidal", warmup=0.0, validate_every=2)
    plan = make_plan(section, (600, 1200))

    def run(folder: Path, stop_at: int = 0) -> int:
        model = make_tiny_model()
        validator = Validator(model, stop_at)
        if stop_at:
            with pytest.raises(KeyboardInterrupt):
                train(model, folder, section, plan, validate=validator)
        else:
            assert train(model, folder, section, plan, validate=validator) == "done"
        return validator.calls

    count = run(tmp_path / "whole")
    assert count >= 5
    for stop_at in range(1, count + 1):
        folder = tmp_path / str(stop_at)
        run(folder, stop_at)
        last = table(folder)[-1]["step"]
        states = [read_json(one) for one in sorted(folder.glob("resume/*/manifest.json"))]
        # The step that was to be validated is the last, and nothing was trained in vain.
        assert last + 1 in [state["facts"]["step"] for state in states]
        assert (last + 1) % 2 == 0
        # Stopped again in the very same validation, and then not.
        run(folder, 1)
        assert run(folder) == count - stop_at + 1
        assert table(folder) == table(tmp_path / "whole")
        for point in plan.points:
            one, other = weights(tmp_path / "whole", point), weights(folder, point)
            assert all(torch.equal(one[name], other[name]) for name in one)


def test_branches_share_the_trunk_and_equal_a_run_of_their_own(tmp_path: Path) -> None:
    from tests.conftest import make_tiny_model

    section = make_section(schedule="trapezoidal", warmup=0.0)
    both, alone = make_plan(section, (600, 1200)), make_plan(section, (1200,))
    train(make_tiny_model(), tmp_path / "both", section, both)
    train(make_tiny_model(), tmp_path / "alone", section, alone)
    last = both.points[-1]
    one, other = weights(tmp_path / "both", last), weights(tmp_path / "alone", last)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_first_budget_without_a_trunk_leaves_the_next_as_it_would_be(tmp_path: Path) -> None:
    """A budget of one step is all cooldown: what follows starts from the first weights."""
    from tests.conftest import make_tiny_model

    section = make_section(schedule="trapezoidal", warmup=0.0)
    whole = make_plan(section)
    both = replace(whole, points=[1, whole.points[-1]])
    train(make_tiny_model(), tmp_path / "both", section, both)
    train(make_tiny_model(), tmp_path / "one", section, whole)
    last = whole.points[-1]
    one, other = weights(tmp_path / "one", last), weights(tmp_path / "both", last)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_divergence_is_recorded_and_not_repeated(tiny_model: Any, tmp_path: Path) -> None:
    section = make_section(clip=None)
    plan = make_plan(section)
    with torch.no_grad():
        tiny_model.model.layers[0].mlp.up_proj.weight[0, 0] = float("nan")
    assert train(tiny_model, tmp_path, section, plan) == "diverged"
    failed = json.loads((tmp_path / "failed.json").read_text())
    assert failed["kind"] == "diverged" and "learning rate 0.001 is too high" in failed["reason"]
    assert RunStore(tmp_path).state == "diverged"
    assert train(tiny_model, tmp_path, section, plan) == "diverged"


def test_worse_than_guessing_is_divergence_too(tiny_model: Any, tmp_path: Path) -> None:
    section = make_section(clip=None, optimiser="lion", warmup=0.0)
    assert train(tiny_model, tmp_path, section, make_plan(section), learning_rate=0.9) == "diverged"
    assert "guessing" in json.loads((tmp_path / "failed.json").read_text())["reason"]


def test_a_step_without_anything_to_learn_is_refused_before_training(
    tiny_model: Any, tmp_path: Path
) -> None:
    section = make_section(rows_per_pass=1)
    first, *_ = [row for batch in make_plan(section).batches for row in batch]
    silent = replace(first, labels=[-100] * len(first.labels))
    # Beside others it counts for nothing: the mean is over what is learnt.
    assert train(tiny_model, tmp_path, section, BatchPlan.of([[first, silent]], [1])) == "done"
    from tests.conftest import make_tiny_model

    ids, labels = torch.tensor(first.token_ids), torch.tensor(first.labels)
    pieces = zip(ids.split(first.lengths), labels.split(first.lengths), strict=True)
    losses = [
        torch.nn.functional.cross_entropy(make_tiny_model()(i[None]).logits[0], t, reduction="none")
        for i, t in pieces
    ]
    mean = torch.cat(losses).sum() / (labels >= 0).sum()
    assert RunStore(tmp_path).metrics()[0]["loss"] == pytest.approx(mean.item(), rel=1e-4)
    with pytest.raises(DataError, match=r"step 2 holds no token to learn.*leave its rows out"):
        train(tiny_model, tmp_path, section, BatchPlan.of([[first], [silent], [first]], [3]))


def test_budgets_become_steps() -> None:
    section = make_section()
    plan = make_plan(section, (300, 900))
    sizes = [sum(len(row.token_ids) for row in batch) for batch in plan.batches]
    again = BatchPlan.of(list(plan.batches), plan.points)
    assert list(plan.tokens) == again.tokens and list(plan.supervised) == again.supervised
    for goal, step in zip((300, 900), plan.points, strict=True):
        assert sum(sizes[:step]) >= goal > sum(sizes[: step - 1])
    examples = make_examples()
    fitted = fit(examples, section.row_tokens)
    epochs = plan_batches(examples, fitted, section, BudgetSection(epochs=[1, 2]), seed=0)
    first = [epochs.batches[step] for step in range(epochs.points[0])]
    assert sorted(e for batch in first for row in batch for e in row.examples) == list(range(40))
    with pytest.raises(IndexError):
        epochs.batches[epochs.points[1]]
    with pytest.raises(DataError, match="fall on steps"):
        make_plan(section, (300, 301))


def test_flops_of_a_step_are_counted_from_shapes(tiny_model: Any) -> None:
    row = Row([5] * 10, [7] * 4 + [-100] * 6, list(range(10)), [10], [0])
    layers = 2 * (64 * 64 * 2 + 2 * 64 * 32 + 3 * 64 * 128)
    pairs = 55 * 3 * 4 * (4 * 16 * 2)
    full = step_flops(count_work(tiny_model), [row])
    assert full == 10 * 6 * layers + 4 * 6 * 64 * 512 + pairs
    attach(tiny_model, LoraSettings(rank=4, targets=("q_proj",)), seed=0)
    lora = step_flops(count_work(tiny_model), [row])
    assert lora == 10 * (4 * layers + 6 * 2 * 4 * 128) + 4 * 4 * 64 * 512 + pairs
    detach(tiny_model)
    attach(tiny_model, LoraSettings(rank=4, targets=("q_proj",), layers=(1,)), seed=0)
    upper = step_flops(count_work(tiny_model), [row])
    # The lower layer is passed forwards only: one product instead of two, one pass of three.
    assert upper == 10 * (3 * layers + 6 * 4 * 128) + 4 * 4 * 64 * 512 + pairs * 2 // 3
    detach(tiny_model)
    attach(tiny_model, LoraSettings(rank=4, targets=("q_proj",), pissa=True), seed=0)
    start = step_flops(count_work(tiny_model), [row])
    assert start == lora + 10 * 4 * 2 * 4 * 128


def test_inputs_of_a_pass_join_rows_without_padding() -> None:
    rows = [Row([1, 2], [2, -100], [0, 1], [2], [0]), Row([3], [-100], [0], [1], [1])]
    inputs, labels = model_inputs(rows, torch.device("cpu"))
    assert inputs["input_ids"].tolist() == [[1, 2, 3]]
    assert inputs["position_ids"].tolist() == [[0, 1, 0]]
    assert inputs["documents"].lengths == [2, 1]
    assert labels.tolist() == [2, -100, -100]


def test_ctrl_c_keeps_the_last_step_and_the_run_goes_on_from_it(tmp_path: Path) -> None:
    from tests.conftest import make_tiny_model

    section = make_section()
    plan = make_plan(section)
    train(make_tiny_model(), tmp_path / "whole", section, plan)
    with pytest.raises(KeyboardInterrupt):
        train(make_tiny_model(), tmp_path / "cut", section, plan, progress=Interrupter(5))
    state = json.loads((tmp_path / "cut/resume/main/manifest.json").read_text())
    assert state["facts"]["step"] == 4  # the first report greets, four steps were taken
    model = make_tiny_model()
    train(model, tmp_path / "cut", section, plan)
    last = plan.points[-1]
    one, other = weights(tmp_path / "whole", last), weights(tmp_path / "cut", last)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_damaged_state_is_refused(tiny_model: Any, tmp_path: Path) -> None:
    section = make_section()
    plan = make_plan(section)
    train(tiny_model, tmp_path / "a", section, plan)
    parameters = dict(tiny_model.named_parameters())
    optimiser = torch.optim.AdamW(parameters.values())
    write_state(tmp_path / "state", state_tensors(parameters, optimiser), {"step": 1})
    path = tmp_path / "state" / "state.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"does not match its SHA-256.*same command"):
        read_state(tmp_path / "state", parameters)
