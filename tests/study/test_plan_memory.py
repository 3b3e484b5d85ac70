"""Predicted against measured peak memory on the real small model, within a tenth."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from laura.models.device import has_bf16_arithmetic
from laura.recipe.sections import BaseSection
from laura.study.plan_machine import measure_machine
from laura.study.plan_shapes import shapes_of

pytestmark = pytest.mark.slow
BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
# Where bf16 is emulated, a single case in it would take more than ten minutes.
PRECISION = "bf16" if has_bf16_arithmetic(torch.device("cpu")) else "fp32"


@pytest.fixture(scope="module")
def benchmark() -> Any:
    """benchmarks/plan_memory.py, whose cases are measured here too."""
    sys.path.insert(0, str(BENCHMARKS))
    place = BENCHMARKS / "plan_memory.py"
    spec = importlib.util.spec_from_file_location("plan_memory_benchmark", place)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def runtime(smollm2_folder: Path) -> int:
    """Memory of a process without the model, measured once for all cases."""
    shapes = shapes_of(BaseSection(model=str(smollm2_folder)))
    return measure_machine(shapes, "cpu", PRECISION).runtime


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory of a process")
@pytest.mark.parametrize("number", range(5))
def test_peak_memory_is_predicted(
    benchmark: Any, runtime: int, tmp_path: Path, number: int
) -> None:
    case = replace(benchmark.CASES[number], precision=PRECISION)
    found = benchmark.compare(case, runtime, tmp_path)
    assert "failed" not in found, found
    assert found["ratio"] == pytest.approx(1, abs=0.1), found
