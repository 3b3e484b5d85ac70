"""The page's server: what it tells of a study, what it lets be asked, and of whom."""

from __future__ import annotations

import shutil
import subprocess
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from laura.recipe.reading import stored_recipe
from laura.results.store import StudyStore, read_json
from laura.results.task_result import TaskResult, change
from laura.study.steering import SkippedRun, read_steering
from laura.watch.server import create_watch
from tests.study.carried_out import command
from tests.watch.conftest import place_of, whole_of

OWN = "http://127.0.0.1:8123"
ORIGIN = {"origin": OWN}


@pytest.fixture
def client(running: Path) -> TestClient:
    return TestClient(create_watch(running, "key"), base_url=OWN)


def test_what_is_told_is_what_the_files_say(client: TestClient, running: Path) -> None:
    told = client.get("/key/state").json()
    cells = {(one["arm"], one["rate"], one["seed"]): one for one in told["cells"]}
    assert {key: one["state"] for key, one in cells.items()} == {
        ("full", 1e-3, 0): "done", ("full", 3e-3, 0): "done",
        ("full", 1e-3, 1): "done", ("full", 3e-3, 1): "running",
        ("lora", 1e-2, 0): "done", ("lora", 3e-2, 0): "done",
        ("lora", 1e-2, 1): "line", ("lora", 3e-2, 1): "line",
    }  # fmt: skip
    assert told["running"] and not told["finished"] and not told["stopping"]
    store = StudyStore(running)
    for key, cell in cells.items():
        runs = [run for run in store.runs() if place_of(run) == key]
        rows = [row for run in runs for row in run.metrics()]
        # With a cosine every token is passed once.
        done = sum(row["tokens_per_second"] * row["seconds"] for row in rows)
        whole = sum(whole_of(run) for run in runs)
        assert cell["share"] == pytest.approx(done / whole if runs else 0, rel=1e-3)
        longest = max((run.metrics() for run in runs), key=len, default=[])
        assert len(cell["curve"]) == len(longest) < 60
        assert cell["curve"] == [
            [row["tokens"], pytest.approx(row["loss"], rel=1e-3)] for row in longest
        ]
        expected = []
        for run in runs:
            (mark,) = read_json(run.folder / "run.json")["points"]
            values = []
            for task, sign in (("target_loss", -1), ("source_loss", 1)):
                if run.evaluation(mark["step"], task).is_file():
                    base = TaskResult.read(store.base_evaluation(task))
                    now = TaskResult.read(run.evaluation(mark["step"], task))
                    values.append(sign * change(base, now, "nats_per_token").value)
            if values:
                expected.append([mark["budget"], *map(pytest.approx, values)])
        assert cell["results"] == sorted(expected, key=lambda one: one[0])


def test_the_time_left_is_that_of_what_is_left(client: TestClient, running: Path) -> None:
    """Against a plain sum: one worker, each arm's own pace."""
    left = client.get("/key/state").json()["left"]
    by_arm: dict[str, list[float]] = {"full": [], "lora": []}
    spent = 0.0
    for run in StudyStore(running).runs():
        seconds = sum(row["seconds"] for row in run.metrics())
        measured = sum(float(p.read_text()) for p in run.folder.rglob("*.seconds"))
        if run.state == "done":
            by_arm[place_of(run)[0]].append(seconds + measured)
        else:
            spent = seconds
    full, lora = (sum(one) / len(one) for one in by_arm.values())
    assert left["workers"] == 1
    # Of full the larger half of a pair is left, of LoRA four runs.
    assert left["seconds"] == pytest.approx(4 / 3 * full - spent + 4 * lora, rel=0.3)
    assert left["low"] < left["seconds"] < left["high"]


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/key/state", {}, 200),
        ("/key/state", {"host": "localhost:9"}, 200),  # through a tunnel
        ("/other/state", {}, 403),
        ("/state", {}, 403),
        ("/", {}, 403),
        ("/key/state", {"host": "evil.example:8123"}, 403),
        ("/key/state", {"host": "127.0.0.1.evil.example"}, 403),
        ("/key/state", {"host": ""}, 403),
        ("/key/nothing", {}, 404),
        ("/key/../../../etc/passwd", {}, 403),
        ("/key/%2e%2e/view.py", {}, 404),
        ("/key", {}, 404),
    ],
)
def test_who_may_look(client: TestClient, path: str, headers: dict[str, str], status: int) -> None:
    answer = client.get(path, headers=headers)
    assert answer.status_code == status
    assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
    assert "access-control-allow-origin" not in answer.headers
    if status == 403:
        assert "full" not in answer.text


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"origin": "null"},
        {"origin": "http://evil.example"},
        {"origin": "http://127.0.0.1:9999"},  # another server of this machine
        {"origin": "http://evil.example:8123", "host": "evil.example:8123"},
    ],
)
def test_only_the_page_itself_changes_anything(
    client: TestClient, running: Path, headers: dict[str, str]
) -> None:
    answer = client.post("/key/stop", json={"wanted": True}, headers=headers)
    assert answer.status_code == 403
    assert client.post("/guess/stop", json={"wanted": True}, headers=ORIGIN).status_code == 403
    assert not (running / "steering.json").exists()


def test_what_the_page_asks_is_written_for_whoever_carries_it_out(
    client: TestClient, running: Path
) -> None:
    run = {"arm": "lora", "learning_rate": 3e-2, "seed": 1}
    for what, value in (
        ("stop", {"wanted": True}),
        ("skip", {**run, "wanted": True}),
        ("rate", {"arm": "full", "learning_rate": 2e-3}),
        ("seed", {"seed": 2}),
    ):
        answer = client.post(f"/key/{what}", json=value, headers=ORIGIN)
        assert answer.status_code == 200, answer.text
    asked = read_steering(running)
    assert asked.stop and asked.skipped == (SkippedRun(**run),)
    assert (asked.rates[0].learning_rate, asked.seeds[0].seed) == (2e-3, 2)
    points = len(list(running.glob("runs/*/evals/[0-9]*")))
    assert asked.rates[0].measured == asked.seeds[0].measured == points
    recipe = stored_recipe(running / "recipe.yaml")
    assert recipe.seeds == [0, 1, 2] and 2e-3 in recipe.arms["full"].learning_rates
    told = client.get("/key/state").json()
    states = {(one["arm"], one["rate"], one["seed"]): one["state"] for one in told["cells"]}
    assert told["stopping"] and len(states) == 15
    assert states["lora", 3e-2, 1] == "skipped" and states["full", 2e-3, 2] == "line"
    client.post("/key/skip", json={**run, "wanted": False}, headers=ORIGIN)
    client.post("/key/stop", json={"wanted": False}, headers=ORIGIN)
    assert read_steering(running).skipped == () and read_steering(running).stop is None


@pytest.mark.parametrize(
    ("what", "value", "words"),
    [
        ("rate", {"arm": "full", "learning_rate": 2.0}, "at most 1, came 2"),
        ("rate", {"arm": "nobody", "learning_rate": 1e-3}, "no arm 'nobody'"),
        ("rate", {"arm": "full", "learning_rate": "x"}, "learning_rate"),
        ("seed", {"seed": 1}, "seed 1 is used already"),
        ("seed", {"seed": 1.5}, "seed"),
        ("skip", {"arm": "full"}, "learning_rate"),
        ("stop", {"wanted": "yes", "more": 1}, "more"),
    ],
)
def test_what_cannot_be_is_told_in_words(
    client: TestClient, running: Path, what: str, value: dict[str, Any], words: str
) -> None:
    answer = client.post(f"/key/{what}", json=value, headers=ORIGIN)
    assert answer.status_code == 400 and words in answer.json()["error"]
    assert not (running / "steering.json").exists()


def test_a_study_that_is_deleted_says_so_and_is_not_made_again(
    client: TestClient, running: Path, finished: Any
) -> None:
    assert client.get("/key/state").status_code == 200
    shutil.rmtree(running)
    for answer in (
        client.get("/key/state"),
        client.get("/key/report"),
        client.post("/key/stop", json={"wanted": True}, headers=ORIGIN),
        client.post("/key/seed", json={"seed": 9}, headers=ORIGIN),
    ):
        assert answer.status_code == 410 and str(running) in answer.json()["error"]
    assert not running.exists()
    shutil.copytree(finished[1], running)
    told = client.get("/key/state").json()
    assert told["finished"] and told["left"]["seconds"] == 0 and told["answer"]


def test_a_damaged_file_is_told_and_the_page_goes_on(client: TestClient, running: Path) -> None:
    (running / "steering.json").write_text("{")
    answer = client.get("/key/state")
    assert answer.status_code == 500 and "steering.json is not JSON" in answer.json()["error"]
    (running / "steering.json").unlink()
    assert client.get("/key/state").status_code == 200


def test_the_report_is_shown_where_it_can_press_nothing(client: TestClient, finished: Any) -> None:
    shown = TestClient(create_watch(finished[1], "key"), base_url=OWN)
    (finished[1] / "report.html").write_text("<p>words")
    answer = shown.get("/key/report")
    (finished[1] / "report.html").unlink()
    policy = answer.headers["content-security-policy"]
    assert answer.text == "<p>words"
    assert policy.startswith("sandbox ") and "allow-same-origin" not in policy


@pytest.mark.slow
def test_the_command_tells_an_address_that_works(running: Path, tmp_path: Path) -> None:
    one = command("watch", running)
    with subprocess.Popen(**one, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().split(" at ")[1].strip()
        with urllib.request.urlopen(f"{url}state") as answer:
            assert b'"cells"' in answer.read()
        process.terminate()
        assert process.wait(20) == 130
    refused = command("watch", tmp_path)
    ended = subprocess.run(**refused, capture_output=True, text=True, check=False)
    assert ended.returncode == 2 and "no study folder" in ended.stderr
