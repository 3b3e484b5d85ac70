"""What tests of the server share: the micro base's tokenizer, and a house around it."""

from __future__ import annotations

from typing import Any

import pytest

from laura.models.registry import MICRO_BASE


@pytest.fixture(scope="session")
def micro_tokenizer() -> Any:
    from laura.models.load import load_tokenizer

    return load_tokenizer(MICRO_BASE)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
