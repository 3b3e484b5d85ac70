"""What both sides of `evaluation.py` are asked: made once, written to a file both read.

A work holds "model" (folder), "adapters" (folders of PEFT adapters; each does all of it),
"score" ([context, continuation] pairs), "generate" (for each question the fields of its
requests, one a sample), "check" (questions answered greedily and untimed, where the timed
answers are drawn) and "way" (what the peer generates with: lm-eval or transformers).
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from parity_lm_eval import CHOICE_TASKS, FEWSHOT_SEED, reference_task

from laura.data.sources import load_rows
from laura.engine.requests import GenerateRequest
from laura.evals import tasks
from laura.evals.scoring import TaskSettings
from laura.evals.tasks import gsm8k, humaneval
from laura.recipe.sections import MeasureSection
from laura.results.errors import UsageError

SHOTS = 5
TEMPERATURE, TOP_P = 0.2, 0.95
RANK, ALPHA = 16, 32
ADAPTER_SPREAD = 0.02  # of lora_B: changes every output by about a tenth
CHECKED_PROMPTS, CHECKED_TOKENS = 4, 32


@dataclass(frozen=True)
class Sizes:
    """How much work there is; each field is an option of `evaluation.py`.

    Attributes:
        limit: Items of each multiple-choice task.
        gsm8k_items: Questions of gsm8k.
        gsm8k_tokens: New tokens of an answer to them.
        code_items: Prompts of humaneval.
        code_samples: Samples of each.
        code_tokens: New tokens of a sample.
        adapters: Adapters that are evaluated.
        adapter_items: ARC-Challenge items each of them scores.
        adapter_answers: GSM8K questions, without worked ones, each of them answers.
        adapter_tokens: New tokens of such an answer.
    """

    limit: int = 200
    gsm8k_items: int = 16
    gsm8k_tokens: int = 256
    code_items: int = 16
    code_samples: int = 4
    code_tokens: int = 128
    adapters: int = 8
    adapter_items: int = 25
    adapter_answers: int = 4
    adapter_tokens: int = 64


QUICK = Sizes(4, 2, 8, 2, 2, 8, 2, 2, 2, 4)


@dataclass(frozen=True)
class Maker:
    """Makes works.

    Attributes:
        model: Folder of the base.
        data_dir: Where rows come from; None for `LAURA_DATA` or the Hub.
        sizes: How much of everything.
        scratch: Folder for adapters and lm-eval's files.
    """

    model: Path
    data_dir: Path | None
    sizes: Sizes
    scratch: Path

    def choice(self, name: str) -> dict[str, Any]:
        """Multiple choice; the texts are compared with those of lm-eval's own task."""
        rows = load_rows(name, tasks.find(name).split, self.data_dir)[: self.sizes.limit]
        pairs = self._pairs(name, rows)
        _require_same(name, pairs, self._reference(name, rows, []))
        return self._work(score=pairs)

    def gsm8k(self) -> dict[str, Any]:
        """Five worked problems before each question; prompts equal lm-eval's with `first_n`."""
        rows = load_rows("gsm8k", "test", self.data_dir)[: self.sizes.gsm8k_items]
        training = load_rows("gsm8k", "train", self.data_dir)
        questions = gsm8k.questions(rows, training, SHOTS, self.sizes.gsm8k_tokens)
        requests = [question.requests for question in questions]
        theirs = self._reference(
            "gsm8k", rows, training, num_fewshot=SHOTS,
            fewshot_config={"sampler": "first_n", "split": "train"},
        )  # fmt: skip
        prompts = [own[0].prompt for own in requests]
        _require_same("gsm8k", prompts, [arguments[0] for arguments in theirs])
        return self._work(generate=requests)

    def humaneval(self) -> dict[str, Any]:
        """Several samples of each prompt; a few answers by greedy choice to compare."""
        section = MeasureSection(
            code_samples=self.sizes.code_samples, code_tokens=self.sizes.code_tokens,
            code_temperature=TEMPERATURE, code_top_p=TOP_P,
        )  # fmt: skip
        rows = load_rows("humaneval", "test", self.data_dir)[: self.sizes.code_items]
        _, questions = humaneval.prepare(rows, TaskSettings(section, _no_rows, _no_chat))
        requests = [question.requests for question in questions]
        limit = min(CHECKED_TOKENS, self.sizes.code_tokens)
        greedy = [
            (replace(own[0], temperature=0.0, top_p=1.0, max_new_tokens=limit),)
            for own in requests[:CHECKED_PROMPTS]
        ]
        return self._work(generate=requests, check=greedy, way="transformers")

    def adapters(self) -> dict[str, Any]:
        """Every adapter scores the same items and answers the same questions."""
        sizes = self.sizes
        name = "arc_challenge"
        rows = load_rows(name, tasks.find(name).split, self.data_dir)[: sizes.adapter_items]
        asked = load_rows("gsm8k", "test", self.data_dir)[: sizes.adapter_answers]
        questions = gsm8k.questions(asked, [], 0, sizes.adapter_tokens)
        return self._work(
            score=self._pairs(name, rows),
            generate=[question.requests for question in questions],
            adapters=write_adapters(self.model, self.scratch / "adapters", sizes.adapters),
        )

    def _pairs(self, name: str, rows: list[dict[str, Any]]) -> list[tuple[str, str]]:
        module = tasks.load(name)
        questions = [module.question(row, index) for index, row in enumerate(rows)]
        return [(r.context, r.continuation) for q in questions for r in q.requests]

    def _reference(
        self, name: str, rows: list[dict[str, Any]], training: list[dict[str, Any]], **changes: Any
    ) -> list[tuple[Any, ...]]:
        with tempfile.TemporaryDirectory(dir=self.scratch) as folder:
            task = reference_task(name, rows, training, Path(folder), **changes)
            task.set_fewshot_seed(FEWSHOT_SEED)
            task.build_all_requests()
            return [instance.args for instance in task.instances]

    def _work(
        self,
        score: Sequence[tuple[str, str]] = (),
        generate: Sequence[Sequence[GenerateRequest]] = (),
        check: Sequence[Sequence[GenerateRequest]] = (),
        adapters: Sequence[Path] = (),
        way: str = "lm-eval",
    ) -> dict[str, Any]:
        return {
            "model": str(self.model), "adapters": [str(folder) for folder in adapters],
            "score": list(score), "way": way,
            "generate": [[asdict(request) for request in own] for own in generate],
            "check": [[asdict(request) for request in own] for own in check],
        }  # fmt: skip


def write_adapters(model: Path, folder: Path, count: int) -> list[Path]:
    """LoRA adapters on all linear maps, saved by PEFT, with random matrices; seeds 0, 1, ..."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    config = LoraConfig(
        r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", module="transformers")
    # An adapter file holds no weight of the base, so any weights of its shapes will do.
    adapted: Any = get_peft_model(
        AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model)), config
    )
    written = []
    for seed in range(count):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if "lora_A" in name:
                    bound = parameter.shape[1] ** -0.5
                    parameter.uniform_(-bound, bound, generator=generator)
                elif "lora_B" in name:
                    parameter.normal_(std=ADAPTER_SPREAD, generator=generator)
        written.append(folder / f"adapter{seed}")
        adapted.save_pretrained(written[-1], save_embedding_layers=False)
    return written


def _require_same(name: str, ours: Sequence[Any], theirs: Sequence[Any]) -> None:
    differing = [i for i, pair in enumerate(zip(ours, theirs, strict=True)) if pair[0] != pair[1]]
    if differing:
        raise UsageError(
            f"{name}: request {differing[0]} is {ours[differing[0]]!r} here and "
            f"{theirs[differing[0]]!r} in lm-eval; run `make parity`, the sides would do other work"
        )


def _no_rows(split: str) -> list[dict[str, Any]]:
    raise AssertionError(f"humaneval's plain prompt needs no rows of {split}")


def _no_chat() -> Any:
    raise AssertionError("humaneval's plain prompt needs no chat template")


__all__ = ["CHOICE_TASKS", "QUICK", "Maker", "Sizes", "write_adapters"]
