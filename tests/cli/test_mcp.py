"""`laura mcp` through the mcp package's own client: from a table of rows to a verdict."""

from __future__ import annotations

import csv
import json
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import Client, StdioServerParameters
from typer.testing import CliRunner

from laura.cli import app as cli
from laura.cli.mcp import TOOLS
from laura.results.store import write_json
from tests.test_python import SUMMARY

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["budget.tokens=[2000]", "arms.full.learning_rates=[1e-3]", "seeds=[0]",
         "arms.lora-r4.learning_rates=[5e-3]", "search.extend=0", "measure.limit=10",
         "measure.loss_documents=4"]  # fmt: skip


class Agent:
    """What a client asks of the server."""

    def __init__(self, client: Client) -> None:
        self.client = client

    async def ask(self, tool: str, **given: Any) -> dict[str, Any]:
        """A tool's answer."""
        told = await self.client.call_tool(tool, given)
        assert not told.is_error, told.content
        value: dict[str, Any] = told.structured_content
        return value

    async def mistake(self, tool: str, **given: Any) -> str:
        """What a tool that fails says."""
        told = await self.client.call_tool(tool, given)
        assert told.is_error
        return str(told.content[0].text)


@asynccontextmanager
async def agent(folder: Path) -> AsyncIterator[Agent]:
    """A client of `laura mcp`, which works in a folder."""
    server = StdioServerParameters(
        command=sys.executable, args=["-m", "laura", "mcp", str(folder)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    async with Client(server) as client:
        yield Agent(client)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """support.csv, and a study that was judged."""
    rows = [("question", "answer"), *((f"{n} cats?", f"{4 * n} legs.") for n in range(40))]
    with (tmp_path / "support.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    judged = {"format": 2, "answer": "Take LoRA.", "sentences": ["By a lot."], "caveats": ["Few."]}
    write_json(tmp_path / "study" / "summary.json", SUMMARY)
    write_json(tmp_path / "study" / "claims.json", judged)
    return tmp_path


def test_tools_answer_as_the_commands_do_and_fail_in_their_words(folder: Path) -> None:
    async def story() -> None:
        async with agent(folder) as one:
            known = (await one.client.list_tools()).tools
            assert [tool.name for tool in known] == [tool.__name__ for tool in TOOLS]
            assert all(tool.description for tool in known)
            look = await one.ask("look_at_data", data="support.csv")
            assert look["rows"] == 40 and not list(folder.glob("*.yaml"))
            made = await one.ask("init_recipe", data="support.csv", epochs="1")
            assert made["first_look"]["rows"] == 40
            assert made["content"] == (folder / made["recipe"]).read_text()
            told = await one.ask("verdict", study="study")
            assert (told["answer"], told["caveats"]) == ("Take LoRA.", ["Few."])
            assert (await one.ask("transitions", study="study"))["transitions"] == []
            standing = await one.ask("status", study="study")
            assert not standing["running"] and standing["has_verdict"]

            refused = CliRunner().invoke(cli.app, ["compare", "micro", "--set", "train.clip=no"])
            words = await one.mistake("start_compare", recipe="micro", overrides=["train.clip=no"])
            assert words.endswith(refused.stderr.removeprefix("error: ").rstrip())
            assert not (folder / "studies").exists()
            for tool, given, words in (
                ("look_at_data", {"data": "suport.csv"}, "suport.csv"),
                ("init_recipe", {"data": "support.csv"}, "support.yaml is there already"),
                ("plan_recipe", {"recipe": "absent"}, "there is no recipe 'absent'"),
                ("status", {"study": "absent"}, "no study folder absent"),
                ("verdict", {"study": "absent"}, "absent"),
                ("transitions", {"study": "study", "task": "gsm8k"}, "give task and arm together"),
                ("transitions", {"study": "study", "limit": 0}, "from 1, came 0"),
                ("recommend", {"study": "study"}, "say what is wanted"),
                ("verdict", {}, "study"),
            ):
                told_words = await one.mistake(tool, **given)
                assert words in told_words and "Traceback" not in told_words, told_words

    anyio.run(story)


@pytest.mark.slow
def test_a_comparison_in_the_background_outlives_its_server(folder: Path) -> None:
    async def begin() -> None:
        async with agent(folder) as one:
            planned = await one.ask("plan_recipe", recipe="micro-small", overrides=SMALL)
            assert planned["totals"]["runs"] == 2
            given = {"recipe": "micro-small", "out": "mine", "overrides": SMALL}
            begun = await one.ask("start_compare", **given)
            assert begun["study"] == "mine"
            assert (await one.ask("status", study="mine"))["running"]
            assert "being compared already" in await one.mistake("start_compare", **given)

    async def end() -> None:
        async with agent(folder) as one:
            deadline = time.monotonic() + 200
            while (standing := await one.ask("status", study="mine"))["running"]:
                assert time.monotonic() < deadline, standing
                await anyio.sleep(0.5)
            assert standing["runs"] == {"done": 2} and standing["has_verdict"], standing
            told = await one.ask("verdict", study="mine")
            claims = json.loads((folder / "mine" / "claims.json").read_text())
            assert told["answer"] == claims["answer"] and Path(folder, told["report"]).is_file()
            shares = (await one.ask("transitions", study="mine"))["transitions"]
            arm, task = "full", next(row["task"] for row in shares if row["task"] != "mean")
            items = await one.ask("transitions", study="mine", task=task, arm=arm, limit=2)
            assert items["task"] == task and items["shown"] <= 2
            assert all([a["passed"] for a in item["answers"]] == [True, False]
                       for item in items["items"])  # fmt: skip
            taken = await one.ask("recommend", study="mine", min_learning="-100%")
            assert taken["confirm"].startswith("laura compare")

    anyio.run(begin)
    anyio.run(end)
