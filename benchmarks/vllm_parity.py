"""Are vLLM's answers those of the engine in process, in fp32 up to rounding?

    LAURA_VLLM_PYTHON=.venvs/vllm/bin/python \
        python benchmarks/vllm_parity.py [MODEL] [--data-dir DIR] [--answers 16] [--items 50]

MODEL is a folder or a name of the registry; rows come from DIR, from `LAURA_DATA`
or from the Hub. GSM8K's first questions, five worked ones before each, are answered
greedily by both; where two answers part, it prints at which token, and how far apart
the two tokens' log-probabilities are in process: a numerical tie is nothing. Then
ARC's first questions are scored by both. Ends with 1 when an answer parts at more
than 1e-3 nats or a log-likelihood differs by more than that.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from laura.data.sources import load_rows
from laura.engine.engine import Engine
from laura.engine.requests import GenerateAnswer, GenerateRequest, ScoreRequest
from laura.engine.vllm import VllmEngine
from laura.evals import tasks
from laura.evals.tasks.gsm8k import STOP
from laura.models.load import Base, load_base

TIE_NATS = 1e-3
SHOTS, NEW_TOKENS = 5, 256


def gsm8k_requests(data_dir: Path | None, count: int) -> list[GenerateRequest]:
    """Prompts of lm-eval's form, the same worked problems before every question."""
    shots = load_rows("gsm8k", "train", data_dir)[:SHOTS]
    worked = "".join(f"Question: {row['question']}\nAnswer: {row['answer']}\n\n" for row in shots)
    rows = load_rows("gsm8k", "test", data_dir)[:count]
    return [
        GenerateRequest(f"{worked}Question: {row['question']}\nAnswer:", STOP, NEW_TOKENS)
        for row in rows
    ]


def arc_requests(data_dir: Path | None, count: int) -> list[ScoreRequest]:
    """Every choice of the first questions."""
    entry, module = tasks.find("arc_challenge"), tasks.load("arc_challenge")
    rows = load_rows("arc_challenge", entry.split, data_dir)[:count]
    questions = [module.question(row, index) for index, row in enumerate(rows)]
    return [request for question in questions for request in question.requests]


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What `work` gives, and its wall seconds."""
    start = time.perf_counter()
    return work(), time.perf_counter() - start


@torch.inference_mode()
def parting(
    base: Base, engine: Engine, request: GenerateRequest, answers: tuple[GenerateAnswer, ...]
) -> tuple[int, float]:
    """New token where two answers part, from 0, and the nats between the two tokens there."""
    encode = lambda text: base.tokenizer.encode(text, add_special_tokens=False)  # noqa: E731
    texts = [encode(answer.text) for answer in answers]
    # Behind the last token of the text stands what ended it.
    ends = {"end": [base.tokenizer.eos_token_id], "stop": encode(STOP[0])[:1], "length": []}
    ours, theirs = (text + ends[answer.finish] for text, answer in zip(texts, answers, strict=True))
    same = min(len(ours), len(theirs))
    place = next((i for i in range(same) if ours[i] != theirs[i]), same)
    if place == same:
        return place, float("nan")  # one stops where the other goes on, which no tie explains
    prompt = engine.encoder.prompt(request.prompt, request.max_new_tokens)
    read = torch.tensor([prompt + ours[:place]], device=base.model.device)
    nats = base.model(read).logits[0, -1].float().log_softmax(-1)
    return place, abs(float(nats[ours[place]] - nats[theirs[place]]))


def compare_answers(
    base: Base, engine: Engine, other: VllmEngine, requests: list[GenerateRequest]
) -> bool:
    """Whether greedy answers are the same up to the first tie; prints what was found."""
    ours, our_seconds = timed(lambda: engine.generate(requests))
    theirs, their_seconds = timed(lambda: other.generate(requests))
    pairs = list(zip(ours, theirs, strict=True))
    same = [(one.text, one.finish) == (two.text, two.finish) for one, two in pairs]
    print(
        f"gsm8k: {sum(same)} of {len(same)} answers identical, seconds in process "
        f"{our_seconds:.1f}, vLLM {their_seconds:.1f}"
    )
    good = True
    for number, (pair, alike) in enumerate(zip(pairs, same, strict=True)):
        if not alike:
            place, nats = parting(base, engine, requests[number], pair)
            good &= nats < TIE_NATS
            print(f"  question {number} parts at new token {place}: {nats:.2e} nats apart")
    return good


def compare_scores(engine: Engine, other: VllmEngine, requests: list[ScoreRequest]) -> bool:
    """Whether log-likelihoods agree; prints what was found."""
    ours, our_seconds = timed(lambda: engine.score(requests))
    theirs, their_seconds = timed(lambda: other.score(requests))
    pairs = list(zip(ours, theirs, strict=True))
    largest = max(abs(one.loglikelihood - two.loglikelihood) for one, two in pairs)
    greedy = sum(one.greedy == two.greedy for one, two in pairs)
    tokens = all(one.tokens == two.tokens for one, two in pairs)
    print(
        f"arc_challenge: {len(pairs)} choices, largest difference {largest:.2e} nats, greedy "
        f"marks equal {greedy}, token counts {'equal' if tokens else 'DIFFER'}, seconds in "
        f"process {our_seconds:.1f}, vLLM {their_seconds:.1f}"
    )
    return largest < TIE_NATS and tokens


def main() -> int:
    """Compare and print; 0 when all agree."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="smollm2-135m-instruct-q4")
    parser.add_argument("--data-dir", type=Path, default=None)
    parser.add_argument("--answers", type=int, default=16)
    parser.add_argument("--items", type=int, default=50)
    arguments = parser.parse_args()
    base = load_base(arguments.model)
    engine = Engine(base.model, base.tokenizer, precision=torch.float32)
    other, seconds = timed(lambda: VllmEngine(base.folder, precision=torch.float32))
    with other:
        print(f"vLLM {other.version} started in {seconds:.1f} s")
        answers = gsm8k_requests(arguments.data_dir, arguments.answers)
        good = compare_answers(base, engine, other, answers)
        scores = arc_requests(arguments.data_dir, arguments.items)
        good &= compare_scores(engine, other, scores)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
