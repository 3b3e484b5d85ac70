"""docs/scale.md, from a recipe to a served adapter: every command of it, on the micro base."""

from __future__ import annotations

import json
import re
import shlex
import urllib.request
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet
from typer.testing import CliRunner

from laura.cli.app import app
from laura.data.sources import load_examples
from laura.recipe.document import YamlDocument, yaml_text
from laura.recipe.sections import Source
from tests.serve.real_server import serving

PAGE = (Path(__file__).parents[2] / "docs" / "scale.md").read_text(encoding="utf-8")
WAY = re.split(r"^## ", PAGE, flags=re.M)[1]
# What is smaller here: the base, what is measured, budgets, and two processes for the GPUs.
SMALLER = {"llama-2-7b": "micro", "train.devices=8": "train.devices=2", "'2 points'": "'60 points'"}


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", WAY, re.M | re.S)


def commands() -> list[str]:
    text = "".join(blocks("sh"))
    for name, other in SMALLER.items():
        assert name in text
        text = text.replace(name, other)
    return text.splitlines()


def small_recipe(corpus: Path) -> str:
    """The page's recipe with everything in it smaller."""
    data = YamlDocument.parse(blocks("yaml")[0], "page").data
    rows = [e.text for e in load_examples(Source(source="micro-code-text"))]
    corpus.mkdir()
    for number in range(2):
        table = pyarrow.table({"text": rows[number * 100 : number * 100 + 100]})
        parquet.write_table(table, corpus / f"train-{number}.parquet")
    held = "".join(json.dumps({"text": text}) + "\n" for text in rows[300:360])
    (corpus / "test.jsonl").write_text(held)
    data["base"] = {"model": "micro"}
    data["budget"] = {"tokens": [1000, 3000]}
    data["data"]["validation_rows"] = 10
    data["arms"]["full"]["learning_rates"] = [1e-5]
    data["arms"]["lora"] |= {"learning_rates": [4e-3], "rank": 8}
    data["train"] |= {"batch_tokens": 512, "row_tokens": 128, "precision": "fp32"}
    data["measure"] = {
        "learning": ["target_loss"], "forgetting": ["micro_facts"], "limit": 60,
    }  # fmt: skip
    return yaml_text(data)


@pytest.mark.slow
def test_the_way_from_a_recipe_to_a_served_adapter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(small_recipe(Path("corpus")))
    *before, last = commands()
    for line in before:
        ended = CliRunner().invoke(app, shlex.split(line)[1:])
        assert ended.exit_code == 0, (line, ended.output)
    assert len(list(Path("studies/mine").glob("runs/*"))) == 6
    words = shlex.split(last)
    assert words[:2] == ["laura", "serve"]
    with serving(*words[2:], "--port", "0") as server:
        for model in ("mine", "micro"):
            body: dict[str, Any] = {"model": model, "prompt": "def", "max_tokens": 4}
            asked = urllib.request.Request(
                f"{server.url}/v1/completions",
                json.dumps(body).encode(),
                {"content-type": "application/json"},
            )
            with urllib.request.urlopen(asked) as answer:
                assert json.loads(answer.read())["usage"]["completion_tokens"] > 0


def test_the_plan_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    small_recipe(Path("corpus"))  # the corpus alone
    Path("mine.yaml").write_text(blocks("yaml")[0])
    line = next(one for one in "".join(blocks("sh")).splitlines() if one.startswith("laura plan"))
    told = CliRunner().invoke(app, shlex.split(line)[1:])
    assert told.exit_code == 0, told.output
    shown = blocks("text")[0].rstrip()
    assert shown in told.stdout


@pytest.mark.slow
def test_full_is_spread_first_where_other_arms_drop_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the plan advises for the paper's recipes over several devices."""
    monkeypatch.chdir(tmp_path)
    data = YamlDocument.parse(small_recipe(Path("corpus")), "page").data
    data["arms"]["lora"]["dropout"] = 0.05
    data |= {"seeds": [0], "budget": {"tokens": [1000]}, "search": {"extend": 0}}
    Path("mine.yaml").write_text(yaml_text(data))

    def done(line: str) -> Any:
        ended = CliRunner().invoke(app, [*shlex.split(line), "--out", "study", "--json"])
        assert ended.exit_code == 0, ended.output
        return json.loads(ended.stdout)

    spread = "train mine.yaml --arm full --set train.devices=2"
    refused = CliRunner().invoke(app, shlex.split(spread))
    assert refused.exit_code == 2 and "each device would draw its own" in refused.stderr
    (first,) = done(f"{spread} --set arms.lora.dropout=0")["runs"]
    written = (Path(first["folder"]) / "metrics.jsonl").stat().st_mtime_ns
    runs = {run["arm"]: run["id"] for run in done("compare mine.yaml")["runs"]}
    assert runs.keys() == {"full", "lora"} and runs["full"] == first["id"]
    assert (Path(first["folder"]) / "metrics.jsonl").stat().st_mtime_ns == written
