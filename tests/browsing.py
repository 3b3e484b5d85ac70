"""The system's Chromium for tests of pages, driven by Playwright, and what is asked of any page."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PHONE = {"width": 375, "height": 740}
DESK = {"width": 1200, "height": 900}
# Controls without a name that a screen reader could say.
UNNAMED = """() => [...document.querySelectorAll(
    'a, button, input, select, textarea, summary, [role=img], [role=region]')]
  .filter(e => e.checkVisibility())
  .filter(e => !(e.textContent.trim() || e.ariaLabel || (e.labels || []).length))
  .map(e => e.outerHTML.slice(0, 90))"""
# The live page asks again after twenty times as long as reading its study took.
expect.set_options(timeout=60_000)


def chromium() -> str:
    """Path of the browser; without one the tests fail, for a check that is skipped is none."""
    chosen = os.environ.get("LAURA_CHROMIUM")
    found = chosen or next(filter(None, map(shutil.which, NAMES)), None)
    if found is None or not shutil.which(found):
        pytest.fail(
            f"no Chromium ({chosen or ', '.join(NAMES)}): `make browser` installs it on Debian and "
            "Ubuntu; elsewhere name one with LAURA_CHROMIUM=/path/to/chrome, or leave these "
            'tests out with -m "not browser"',
            pytrace=False,
        )
    return found


@contextmanager
def launched() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        # The tests may run as root in a container, where Chromium's own sandbox cannot start.
        started = playwright.chromium.launch(
            executable_path=chromium(), args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        yield started
        started.close()


class Visit:
    """A page opened in a window of its own, with whatever it said and asked for."""

    def __init__(self, browser: Browser, address: str, **options: Any) -> None:
        self.page: Page = browser.new_page(**{"viewport": DESK, **options})
        self.said: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(address)


def luminance(page: Page, selector: str, what: str) -> float:
    text = page.locator(selector).first.evaluate(f"e => getComputedStyle(e).{what}")
    parts = [float(part) / 255 for part in re.findall(r"[\d.]+", text)[:3]]
    linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(page: Page, selector: str, what: str = "color", on: str = "body") -> float:
    """Contrast against the page, or what it stands `on` (WCAG 2.2, 1.4.3)."""
    pair = sorted([luminance(page, selector, what), luminance(page, on, "backgroundColor")])
    return (pair[1] + 0.05) / (pair[0] + 0.05)


def focused(page: Page) -> str:
    return str(page.evaluate("document.activeElement.textContent")).strip()
