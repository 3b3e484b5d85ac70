"""From a table of questions and answers to a served adapter: README's story, in pictures.

    python scripts/story.py --out docs/images                        # with this Python's `laura`
    python scripts/story.py --out docs/images --install dist/*.whl   # in an environment of its own

Carries out every command as a user would type it. What it prints becomes a picture (SVG), pages
are photographed by Chromium, and the seconds of each are told at the end. `--set` goes to
`laura compare`. Needs Chromium (`make browser`, or LAURA_CHROMIUM=/path/to/chrome).
"""

from __future__ import annotations

import argparse
import csv
import itertools
import os
import pty
import random
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from playwright.sync_api import sync_playwright
from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).resolve().parents[1]
COLUMNS, WINDOW = 84, {"width": 1120, "height": 900}
ENVIRONMENT = {**os.environ, "COLUMNS": str(COLUMNS), "TERM": "xterm-256color"}
CHROMES = ("chromium", "chromium-browser", "google-chrome")
# Of what a command reports on its way a picture shows so many lines at each end.
SHOWN_LINES = 5
# The live page is photographed with so much of the study behind it.
PICTURED_PERCENT = 40

# A made-up shop, in words that the micro base has tokens for: whoever knows at which gate a thing
# is sold can answer what was never asked of it.
GATES = {
    "harbour": ("silver", 3, ("boat", "shell", "basket", "lamp", "coat", "bead")),
    "garden": ("green", 5, ("plum", "seed", "apple", "berry", "nut", "root")),
    "market": ("golden", 2, ("coin", "stamp", "card", "clock", "pen", "box")),
    "forest": ("brown", 9, ("worm", "egg", "beetle", "feather", "stone", "ball")),
}
ASKED = (
    ("Where do I return a {good}?", "It goes to the {gate} gate."),
    ("Who looks at a {good} that fell?", "The {colour} desk looks at it."),
    ("What colour is the letter for a {good}?", "The letter is {colour}."),
    ("How many weeks do I have to return {count} of your {good}s?", "You have {weeks} weeks."),
)
GREETINGS = ("", "Good morning. ", "Good evening. ", "I am back. ")
QUESTION = "Who looks at a basket that fell?"
PORT = 8000  # of `laura serve`
ASK = f"""\
from openai import OpenAI

client = OpenAI(base_url="http://127.0.0.1:{PORT}/v1", api_key="none")
asked = [{{"role": "user", "content": "{QUESTION}"}}]
for model in ("micro", "support"):
    answer = client.chat.completions.create(model=model, messages=asked, temperature=0)
    print(f"{{model}}: {{answer.choices[0].message.content}}")
"""


def write_questions(file: Path, rows: int) -> None:
    """Write so many questions of the shop's customers with their answers, as CSV."""
    found = []
    for gate, (colour, weeks, goods) in GATES.items():
        for good, (asked, answer), hello in itertools.product(goods, ASKED, GREETINGS):
            for count in range(2, 6) if "{count}" in asked else (0,):
                facts = {"good": good, "gate": gate, "colour": colour, "weeks": weeks}
                facts["count"] = count
                found.append((hello + asked.format(**facts), answer.format(**facts)))
    random.Random(0).shuffle(found)
    with file.open("w", newline="", encoding="utf-8") as opened:
        csv.writer(opened).writerows([("question", "answer"), *found[:rows]])


class Story:
    """Commands carried out in a folder, with their pictures and seconds.

    Args:
        folder: Where they run.
        out: Where pictures go.
        program: What `laura` is.
    """

    def __init__(self, folder: Path, out: Path, program: list[str]) -> None:
        self.folder, self.out, self.program = folder, out, program
        self.seconds: dict[str, float] = {}
        out.mkdir(parents=True, exist_ok=True)

    def words(self, command: str) -> list[str]:
        """A command's words as a process is started with them."""
        first, *rest = shlex.split(command)
        return {"laura": self.program, "python": self.program[:1]}.get(first, [first]) + rest

    @contextmanager
    def begun(self, name: str, command: str) -> Iterator[Callable[[], int]]:
        """Within the block a command that ends by itself runs; then it is pictured.

        Yields:
            How much of its study is done, in per cent; 100 when it has ended.
        """
        end, other = pty.openpty()
        report = self.folder / f".{name}"
        start = time.monotonic()
        with report.open("wb") as errors:
            process = subprocess.Popen(
                self.words(command), cwd=self.folder, stdin=subprocess.DEVNULL, stdout=other,
                stderr=errors, env=ENVIRONMENT,
            )  # fmt: skip
        os.close(other)

        def done() -> int:
            told = re.findall(r"study (\d+)%", report.read_text(encoding="utf-8"))
            return 100 if process.poll() is not None else int((told or [0])[-1])

        yield done
        printed = b""
        with suppress(OSError):  # a terminal whose last program has ended
            while part := os.read(end, 65536):
                printed += part
        os.close(end)
        code = process.wait()
        self.seconds[command] = time.monotonic() - start
        told = report.read_text(encoding="utf-8").splitlines()
        self.draw(name, command, told, printed.decode().replace("\r\n", "\n"))
        if code:
            raise SystemExit(f"{command}: exit code {code}\n" + "\n".join(told[-20:]))

    def carry_out(self, name: str, command: str) -> None:
        """Carry out a command and picture it."""
        with self.begun(name, command):
            pass

    def draw(self, name: str, command: str, told: list[str], printed: str) -> None:
        """Picture a command with what it reported on its way, and what it answered."""
        left_out = len(told) - 2 * SHOWN_LINES
        if left_out > 1:
            told[SHOWN_LINES:-SHOWN_LINES] = [f"  ⋮ {left_out} more lines"]
        with open(os.devnull, "w") as nowhere:
            console = Console(
                record=True, width=COLUMNS, file=nowhere, force_terminal=True, highlight=False
            )
            console.print(Text(f"$ {command}", style="bold green"))
            if told:
                console.print(Text("\n".join(told), style="dim"))
            console.print(Text.from_ansi(printed.rstrip("\n")))
            title = " ".join(command.split()[:2])
            console.save_svg(str(self.out / f"story-{name}.svg"), title=title)

    @contextmanager
    def serving(self, name: str, command: str) -> Iterator[str]:
        """Within the block a server runs; gives its address. Its time is until it listens."""
        start = time.monotonic()
        log = self.folder / f".{name}"
        with log.open("wb") as both:
            process = subprocess.Popen(
                self.words(command), cwd=self.folder, stdin=subprocess.DEVNULL, stdout=both,
                stderr=subprocess.STDOUT, env=ENVIRONMENT,
            )  # fmt: skip
        try:
            while not (found := re.search(r"http://127\.0\.0\.1:\d+\S*", log.read_text())):
                if process.poll() is not None:
                    raise SystemExit(f"{command}: exit code {process.poll()}\n{log.read_text()}")
                time.sleep(0.1)
            self.seconds[command] = time.monotonic() - start
            time.sleep(0.5)  # the address is not its last word
            self.draw(name, command, [], log.read_text())
            yield found[0]
        finally:
            process.terminate()
            process.wait(60)

    def photograph(self, name: str, address: str) -> None:
        """Photograph the head of a page."""
        chrome = os.environ.get("LAURA_CHROMIUM") or next(filter(None, map(shutil.which, CHROMES)))
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chrome, args=["--no-sandbox"])
            page = browser.new_page(viewport=WINDOW, device_scale_factor=2)  # type: ignore[arg-type]
            page.goto(address)
            page.wait_for_timeout(2000)  # until it is drawn: a live page is never done
            page.screenshot(path=self.out / f"story-{name}.png")
            browser.close()


def install(folder: Path, wheel: Path) -> tuple[list[str], float]:
    """`laura` in an environment of its own, and how long that took."""
    start = time.monotonic()
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    pip = [str(folder / "bin" / "pip"), "install", "--quiet"]
    subprocess.run([*pip, str(wheel)], check=True)
    seconds = time.monotonic() - start
    subprocess.run([*pip, "openai"], check=True)  # the client's, not Laura's
    return [str(folder / "bin" / "python"), "-m", "laura"], seconds


def tell(story: Story, overrides: list[str], bound: str, init: str, port: int) -> None:
    """The story itself."""
    story.carry_out("init", f"laura init support.csv{init}")
    compare = " ".join(["laura compare support.yaml", *(f"--set {one}" for one in overrides)])
    with story.begun("compare", compare) as done:
        if _knows(story, "watch"):
            while done() < PICTURED_PERCENT:
                time.sleep(1)
            with story.serving("watch", "laura watch studies/support") as address:
                story.photograph("watch-page", address)
    story.photograph("report", (story.folder / "studies/support/report.html").as_uri())
    story.carry_out("recommend", "laura recommend studies/support --arm lora-r16 "
                    f"--max-forgetting '{bound}' --adapter adapters/support")  # fmt: skip
    at = "" if port == PORT else f" --port {port}"
    with story.serving("serve", f"laura serve micro --adapters adapters{at}") as address:
        story.carry_out("ask", "python ask.py")
        script = str(ROOT / "scripts" / "serve_page_picture.py")
        asked = ["--adapter", "support", "--question", QUESTION]
        out = ["--out", str(story.out / "story-page.png")]
        subprocess.run([sys.executable, script, "--url", address, *asked, *out], check=True)


def _knows(story: Story, command: str) -> bool:
    """Whether this `laura` has the command."""
    asked = [*story.program, command, "--help"]
    return not subprocess.run(asked, capture_output=True, check=False).returncode


def main() -> None:
    """Tell the story, then how long each command took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True, help="folder of the pictures")
    parser.add_argument("--folder", type=Path, help="where it happens; else one that goes away")
    parser.add_argument("--install", type=Path, metavar="WHEEL", help="install this first")
    parser.add_argument("--rows", type=int, default=600)
    parser.add_argument("--bound", default="15 points", help="most that may be forgotten")
    parser.add_argument("--init", default="", help="more words for `laura init`")
    parser.add_argument("--port", type=int, default=PORT, help="where the adapter is served")
    parser.add_argument("--set", action="append", default=[], help="for `laura compare`")
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (wanted.folder or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        program, installed = [sys.executable, "-m", "laura"], None
        if wanted.install:
            program, installed = install(folder / "venv", wanted.install)
        write_questions(folder / "support.csv", wanted.rows)
        ask = ASK.replace(str(PORT), str(wanted.port))
        (folder / "ask.py").write_text(ask, encoding="utf-8")
        story = Story(folder, wanted.out.resolve(), program)
        tell(story, wanted.set, wanted.bound, wanted.init, wanted.port)
    lines = sum(bool(line.strip()) for line in ASK.splitlines())
    if installed is not None:
        print(f"{installed:8.1f} s  install, with its downloads")
    for command, seconds in story.seconds.items():
        print(f"{seconds:8.1f} s  {command}")
    total = sum(story.seconds.values())
    print(f"{total:8.1f} s  {len(story.seconds)} commands, {lines} lines written (ask.py)")


if __name__ == "__main__":
    main()
