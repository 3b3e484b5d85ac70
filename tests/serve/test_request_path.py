"""A request's way: the files of Laura that one chat goes through, from HTTP to tokens and back."""

from __future__ import annotations

import io
import sys
import threading
from collections import Counter
from pathlib import Path
from types import FrameType

import httpx
import pytest

import laura
from laura.models.registry import MICRO_BASE
from laura.serve.app import create_app
from laura.serve.context import RequestLog
from laura.serve.library import Policy
from laura.serve.server import open_engine, open_library
from laura.serve.settings import EngineSettings, ServeSettings

ROOT = Path(laura.__file__).parent
# Whoever follows a request reads so many files; a new one has to be worth it.
MOST_FILES = {"serve": 14, "engine": 7, "models": 3}


@pytest.mark.anyio
async def test_a_chat_goes_through_few_files() -> None:
    seen: set[str] = set()
    counting = False

    def called(frame: FrameType, event: str, what: object) -> None:
        if counting and event == "call":
            seen.add(frame.f_code.co_filename)

    settings = EngineSettings(base="micro", device="cpu", precision="fp32")
    threading.setprofile(called)  # for the engine's thread, which starts below
    try:
        engine = open_engine(MICRO_BASE, settings)
        library = open_library(MICRO_BASE, None, settings, Policy(), engine.fingerprint)
        app = create_app(
            ServeSettings(base="micro"), engine, library, log=RequestLog(io.StringIO())
        )
        await engine.start()
        body = {"model": "micro", "messages": [{"role": "user", "content": "hello"}]}
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            counting = True
            sys.setprofile(called)
            answer = await client.post("/v1/chat/completions", json={**body, "max_tokens": 8})
            sys.setprofile(None)
            counting = False
        await engine.stop(0)
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    assert answer.json()["choices"][0]["message"]["content"]
    found = (Path(name) for name in seen if name.startswith(f"{ROOT}/"))
    files = sorted(path.relative_to(ROOT).as_posix() for path in found)
    assert {"serve/app.py", "serve/async_engine.py", "engine/scheduler.py"} <= set(files)
    assert Counter(name.split("/")[0] for name in files) <= Counter(MOST_FILES), files
