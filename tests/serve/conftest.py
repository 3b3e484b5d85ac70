"""What tests of the server share: the micro base's tokenizer, a house around it, a client."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest

from laura.models.registry import MICRO_BASE
from tests.serve import houses
from tests.serve.real_server import serving


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


@pytest.fixture(scope="module")
def client() -> Iterator[openai.OpenAI]:
    """OpenAI's own, on a server of the micro base."""
    with serving("micro") as server:
        with openai.OpenAI(
            base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60
        ) as one:
            yield one
