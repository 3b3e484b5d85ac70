"""Several commands on one study folder: each run once, and whoever is left finishes."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from laura.recipe.reading import parse_recipe
from laura.results.errors import StoreError
from laura.results.store import remove_leftovers
from laura.study import sharing
from laura.study.opening import open_study
from laura.study.runs import grid_of, specs_of
from laura.study.sharing import BUSY, LOCK, StudyLock, beacon, claimed, held, joined
from tests.study.carried_out import train

ROOT = Path(__file__).parents[2]


def test_the_first_sets_up_alone_and_the_others_wait_for_it(tmp_path: Path) -> None:
    order: list[str] = []

    def second() -> None:
        with StudyLock(tmp_path / "s") as lock:
            order.append("alone" if lock.alone else "joined")

    with StudyLock(tmp_path / "s") as lock:
        assert lock.alone
        other = threading.Thread(target=second)
        other.start()
        time.sleep(0.3)
        order.append("set up")
        lock.share()
        other.join(20)
        assert order == ["set up", "joined"]
    with StudyLock(tmp_path / "s") as lock:
        assert lock.alone


def test_whoever_waits_takes_over_from_one_that_failed_to_set_up(tmp_path: Path) -> None:
    found: list[bool] = []

    def second() -> None:
        with StudyLock(tmp_path) as lock:
            found.append(lock.alone)

    with StudyLock(tmp_path):
        other = threading.Thread(target=second)
        other.start()
        time.sleep(0.3)
    other.join(20)
    assert found == [True]


def test_a_worker_elsewhere_keeps_the_study_shut_after_its_command(tmp_path: Path) -> None:
    with StudyLock(tmp_path) as lock:
        lock.share()
        with beacon(tmp_path) as place:
            worker = joined(place)
            worker.__enter__()
    assert not place.exists()
    with StudyLock(tmp_path) as lock:
        assert not lock.alone
    worker.__exit__(None, None, None)
    with StudyLock(tmp_path) as lock:
        assert lock.alone


def test_a_worker_joins_only_the_study_that_its_command_holds(tmp_path: Path) -> None:
    with StudyLock(tmp_path / "s") as lock:
        with (
            beacon(tmp_path / "s") as place,
            pytest.raises(StoreError, match=r"locks in .* not seen from machine"),
            joined(place),  # still set up by the command alone
        ):
            pass
        lock.share()
        with beacon(tmp_path / "s") as place:
            elsewhere = tmp_path / "another" / place.name
            with (
                pytest.raises(StoreError, match="not the command's study folder"),
                joined(elsewhere),
            ):
                pass
    assert not elsewhere.parent.exists(), "nothing is made where there is nothing"


def test_a_worker_does_not_join_when_its_command_is_gone(tmp_path: Path) -> None:
    """Killed, it leaves the beacon, but not its hold; whoever sets up next clears it."""
    with beacon(tmp_path) as place:
        pass
    place.touch()
    with pytest.raises(StoreError, match=r"locks in .* not seen from machine"), joined(place):
        pass
    remove_leftovers(tmp_path)
    assert not place.exists()


def test_a_place_is_held_by_one_and_goes_with_its_process(tmp_path: Path) -> None:
    place = tmp_path / "runs" / "x" / LOCK
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom laura.study.sharing import claimed\n"
        "with claimed(Path(sys.argv[1])) as mine:\n print(mine, flush=True)\n time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(place)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout is not None and process.stdout.readline() == "True\n"
    with claimed(place) as mine:
        assert not mine
    process.kill()
    process.wait()
    process.stdout.close()
    with claimed(place) as mine, claimed(place) as twice:
        assert mine and not twice
    with held(place), claimed(place) as mine:
        assert not mine


def test_a_file_system_without_locks_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(file: Any, kind: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(sharing.fcntl, "flock", refuse)
    with pytest.raises(StoreError, match="has no locks"), StudyLock(tmp_path):
        pass


def test_a_run_that_another_is_at_is_left_alone(recipe_text: str, tmp_path: Path) -> None:
    recipe = parse_recipe(recipe_text, ["seeds=[0]"])
    with open_study(recipe, tmp_path, None, "cpu") as session:
        spec = specs_of(session.recipe, "full", 1e-3, 0)[0]
        folder = session.run_store(spec).folder
        with claimed(folder / LOCK):
            assert session.carry_out([spec]) == [BUSY]
            assert [path.name for path in folder.iterdir()] == [LOCK]
        assert session.carry_out([spec]) == ["done"]


def test_one_run_by_itself_waits_for_the_one_at_it(
    recipe_text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = parse_recipe(recipe_text, ["seeds=[0]"])
    with open_study(recipe, tmp_path, None, "cpu") as session:
        place = session.run_store(specs_of(session.recipe, "full", 1e-3, 0)[0]).folder / LOCK
    place.parent.mkdir(parents=True)
    with place.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        let_go = threading.Timer(1.0, lambda: fcntl.flock(file, fcntl.LOCK_UN))
        let_go.start()
        made = train(recipe, arm="full", learning_rate=1e-3, study=tmp_path, device="cpu")
        let_go.join()
    assert [run["state"] for run in made["runs"]] == ["done", "done"]


class Commands:
    """`laura compare` of one recipe, several times on one folder."""

    def __init__(self, folder: Path, text: str, *options: str) -> None:
        self.folder, self.study = folder, folder / "study"
        (folder / "recipe.yaml").write_text(text)
        self._command = [
            sys.executable, "-m", "laura", "compare", str(folder / "recipe.yaml"),
            "--out", str(self.study), "--json", *options,
        ]  # fmt: skip
        self._environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def start(self, name: str) -> subprocess.Popen[bytes]:
        with (
            (self.folder / f"{name}.out").open("wb") as out,
            (self.folder / f"{name}.err").open("wb") as err,
        ):
            return subprocess.Popen(self._command, env=self._environment, stdout=out, stderr=err)

    def began(self, name: str) -> list[str]:
        """The runs a command says it has begun: arm, rate and seed of each."""
        lines = (self.folder / f"{name}.err").read_text().splitlines()
        return [line for line in lines if ", rate " in line and ", seed " in line]

    def summary(self, name: str) -> Any:
        return json.loads((self.folder / f"{name}.out").read_text())


def steps_are_taken_once(study: Path) -> bool:
    """A run that two did at once would have rows twice, or a leg out of order."""
    for file in study.glob("runs/*/metrics.jsonl"):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        taken = [(row["leg"], row["step"]) for row in rows]
        if len(set(taken)) != len(taken):
            return False
    return True


@pytest.mark.slow
def test_two_commands_share_the_runs_and_agree(recipe_text: str, tmp_path: Path) -> None:
    text = recipe_text.replace("[600, 1200]", "[20000]")
    # Enough runs that none is over before the other has begun.
    rates = [1 + n / 10 for n in range(8)]
    text = text.replace("[1e-3, 3e-3]", str([rate * 1e-3 for rate in rates]))
    commands = Commands(tmp_path, text, "--workers", "2")
    both = [commands.start(name) for name in ("a", "b")]
    assert [process.wait(300) for process in both] == [0, 0], (tmp_path / "b.err").read_text()
    began = [commands.began(name) for name in ("a", "b")]
    # Ten rates with two seeds; one run each.
    assert len(began[0]) + len(began[1]) == 20 == len({*began[0], *began[1]})
    assert began[0] and began[1], "they shared the work"
    assert steps_are_taken_once(commands.study)
    assert commands.summary("a") == commands.summary("b")
    assert not (commands.study / "timing.json").exists(), "neither took the time it took"


@pytest.mark.slow
def test_the_runs_of_a_killed_command_are_taken_over(recipe_text: str, tmp_path: Path) -> None:
    text = recipe_text.replace("[600, 1200]", "[20000]").replace("seeds: [0, 1]", "seeds: [0]")
    commands = Commands(tmp_path, text)
    first = commands.start("a")
    while not list(commands.study.glob("runs/*/resume/*")) and first.poll() is None:
        time.sleep(0.05)
    second = commands.start("b")
    while len(list(commands.study.glob("runs/*/run.json"))) < 2 and second.poll() is None:
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert second.wait(300) == 0, (tmp_path / "b.err").read_text()
    assert steps_are_taken_once(commands.study)
    with open_study(parse_recipe(text), commands.study, None, "cpu") as session:
        wanted = [session.run_store(spec) for spec in grid_of(session.recipe)]
    found = commands.summary("b")["points"]
    assert sorted(point["run"] for point in found) == sorted(run.folder.name for run in wanted)
    assert len(wanted) == 4 and {run.state for run in wanted} == {"done"}


@pytest.mark.slow
def test_two_commands_share_a_search_on_the_micro_base(tmp_path: Path) -> None:
    text = (ROOT / "recipes" / "micro-small.yaml").read_text()
    text = text.replace("[4_000, 8_000]", "[3_000, 6_000]").replace("limit: 40", "limit: 10")
    text = text.replace("rank: 4\n", "grid: {rank: [2, 4]}\n").replace(
        "seeds: [0, 1]", "seeds: [0]"
    )
    search = "search: {sampler: tpe, trials: 4, max_forgetting: 0.9}\n"
    text = re.sub("search: .*\n", search, text)
    commands = Commands(tmp_path, text, "--workers", "1")
    both = [commands.start(name) for name in ("a", "b")]
    assert [process.wait(500) for process in both] == [0, 0], (tmp_path / "b.err").read_text()
    began = [commands.began(name) for name in ("a", "b")]
    runs = list(commands.study.glob("runs/*/done.json"))
    assert len(began[0]) + len(began[1]) == len(runs) == len({*began[0], *began[1]}) == 8
    assert began[0] and began[1]
    assert steps_are_taken_once(commands.study)
    summaries = [commands.summary(name) for name in ("a", "b")]
    assert summaries[0] == summaries[1]
    families = summaries[0]["search"]["families"]
    assert [(one["name"], len(one["tried"])) for one in families] == [("full", 4), ("lora-r4", 4)]
