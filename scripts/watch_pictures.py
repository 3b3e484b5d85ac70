"""Pictures of the live page: a finished study as it stood at a share of its time.

    python scripts/watch_pictures.py STUDY FOLDER [--at 0.4] [--widths 1280 800 400]

The study is copied without what was written later, by the times of its own files, its page is
served, and Chromium takes it light and dark at each width: FOLDER/watch-WIDTH-light.png.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Literal

import uvicorn
from PIL import Image
from playwright.sync_api import sync_playwright

from laura.study.sharing import LOCK, claimed
from laura.watch.server import create_watch, listening

LEFT_OUT = ("checkpoints", "corpus", "replay", "figures", "analysis", "resume", "claims.json",
            "analysis.json", "summary.json", "report.html")  # fmt: skip
SHADES: tuple[Literal["light", "dark"], ...] = ("light", "dark")
COLOURS = 96  # are enough for lines and type, and a third of the bytes


@contextmanager
def as_it_stood(study: Path, share: float) -> Iterator[Path]:
    """A copy of a study at a share of its time, with its runs held as if they went on."""
    starts = [file.stat().st_mtime for file in study.glob("runs/*/run.json")]
    ends = [file.stat().st_mtime for file in study.glob("runs/*/evals/*/*.json")]
    now = min(starts) + share * (max(ends) - min(starts))
    with tempfile.TemporaryDirectory() as place, ExitStack() as held:
        copy = Path(place) / study.name
        shutil.copytree(study, copy, ignore=shutil.ignore_patterns(*LEFT_OUT))
        for run in (copy / "runs").iterdir():
            begun = (run / "run.json").stat().st_mtime
            if begun > now:
                shutil.rmtree(run)
                continue
            _cut(run / "metrics.jsonl", now - begun)
            late = [file for file in run.rglob("*.json") if file.stat().st_mtime > now]
            for file in late:
                file.unlink()
                file.with_suffix(".seconds").unlink(missing_ok=True)
            if late:
                held.enter_context(claimed(run / LOCK))
        for file in copy.rglob("*"):
            moved = min(now, file.stat().st_mtime) - now + time.time()
            os.utime(file, (moved, moved))
        held.enter_context(claimed(copy / LOCK))
        yield copy


def _cut(metrics: Path, seconds: float) -> None:
    """Drop the steps that were taken later."""
    kept, spent = [], 0.0
    for line in metrics.read_text().splitlines(keepends=True):
        spent += json.loads(line)["seconds"]
        if spent > seconds:
            break
        kept.append(line)
    metrics.write_text("".join(kept))


@contextmanager
def served(study: Path) -> Iterator[str]:
    """The address of a study's page, while it is served from another thread."""
    with listening(0) as place:
        config = uvicorn.Config(create_watch(study, "picture"), log_config=None, lifespan="off")
        server = uvicorn.Server(config)
        server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.run, kwargs={"sockets": [place]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{place.getsockname()[1]}/picture/"
        finally:
            server.should_exit = True
            thread.join()


def main() -> None:
    """Take the pictures, and say how large each is and whether it overflows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--at", type=float, default=0.4)
    parser.add_argument("--widths", type=int, nargs="+", default=[1280, 800, 400])
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    chromium = os.environ.get("LAURA_CHROMIUM") or shutil.which("chromium")
    with as_it_stood(given.study, given.at) as study, served(study) as url, sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for width in given.widths:
            for shade in SHADES:
                page = browser.new_page(
                    viewport={"width": width, "height": 900}, color_scheme=shade
                )
                page.on("pageerror", lambda error: print(error, file=sys.stderr))
                page.goto(url)
                page.wait_for_selector("#front svg")
                file = given.folder / f"watch-{width}-{shade}.png"
                page.screenshot(path=file, full_page=True)
                Image.open(file).quantize(COLOURS).save(file, optimize=True)
                wide = page.evaluate("document.documentElement.scrollWidth")
                print(file, file.stat().st_size, "overflows" if wide > width else "fits")
                page.close()
        browser.close()


if __name__ == "__main__":
    main()
