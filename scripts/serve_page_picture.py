"""Photograph the page of a running server while it shows base and adapter side by side.

    laura serve micro --adapters adapters --port 8000 &
    python scripts/serve_page_picture.py --adapter code --question "..." --out page.png

Needs Chromium (`make browser`, or LAURA_CHROMIUM=/path/to/chrome).
"""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
WIDTH = 1120
SHARPNESS = 2  # of a screen with small pixels


def main() -> None:
    """Ask every question in turn, then photograph the whole page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--adapter", action="append", required=True, help="repeatable")
    parser.add_argument("--question", action="append", required=True, help="repeatable")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--scheme", choices=("light", "dark"), default="light")
    parser.add_argument("--out", type=Path, required=True)
    wanted = parser.parse_args()
    program = os.environ.get("LAURA_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = browser.new_page(
            viewport={"width": WIDTH, "height": 800},
            device_scale_factor=SHARPNESS,
            color_scheme=wanted.scheme,
        )
        page.set_default_timeout(120_000)
        page.goto(wanted.url)
        for place, name in enumerate(wanted.adapter, 1):
            page.get_by_label(f"Adapter {place}", exact=True).select_option(name)
        page.get_by_text("Settings", exact=True).click()
        page.get_by_label("Most new tokens").fill(str(wanted.max_new_tokens))
        page.get_by_text("Settings", exact=True).click()
        for question in wanted.question:
            _ask(page, question)
        # As tall as what it shows, so that nothing is hidden and nothing is empty.
        height = page.evaluate("document.documentElement.scrollHeight")
        page.set_viewport_size({"width": WIDTH, "height": height})
        page.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
        wanted.out.parent.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=wanted.out)
        browser.close()


def _ask(page: Page, question: str) -> None:
    page.get_by_label("Your question").fill(question)
    page.keyboard.press("Enter")
    page.get_by_role("status").filter(has_text="The answers are complete.").wait_for()


if __name__ == "__main__":
    main()
