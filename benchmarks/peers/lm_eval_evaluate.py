"""The peer's side of one piece of evaluation: lm-eval's HFLM, or transformers' `generate`.

Knows nothing of Laura. The work comes from a file that Laura's side reads too. Adapters
are PEFT's, loaded once and switched, all the work being done for one after the other.
Before that the best batch size is looked for on a part of it. See benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from costs import measured

HOPELESS = 1.5  # times the best so far: larger batches are not tried any more
TRIAL_TOKENS = 24
RUNS = 3  # runs of neighbours in length that a trial of scoring takes


class Peer:
    """The model and the ways to ask it.

    Args:
        work: What `evaluation_work.py` wrote.
    """

    def __init__(self, work: dict[str, Any]) -> None:
        import torch
        from lm_eval.models.huggingface import HFLM
        from peft import PeftModel
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(work["model"], padding_side="left")
        self.base: Any = AutoModelForCausalLM.from_pretrained(
            work["model"], dtype=torch.float32, attn_implementation="sdpa"
        ).eval()
        self.model, self.names = self.base, []
        for folder in work["adapters"]:
            self.names.append(Path(folder).name)
            if len(self.names) == 1:
                self.model = PeftModel.from_pretrained(self.base, folder, self.names[0])
            else:
                self.model.load_adapter(folder, self.names[-1])
        self.harness = HFLM(pretrained=self.model, tokenizer=self.tokenizer, device="cpu")
        self.plain = work["way"] == "transformers"

    def passes(self) -> Iterator[None]:
        """One round for every adapter, switched to; a single one without adapters."""
        for name in self.names:
            self.model.set_adapter(name)
            yield
        if not self.names:
            yield

    def score(self, pairs: list[list[str]], size: int) -> list[float]:
        """Log-likelihoods by HFLM."""
        from lm_eval.api.instance import Instance

        self.harness.batch_size_per_gpu = size
        instances = [Instance("loglikelihood", {}, tuple(pair), i) for i, pair in enumerate(pairs)]
        found = self.harness.loglikelihood(instances, disable_tqdm=True) if pairs else []
        return [value for value, _ in found]

    def generate(
        self, questions: list[list[dict[str, Any]]], size: int, most: int = 0
    ) -> list[str]:
        """Texts, every question's samples together.

        Args:
            questions: The fields of each question's requests.
            size: Prompts in a batch.
            most: New tokens at most; 0 for what the requests say.
        """
        if not questions:
            return []
        limit = most or questions[0][0]["max_new_tokens"]
        if self.plain:
            return self._transformers(questions, size, limit)
        from lm_eval.api.instance import Instance

        self.harness.batch_size_per_gpu = size
        asked = {"until": list(questions[0][0]["stop"]), "do_sample": False,
                 "temperature": 0.0, "max_gen_toks": limit}  # fmt: skip
        instances = [
            Instance("generate_until", {}, (samples[0]["prompt"], asked), i)
            for i, samples in enumerate(questions)
        ]
        return list(self.harness.generate_until(instances, disable_tqdm=True))

    def _transformers(
        self, questions: list[list[dict[str, Any]]], size: int, limit: int
    ) -> list[str]:
        import torch

        first = questions[0][0]
        samples, stop = len(questions[0]), list(first["stop"])
        drawing: dict[str, Any] = {"do_sample": False}
        if first["temperature"]:
            drawing = {name: first[name] for name in ("temperature", "top_p", "top_k")}
            drawing |= {"do_sample": True, "num_return_sequences": samples}
        order = sorted(range(len(questions)), key=lambda i: len(questions[i][0]["prompt"]))
        texts: dict[int, list[str]] = {}
        torch.manual_seed(0)
        for start in range(0, len(order), size):
            places = order[start : start + size]
            prompts = [questions[i][0]["prompt"] for i in places]
            batch = self.tokenizer(prompts, return_tensors="pt", padding=True)
            with torch.inference_mode():
                found = self.model.generate(
                    **batch, max_new_tokens=limit, stop_strings=stop, tokenizer=self.tokenizer,
                    pad_token_id=self.tokenizer.pad_token_id, **drawing,
                )  # fmt: skip
            new = self.tokenizer.batch_decode(
                found[:, batch["input_ids"].shape[1] :], skip_special_tokens=True
            )
            each = len(new) // len(places)
            for number, place in enumerate(places):
                texts[place] = [_cut(t, stop) for t in new[number * each : (number + 1) * each]]
        return [text for place in range(len(questions)) for text in texts[place]]


def _cut(text: str, stop: list[str]) -> str:
    return text[: min((text.find(s) for s in stop if s in text), default=len(text))]


def best_size(sizes: list[int], seconds_of: Callable[[int], float]) -> tuple[int, dict[int, float]]:
    """Try batch sizes from small to large; the best and the seconds an item of each."""
    found: dict[int, float] = {}
    for size in sorted(sizes):
        found[size] = seconds_of(size)
        if found[size] > HOPELESS * min(found.values()):
            break
    return min(found, key=lambda size: found[size]), found


def trial_of_scoring(peer: Peer, pairs: list[list[str]], longest: int) -> Callable[[int], float]:
    """Seconds a request by batch size, on runs of requests that are neighbours in length.

    HFLM sorts by length, so its batches hold neighbours; a random part would be padded
    more than the whole.
    """
    ordered = sorted(pairs, key=lambda pair: len(pair[0]) + len(pair[1]))
    part = ordered
    if len(ordered) > RUNS * longest:
        middles = [len(ordered) * (2 * run + 1) // (2 * RUNS) for run in range(RUNS)]
        starts = [middle - longest // 2 for middle in middles]
        part = [pair for start in starts for pair in ordered[start : start + longest]]

    def seconds(size: int) -> float:
        started = time.perf_counter()
        peer.score(part, size)
        return (time.perf_counter() - started) / len(part)

    return seconds


def trial_of_generation(
    peer: Peer, questions: list[list[dict[str, Any]]]
) -> Callable[[int], float]:
    """Seconds a prompt by batch size, from a few new tokens projected to all that are allowed."""
    ordered = sorted(questions, key=lambda samples: len(samples[0]["prompt"]))
    allowed = questions[0][0]["max_new_tokens"]
    tokens = min(TRIAL_TOKENS, allowed)

    def seconds(size: int) -> float:
        count = min(max(size, 2), len(ordered))
        start = (len(ordered) - count) // 2
        with reading_seconds(peer.base) as reading:
            started = time.perf_counter()
            peer.generate(ordered[start : start + count], size, tokens)
            whole = time.perf_counter() - started
        return (sum(reading) + (whole - sum(reading)) * allowed / tokens) / count

    return seconds


@contextmanager
def reading_seconds(model: Any) -> Iterator[list[float]]:
    """Durations of the passes that read prompts: those of more than one token a row."""
    started, found = [0.0], []

    def before(module: Any, arguments: Any, named: dict[str, Any]) -> None:
        started[0] = time.perf_counter()

    def after(module: Any, arguments: Any, named: dict[str, Any], output: Any) -> None:
        if named["input_ids"].shape[1] > 1:
            found.append(time.perf_counter() - started[0])

    hooks = [
        model.register_forward_pre_hook(before, with_kwargs=True),
        model.register_forward_hook(after, with_kwargs=True),
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def choose_sizes(peer: Peer, work: dict[str, Any], allowed: list[int]) -> dict[str, Any]:
    """The best batch sizes for scoring and for generation, and what every trial took."""
    chosen: dict[str, Any] = {"score": 1, "generate": 1, "trials": {}}
    for kind, most in (("score", len(work["score"])), ("generate", len(work["generate"]))):
        sizes = [size for size in allowed if size <= most] or [1]
        if not most:
            continue
        if kind == "score":
            seconds = trial_of_scoring(peer, work["score"], max(sizes))
        else:
            seconds = trial_of_generation(peer, work["generate"])
        chosen[kind], chosen["trials"][kind] = best_size(sizes, seconds)
    return chosen


def main() -> None:
    """Read the work, warm up, choose batch sizes, do it, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", required=True)
    parser.add_argument("--work", required=True)
    parser.add_argument("--batch-sizes", required=True, help="to choose from, as 1,4,8")
    parser.add_argument("--chosen", help="JSON of an earlier round: its sizes are taken")
    options = parser.parse_args()
    work = json.loads(Path(options.work).read_text())
    peer = Peer(work)

    def everything() -> tuple[list[float], list[str]]:
        scores, texts = [], []
        for _ in peer.passes():
            scores += peer.score(work["score"], sizes["score"])
            texts += peer.generate(work["generate"], sizes["generate"])
        return scores, texts

    peer.score(work["score"][:2], 1)
    peer.generate(work["generate"][:1], 1, 2)
    allowed = [int(size) for size in options.batch_sizes.split(",")]
    sizes = json.loads(options.chosen) if options.chosen else choose_sizes(peer, work, allowed)
    (scores, texts), cost = measured(everything)
    tokens = sum(len(peer.tokenizer(text)["input_ids"]) for text in texts)
    greedy = peer.generate(work["check"], max(len(work["check"]), 1))
    result = {"loglikelihoods": scores, "texts": texts, "greedy": greedy, "tokens": tokens}
    Path(options.output).write_text(json.dumps(result | cost | {"sizes": sizes}))


if __name__ == "__main__":
    main()
