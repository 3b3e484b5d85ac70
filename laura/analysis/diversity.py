"""How varied a model's answers to one prompt are. No torch.

All numbers are of one prompt first; a model's is their mean over prompts, with the
standard error over prompts. Models are compared at an equal number of answers a prompt.
Split by right and wrong, that number is no longer equal: a model that is right more often
has more right answers to be distinct, so the split counts (the paper's figure 5) say as
much about accuracy as about variety. `rarefied` corrects for it: the count expected among
a fixed number of answers, without bias, over the prompts that have so many.

Source: distinct outputs by string equality, split by passing and failing, Biderman et
al. 2024, arXiv:2405.09673, figure 5. Equality of strings is coarse: another format or
another name of a variable counts as another output, as the paper warns.

The same samples give pass@k curves, with errors clustered by problem.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from laura.results.statistics import Estimate, mean, paired_difference, pass_at_k
from laura.results.task_result import Item

RAREFIED = 5  # answers a rarefied count is told for; fewer where fewer are drawn
SELF_BLEU_ANSWERS = 10  # the first answers to each prompt: the work grows with the square

COUNTS = ("distinct", "distinct_passed", "distinct_failed")
RAREFIED_COUNTS = ("rarefied", "rarefied_passed", "rarefied_failed")
OTHERS = ("self_bleu", "answer_entropy")
KEYS = (*COUNTS, *RAREFIED_COUNTS, *OTHERS)

Prompt = dict[str, Any]
"""One prompt's numbers: {"index", "samples", "passed", and a number or None for each of KEYS}."""


def rarefied(outputs: Sequence[str], size: int) -> float:
    """Distinct outputs expected among `size` of these, drawn without replacement.

    Formula: sum_j 1 - C(n - c_j, size) / C(n, size) over the distinct outputs j, of
    which there are c_j among n. Unbiased for `size` fresh draws of the model.

    Args:
        outputs: All outputs, n of them.
        size: 1 to n.

    Raises:
        ValueError: a size outside 1 to n.

    Source:
        Hurlbert 1971, Ecology 52(4), rarefaction.
    """
    n = len(outputs)
    if not 1 <= size <= n:
        raise ValueError(f"size is 1 to the number of outputs, {n}; came {size}")
    ways = math.comb(n, size)
    return sum((ways - math.comb(n - c, size)) / ways for c in Counter(outputs).values())


def entropy(answers: Sequence[str]) -> float:
    """Entropy of the answers in nats: -sum p ln p over the shares of equal answers.

    Zero where all are equal, ln n where all differ. With few answers it is too small;
    compare it at equal n.

    Raises:
        ValueError: no answer.
    """
    if not answers:
        raise ValueError("the entropy of no answer is undefined")
    n = len(answers)
    return -math.fsum(c / n * math.log(c / n) for c in Counter(answers).values()) + 0.0


def self_bleu(texts: Sequence[str]) -> float:
    """Mean BLEU of every text against all the others as references, 0 to 1; lower is more varied.

    Two equal texts have BLEU 1 against each other, and so has an empty text with an
    equal one. Texts are tokenised as sacrebleu's default does (13a).

    Raises:
        ValueError: fewer than two texts.

    Source:
        Zhu et al. 2018, arXiv:1802.01886 (Texygen); BLEU of sacrebleu's
        `sentence_score` with effective order.
    """
    from sacrebleu.metrics.bleu import BLEU

    if len(texts) < 2:
        raise ValueError(f"self-BLEU compares at least two texts, came {len(texts)}")
    # A text that stands twice has itself as a reference; a reference that stands twice
    # adds nothing.
    counts, bleu, total = Counter(texts), BLEU(effective_order=True), 0.0
    for text, count in counts.items():
        if count > 1:
            total += count
        else:
            others = [other for other in counts if other != text]
            total += bleu.sentence_score(text, others).score / 100
    return total / len(texts)


def prompt_numbers(rows: Sequence[Item]) -> Prompt:
    """The numbers of one prompt.

    Args:
        rows: Its samples, as they were kept: "index", "text", "passed"; the extracted
            answer is "answer" (a number) or "code", where there is one, else the text.

    Returns:
        {"index", "samples", "passed"} and KEYS: None where a count has no outputs, or
        a rarefied one fewer than it is told for.
    """
    texts = [row["text"] for row in rows]
    passed = [text for text, row in zip(texts, rows, strict=True) if row["passed"]]
    failed = [text for text, row in zip(texts, rows, strict=True) if not row["passed"]]
    size = min(RAREFIED, len(texts))
    numbers: Prompt = {"index": rows[0]["index"], "samples": len(texts), "passed": len(passed)}
    for (count, expected), outputs in zip(
        zip(COUNTS, RAREFIED_COUNTS, strict=True), (texts, passed, failed), strict=True
    ):
        numbers[count] = len(set(outputs)) if outputs else None
        numbers[expected] = rarefied(outputs, size) if len(outputs) >= size else None
    numbers["self_bleu"] = self_bleu(texts[:SELF_BLEU_ANSWERS])
    numbers["answer_entropy"] = entropy([_answer(row) for row in rows])
    return numbers


def over_prompts(prompts: Iterable[Prompt], key: str) -> Estimate | None:
    """Mean over the prompts that have the number; None where fewer than two have it."""
    values = [prompt[key] for prompt in prompts if prompt[key] is not None]
    return mean(values) if len(values) > 1 else None


def difference(
    before: Mapping[int, Prompt], after: Mapping[int, Prompt], key: str
) -> Estimate | None:
    """`after` minus `before`, paired over the prompts that have the number in both.

    The one fair comparison of a split number: the same prompts, the same number of
    answers.

    Args:
        before: Index to numbers.
        after: The same for the other model.
        key: One of KEYS.

    Returns:
        None where fewer than two prompts have it in both.
    """
    sides = [
        {index: prompt[key] for index, prompt in side.items() if prompt[key] is not None}
        for side in (before, after)
    ]
    shared = sides[0].keys() & sides[1].keys()
    if len(shared) < 2:
        return None
    first, second = ({index: side[index] for index in shared} for side in sides)
    return paired_difference(first, second)


def _answer(row: Item) -> str:
    return str(next(row[name] for name in ("answer", "code", "text") if name in row))


def curve(counts: Sequence[tuple[int, int]], ks: Sequence[int]) -> list[Estimate]:
    """pass@k of a benchmark for each k.

    Formula: the mean over problems of `statistics.pass_at_k`; the problem is the unit
    of the error, however many samples it has. The points of one curve come from the
    same samples and are not independent of one another.

    Args:
        counts: For each problem its samples n and how many of them pass, c.
        ks: Each 1 to the smallest n.

    Raises:
        ValueError: fewer than two problems, or a number out of its range.

    Source:
        Chen et al. 2021, arXiv:2107.03374, equation 1; Biderman et al. 2024,
        arXiv:2405.09673, figure S9 (n = 256 at temperature 0.8).
    """
    one = functools.cache(pass_at_k)
    return [mean([one(n, c, k) for n, c in counts]) for k in ks]
