"""Every command of documents and help texts is run as it stands, on files of the names it gives.

Bases are the micro base, studies a tiny one. What is not run here stands in `ELSEWHERE`.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from laura.cli.app import app
from laura.models.registry import MICRO_BASE, MODELS, PackagedModel
from laura.recipe.document import yaml_text
from tests.cli.test_guide import ROOT, blocks, command_of, commands
from tests.serve.real_server import serving

pytestmark = pytest.mark.slow

RECIPE: dict[str, Any] = {
    "name": "mine",
    "base": {"model": "micro"},
    "domain": "code",
    "data": {
        "train": {"source": "micro-code", "split": "train", "limit": 60},
        "validation": {"source": "micro-code", "split": "validation", "limit": 10},
        "test": {"source": "micro-code", "split": "test", "limit": 10},
        "source_text": "micro-source",
    },
    "budget": {"tokens": [2000]},
    "arms": {
        "full": {"method": "full", "learning_rates": [1e-3]},
        "lora": {"method": "lora", "rank": 4, "learning_rates": [5e-3]},
        "lora-r16": {"method": "lora", "rank": 16, "learning_rates": [5e-3]},
    },
    "train": {"batch_tokens": 512, "row_tokens": 256, "schedule": "trapezoidal"},
    "search": {"extend": 0},
    "seeds": [0],
    "measure": {
        "learning": ["target_loss"], "forgetting": ["micro_facts", "micro_events"], "limit": 10,
        "loss_documents": 4, "loss_tokens": 64, "precision": "auto",
    },
}  # fmt: skip
BASES = ("BASE", "MODEL", "HuggingFaceTB/SmolLM2-360M", "meta-llama/Llama-2-7b-hf")
ADAPTERS = (
    "DIR", "TUNED", "tuned", "best", "adapters/support", "adapters/poet", "adapters/coder",
    "studies/demo-recommended", "runs/A/checkpoints/00000400",
    "studies/demo/runs/ID/checkpoints/STEP",
)  # fmt: skip
STUDIES = (
    "STUDY", "studies/mine", "studies/support", "studies/demo", "studies/micro-math",
    "studies/smollm2-demo", "studies/micro-code-instruct", "studies/paper-code-instruct",
    "studies/micro-series/settings/problems",
)  # fmt: skip
# What is smaller than written: tasks whose rows are on the Hub, items, samples.
SMALLER = (
    (r"hellaswag,arc_challenge,winogrande,humaneval|hellaswag,gsm8k|gsm8k(,hellaswag)?",
     "micro_facts"),
    (r"humaneval|micro_math", "micro_events"),
    (r"--preset paper", "--limit 10"),
    (r"--limit \d+", "--limit 10"),
    (r"^laura evaluate (?!.*--limit)", "laura evaluate --limit 10 "),
    (r"studies/mine/runs/ID", "studies/demo/runs/ID"),
    (r"model\.layers\.\d+", "model.layers.1"),
    (r"^laura chat (?!.*--prompt)", "laura chat --prompt Hi --max-tokens 4 "),
    (r"ARM@RATE|full@0.00032", "lora@1e-3"),
    (r"--last N", "--last 5"),
    (r"0f343b0931126?", "KEY"),
    # The very name lies here already, for those that read it.
    (r"^(laura recommend .*--adapter) adapters/support", r"\1 adapters/new"),
)  # fmt: skip
# What `recommend` and `gate` end with where so small a study says too little.
UNCONFIRMED = "none of the|its weights get no record|neither passed|not passed"
ELSEWHERE = {
    r"^compare *$|^(compare|train) (micro|paper|recipes|smollm2-demo|two-domains|support)": (
        "minutes to days; read whole by test_guide.py, run smaller by tests of their own"
    ),
    r"^plan (micro|paper|recipes)": "tests/study/test_plan_shipped.py",
    "vllm": "tests/study/test_vllm_in_a_study.py and others, where vLLM is installed",
    "--ray": "tests/study/test_seats.py",
    r"wandb|mlflow": "tests/study/test_tracking.py",
    r"train\.devices": "tests/cli/test_scale.py",
    r"--confirm|batch_tokens=4096": "trains anew: tests/study",
    r"^serve|^mcp": "tests/serve, tests/test_deploy.py, tests/cli/test_mcp.py",
    r"^fetch|--network": "asks the network",
    r"^push|--converter": "tests/models, against a stand-in for the Hub and for llama.cpp",
    r"^watch": "tests/watch",
    r"^remedy": "trains for longer: tests/study/test_remedy.py",
}


def whole_commands() -> list[str]:
    """Each command once, without mentions that leave something out."""
    kept: dict[str, None] = {}
    for code, _ in (one.values for one in commands()):
        words = shlex.split(code.partition(" > ")[0], comments=True)
        command, given = command_of(words[1:])
        asked = [one for one in command.params if one.required]
        options = [one for one in asked if one.param_type_name == "option"]
        lacks = [one for one in options if not set(one.opts) & set(given)]
        begins = not asked or (given and not given[0].startswith("-"))
        if begins and not lacks and "..." not in given and not getattr(command, "commands", ()):
            kept[shlex.join(words)] = None
    return list(kept)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that the documents name."""
    folder: Path = tmp_path_factory.mktemp("house")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in ("mine.yaml", "RECIPE"):
            Path(name).write_text(yaml_text(RECIPE))
        words = ["compare", "mine.yaml", "--out", "studies/micro", "--workers", "1", "--json"]
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 0, done.output
        (run,) = (one["id"] for one in json.loads(done.stdout)["runs"] if one["arm"] == "lora-r16")
        (checkpoint,) = Path("studies/micro/runs", run).glob("checkpoints/*")
        for study in STUDIES:
            shutil.copytree("studies/micro", study)
        for adapter in ADAPTERS:
            shutil.copytree(checkpoint, adapter)
        for base in BASES:
            Path(base).parent.mkdir(exist_ok=True)
            Path(base).symlink_to(MICRO_BASE)
        rows = "".join(f"{n} cats?,{4 * n} legs.\n" for n in range(40))
        Path("support.csv").write_text(f"question,answer\n{rows}")
        (tenants,) = (one.values[0] for one in blocks("yaml") if "tenants:" in one.values[0])
        Path("tenants.yaml").write_text(tenants)
        Path("tenants.yaml").chmod(0o600)
        page = (ROOT / "docs" / "serving.md").read_text("utf-8")
        for line in re.findall(r"^openssl ec.*$", page, re.M):
            subprocess.run(shlex.split(line), check=True, capture_output=True)
    return folder


def elsewhere(code: str) -> list[str]:
    """The patterns of what is not run here that a command fits."""
    return [one for one in ELSEWHERE if re.search(one, code.removeprefix("laura "))]


def one_of_each(codes: list[str]) -> list[str]:
    """Of commands that differ in the values of their options alone, the longest."""
    kinds: dict[object, str] = {}
    for code in sorted(codes, key=len):
        command, words = command_of(shlex.split(code)[1:])
        kinds[command, tuple(sorted(word for word in words if word[:2] == "--"))] = code
    return list(kinds.values())


COMMANDS = whole_commands()


def test_nothing_is_left_out_in_vain() -> None:
    assert {pattern for code in COMMANDS for pattern in elsewhere(code)} == set(ELSEWHERE)


@pytest.fixture
def at_home(house: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a copy of the house, where the names of other bases mean the micro base."""
    for name in ("smollm2-135m-instruct-q4", "llama-2-7b"):
        monkeypatch.setitem(MODELS, name, PackagedModel(MICRO_BASE))
    shutil.copytree(house, tmp_path / "house", symlinks=True)
    monkeypatch.chdir(tmp_path / "house")


@pytest.mark.usefixtures("at_home")
@pytest.mark.parametrize("code", one_of_each([one for one in COMMANDS if not elsewhere(one)]))
def test_the_command_does_what_the_page_says(code: str) -> None:
    for pattern, other in SMALLER:
        code = re.sub(pattern, other, code)
    words = shlex.split(code)[1:]
    if words[0] == "tenants" and words[1] != "add":
        for before in (["add", "acme", "--json"], ["admin", "--json"]):
            made = CliRunner().invoke(app, ["tenants", *before])
            name = "KEY" if before[0] == "add" else "ID"
            words = [json.loads(made.stdout)["id"] if word == name else word for word in words]
    if words[0] == "recommend":  # which writes it
        shutil.rmtree("best")
    ended = CliRunner().invoke(app, words)
    if words[0] in ("recommend", "gate") and ended.exit_code in (2, 4):
        assert re.search(UNCONFIRMED, ended.stderr + ended.stdout), ended.output
    else:
        assert ended.exit_code == 0, ended.output


@pytest.mark.usefixtures("at_home")
def test_the_python_page_in_one_session() -> None:
    Path("studies/mine").rename("studies/small")
    session: dict[str, Any] = {}
    for code in (one.values[0] for one in blocks("python") if one.id.startswith("python.md")):
        code = code.replace('"micro-small"', '"mine.yaml"')
        code = code.replace('"micro", progress', '"mine.yaml", out="studies/small", progress')
        code = code.replace('"micro-math"},', '"micro-math", "limit": 60},').replace("=50", "=10")
        code = code.replace("tokens=2048", 'tokens=2048", "data.validation_rows=10')
        exec(compile(code, "python.md", "exec"), session)
    assert set(session["tuned"].arm) == set(RECIPE["arms"]) and session["advice"].confirm
    (reads,) = (one.values[0] for one in blocks("python") if "read_file" in one.values[0])
    session = {"study": Path("studies/micro")}
    exec(compile(reads, "guide.md", "exec"), session)
    assert session["summary"].name == "mine"


@pytest.mark.usefixtures("at_home")
def test_what_the_serving_page_asks_a_server() -> None:
    page = (ROOT / "docs" / "serving.md").read_text("utf-8").replace("\\\n", "")
    asks = [shlex.split(line) for line in re.findall(r"^curl .*$", page, re.M)]
    clients = [one.values[0] for one in blocks("python") if one.id.startswith("serving.md")]
    with serving("micro", "--adapters", "adapters") as server:
        for words in asks:
            heads = dict(words[n + 1].split(": ") for n, word in enumerate(words) if word == "-H")
            body = words[words.index("-d") + 1].encode() if "-d" in words else None
            url = words[words.index("POST") + 1 if "POST" in words else 1]
            asked = urllib.request.Request(
                url.replace("http://127.0.0.1:8000", server.url), body, heads,
                method="POST" if "POST" in words else None,
            )  # fmt: skip
            with urllib.request.urlopen(asked) as answer:
                assert answer.status == 200, words
        session: dict[str, Any] = {}
        for client in clients:
            exec(client.replace("http://127.0.0.1:8000", server.url), session)
        session["client"].close()
    assert len(asks) == 3 and session["answer"].choices[0].message.content is not None
