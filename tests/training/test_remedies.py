"""Remedies: their formulas in plain autograd over all logits, naive runs, and one from outside."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from laura.models.adapters import attach
from laura.models.layers import dropping
from laura.models.lora import LoraSettings
from laura.models.losses import (
    CHUNK_POSITIONS,
    CROSS_ENTROPY,
    BaseLosses,
    BaseStates,
    Objective,
    loss_sum,
)
from laura.models.reference import BaseBeside
from laura.recipe.reading import parse_recipe
from laura.recipe.remedies import AVERAGES, PACES, PENALTIES, PLACES, TOKEN_WEIGHTS, Remedy
from laura.recipe.sections import AnyArm, FullArm, LoraArm
from laura.results.store import RunStore
from laura.training.cohort import Together
from laura.training.learner import model_inputs
from laura.training.optimisers import STANDARD
from laura.training.penalties.clora import COLUMNS, pull
from laura.training.remedies import objective_of, rule_of
from laura.training.schedules import plan_legs, rate_factor
from laura.training.token_weights.eaft import largest
from tests.conftest import make_tiny_model
from tests.models.test_losses import distance, material
from tests.recipe.test_reading import GOOD, faults_of
from tests.training.test_cohort import RATES, apart, assert_equal, together
from tests.training.test_loop import Interrupter, make_plan, make_section, table, train, weights

RANK = 4


@dataclass
class Piece:
    """The learnt positions of one document, and the median over documents of the base's loss."""

    logits: Tensor
    targets: Tensor
    base: Tensor
    median: float = 1.0

    @property
    def base_nats(self) -> Tensor:
        return functional.cross_entropy(self.base, self.targets, reduction="none")


def dft(piece: Piece, strength: float) -> Tensor:
    """TRL's: exp of the log-probability."""
    chosen = piece.logits.log_softmax(-1).gather(1, piece.targets[:, None])[:, 0]
    return (strength * chosen).exp()


def eaft(piece: Piece, strength: float) -> Tensor:
    """Entropy of the softmax over the twenty highest logits alone."""
    likeliest = torch.distributions.Categorical(logits=piece.logits.topk(20).values)
    entropy: Tensor = likeliest.entropy() / math.log(20)
    return entropy**strength


def stm(piece: Piece, strength: float) -> Tensor:
    """Perplexities above the paper's c are dropped."""
    return (piece.base_nats.exp() <= 1 / strength).float()


def flow(piece: Piece, strength: float) -> Tensor:
    return torch.exp(-strength * piece.base_nats.mean() / piece.median).expand(len(piece.targets))


def kl(piece: Piece) -> Tensor:
    """torch's, whose first argument is the second of the divergence."""
    ours, base = piece.logits.log_softmax(-1), piece.base.log_softmax(-1)
    return functional.kl_div(ours, base, log_target=True, reduction="sum")


def kl_reverse(piece: Piece) -> Tensor:
    ours, base = piece.logits.log_softmax(-1), piece.base.log_softmax(-1)
    return functional.kl_div(base, ours, log_target=True, reduction="sum")


Weights = Callable[[Piece, float], Tensor]
TALR: Weights = dft  # and a mean of 1
WEIGHTS: dict[str, Weights] = {"dft": dft, "eaft": eaft, "talr": TALR, "stm": stm, "flow": flow}
DIVERGENCES = {"kl": kl, "kl_reverse": kl_reverse}
# The tiny base gives a token some 1/512; below the paper's strengths something is left.
ARMS: dict[str, dict[str, Any]] = {
    "dft": {"token_weight": "dft"},
    "dft-half": {"token_weight": "dft", "token_weight_strength": 0.5},
    "eaft": {"token_weight": "eaft", "token_weight_strength": 8.0},
    "talr": {"token_weight": "talr"},
    "stm": {"token_weight": "stm", "token_weight_strength": 0.001},
    "flow": {"token_weight": "flow", "token_weight_strength": 3.0},
    "kl": {"penalty": "kl", "penalty_strength": 2.0},
    "kl_reverse": {"penalty": "kl_reverse", "penalty_strength": 2.0},
    "asft": {"token_weight": "dft", "penalty": "kl"},
    "everything": {"token_weight": "flow", "penalty": "kl_reverse", "penalty_strength": 0.5},
}


def make_arm(method: str, **fields: Any) -> AnyArm:
    return (
        FullArm(method="full", **fields) if method == "full" else LoraArm(method="lora", **fields)
    )


def naive_step(model: Any, base: Any, batch: Any, arm: AnyArm, middle: float) -> tuple[Any, Any]:
    """Mean cross-entropy of a step, and what is followed, by all logits of every document."""
    plain, followed, added, count, total = torch.zeros(()), torch.zeros(()), 0.0, 0, 0.0
    weight, penalty = arm.remedy("token_weight"), arm.remedy("penalty")
    for row in batch:
        ids, labels = torch.tensor(row.token_ids), torch.tensor(row.labels)
        for piece, target in zip(ids.split(row.lengths), labels.split(row.lengths), strict=True):
            learnt = target >= 0
            with torch.no_grad():
                before = base(piece[None]).logits[0][learnt]
            seen = Piece(model(piece[None]).logits[0][learnt], target[learnt], before, middle)
            nats = functional.cross_entropy(seen.logits, seen.targets, reduction="none")
            factors = torch.ones(len(nats))
            if weight:
                factors = WEIGHTS[str(arm.token_weight)](seen, weight[1]).detach()
            if penalty and arm.penalty in DIVERGENCES:
                added = added + penalty[1] * DIVERGENCES[arm.penalty](seen)
            plain, followed = plain + nats.sum(), followed + (factors * nats).sum()
            count, total = count + len(nats), total + float(factors.sum())
    over = total if arm.token_weight == "talr" else count
    return plain / count, followed / over + added / count


def naive_median(base: Any, plan: Any) -> float:
    """Over every document of the run, of which there are fewer than are asked for."""
    found = []
    for row in (row for batch in plan.batches for row in batch):
        ids, labels = torch.tensor(row.token_ids), torch.tensor(row.labels)
        for piece, target in zip(ids.split(row.lengths), labels.split(row.lengths), strict=True):
            if (target >= 0).any():
                logits = base(piece[None]).logits[0].detach()
                found.append(float(functional.cross_entropy(logits, target)))
    return median(found)


def naive_run(section: Any, plan: Any, arm: AnyArm) -> tuple[Any, list[float]]:
    """A loop over documents in plain autograd: the model, and its losses."""
    model, base, losses = tiny_for(arm), make_tiny_model(), []
    for one in (model, base):
        one.set_attn_implementation("eager")
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=1e-3, weight_decay=0)
    leg, middle = plan_legs(section, plan.points)[0], naive_median(base, plan)
    for step, batch in enumerate(plan.batches):
        optimiser.param_groups[0]["lr"] = 1e-3 * rate_factor(section, leg, step)
        plain, followed = naive_step(model, base, batch, arm, middle)
        followed.backward()
        torch.nn.utils.clip_grad_norm_(trained, section.clip)
        optimiser.step()
        optimiser.zero_grad()
        losses.append(float(plain.detach()))
    return model, losses


def tiny_for(arm: AnyArm) -> Any:
    """The tiny model as an arm begins with it."""
    model = make_tiny_model()
    if isinstance(arm, LoraArm):
        attach(model, LoraSettings(rank=RANK), seed=7)
        with torch.no_grad():  # a B of zero would hide what a penalty does to A
            for name, parameter in model.named_parameters():
                if name.endswith(".B"):
                    torch.manual_seed(len(name))
                    parameter.normal_(std=0.05)
    return model


def train_arm(folder: Path, arm: AnyArm, section: Any, plan: Any, **changes: Any) -> str:
    return train(
        tiny_for(arm), folder, section, plan,
        objective=objective_of(arm), rule=rule_of(arm, STANDARD), **changes,
    )  # fmt: skip


def assert_run_is_naive(folder: Path, arm: AnyArm, length: int) -> None:
    section = make_section(clip=0.5)
    plan = make_plan(section, (length,))
    assert train_arm(folder, arm, section, plan) == "done"
    naive, losses = naive_run(section, plan, arm)
    found = [row["loss"] for row in RunStore(folder).metrics()]
    assert found == pytest.approx(losses, rel=1e-4)
    kept = weights(folder, plan.points[-1])
    assert kept
    for name, parameter in naive.named_parameters():
        if name in kept:
            torch.testing.assert_close(kept[name], parameter.detach(), atol=2e-4, rtol=1e-3)


def assert_same_bits(one: Path, other: Path, step: int) -> None:
    found, wanted = weights(one, step), weights(other, step)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert table(one) == table(other)


def test_every_remedy_of_the_tables_has_a_reference_here() -> None:
    assert set(WEIGHTS) == set(TOKEN_WEIGHTS)
    assert {*DIVERGENCES, "clora"} == set(PENALTIES)
    assert {"finch"} == set(PACES)
    assert {"ema", "bema"} == set(AVERAGES)


def base_material(count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(count + 1)
    hidden, head, _ = material(count)
    return hidden.detach() + torch.randn(hidden.shape, generator=generator), head.weight.detach()


@pytest.mark.parametrize("name", ARMS)
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 2e-6), (torch.bfloat16, 1e-2)])
def test_gradients_are_those_of_the_formula(name: str, dtype: torch.dtype, limit: float) -> None:
    count = 2 * CHUNK_POSITIONS + 3
    hidden, head, labels = material(count)
    base_hidden, base_head = base_material(count)
    arm = make_arm("full", **ARMS[name])
    wide = hidden.detach().double().requires_grad_()
    table = head.weight.detach().double().requires_grad_()
    # A bf16 logit is rounded by a hundredth, and its probability with it: by the formula too.
    logits = (wide.to(dtype) @ table.to(dtype).T).double()
    base = (base_hidden.to(dtype) @ base_head.to(dtype).T).double()
    seen = Piece(logits, labels, base, 2.0)
    nats = functional.cross_entropy(logits, labels, reduction="none")
    followed, weight, penalty = nats, arm.remedy("token_weight"), arm.remedy("penalty")
    if weight:
        followed = WEIGHTS[str(arm.token_weight)](seen, weight[1]).detach() * nats
    goal = followed.sum()
    if penalty:
        goal = goal + penalty[1] * DIVERGENCES[str(arm.penalty)](seen)
    goal.backward()
    means = seen.base_nats.mean().expand(count).float()
    losses = BaseLosses(seen.base_nats.float(), means, 2.0)
    states = BaseStates(base_hidden.to(dtype), torch.nn.Linear(1, 1), base_head.to(dtype), losses)
    ours = loss_sum(hidden, head, labels, dtype, objective_of(arm), states)
    ours.backward()
    # What is told is the plain loss, weighted or not.
    assert float(ours.detach()) == pytest.approx(float(nats.detach().sum()), rel=limit)
    assert wide.grad is not None and table.grad is not None
    assert float(wide.grad.norm()) > 0
    assert distance(hidden.grad, wide.grad) <= limit
    assert distance(head.weight.grad, table.grad) <= limit


@pytest.mark.parametrize("name", ARMS)
def test_a_run_equals_a_naive_one(tmp_path: Path, name: str) -> None:
    assert_run_is_naive(tmp_path, make_arm("full", **ARMS[name]), 1000)


@pytest.mark.parametrize("name", ["talr", "stm", "flow", "kl", "everything"])
def test_with_adapters_the_base_is_the_model_without_them(tmp_path: Path, name: str) -> None:
    assert_run_is_naive(tmp_path, make_arm("lora", rank=RANK, **ARMS[name]), 600)


def test_clora_is_its_formula(tmp_path: Path) -> None:
    """By autograd on |A P|^2 + |B^T P|^2, in a run of one step without a schedule."""
    arm = make_arm("lora", rank=RANK, penalty="clora", penalty_strength=3.0)
    section = make_section(clip=None, warmup=0.0, schedule="constant")
    plan = make_plan(section, (100,))
    naive, base = tiny_for(arm), make_tiny_model()
    plain, followed = naive_step(naive, base, plan.batches[0], arm, 1.0)
    norm, columns = torch.zeros(()), {}
    for name, parameter in naive.named_parameters():
        if parameter.requires_grad:
            matrix = parameter[0] if name.endswith(".A") else parameter[0].T
            width = matrix.shape[1]
            # The projector that `pull` stands for, read off the unit vectors.
            eye = torch.eye(width)[None]
            projector = pull("x.A", eye)
            assert projector is not None
            columns[width] = projector[0]
            norm = norm + (matrix @ columns[width]).square().sum()
    for width, projector in columns.items():
        torch.testing.assert_close(projector @ projector, projector, atol=1e-5, rtol=0)
        assert float(projector.trace()) == pytest.approx(min(COLUMNS, width // 2), abs=1e-3)
    (followed + 3.0 / 2 * norm).backward()
    optimiser = torch.optim.AdamW([p for p in naive.parameters() if p.requires_grad], lr=1e-3,
                                  weight_decay=0)  # fmt: skip
    optimiser.step()
    assert train_arm(tmp_path, arm, section, plan) == "done"
    (row,) = RunStore(tmp_path).metrics()
    assert row["loss"] == pytest.approx(float(plain.detach()), rel=1e-5)
    kept = weights(tmp_path, 1)
    for name, parameter in naive.named_parameters():
        if name in kept:
            torch.testing.assert_close(kept[name], parameter.detach(), atol=2e-6, rtol=1e-5)


def test_at_strength_0_an_arm_is_the_plain_one() -> None:
    for place, remedies in PLACES.items():
        for name in remedies:
            arm = make_arm("lora", **{place: name, f"{place}_strength": 0.0})
            assert objective_of(arm) == CROSS_ENTROPY and rule_of(arm, STANDARD) == STANDARD
            assert not arm.reads_base
            used = make_arm("lora", **{place: name})
            assert (objective_of(used), rule_of(used, STANDARD)) != (CROSS_ENTROPY, STANDARD)


def test_weights_of_one_and_a_penalty_of_nothing_change_no_bit(tmp_path: Path) -> None:
    section, arm = make_section(), make_arm("lora", rank=RANK)
    plan = make_plan(section)
    ones = Objective(lambda tokens: torch.ones(len(tokens.targets_N)), normalised=True)
    nothing = replace(objective_of(make_arm("lora", penalty="kl")), strength=0.0)
    train_arm(tmp_path / "plain", arm, section, plan)
    for name, objective in (("ones", ones), ("nothing", nothing)):
        train(tiny_for(arm), tmp_path / name, section, plan, objective=objective)
        wanted = table(tmp_path / "plain")
        assert_same_bits(tmp_path / name, tmp_path / "plain", plan.points[-1])
        assert table(tmp_path / name) == wanted


@pytest.mark.parametrize("name", ["everything", "clora"])
def test_a_cohort_takes_the_arms_remedies(tmp_path: Path, name: str) -> None:
    section = make_section(cohort=3)
    plan = make_plan(section)
    arm = make_arm("lora", **ARMS.get(name, {"penalty": "clora"}))
    ways = {"objective": objective_of(arm), "rule": rule_of(arm, STANDARD)}
    together(tmp_path / "together", section, plan, **ways)
    apart(tmp_path / "apart", section, plan, **ways)
    apart(tmp_path / "plain", section, plan)
    assert_equal(tmp_path / "together", tmp_path / "apart")
    with pytest.raises(AssertionError):
        assert_equal(tmp_path / "apart", tmp_path / "plain")


@pytest.mark.parametrize("name", ["talr", "everything"])
def test_runs_that_share_their_passes_take_them_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Weights have a mean for each run; the base is passed once for all."""
    monkeypatch.setattr("laura.training.run.gradients_for", Together)
    seen: list[int] = []
    hidden = BaseBeside.hidden

    def counted(self: BaseBeside, inputs: dict[str, Any]) -> Tensor:
        seen.append(len(inputs["input_ids"]))
        return hidden(self, inputs)

    monkeypatch.setattr(BaseBeside, "hidden", counted)
    section = make_section(cohort=3)
    plan, arm = make_plan(section), make_arm("lora", **ARMS[name])
    ways = {"objective": objective_of(arm), "rule": rule_of(arm, STANDARD)}
    together(tmp_path / "together", section, plan, **ways)
    passes = len(seen)
    apart(tmp_path / "apart", section, plan, **ways)
    apart(tmp_path / "plain", section, plan)
    assert set(seen) <= {1} and 3 * passes == len(seen) - passes
    for rate in RATES:
        rows = {way: RunStore(tmp_path / way / str(rate)).metrics()
                for way in ("together", "apart", "plain")}  # fmt: skip
        losses = {way: [row["loss"] for row in found] for way, found in rows.items()}
        norms = {way: [row["gradient_norm"] for row in found] for way, found in rows.items()}
        assert losses["together"] == pytest.approx(losses["apart"], rel=1e-4)
        assert norms["together"] == pytest.approx(norms["apart"], rel=1e-3)
        assert norms["together"][-1] != pytest.approx(norms["plain"][-1], rel=1e-3)


def test_no_bit_changes_where_layers_are_passed_once_more(tmp_path: Path) -> None:
    arm = make_arm("lora", rank=RANK, **ARMS["everything"])
    for method in (arm, make_arm("full", **ARMS["everything"])):
        for folder, recompute in (("again", True), ("kept", False)):
            section = make_section(recompute=recompute)
            plan = make_plan(section, (600,))
            train_arm(tmp_path / method.method / folder, method, section, plan)  # type: ignore[attr-defined]
        one = tmp_path / method.method  # type: ignore[attr-defined]
        assert_same_bits(one / "again", one / "kept", plan.points[-1])


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_run_that_was_stopped_ends_as_one_that_was_not(tmp_path: Path, method: str) -> None:
    """What it compares with is the base as before its first step, whenever it goes on."""
    arm = make_arm(method, token_weight="stm", penalty="kl", average="bema", pace="finch")
    section = make_section(validate_every=2)
    plan = make_plan(section, (600, 1200))
    train_arm(tmp_path / "whole", arm, section, plan)
    for stop in (3, 4):
        with pytest.raises(KeyboardInterrupt):
            train_arm(tmp_path / "cut", arm, section, plan, progress=Interrupter(stop))
    assert train_arm(tmp_path / "cut", arm, section, plan) == "done"
    for step in plan.points:
        assert_same_bits(tmp_path / "cut", tmp_path / "whole", step)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_base_beside_drops_nothing_and_stays_as_it_was(method: str) -> None:
    arm = make_arm(method, rank=RANK) if method == "lora" else make_arm(method)
    model, plan = tiny_for(arm), make_plan(make_section())
    inputs, _ = model_inputs(plan.batches[0], torch.device("cpu"))
    with torch.no_grad():
        wanted = make_tiny_model().get_decoder()(**inputs, use_cache=False).last_hidden_state[0]
        with dropping(model, 0.5, 0.5):
            base = BaseBeside(model)
            model.train()
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(1)
            state = torch.get_rng_state()
            assert torch.equal(base.hidden(inputs), wanted)
            assert torch.equal(torch.get_rng_state(), state)
            assert all(module.training for module in model.modules())


def test_a_copy_of_the_base_shares_what_is_frozen() -> None:
    model = make_tiny_model().requires_grad_(False)
    model.model.layers[1].requires_grad_(True)
    own = {p.data_ptr() for p in model.parameters()}
    copied = BaseBeside(model).model
    apart_from = {name for name, p in copied.named_parameters() if p.data_ptr() not in own}
    assert apart_from == {
        f"model.layers.1.{n}" for n, _ in model.model.layers[1].named_parameters()
    }
    assert not any(p.requires_grad for p in copied.parameters())


def test_arms_without_one_keep_the_ids_of_their_runs() -> None:
    plain = parse_recipe(GOOD).arms["full"]
    assert not any(place in key for place in PLACES for key in plain.identity())
    weighed = parse_recipe(GOOD, ["arms.full.token_weight=dft"]).arms["full"]
    assert weighed.identity() == plain.identity() | {"token_weight": "dft"}


def test_one_from_outside_is_a_file_and_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The recipe takes its name, and the run is the naive loop's."""
    (tmp_path / "only_the_surprising.py").write_text(
        "def weights(tokens, strength):\n"
        "    chosen = tokens.probabilities_NV.gather(1, tokens.targets_N[:, None])[:, 0]\n"
        "    return (chosen < strength).float()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(TOKEN_WEIGHTS, "surprising", Remedy("only_the_surprising", 0.002))
    monkeypatch.setitem(WEIGHTS, "surprising", lambda piece, s: (dft(piece, 1.0) < s).float())
    recipe = parse_recipe(GOOD, ["arms.full.token_weight=surprising"])
    assert recipe.arms["full"].remedy("token_weight") == (
        Remedy("only_the_surprising", 0.002),
        0.002,
    )
    assert_run_is_naive(tmp_path / "run", recipe.arms["full"], 1200)


def test_faults_are_told_together_before_torch_is_needed() -> None:
    faults = faults_of(
        GOOD,
        (
            "arms.full.token_weight=dtf",
            "arms.lora.token_weight=1",
            "arms.lora.penalty_strength=-0.1",
        ),
    )
    assert "did you mean dft?" in faults["arms.full.token_weight"]
    assert "dft, eaft, talr, stm, flow, or null" in faults["arms.full.token_weight"]
    assert "arms.lora.token_weight" in faults
    assert "greater than or equal to 0" in faults["arms.lora.penalty_strength"]
    faults = faults_of(
        GOOD,
        (
            "arms.full.penalty=clora",
            "arms.lora.penalty_strength=0.1",
            "arms.lora.token_weight=stm",
            "arms.lora.token_weight_strength=2.5",
            "arms.lora.average=ema",
            "train.devices=2",
            "train.schedule=trapezoidal",
        ),
    )
    assert set(faults) == {
        "arms.full.penalty", "arms.lora.penalty_strength", "arms.lora.token_weight",
        "arms.lora.token_weight_strength", "arms.lora.average",
    }  # fmt: skip
    assert "none in full finetuning" in faults["arms.full.penalty"]
    assert "the arm has no penalty" in faults["arms.lora.penalty_strength"]
    assert "at most 1 with token_weight: stm" in faults["arms.lora.token_weight_strength"]
    assert "train.devices: 2" in faults["arms.lora.token_weight"]
    assert "forks one trunk into branches" in faults["arms.lora.average"]


def test_an_arm_that_is_wrong_hides_no_other() -> None:
    """Not what pydantic finds, nor what a grid or `after` makes, nor what does not go together."""
    faults = faults_of(
        GOOD,
        (
            "arms.lora.after={'scale': [0.5, 0.5]}",
            "arms.typo={'method': 'full', 'token_weigth': 'dft'}",
            "arms.griddy={'method': 'lora', 'grid': {'rank': [4, 4]}}",
            "arms.strong={'method': 'full', 'token_weight': 'stm', 'token_weight_strength': 2}",
            "arms.spread={'method': 'full', 'average': 'ema'}",
            "arms.changed={'method': 'lora', 'of': 'lora', 'change': 'scale', 'factor': 0.5}",
            "arms.twice={'method': 'full', 'token_weight': 'talr', 'penalty': 'kl'}",
            "arms.begun={'method': 'lora', 'init': 'milora', 'penalty': 'clora'}",
            "train.schedule=trapezoidal",
        ),
    )
    assert {path.split(".")[1] for path in faults} == {
        "lora", "typo", "griddy", "strong", "spread", "twice", "begun",
    }  # fmt: skip
    assert "mean weight of a step" in faults["arms.twice.penalty"]
    assert "begin as parts of the weight" in faults["arms.begun.penalty"]


def test_a_grid_goes_over_a_strength() -> None:
    recipe = parse_recipe(GOOD, ["arms.lora.penalty=kl", "arms.lora.grid.penalty_strength=[0,0.3]"])
    assert [arm for arm in recipe.arms if arm.startswith("lora")] == [
        "lora-penalty_strength-0", "lora-penalty_strength-0.3",
    ]  # fmt: skip
    assert [recipe.arms[arm].reads_base for arm in recipe.arms] == [False, True, False]


# ----- paces and averages -----


def test_finch_slows_steps_that_surprise(tmp_path: Path) -> None:
    section = make_section(schedule="constant", warmup=0.0)
    plan = make_plan(section)
    train_arm(tmp_path, make_arm("full", pace="finch"), section, plan, learning_rate=1e-2)
    rows = table(tmp_path)
    assert [row["learning_rate"] for row in rows] == pytest.approx(
        [1e-2 / math.sqrt(row["loss"]) for row in rows]
    )
    naive, optimiser = make_tiny_model(), None
    optimiser = torch.optim.AdamW(naive.parameters(), lr=1.0, weight_decay=0)
    for batch in plan.batches:
        plain, followed = naive_step(naive, make_tiny_model(), batch, make_arm("full"), 1.0)
        followed.backward()
        torch.nn.utils.clip_grad_norm_(naive.parameters(), section.clip)
        optimiser.param_groups[0]["lr"] = 1e-2 * float(plain.detach()) ** -0.5
        optimiser.step()
        optimiser.zero_grad()
    kept = weights(tmp_path, plan.points[-1])
    for name, parameter in naive.named_parameters():
        torch.testing.assert_close(kept[name], parameter.detach(), atol=3e-4, rtol=1e-3)


@pytest.mark.parametrize(("name", "optimiser"), [("ema", "adamw"), ("bema", "lion")])
def test_averages_are_of_the_weights_after_each_step(
    tmp_path: Path, name: str, optimiser: str
) -> None:
    """Against a plain run whose weights are kept after every step."""
    arm = make_arm("full", average=name, **({"average_strength": 0.8} if name == "ema" else {}))
    section = make_section(schedule="constant", optimiser=optimiser)
    plan = make_plan(section)
    every = replace(plan, points=list(range(1, plan.points[-1] + 1)))
    train_arm(tmp_path / "plain", make_arm("full"), section, every)
    begun = {n: p.detach().clone() for n, p in make_tiny_model().named_parameters()}
    average, last = dict(begun), plan.points[-1]
    for step in every.points:
        now = weights(tmp_path / "plain", step)
        share = 0.2 if name == "ema" else (10 + step) ** -0.5
        average = {n: (1 - share) * average[n] + share * now[n] for n in now}
    if name == "bema":
        lead = (10 + last) ** -0.2
        average = {n: average[n] + lead * (now[n] - begun[n]) for n in now}
    train_arm(tmp_path / "average", arm, section, plan)
    kept = weights(tmp_path / "average", last)
    for key, wanted in average.items():
        torch.testing.assert_close(kept[key], wanted, atol=1e-6, rtol=1e-5)
    # What is trained goes on from its own weights, whatever is kept.
    assert [row["loss"] for row in table(tmp_path / "average")] == [
        row["loss"] for row in table(tmp_path / "plain")
    ]


def test_validation_sees_what_is_kept(tmp_path: Path) -> None:
    arm, section = make_arm("lora", rank=RANK, average="ema"), make_section(validate_every=1)
    plan, model = make_plan(section), tiny_for(arm)
    seen: list[dict[str, Tensor]] = []

    def validate(_: Any) -> float:
        model.eval()
        seen.append({n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad})
        return 1.0

    train(model, tmp_path, section, plan, rule=rule_of(arm, STANDARD), validate=validate)
    kept = weights(tmp_path, plan.points[-1])
    assert all(torch.equal(seen[-1][name], tensor) for name, tensor in kept.items())
    live = {n: p.detach() for n, p in model.named_parameters() if n in kept}
    assert not any(torch.equal(live[name], tensor) for name, tensor in kept.items())


@pytest.mark.parametrize("name", ["ema", "bema"])
def test_a_cohort_keeps_an_average_for_each_run(tmp_path: Path, name: str) -> None:
    section = make_section(cohort=3)
    plan, rule = make_plan(section), rule_of(make_arm("lora", average=name), STANDARD)
    together(tmp_path / "together", section, plan, rule=rule)
    apart(tmp_path / "apart", section, plan, rule=rule)
    assert_equal(tmp_path / "together", tmp_path / "apart")


@pytest.mark.parametrize("words", [1, 19, 512, 20 * 64 + 64, 5000, 49_152])
def test_the_largest_of_a_long_row_are_those_of_topk(words: int) -> None:
    drawn = torch.randn(7, words, generator=torch.Generator().manual_seed(0))
    ties, crowded, late = (drawn * 2).round(), drawn.clone(), drawn.clone()
    crowded[:, :20] = 9.0  # all in one stretch
    late[:, -5:] = 9.0  # behind the last whole one
    for values in (drawn, ties, crowded, late):
        count = min(20, words)
        found = largest(values, count).sort(1, descending=True).values
        assert torch.equal(found, values.topk(count).values)
