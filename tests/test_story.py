"""README's story, told in small: every command as a user types it, and what is pictured."""

from __future__ import annotations

import csv
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.story import write_questions
from tests.browsing import chromium

ROOT = Path(__file__).resolve().parents[1]
FEW = (
    "seeds=[0,1,2]", "arms.full.learning_rates=[8e-4]", "arms.lora-r16.learning_rates=[2e-3]",
    "measure.limit=60", "measure.forgetting=[micro_facts]",
)  # fmt: skip
PICTURES = {f"story-{name}.svg" for name in ("init", "compare", "recommend", "serve", "ask")}


def test_what_is_asked_has_one_answer_each(tmp_path: Path) -> None:
    write_questions(tmp_path / "support.csv", 600)
    with (tmp_path / "support.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len({row["question"] for row in rows}) == 600
    assert all(row["answer"] and "{" not in row["question"] + row["answer"] for row in rows)


@pytest.mark.slow
@pytest.mark.browser
def test_from_a_table_to_a_served_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAURA_CHROMIUM", chromium())
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    with socket.create_server(("127.0.0.1", 0)) as place:
        port = place.getsockname()[1]
    few = [part for one in FEW for part in ("--set", one)]
    words = ["--rows", "520", "--init", " --epochs 0.3", "--bound", "100 points",
             "--port", str(port), *few]  # fmt: skip
    ended = subprocess.run(
        [sys.executable, ROOT / "scripts" / "story.py", "--out", tmp_path / "images", *words],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    found = {file.name for file in (tmp_path / "images").iterdir()}
    assert found >= PICTURES | {"story-report.png", "story-page.png", "story-watch-page.png"}
    assert "lines written (ask.py)" in ended.stdout
    for name, words_shown in (("compare", "forgot"), ("ask", "support:"), ("serve", "openai:")):
        picture = (tmp_path / "images" / f"story-{name}.svg").read_text(encoding="utf-8")
        assert words_shown in picture.replace("&#160;", " ")
