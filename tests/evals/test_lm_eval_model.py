"""lm-eval's evaluator on Laura's engine gives what it gives on transformers itself."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from laura.engine.engine import Engine
from laura.engine.requests import GenerateAnswer, GenerateRequest
from laura.results.errors import AdapterError, UsageError
from tests.evals.lm_eval_rows import evaluated, plain, write_tasks

# lm-eval and the libraries it loads warn of their own future; ours stay errors.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:lm_eval"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:sacrebleu"),
]


def same(one: Any, other: Any) -> bool:
    """Texts equal; log-likelihoods within 1e-4 nats of each token's; greedy flags equal."""
    if isinstance(other, tuple):
        return bool(abs(one[0] - other[0]) < 1e-4 and one[1] == other[1])
    if isinstance(other, float):
        return abs(one - other) < 1e-6 * abs(other) + 1e-4
    return bool(one == other)


@pytest.mark.parametrize("chat", [False, True])
def test_equals_lm_evals_own_model(chat: bool, tiny_folder: Path, tmp_path: Path) -> None:
    from laura.evals.lm_eval.model import LauraLM

    names = write_tasks(tmp_path)
    names = [name for name in names if not (chat and name in ("here_pairs", "here_rolling"))]
    ours = LauraLM.create_from_arg_string(f"model={tiny_folder}", {"batch_size": 1})
    found = evaluated(ours, names, tmp_path, apply_chat_template=chat)
    wanted = evaluated(plain(tiny_folder), names, tmp_path, apply_chat_template=chat)
    compared = 0
    for name in names:
        for mine, theirs in zip(found["samples"][name], wanted["samples"][name], strict=True):
            assert mine["arguments"] == theirs["arguments"]
            for one, other in zip(mine["resps"], theirs["resps"], strict=True):
                assert same(one[0], other[0]), (name, one, other)
                compared += 1
        for metric, value in wanted["results"][name].items():
            mine = found["results"][name][metric]
            assert mine == (value if isinstance(value, str) else pytest.approx(value, rel=1e-5))
    assert compared == (27 if chat else 27 + 12 + 4)


class _Recorder:
    """An engine that keeps what it is asked."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.asked: list[GenerateRequest] = []

    def generate(self, requests: Any) -> list[GenerateAnswer]:
        self.asked += requests
        return [GenerateAnswer(f"text {i}", 1, "end") for i in range(len(requests))]


def _instances(*arguments: tuple[Any, ...]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance("generate_until", {}, pair, 0) for pair in arguments]


def test_generation_settings_become_a_request(tiny_tokenizer: Any) -> None:
    from laura.evals.lm_eval.model import LauraLM

    engine = _Recorder(tiny_tokenizer)
    lm = LauraLM(engine, adapter="mine")  # type: ignore[arg-type]
    sampled = {
        "until": "\n", "max_new_tokens": 7, "do_sample": True, "temperature": 0.5, "top_p": 0.9,
        "top_k": 4, "num_beams": 1,
    }  # fmt: skip
    texts = lm.generate_until(
        _instances(("a", sampled), ("b", {"until": ["x", ""]}), ("a", sampled), ("a", {}))
    )
    first, second, again, plainest = engine.asked
    assert first == GenerateRequest(
        "a", ("\n", "<|im_end|>"), 7, temperature=0.5, top_p=0.9, top_k=4, seed=0, adapter="mine"
    )
    assert again == GenerateRequest(
        "a", ("\n", "<|im_end|>"), 7, temperature=0.5, top_p=0.9, top_k=4, seed=1, adapter="mine"
    )
    assert second == GenerateRequest("b", ("x", "<|im_end|>"), 256, adapter="mine")
    assert plainest == GenerateRequest("a", ("<|im_end|>",), 256, adapter="mine")
    assert texts == ["text 0", "text 1", "text 2", "text 3"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"num_beams": 4, "repetition_penalty": 1.2}, ["num_beams=4", "repetition_penalty=1.2"]),
        ({"do_sample": True}, ["temperature"]),
        ({"min_p": 0.1}, ["min_p=0.1", "top_p"]),
        ({"bad_words": ["x"]}, ["bad_words"]),
    ],
)
def test_settings_without_a_meaning_here_are_refused(settings: Any, words: list[str]) -> None:
    from laura.evals.lm_eval.model import generation

    with pytest.raises(UsageError) as caught:
        generation("a", {"until": [], **settings})
    assert all(word in str(caught.value) for word in words)


def test_model_arguments_are_checked(tiny_folder: Path, tmp_path: Path) -> None:
    from laura.evals.lm_eval.model import LauraLM

    with pytest.raises(UsageError, match="'pretrained' \\(here 'model'\\)"):
        LauraLM.create_from_arg_string(f"pretrained={tiny_folder}")
    with pytest.raises(UsageError, match="model is needed"):
        LauraLM.create_from_arg_string("")
    with pytest.raises(UsageError, match="precision must be"):
        LauraLM.create_from_arg_string(f"model={tiny_folder},precision=fp8")
    with pytest.raises(AdapterError):
        LauraLM.create_from_arg_string(f"model={tiny_folder},adapter={tmp_path}")


def _adapter(folder: Path, model: Any) -> Path:
    """An adapter with updates that matter."""
    import torch

    from laura.models.adapters import attach, save_adapter
    from laura.models.lora import LoraSettings, lora_layers

    settings = LoraSettings(rank=2, alpha=8.0, targets=("q_proj", "down_proj"))
    attach(model, settings, seed=0)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for layer in lora_layers(model).values():
            layer.B.copy_(torch.randn(layer.B.shape, generator=generator) * 0.2)
    save_adapter(model, folder, settings, "tiny")
    return folder


@pytest.mark.slow
def test_lm_evals_own_command_line(
    tiny_folder: Path, tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    """A model with an adapter, measured from the shell, by lm-eval's options."""
    names = write_tasks(tmp_path / "tasks")
    adapter = _adapter(tmp_path / "adapter", tiny_model)
    arguments = [
        sys.executable, "-m", "laura.evals.lm_eval", "run", "--model", "laura",
        "--model_args", f"model={tiny_folder},adapter={adapter},precision=fp32", "--device", "cpu",
        "--tasks", ",".join(names), "--include_path", str(tmp_path / "tasks"),
        "--output_path", str(tmp_path / "out"), "--log_samples",
    ]  # fmt: skip
    done = subprocess.run(arguments, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "|here_choice" in done.stdout
    (file,) = (tmp_path / "out").rglob("results_*.json")
    found = json.loads(file.read_text(encoding="utf-8"))

    from laura.evals.lm_eval.model import LauraLM

    # The adapter is attached to `tiny_model` already.
    same_here = LauraLM(Engine(tiny_model, tiny_tokenizer))
    wanted = evaluated(same_here, names, tmp_path / "tasks")
    without = evaluated(
        LauraLM.create_from_arg_string(f"model={tiny_folder}"), names, tmp_path / "tasks"
    )
    metric = "perplexity,none"
    for name in names:
        for key, value in wanted["results"][name].items():
            if "_stderr" in key:  # bootstrapped there, not here
                continue
            mine = found["results"][name][key]
            assert mine == (value if isinstance(value, str) else pytest.approx(value, rel=1e-5))
    base = without["results"]["here_pairs"][metric]
    assert abs(found["results"]["here_pairs"][metric] / base - 1) > 0.01


def test_without_lm_eval_the_error_names_the_extra() -> None:
    """And Laura itself does without it."""
    code = (
        "import sys; sys.modules['lm_eval'] = None\n"
        "import laura.evals.runner, laura.study.evaluation, laura.cli.app\n"
        "from laura.results.errors import MissingExtraError\n"
        "try:\n"
        "    import laura.evals.lm_eval.model\n"
        "except MissingExtraError as error:\n"
        "    assert 'laura-lab[lm-eval]' in str(error), error\n"
        "else:\n"
        "    raise AssertionError\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
