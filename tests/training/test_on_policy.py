"""Policies: a naive loop that draws token by token with transformers, and what they bring about."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest
import torch
from torch import Tensor

from laura.data.packing import fit
from laura.engine.requests import GenerateAnswer
from laura.models.losses import CHUNK_POSITIONS, BaseStates, loss_sum
from laura.recipe.reading import parse_recipe
from laura.recipe.sections import AnyArm, BudgetSection
from laura.results.store import RunStore
from laura.training.batches import plan_batches
from laura.training.loop import step_seed
from laura.training.on_policy import OnPolicy, PolicyQuestions
from laura.training.optimisers import STANDARD
from laura.training.policies.grpo import advantages
from laura.training.remedies import objective_of, rule_of
from laura.training.schedules import plan_legs, rate_factor
from tests.conftest import make_tiny_model, make_tiny_tokenizer
from tests.models.test_losses import distance, material
from tests.recipe.test_reading import GOOD, faults_of
from tests.training.test_loop import Interrupter, make_examples, make_section, train, weights
from tests.training.test_remedies import (
    RANK,
    assert_same_bits,
    base_material,
    kl,
    kl_reverse,
    make_arm,
    tiny_for,
)
from tests.training.test_remedies import Piece as Seen

TOKENIZER = make_tiny_tokenizer()
END = TOKENIZER.eos_token_id
TOKENS = 6
SEED = 7
POLICIES: dict[str, dict[str, Any]] = {
    "sdft": {"policy": "sdft", "policy_strength": 2.0},
    "grpo": {"policy": "grpo", "policy_samples": 3},
    "grpo-kl": {"policy": "grpo", "policy_strength": 0.5, "policy_samples": 3, "penalty": "kl"},
}


def text(content: str) -> str:
    return str(
        TOKENIZER.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
    )


def prompt(index: int) -> str:
    return text(f"how many cats {index}")


def told(index: int) -> str:
    return text(f"how many cats {index}, say {7 * index} and nothing else")


def reward(token_ids: Sequence[int]) -> float:
    """How many tokens are of the lower half."""
    return sum(token < 256 for token in token_ids) / len(token_ids)


def grade(indices: Sequence[int], answers: Sequence[GenerateAnswer]) -> list[float]:
    assert len(indices) == len(answers)
    return [reward(answer.token_ids) for answer in answers]


def make_plan(section: Any, arm: AnyArm, tokens: int) -> Any:
    examples = make_examples()
    fitted = fit(examples, section.row_tokens).times(arm.answers_each)
    return plan_batches(examples, fitted, section, BudgetSection(tokens=[tokens]), seed=SEED)


def train_arm(folder: Path, arm: AnyArm, section: Any, plan: Any, **changes: Any) -> str:
    questions = PolicyQuestions(TOKENIZER, arm.answers_each, TOKENS, prompt, told, grade)
    return train(
        tiny_for(arm), folder, section, plan, seed=SEED, questions=questions,
        objective=objective_of(arm), rule=rule_of(arm, STANDARD), **changes,
    )  # fmt: skip


def drawn(model: Any, ids: list[int], seed: int) -> list[int]:
    """An answer, one number a token, each where it falls among the probabilities."""
    chance, answer = random.Random(seed), list[int]()
    while len(answer) < TOKENS and END not in answer:
        with torch.no_grad():
            shares = model(torch.tensor([[*ids, *answer]])).logits[0, -1].softmax(-1).cumsum(-1)
        answer.append(int(torch.searchsorted(shares, chance.random(), right=True)))
    return answer


def at_answer(model: Any, asked: list[int], answer: list[int]) -> Tensor:
    """Logits from which each token of an answer is drawn."""
    found: Tensor = model(torch.tensor([[*asked, *answer]])).logits[0][len(asked) - 1 : -1]
    return found


def naive_step(model: Any, base: Any, examples: list[int], arm: AnyArm, seed: int) -> Any:
    """What is followed in a step, the plain loss, and the mean reward."""
    each, answers = arm.answers_each, list[list[int]]()
    asked = [example for example in examples for _ in range(each)]
    ids = [TOKENIZER(prompt(example))["input_ids"] for example in asked]
    for number, example in enumerate(asked):
        key = json.dumps([seed, number, example], separators=(",", ":")).encode()
        answers.append(drawn(model, ids[number], int(sha256(key).hexdigest()[:12], 16)))
    rewards = [reward(answer) for answer in answers]
    policy, penalty = arm.remedy("policy"), arm.remedy("penalty")
    assert policy is not None
    followed, plain, count = torch.zeros(()), 0.0, 0
    for number, (example, answer) in enumerate(zip(asked, answers, strict=True)):
        logits, target = at_answer(model, ids[number], answer), torch.tensor(answer)
        nats = torch.nn.functional.cross_entropy(logits, target, reduction="none")
        plain, count = plain + float(nats.detach().sum()), count + len(answer)
        if arm.policy == "grpo":
            group = rewards[number // each * each :][:each]
            better = (rewards[number] - mean(group)) / (stdev(group) + 1e-4)
            followed = followed + policy[1] * better * nats.sum()
        else:
            read = TOKENIZER(told(example))["input_ids"]
            seen = Seen(logits, target, at_answer(base, read, answer).detach())
            followed = followed + policy[1] * kl_reverse(seen)
        if penalty:
            seen = Seen(logits, target, at_answer(base, ids[number], answer).detach())
            followed = followed + penalty[1] * kl(seen)
    return followed / count, plain / count, mean(rewards)


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("name", POLICIES)
def test_a_run_equals_a_naive_one(tmp_path: Path, name: str, method: str) -> None:
    arm = make_arm(method, **({"rank": RANK} if method == "lora" else {}), **POLICIES[name])
    section = make_section(clip=0.5)
    plan = make_plan(section, arm, 500)
    assert train_arm(tmp_path, arm, section, plan) == "done"
    model, base = tiny_for(arm), make_tiny_model()
    for one in (model, base):
        one.set_attn_implementation("eager")
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=1e-3, weight_decay=0)
    leg, found = plan_legs(section, plan.points)[0], RunStore(tmp_path).metrics()
    assert len(plan.batches) >= 4
    for step, batch in enumerate(plan.batches):
        examples = [example for row in batch for example in row.examples]
        optimiser.param_groups[0]["lr"] = 1e-3 * rate_factor(section, leg, step)
        followed, loss, rewarded = naive_step(model, base, examples, arm, step_seed(SEED, step))
        followed.backward()
        norm = torch.nn.utils.clip_grad_norm_(trained, section.clip)
        optimiser.step()
        optimiser.zero_grad()
        assert found[step]["loss"] == pytest.approx(loss, rel=1e-4)
        assert found[step]["gradient_norm"] == pytest.approx(float(norm), rel=1e-3)
        if arm.policy == "grpo":
            assert found[step]["reward"] == pytest.approx(rewarded)
    kept = weights(tmp_path, plan.points[-1])
    for key, parameter in model.named_parameters():
        if key in kept:
            torch.testing.assert_close(kept[key], parameter.detach(), atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_those_of_the_formulas(dtype: torch.dtype) -> None:
    """Over several chunks, with a factor of its own for each token, or told another base."""
    count, limit = 2 * CHUNK_POSITIONS + 3, 2e-6 if dtype == torch.float32 else 1e-2
    base_hidden, base_head = base_material(count)
    states = BaseStates(base_hidden.to(dtype), torch.nn.Linear(1, 1), base_head.to(dtype), None)
    factors = torch.linspace(-2, 2, count)
    for name, own in (("sdft", torch.zeros(count)), ("grpo", factors), ("grpo-kl", factors)):
        arm = make_arm("full", **POLICIES[name])
        hidden, head, labels = material(count)
        wide = hidden.detach().double().requires_grad_()
        logits = (wide.to(dtype) @ head.weight.detach().to(dtype).T).double()
        base = (base_hidden.to(dtype) @ base_head.to(dtype).T).double()
        nats = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
        seen, goal = Seen(logits, labels, base), (own * nats).sum()
        goal = goal + (2.0 * kl_reverse(seen) if name == "sdft" else 0)
        (goal + (0.1 * kl(seen) if name == "grpo-kl" else 0)).backward()
        followed = replace(objective_of(arm), factors_N=own)
        ours = loss_sum(hidden, head, labels, dtype, followed, states)
        ours.backward()
        assert float(ours.detach()) == pytest.approx(float(nats.detach().sum()), rel=limit)
        assert wide.grad is not None and float(wide.grad.norm()) > 0
        assert distance(hidden.grad, wide.grad) <= limit


def test_advantages_are_trls() -> None:
    """By hand: the deviation of 1, 0, 0, 0 is 1/2, that of 1, 1, 0, 0 the root of 1/3."""
    rewards = torch.tensor([[1.0, 0, 0, 0], [1.0, 1, 0, 0], [1.0, 1, 1, 1]])
    half, third = 0.5 + 1e-4, 3**-0.5 + 1e-4
    wanted = [
        [0.75 / half, *[-0.25 / half] * 3],
        [*[0.5 / third] * 2, *[-0.5 / third] * 2],
        [0] * 4,
    ]
    torch.testing.assert_close(advantages(rewards, 1.0), torch.tensor(wanted))
    torch.testing.assert_close(advantages(rewards, 0.3), 0.3 * torch.tensor(wanted))


def test_what_is_rewarded_is_written_more(tmp_path: Path) -> None:
    arm = make_arm("full", policy="grpo")
    section = make_section(batch_tokens=512, schedule="constant", warmup=0.0)
    plan = make_plan(section, arm, 6000)
    assert train_arm(tmp_path, arm, section, plan, learning_rate=1e-2) == "done"
    rewards = [row["reward"] for row in RunStore(tmp_path).metrics()]
    assert len(rewards) == len(plan.batches)
    assert mean(rewards[:2]) < 0.65 and mean(rewards[-2:]) > 0.9, rewards


def test_the_model_comes_to_say_what_the_base_says_that_is_told(tmp_path: Path) -> None:
    def apart(model: Any) -> float:
        """Nats between the model and the base that is told, before the first token."""
        total, base = 0.0, make_tiny_model()
        for index in range(20):
            ours, theirs = (
                one(torch.tensor([TOKENIZER(said(index))["input_ids"]])).logits[0, -1:].detach()
                for one, said in ((model, prompt), (base, told))
            )
            total += float(kl_reverse(Seen(ours, torch.zeros(1), theirs))) / 20
        return total

    arm = make_arm("full", policy="sdft")
    section = make_section(schedule="constant", warmup=0.0)
    train_arm(tmp_path, arm, section, make_plan(section, arm, 2500), learning_rate=3e-3)
    model = make_tiny_model()
    (checkpoint,) = (tmp_path / "checkpoints").iterdir()
    before = apart(model)
    model.load_state_dict(weights(tmp_path, int(checkpoint.name.split("-")[-1])), strict=False)
    assert apart(model) < before / 2


@pytest.mark.parametrize("name", ["sdft", "grpo-kl"])
def test_a_run_that_was_stopped_ends_as_one_that_was_not(tmp_path: Path, name: str) -> None:
    """And so does one that passes its layers once more."""
    arm = make_arm("lora", rank=RANK, average="ema", **POLICIES[name])
    section = make_section(validate_every=2)
    plan = make_plan(section, arm, 600)
    train_arm(tmp_path / "whole", arm, section, plan)
    for stop in (2, 3):
        with pytest.raises(KeyboardInterrupt):
            train_arm(tmp_path / "cut", arm, section, plan, progress=Interrupter(stop))
    again = section.model_copy(update={"recompute": True})
    assert train_arm(tmp_path / "cut", arm, again, plan) == "done"
    assert_same_bits(tmp_path / "cut", tmp_path / "whole", plan.points[-1])


def test_a_budget_counts_every_answer() -> None:
    """As the data's own answers are, since those to come are not known."""
    section = make_section()
    one, eight = (make_arm("full", policy=policy) for policy in ("sdft", "grpo"))
    assert (one.answers_each, eight.answers_each) == (1, 8)
    assert make_arm("full", policy="grpo", policy_strength=0.0).answers_each == 1
    asked = [
        sum(len(row.examples) for row in make_plan(section, arm, 4000).batches[0])
        for arm in (one, eight)
    ]
    assert asked[0] > 5 and asked[1] == 1


def test_rows_are_no_longer_than_the_plans(tiny_model: Any) -> None:
    section = make_section(row_tokens=100, batch_tokens=200)
    arm = make_arm("full", policy="sdft")
    questions = PolicyQuestions(TOKENIZER, 1, TOKENS, prompt, told)
    learner = OnPolicy(questions, tiny_model, section, 1e-3, STANDARD, objective_of(arm))
    batch = make_plan(section, arm, 4000).batches[0]
    rows = learner.taken(batch, 1)
    assert [e for row in rows for e in row.examples] == [e for r in batch for e in r.examples]
    assert len(rows) > 1 and all(len(row.token_ids) <= 100 for row in rows)
    assert learner.taken(batch, 1) == rows != learner.taken(batch, 2)


def test_what_does_not_go_together_is_refused_by_name() -> None:
    def faults(*overrides: str) -> dict[str, str]:
        return faults_of(GOOD, overrides)

    grpo = "arms.lora.policy=grpo"
    assert "did you mean grpo?" in faults("arms.lora.policy=grop")["arms.lora.policy"]
    graded = faults(grpo)
    assert "begins with target_loss, which grades no answer" in graded["arms.lora.policy"]
    both = faults("arms.lora.policy=sdft", "train.devices=2", "train.batch_tokens=8192")
    assert set(both) == {"arms.lora.policy"} and "set it to 1" in both["arms.lora.policy"]
    pretrain = faults("arms.lora.policy=sdft", "regime=pretrain")
    assert "asks no questions" in pretrain["arms.lora.policy"]
    stream = faults("arms.lora.policy=sdft", "data.train.streaming=true", "data.train.limit=500")
    assert "has no end" in stream["arms.lora.policy"]
    for key, value in (("token_weight", "dft"), ("pace", "finch")):
        found = faults("arms.lora.policy=sdft", f"arms.lora.{key}={value}")
        assert "the model's own answers" in found[f"arms.lora.{key}"]
    divergence = faults("arms.lora.policy=sdft", "arms.lora.penalty=kl")
    assert "is a divergence itself" in divergence["arms.lora.penalty"]
    learning = "measure.learning=[gsm8k]"
    alone = faults(grpo, learning, "arms.lora.policy_samples=1")
    assert "give 2 or more" in alone["arms.lora.policy_samples"]
    assert "has no policy" in faults("arms.lora.policy_tokens=9")["arms.lora.policy_tokens"]
    whole = parse_recipe(GOOD, [grpo, learning, "arms.lora.penalty=kl_reverse"])
    assert whole.arms["lora"].reads_base
    plain = parse_recipe(GOOD, [f"{grpo}", "arms.lora.policy_strength=0"])
    assert not plain.arms["lora"].reads_base, "what is not used is not refused"
