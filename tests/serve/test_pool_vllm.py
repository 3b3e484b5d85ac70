"""vLLM (its stand-in) behind a gate: the right adapter answers, as without one."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from laura.serve.engines import AdapterFiles
from laura.serve.headless import Headless
from laura.serve.pool import EnginePool
from laura.serve.settings import EngineSettings
from tests.models.test_vllm_engine import Fake
from tests.serve.pools import KEY
from tests.serve.test_vllm import adapters, ask_for, check, fake, serving

__all__ = ["adapters", "fake"]
pytestmark = pytest.mark.anyio


async def test_base_and_adapters_are_answered(
    tiny_folder: Path,
    fake: Fake,
    adapters: list[AdapterFiles],
) -> None:
    async with serving(tiny_folder) as engine:
        host = Headless(engine, adapters[0].folder.parent, KEY)
        server = await asyncio.get_running_loop().create_server(host.wire, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        settings = EngineSettings(base="tiny", kind="pool", backends=(url,), key=KEY)
        pool = EnginePool(tiny_folder, settings, start_seconds=5)
        await pool.start()
        assert pool.context_tokens == engine.context_tokens
        every = [(n, files) for n in range(4) for files in (None, *adapters)]
        asked = [(ask_for(n, files, id=f"{n} {files}"), files) for n, files in every]
        await asyncio.gather(*(check(pool, ask, files) for ask, files in asked))  # type: ignore[arg-type]
        await pool.load(adapters[0], pin=True)
        assert [slot.adapter for slot in pool.state().slots if slot.pinned] == [adapters[0].name]
        await pool.stop(0)
        await host.stop(0)
        server.close()
