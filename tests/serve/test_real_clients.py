"""Clients that people use, each in the Python that has it, against the micro base."""

from __future__ import annotations

import os
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
        PYTHON, "-m", "guidellm", "benchmark", "run", "--target", url, "--model", "micro",
        "--processor", str(MICRO_BASE), "--data", "prompt_tokens=20,output_tokens=8",
        "--profile", "synchronous", "--max-requests", "3", "--output-dir", str(tmp_path),
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]


@pytest.mark.slow
def test_vllms_benchmark_measures(url: str, tmp_path: Path) -> None:
    if not VLLM_PYTHON:
        pytest.skip("vLLM lives in another Python; set LAURA_VLLM_PYTHON to that one")
    done = run(
        VLLM_PYTHON, "-m", "vllm.entrypoints.cli.main", "bench", "serve", "--backend", "openai",
        "--base-url", url, "--model", "micro", "--tokenizer", str(MICRO_BASE),
        "--dataset-name", "random", "--random-input-len", "20", "--random-output-len", "8",
        "--num-prompts", "4", "--ignore-eos", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert "Successful requests:                     4" in done.stdout, done.stdout[-3000:]
