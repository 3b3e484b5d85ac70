"""A learner that learns what the model itself answers, as it stands before each step.

The plan's rows say which examples are asked. Their questions are answered at temperature 1 by the
house's own engine; an answer's seed is a function of run, step, example and number, so that a run
goes on as if it had not been stopped. The answers are learnt in rows of their own, which are no
longer than the plan's unless a single one is.

With `Objective.advantages` the answers are graded, and a token's gradient counts as its answer
does. Without, its loss counts nothing, and the divergence is from the base that reads the question
with the demonstration.
Never run on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from laura.data.packing import Row, add_document
from laura.data.templates import Encoded
from laura.engine.engine import Engine
from laura.engine.requests import GenerateAnswer, GenerateRequest
from laura.models.device import copy_to
from laura.results.store import content_hash
from laura.training.learner import Learner, model_inputs


@dataclass(frozen=True)
class PolicyQuestions:
    """What a model is asked while it is trained.

    Attributes:
        tokenizer: The model's.
        samples: Answers to each question.
        tokens: Most tokens of an answer.
        prompt: The question of an example, by its number.
        told: The same with the demonstration.
        grade: Reward of an answer each, by their examples' numbers; None where nothing is graded.
    """

    tokenizer: Any
    samples: int
    tokens: int
    prompt: Callable[[int], str]
    told: Callable[[int], str]
    grade: Callable[[Sequence[int], Sequence[GenerateAnswer]], list[float]] | None = None


@dataclass(frozen=True)
class AnsweredRow(Row):
    """Answers of the model, each behind its question.

    Attributes:
        told: The same answers behind what the base reads; empty where it reads nothing.
        factors: What each label counts.
    """

    told: Row
    factors: list[float]


class OnPolicy(Learner):
    """A `Learner` of what the model answers.

    Args:
        questions: What it is asked.
        model: As for `Learner`, with all that follows.
    """

    def __init__(self, questions: PolicyQuestions, model: Any, *given: Any) -> None:
        super().__init__(model, *given)
        self._questions = questions
        self._engine = Engine(model, questions.tokenizer, self.dtype)

    def taken(self, batch: list[Row], seed: int) -> list[Row]:
        """The answers to the examples of these rows; see `Learner.taken`."""
        ask = self._questions
        asked = [one for row in batch for one in row.examples for _ in range(ask.samples)]
        requests = [
            GenerateRequest(ask.prompt(one), (), ask.tokens, 1.0, seed=_seed(seed, number, one))
            for number, one in enumerate(asked)
        ]
        answers = self._engine.generate(requests)
        self.facts = {"answer_tokens": sum(answer.tokens for answer in answers) / len(answers)}
        factors = [0.0] * len(answers)
        if self.objective.advantages is not None:
            assert ask.grade is not None
            rewards_QS = torch.tensor(ask.grade(asked, answers)).view(-1, ask.samples)
            factors = self.objective.advantages(rewards_QS).flatten().tolist()
            self.facts["reward"] = float(rewards_QS.mean())
        rows: list[Row] = []
        for one, request, answer, factor in zip(asked, requests, answers, factors, strict=True):
            own = self._document(one, request.prompt, answer)
            if not rows or len(rows[-1].token_ids) + len(own.token_ids) > self.section.row_tokens:
                rows.append(AnsweredRow([], [], [], [], [], Row([], [], [], [], []), []))
            row = rows[-1]
            assert isinstance(row, AnsweredRow)
            add_document(row, own, 0, len(own.token_ids))
            row.factors.extend([factor] * answer.tokens)
            if self.objective.advantages is None:
                told = self._document(one, ask.told(one), answer)
                add_document(row.told, told, 0, len(told.token_ids))
        return rows

    def _document(self, example: int, prompt: str, answer: GenerateAnswer) -> Encoded:
        before = self._engine.encoder.prompt(prompt, self._questions.tokens)
        learnt = [False] * len(before) + [True] * answer.tokens
        return Encoded(example, [*before, *answer.token_ids], learnt, 0)

    def _learn(self, rows: list[Row], labels: float) -> Tensor:
        own = [row for row in rows if isinstance(row, AnsweredRow)]
        factors = torch.tensor([factor for row in own for factor in row.factors])
        told = None
        if self.objective.advantages is None:
            told = model_inputs([row.told for row in own], self.device)
        factors_N = copy_to(factors, self.device)
        self.objective = replace(self.objective, factors_N=factors_N, told=told)
        return super()._learn(rows, labels)


def _seed(*parts: int) -> int:
    return int(content_hash(parts)[:12], 16)
