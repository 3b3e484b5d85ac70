"""Token weights: their formulas in plain autograd, naive runs, and one from outside."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from laura.models.losses import CHUNK_POSITIONS, loss_sum
from laura.recipe.reading import parse_recipe
from laura.recipe.token_weights import TOKEN_WEIGHTS
from laura.results.store import RunStore
from laura.training.cohort import Together
from laura.training.schedules import plan_legs, rate_factor
from laura.training.token_weights import load_token_weights
from tests.conftest import make_tiny_model
from tests.models.test_losses import distance, material
from tests.recipe.test_reading import GOOD, faults_of
from tests.training.test_cohort import RATES, apart, assert_equal, together
from tests.training.test_loop import make_plan, make_section, table, train, weights

Reference = Callable[[Tensor, Tensor], Tensor]


def dft(logits: Tensor, targets: Tensor) -> Tensor:
    """TRL's: exp of the log-probability."""
    return logits.log_softmax(-1).gather(1, targets[:, None])[:, 0].exp()


def eaft(logits: Tensor, targets: Tensor) -> Tensor:
    """Entropy of the softmax over the twenty highest logits alone."""
    likeliest = torch.distributions.Categorical(logits=logits.topk(20).values)
    entropy: Tensor = likeliest.entropy()
    return entropy / math.log(20)


REFERENCES: dict[str, Reference] = {"dft": dft, "eaft": eaft}


def naive_losses(model: Any, batch: Any, reference: Reference) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy of a step, and the weighted mean that is followed."""
    plain, followed, count = torch.zeros(()), torch.zeros(()), 0
    for row in batch:
        ids, labels = torch.tensor(row.token_ids), torch.tensor(row.labels)
        for piece, target in zip(ids.split(row.lengths), labels.split(row.lengths), strict=True):
            learnt = target >= 0
            logits, target = model(piece[None]).logits[0][learnt], target[learnt]
            nats = torch.nn.functional.cross_entropy(logits, target, reduction="none")
            plain = plain + nats.sum()
            followed = followed + (reference(logits, target).detach() * nats).sum()
            count += int(learnt.sum())
    return plain / count, followed / count


def naive_run(section: Any, plan: Any, reference: Reference) -> tuple[Any, list[float]]:
    """A loop over documents in plain autograd: the model, and its losses."""
    model, losses = make_tiny_model(), []
    model.set_attn_implementation("eager")
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0)
    leg = plan_legs(section, plan.points)[0]
    for step, batch in enumerate(plan.batches):
        optimiser.param_groups[0]["lr"] = 1e-3 * rate_factor(section, leg, step)
        plain, followed = naive_losses(model, batch, reference)
        followed.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), section.clip)
        optimiser.step()
        optimiser.zero_grad()
        losses.append(float(plain.detach()))
    return model, losses


def assert_run_is_naive(folder: Path, reference: Reference, name: str, length: int) -> None:
    section = make_section()
    plan = make_plan(section, (length,))
    chosen = load_token_weights(name)
    model = make_tiny_model()
    assert train(model, folder, section, plan, token_weights=chosen) == "done"
    naive, losses = naive_run(section, plan, reference)
    found = [row["loss"] for row in RunStore(folder).metrics()]
    assert found == pytest.approx(losses, rel=1e-4)
    kept = weights(folder, plan.points[-1])
    for parameter_name, parameter in naive.named_parameters():
        torch.testing.assert_close(kept[parameter_name], parameter.detach(), atol=2e-4, rtol=1e-3)


def test_every_token_weight_has_a_reference_here() -> None:
    assert set(REFERENCES) == set(TOKEN_WEIGHTS)


@pytest.mark.parametrize("name", REFERENCES)
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 2e-6), (torch.bfloat16, 1e-2)])
def test_gradients_are_those_of_the_formula(name: str, dtype: torch.dtype, limit: float) -> None:
    hidden, head, labels = material(2 * CHUNK_POSITIONS + 3)
    wide = hidden.detach().double().requires_grad_()
    table = head.weight.detach().double().requires_grad_()
    # A bf16 logit is rounded by a hundredth, and its probability with it: by the formula too.
    logits = (wide.to(dtype) @ table.to(dtype).T).double()
    nats = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    (REFERENCES[name](logits, labels).detach() * nats).sum().backward()
    ours = loss_sum(hidden, head, labels, dtype, load_token_weights(name))
    ours.backward()
    # What is told is the plain loss, weighted or not.
    assert float(ours.detach()) == pytest.approx(float(nats.detach().sum()), rel=limit)
    assert wide.grad is not None and table.grad is not None
    assert distance(hidden.grad, wide.grad) <= limit
    assert distance(head.weight.grad, table.grad) <= limit


@pytest.mark.parametrize("name", REFERENCES)
def test_a_run_equals_a_naive_one(tmp_path: Path, name: str) -> None:
    assert_run_is_naive(tmp_path, REFERENCES[name], name, 3600)


def test_weights_of_one_change_no_bit(tmp_path: Path) -> None:
    section = make_section()
    plan = make_plan(section)
    for folder, chosen in (("plain", None), ("ones", lambda _, targets: torch.ones(len(targets)))):
        train(make_tiny_model(), tmp_path / folder, section, plan, token_weights=chosen)
    plain, ones = (weights(tmp_path / folder, plan.points[-1]) for folder in ("plain", "ones"))
    assert all(torch.equal(plain[name], ones[name]) for name in plain)
    assert table(tmp_path / "plain") == table(tmp_path / "ones")


def test_a_cohort_takes_the_arms_weights(tmp_path: Path) -> None:
    section = make_section(cohort=3)
    plan = make_plan(section)
    chosen = load_token_weights("dft")
    together(tmp_path / "together", section, plan, token_weights=chosen)
    apart(tmp_path / "apart", section, plan, token_weights=chosen)
    apart(tmp_path / "plain", section, plan)
    assert_equal(tmp_path / "together", tmp_path / "apart")
    with pytest.raises(AssertionError):
        assert_equal(tmp_path / "apart", tmp_path / "plain")


def test_runs_that_share_their_passes_take_them_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("laura.training.run.gradients_for", Together)
    section = make_section(cohort=3)
    plan, chosen = make_plan(section), load_token_weights("dft")
    together(tmp_path / "together", section, plan, token_weights=chosen)
    apart(tmp_path / "apart", section, plan, token_weights=chosen)
    apart(tmp_path / "plain", section, plan)
    for rate in RATES:
        losses = {
            way: [row["loss"] for row in RunStore(tmp_path / way / str(rate)).metrics()]
            for way in ("together", "apart", "plain")
        }
        assert losses["together"] == pytest.approx(losses["apart"], rel=1e-4)
        assert losses["together"][-1] != pytest.approx(losses["plain"][-1], rel=1e-3)


def test_arms_without_one_keep_the_ids_of_their_runs() -> None:
    plain = parse_recipe(GOOD).arms["full"]
    assert "token_weight" not in plain.identity()
    weighed = parse_recipe(GOOD, ["arms.full.token_weight=dft"]).arms["full"]
    assert weighed.identity() == plain.identity() | {"token_weight": "dft"}


def test_one_from_outside_is_a_file_and_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The recipe takes its name, and the run is the naive loop's."""
    (tmp_path / "only_the_surprising.py").write_text(
        "def weights(probabilities_NV, targets_N):\n"
        "    return (probabilities_NV.gather(1, targets_N[:, None])[:, 0] < 0.5).float()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(TOKEN_WEIGHTS, "surprising", "only_the_surprising")
    recipe = parse_recipe(GOOD, ["arms.full.token_weight=surprising"])
    assert recipe.arms["full"].token_weight == "surprising"

    def reference(logits: Tensor, targets: Tensor) -> Tensor:
        return (dft(logits, targets) < 0.5).float()

    assert_run_is_naive(tmp_path / "run", reference, "surprising", 1200)


def test_a_name_that_is_none_is_refused_with_those_there_are() -> None:
    faults = faults_of(GOOD, ("arms.full.token_weight=dtf", "arms.lora.token_weight=1"))
    assert "did you mean dft?" in faults["arms.full.token_weight"]
    assert "dft, eaft, or null" in faults["arms.full.token_weight"]
    assert "arms.lora.token_weight" in faults
