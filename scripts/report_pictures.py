"""Photograph a study's report for the README: light and dark, on a desk and on a phone.

    laura report studies/micro
    python scripts/report_pictures.py studies/micro/report.html --out docs/images

Writes report-light.png (answer and trade-off), report-dark.png (what was lost) and
report-phone.png. Needs Chromium (`make browser`, or LAURA_CHROMIUM=/path/to/chrome).
"""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path
from typing import Literal

from playwright.sync_api import Browser, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
DESK, PHONE = 1060, 400


def main() -> None:
    """Three pictures, each small enough for a repository."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("report", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    wanted = parser.parse_args()
    wanted.out.mkdir(parents=True, exist_ok=True)
    program = os.environ.get("LAURA_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        address = wanted.report.resolve().as_uri()
        picture(browser, address, wanted.out / "report-light.png", DESK, "light", "h1", "#rates")
        picture(
            browser,
            address,
            wanted.out / "report-dark.png",
            DESK,
            "dark",
            "#lost",
            ".item:nth-child(8)",
        )
        picture(browser, address, wanted.out / "report-phone.png", PHONE, "light", "h1", "#rates")
        browser.close()


def picture(
    browser: Browser, address: str, file: Path, width: int, scheme: Literal["light", "dark"],
    first: str, end: str,
) -> None:  # fmt: skip
    """The page from one element on and up to another."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.goto(address)
    top, bottom = (
        page.locator(selector).first.evaluate("e => e.getBoundingClientRect().top + scrollY")
        for selector in (first, end)
    )
    top = max(0, top - 10)
    area = {"x": 0, "y": top, "width": width, "height": bottom - top - 2}
    page.screenshot(path=file, full_page=True, clip=area)  # type: ignore[arg-type]
    page.close()


if __name__ == "__main__":
    main()
