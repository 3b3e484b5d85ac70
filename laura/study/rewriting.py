"""SDFT off-policy: the base writes each answer of the training data in its own words.

It is given question and answer, and writes greedily. What the grader of the data's own benchmark
passes takes the answer's place; everything else stays as it was. Written once, and read after:

    STUDY/rewritten/HASH/        HASH = hash of everything that determines the answers
      answers.jsonl.gz   one line an example: its index, the new answer, whether it passed
      manifest.json      SHA-256
    STUDY/rewritten/HASH.partial.jsonl   answers so far, while they are being written

Source: Yang et al. 2024, arXiv:2402.13669; the words of the prompt are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from laura.data.examples import Example
from laura.data.templates import prompt_render
from laura.engine.engine import Engine
from laura.engine.requests import GenerateRequest
from laura.evals.keeping import Keeper, partial_file, written_once
from laura.evals.runner import RowProvider
from laura.recipe.sections import MeasureSection, RewriteSection
from laura.results.progress import Progress
from laura.study.material import ExampleEncoder
from laura.study.questions import Grader

FORMAT = 1  # counts up when the same recipe would give other answers
FILE = "answers.jsonl.gz"
ASK = """{asked}

An answer that is right:
{answer}

Write this answer in your own words, as you would give it. Only the answer."""


def rewrite(
    examples: Sequence[Example],
    section: RewriteSection,
    measure: MeasureSection,
    engine: Engine,
    encoder: ExampleEncoder,
    rows: RowProvider,
    base: str,
    folder: Path,
    progress: Progress,
) -> tuple[list[Example], int]:
    """The examples with the base's answers where these pass.

    Args:
        examples: Of the grader's benchmark, each a question and an answer.
        section: The grader, and how long an answer may be.
        measure: How its task is asked.
        engine: Runs the base.
        encoder: How the study makes tokens, for chat prompts.
        rows: The benchmark's rows.
        base: Fingerprint of the base.
        folder: Where answers lie, a folder of each set.
        progress: Where to report.

    Returns:
        All examples in order, and how many answers are the base's.

    Raises:
        DataError: the examples are not the benchmark's training rows.
        SandboxError: the grader runs programs, and this machine cannot confine them.
        CheckpointError: the kept answers do not match their checksums.
    """
    identity = {
        "format": FORMAT,
        "base": base,
        "settings": section.identity(),
        "examples": [example.digest for example in examples],
        "precision": str(engine.precision),
        **encoder.identity,
    }

    def write(place: Path) -> list[dict[str, Any]]:
        grader = Grader(section.task, examples, measure, engine.tokenizer, rows)
        progress.say(f"the base writes {len(examples)} answers in its own words")
        render = prompt_render(encoder.tokenizer, encoder.template)
        requests = [_request(example, render, section.tokens) for example in examples]
        with Keeper(engine, {None: partial_file(place)}, {None: identity}) as keeper:
            answers = keeper.generate(requests)
        rewards = grader([example.index for example in examples], answers)
        return [
            {"index": example.index, "text": answer.text, "passed": reward == 1}
            for example, answer, reward in zip(examples, answers, rewards, strict=True)
        ]

    found = written_once(folder, FILE, identity, write, {})
    whole = [
        _with(example, row["text"]) if row["passed"] else example
        for example, row in zip(examples, found, strict=True)
    ]
    return whole, sum(row["passed"] for row in found)


def _request(example: Example, render: Any, tokens: int) -> GenerateRequest:
    (_, asked), (_, answer) = example.messages
    content = ASK.format(asked=asked, answer=answer)
    return GenerateRequest(render([{"role": "user", "content": content}], True), (), tokens)


def _with(example: Example, answer: str) -> Example:
    return replace(example, messages=(example.messages[0], ("assistant", answer)))
