"""Laura's side of one piece of evaluation; the twin of `peers/lm_eval_evaluate.py`.

Reads the work (texts to score, prompts to continue, adapters that answer), does all of
it with the engine in one go, and writes answers and costs. See benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from costs import measured

WARMUP_TOKENS = 2


class Laura:
    """The engine over the work's model, with every adapter in a slot.

    Args:
        work: What `evaluation_work.py` wrote.
    """

    def __init__(self, work: dict[str, Any]) -> None:
        import torch

        from laura.engine.engine import Engine
        from laura.models.adapters import load_adapters
        from laura.models.load import load_base

        base = load_base(work["model"], device="cpu")
        folders = [Path(folder) for folder in work["adapters"]]
        if folders:
            load_adapters(base.model, folders)
        self.names: list[str | None] = [folder.name for folder in folders] or [None]
        slots = {folder.name: slot for slot, folder in enumerate(folders)}
        self.engine = Engine(
            base.model, base.tokenizer, precision=torch.float32, adapters=slots
        )  # fmt: skip

    def score(self, pairs: list[list[str]]) -> list[float]:
        """Log-likelihoods, adapter by adapter."""
        from laura.engine.requests import ScoreRequest

        requests = [ScoreRequest(*pair, adapter=name) for name in self.names for pair in pairs]
        return [answer.loglikelihood for answer in self.engine.score(requests)]

    def generate(self, questions: list[list[dict[str, Any]]], most: int = 0) -> list[str]:
        """Texts, adapter by adapter, every question's samples together.

        Args:
            questions: The fields of each question's requests.
            most: New tokens at most; 0 for what the requests say.
        """
        from laura.engine.requests import GenerateRequest

        requests = []
        for name in self.names:
            for fields in (sample for question in questions for sample in question):
                limit = most or fields["max_new_tokens"]
                changes = {"stop": tuple(fields["stop"]), "max_new_tokens": limit, "adapter": name}
                requests.append(GenerateRequest(**fields | changes))
        return [answer.text for answer in self.engine.generate(requests)]


def main() -> None:
    """Read the work, warm up, do it, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", required=True)
    parser.add_argument("--work", required=True)
    options = parser.parse_args()
    work = json.loads(Path(options.work).read_text())
    laura = Laura(work)
    laura.score(work["score"][:2])
    laura.generate(work["generate"][:1], WARMUP_TOKENS)
    (scores, texts), cost = measured(
        lambda: (laura.score(work["score"]), laura.generate(work["generate"]))
    )
    tokens = sum(len(laura.engine.tokenizer(text)["input_ids"]) for text in texts)
    greedy = laura.generate(work["check"])
    result = {"loglikelihoods": scores, "texts": texts, "greedy": greedy, "tokens": tokens}
    Path(options.output).write_text(json.dumps(result | cost))


if __name__ == "__main__":
    main()
