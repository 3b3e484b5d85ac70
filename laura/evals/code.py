"""What the tasks that ask for programs share: drawing samples, finding the code, grading. No torch.

Every sample is a whole program: the code of the answer, then the row's tests, which run in
a process of their own and ask the code for the names that the row's own solution has
(`sandbox/child.py`). It passes when both end without an error. A problem's pass@k is
the unbiased estimate from its own samples (`statistics.pass_at_k`); the benchmark's
is the mean over problems, with the standard error over problems. That error is
clustered: a problem with fifty samples counts once, as `statistics.clustered_mean`
over single samples would have it.

Source: Chen et al. 2021, arXiv:2107.03374.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from laura.engine.requests import GenerateAnswer, GenerateRequest
from laura.evals.sandbox import Program, ProgramLimits, Sandbox, Verdict
from laura.evals.scoring import drawn_item, sampled
from laura.recipe.measure import pass_names
from laura.recipe.sections import MeasureSection
from laura.results.progress import SILENT, Progress
from laura.results.task_result import Item

PYTHON = ("python", "python3", "py")
RUN = 2  # how programs run; by 1 annotations were not evaluated, and tests in their reach

# A fence opens and closes at the beginning of a line, as in CommonMark; an answer that was
# cut off leaves it open.
_FENCE = re.compile(
    r"^(?P<indent>[ \t]*)```[ \t]*(?P<label>[\w+-]*)[^\n`]*\n(?P<body>.*?)(?:^[ \t]*```|\Z)",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class CodeQuestion:
    """One problem, to be solved by a program.

    Attributes:
        index: Row number in the split, from 0.
        task_id: The data's own name of the problem.
        requests: What the engine continues, one a sample.
        code: Makes the program's code of an answer's text.
        tests: What follows the code; it fails by an exception.
        tested: Names in the tests that are the code's.
        k: The pass@k that are told beside pass@1.
    """

    index: int
    task_id: str | int
    requests: tuple[GenerateRequest, ...]
    code: Callable[[str], str]
    tests: str
    tested: tuple[str, ...]
    k: tuple[int, ...]

    def program(self, text: str) -> Program:
        """The whole program of an answer."""
        return Program(self.code(text), self.tests, self.tested)


def metrics(section: MeasureSection) -> tuple[str, ...]:
    """Names of all metrics a `measure` section asks for: pass@1, then the others of `code_k`."""
    return pass_names(section.code_k)


def drawn(section: MeasureSection) -> str:
    """How samples are asked for, drawn and judged, in words for a result's version."""
    way = "greedy"
    if section.code_temperature:
        way = (
            f"{section.code_samples} samples at temperature {section.code_temperature:g}, "
            f"top_p {section.code_top_p:g}"
        )
    limits = f"{section.code_tokens} new tokens; run {RUN}, {ProgramLimits().cpu_seconds} s"
    return f"{section.code_prompt}; {way}; {limits}; {', '.join(metrics(section))}"


def sample_requests(
    prompt: str, stop: tuple[str, ...], task: str, index: int, section: MeasureSection
) -> tuple[GenerateRequest, ...]:
    """The requests of one problem, one a sample.

    Every model draws with the same seeds (`scoring.sampled`).
    """
    request, count = GenerateRequest(prompt, stop, section.code_tokens), section.code_samples
    temperature = section.code_temperature
    if not temperature:
        return (request,) * count
    return sampled(request, task, index, count, temperature, section.code_top_p)


def fenced(text: str) -> str:
    """The code in an answer that may hold words around it.

    The first block fenced as Python; without one the first fenced block; without
    any fence the whole text. A fence that is not closed lasts to the end. Where the
    fence is indented, its lines lose that much.
    """
    blocks = list(_FENCE.finditer(text))
    if not blocks:
        return text
    python = (block for block in blocks if block["label"].lower() in PYTHON)
    block = next(python, blocks[0])
    return re.sub(f"^{block['indent']}", "", block["body"], flags=re.MULTILINE)


def grades(
    questions: Sequence[CodeQuestion],
    answers: Sequence[Sequence[GenerateAnswer]],
    progress: Progress = SILENT,
) -> Iterator[tuple[Item, list[Item]]]:
    """Run every program in the sandbox and grade every problem.

    Samples that are the same program run once: the verdict is the same for all of them.

    Args:
        questions: The problems.
        answers: For each its answers, one a request.
        progress: Shows how many programs have run.

    Yields:
        The item {"index", "task_id", "samples" (n), "passes" (c), "correct" (every
        sample passed), "pass@1" (c / n), further "pass@k", "tokens" (of all samples)}
        and the samples {"index", "sample", "prompt", "text", "code", "passed",
        "fault" ("" or what went wrong), "tokens", "finish"}.

    Raises:
        SandboxError: this machine cannot confine a program.
    """
    programs = [
        [question.program(answer.text) for answer in own]
        for question, own in zip(questions, answers, strict=True)
    ]
    different = list(dict.fromkeys(program for own in programs for program in own))
    with Sandbox() as sandbox, progress.bar("running programs", len(different), "programs") as bar:
        verdicts = sandbox.run(different, found=lambda *_: bar.advance())
    known = dict(zip(different, verdicts, strict=True))
    for question, own, written in zip(questions, answers, programs, strict=True):
        yield _graded(question, own, [known[program] for program in written])


def _graded(
    question: CodeQuestion, answers: Sequence[GenerateAnswer], verdicts: Sequence[Verdict]
) -> tuple[Item, list[Item]]:
    passed = [verdict.passed for verdict in verdicts]
    tokens = sum(answer.tokens for answer in answers)
    drawn = drawn_item(question.index, passed, question.k, tokens)
    item: Item = {"index": question.index, "task_id": question.task_id, **drawn}
    drawn_with = zip(question.requests, answers, verdicts, strict=True)
    samples: list[Item] = [
        {
            "index": question.index,
            "sample": number,
            "prompt": request.prompt,
            "text": answer.text,
            "code": question.code(answer.text),
            "passed": verdict.passed,
            "fault": verdict.fault,
            "tokens": answer.tokens,
            "finish": answer.finish,
        }
        for number, (request, answer, verdict) in enumerate(drawn_with)
    ]
    return item, samples
