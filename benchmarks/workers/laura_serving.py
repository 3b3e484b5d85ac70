"""Laura's side of `serving.py`: sequences handed to the engine as the server hands them.

Prompts of a run are submitted together from an event loop; HTTP is left out, as it is on
the peers' side.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

from serving_side import Way, carry_out


class Laura:
    """An engine with all adapters in slots.

    Args:
        work: What `serving.py` wrote.
        way: Precision, adapters or base, drafts or none.
    """

    def __init__(self, work: dict[str, Any], way: Way) -> None:
        from laura.models.adapter_files import base_facts
        from laura.serve.async_engine import open_inprocess
        from laura.serve.engines import AdapterFiles
        from laura.serve.library import Library
        from laura.serve.settings import EngineSettings

        self.work, self.count = work, 0
        self.files: list[AdapterFiles | None] = [None]
        if way.mixed:
            folders = [Path(folder) for folder in work["adapters"]]
            library = Library(folders[0].parent, base_facts(Path(work["model"])))
            self.files = [library.open(folder.name) for folder in folders]
        settings = EngineSettings(
            base=work["model"], device="cpu", precision=way.precision,
            slots=len(self.files), drafts=way.drafts,
        )  # fmt: skip
        self.engine = open_inprocess(Path(work["model"]), settings)

    async def run(self) -> dict[str, Any]:
        """Every load: what it took; and what an adapter takes in memory."""
        result: dict[str, Any] = {"memory": {}}
        await self.engine.start()
        try:
            for files in self.files:
                if files is not None:
                    await self.engine.load(files)
            held = self.engine.state().slots
            if held and self.files[0] is not None:
                size = self.engine.state().memory_bytes["adapters"] / len(held)
                result["memory"] = {"an_adapter": size, "its_file": self.files[0].bytes}
            for load, runs in self.work["prompts"].items():
                await self.together(runs[0])
                result[load] = [await self.together(prompts) for prompts in runs[1:]]
            state = self.engine.state()
            result["drafts"] = {"drafted": state.drafted_tokens, "right": state.accepted_tokens}
        finally:
            await self.engine.stop(0)
        return result

    async def together(self, prompts: list[list[int]]) -> dict[str, Any]:
        """All prompts at once: seconds, new tokens, seconds until each first token."""
        started = time.perf_counter()
        found = await asyncio.gather(*(self.one(i, ids) for i, ids in enumerate(prompts)))
        seconds = time.perf_counter() - started
        return {
            "seconds": seconds,
            "tokens": sum(tokens for tokens, _ in found),
            "first": [first - started for _, first in found],
        }

    async def one(self, number: int, ids: list[int]) -> tuple[int, float]:
        """New tokens of one answer, and when the first came."""
        from laura.serve.engines import Ended, SequenceRequest

        files, self.count = self.files[number % len(self.files)], self.count + 1
        request = SequenceRequest(
            id=str(self.count), tenant=f"tenant{number % 4}", prompt=tuple(ids),
            max_new_tokens=self.work["new_tokens"], adapter=files.name if files else None,
            ignore_end=True, top_logprobs=None,
        )  # fmt: skip
        told: asyncio.Queue[Any] = asyncio.Queue()
        self.engine.submit(request, files, told.put_nowait)
        event, first = await told.get(), time.perf_counter()
        while not isinstance(event, Ended):
            if isinstance(event, Exception):
                raise event
            event = await told.get()
        return event.new_tokens, first


def answer(work: dict[str, Any], way: Way) -> dict[str, Any]:
    """Every load: what it took; and what an adapter takes in memory."""
    return asyncio.run(Laura(work, way).run())


if __name__ == "__main__":
    carry_out(answer)
