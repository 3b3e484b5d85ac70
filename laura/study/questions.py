"""What a model is asked while it learns its own answers, and who grades them.

A question is what a training example asks before its last answer. With the demonstration its last
message holds that answer too; the words are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from laura.data.examples import Example
from laura.data.templates import chat_prompts, prompt_render
from laura.engine.requests import GenerateAnswer
from laura.evals import tasks
from laura.evals.runner import RowProvider, check_name
from laura.evals.scoring import TaskSettings
from laura.recipe.sections import Arm, MeasureSection
from laura.results.errors import DataError
from laura.study.material import ExampleEncoder
from laura.training.on_policy import PolicyQuestions

TOKENS = 256
TOLD = """{asked}

An answer that is right:
{answer}

Now answer in your own words. Only the answer."""


class Grader:
    """The grader of the benchmark whose training rows are learnt.

    Args:
        task: The benchmark.
        examples: Of its training rows, each a question and an answer.
        measure: How it is asked.
        tokenizer: The base's.
        rows: The benchmark's rows.

    Raises:
        DataError: the examples are not its training rows.
        SandboxError: it runs programs, and this machine cannot confine them.
    """

    def __init__(
        self,
        task: str,
        examples: Sequence[Example],
        measure: MeasureSection,
        tokenizer: Any,
        rows: RowProvider,
    ) -> None:
        check_name(task)
        own = _own_rows(examples, rows(task, "train"), task)
        self._task, self._metric = tasks.load(task), tasks.find(task).metric
        once = measure.model_copy(update={"code_samples": 1})
        ask = TaskSettings(once, partial(rows, task), partial(chat_prompts, tokenizer))
        _, questions = self._task.prepare(own, ask)
        indices = [example.index for example in examples]
        self._questions = dict(zip(indices, questions, strict=True))

    def __call__(self, indices: Sequence[int], answers: Sequence[GenerateAnswer]) -> list[float]:
        """1 or 0 of each answer, by the example that asked for it."""
        asked = [self._questions[index] for index in indices]
        graded = self._task.grades(asked, [[answer] for answer in answers])
        return [float(item[self._metric]) for item, _ in graded]


def _own_rows(
    examples: Sequence[Example], rows: Sequence[dict[str, Any]], task: str
) -> list[dict[str, Any]]:
    for example in examples:
        row = rows[example.index] if example.index < len(rows) else {}
        roles = [role for role, _ in example.messages]
        if roles != ["user", "assistant"] or example.messages[0][1] not in row.values():
            raise DataError(
                f"example {example.index} of data.train is not row {example.index} of {task}'s "
                "training rows, by which its answer would be graded; name the benchmark of the data"
            )
    return [rows[example.index] for example in examples]


def questions_of(
    arm: Arm, examples: Sequence[Example], encoder: ExampleEncoder, grader: Grader | None
) -> PolicyQuestions:
    """The questions of an arm that learns its model's own answers.

    Args:
        arm: It has a policy.
        examples: What is trained on.
        encoder: How the study makes tokens.
        grader: Of its answers; None where they are told a demonstration.

    Raises:
        DataError: an example asks nothing, or its answer is blank.
    """
    asked = {example.index: _asked(example) for example in examples}
    render = prompt_render(encoder.tokenizer, encoder.template)

    def prompt(index: int, form: str = "{asked}") -> str:
        *before, (role, last), (_, answer) = asked[index]
        said = [*before, (role, form.format(asked=last, answer=answer))]
        return render([{"role": role, "content": content} for role, content in said], True)

    tokens = arm.policy_tokens or TOKENS
    told = partial(prompt, form=TOLD)
    return PolicyQuestions(encoder.tokenizer, arm.answers_each, tokens, prompt, told, grader)


def _asked(example: Example) -> Sequence[tuple[str, str]]:
    """The messages up to the last answer, which follows a question and says something."""
    last = max(
        (i for i, (role, _) in enumerate(example.messages) if role == "assistant"), default=0
    )
    if not last or example.messages[last - 1][0] != "user" or not example.messages[last][1].strip():
        raise DataError(
            f"example {example.index} of data.train does not end with a question and an answer "
            "that says something, which an arm with a policy needs; delete it"
        )
    return example.messages[: last + 1]
