"""Clients that people use, each in the Python that has it, against the micro base."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from laura.models.registry import MICRO_BASE
from tests.serve.clients import CLIENTS, MISSING
from tests.serve.real_server import ENVIRONMENT, serving

PYTHON = os.environ.get("LAURA_CLIENTS_PYTHON", sys.executable)
VLLM_PYTHON = os.environ.get("LAURA_VLLM_PYTHON", "")
SCRIPT = Path(__file__).parent / "clients.py"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving("micro") as server:
        yield server.url


def run(*words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in ENVIRONMENT.items() if k != "PYTHONPATH"}
    return subprocess.run(
        words, env=environment, cwd=cwd, capture_output=True, text=True, timeout=300
    )


@pytest.mark.parametrize("name", CLIENTS)
def test_a_client_talks_streams_and_gets_what_it_asks_for(url: str, name: str) -> None:
    done = run(PYTHON, str(SCRIPT), name, url)
    if done.returncode == MISSING:
        pytest.skip(f"{name} is not installed; set LAURA_CLIENTS_PYTHON to a Python that has it")
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_guidellm_measures(url: str, tmp_path: Path) -> None:
    if run(PYTHON, "-c", "import guidellm").returncode:
        pytest.skip("set LAURA_CLIENTS_PYTHON to a Python that has guidellm")
    done = run(
        PYTHON, "-m", "guidellm", "run", "--disable-progress",
        "--backend", f"kind=openai_http,target={url},model=micro",
        "--tokenizer", f"kind=huggingface_auto,model={MICRO_BASE}",
        "--data", "kind=synthetic_text,prompt_tokens=20,output_tokens=8",
        "--profile", "kind=synchronous", "--constraint", "kind=max_requests,count=3",
        "--output", "kind=json,path=found.json", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    (found,) = json.loads((tmp_path / "found.json").read_text())["benchmarks"]
    totals = found["metrics"]["request_totals"]
    assert (totals["successful"], totals["errored"]) == (3, 0)


@pytest.mark.slow
def test_vllms_benchmark_measures(url: str, tmp_path: Path) -> None:
    if not VLLM_PYTHON:
        pytest.skip("vLLM lives in another Python; set LAURA_VLLM_PYTHON to that one")
    # `vllm bench serve`: the command itself wants a distribution of that very name.
    code = (
        "import argparse; from vllm.benchmarks.serve import add_cli_args, main; "
        "parser = argparse.ArgumentParser(); add_cli_args(parser); main(parser.parse_args())"
    )
    done = run(
        VLLM_PYTHON, "-c", code, "--backend", "openai", "--base-url", url, "--model", "micro",
        "--tokenizer", str(MICRO_BASE), "--dataset-name", "random", "--random-input-len", "20",
        "--random-output-len", "8", "--num-prompts", "4", "--ignore-eos", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert re.search(r"Successful requests:\s+4\b", done.stdout), done.stdout[-3000:]
