"""What tests of the server share: the micro base's tokenizer, and a house around it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from laura.models.registry import MICRO_BASE
from tests.serve import houses


@pytest.fixture(scope="session")
def micro_tokenizer() -> Any:
    from laura.models.load import load_tokenizer

    return load_tokenizer(MICRO_BASE)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(params=["one engine", "a pool"])
def engines(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every house of a test asks its engine itself, or through a pool: nobody can tell."""
    pools: list[Any] | None = [] if request.param == "a pool" else None
    monkeypatch.setattr(houses, "BEHIND", pools)
    yield
    for one in pools or ():
        one.close()
