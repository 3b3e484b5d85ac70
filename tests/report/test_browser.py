"""The report in a real browser: the system's Chromium, driven by Playwright.

Deselect with `-m "not browser"` where there is none.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser

from tests import browsing
from tests.browsing import DESK, PHONE, UNNAMED, contrast, focused, launched, luminance
from tests.report.gallery import HOSTILE

pytestmark = [pytest.mark.slow, pytest.mark.browser]


@pytest.fixture(scope="module")
def report(drawn: tuple[Path, str, str]) -> Path:
    return drawn[0] / "report.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launched() as started:
        yield started


class Visit(browsing.Visit):
    """The report opened in a window of its own."""

    def __init__(self, browser: Browser, report: Path, **options: Any) -> None:
        super().__init__(browser, report.as_uri(), **options)

    @property
    def names(self) -> list[str]:
        found: list[str] = self.page.eval_on_selector_all(
            ".page", "pages => pages.map(page => page.id)"
        )
        return found

    def turn_to(self, name: str) -> None:
        """Show a page, and wait until its charts are drawn."""
        self.page.evaluate(f"location.hash = {name!r}")
        self.page.wait_for_function(
            "name => { const page = document.getElementById(name);"
            " return page.checkVisibility() &&"
            " [...page.querySelectorAll('.chart')].every(chart => chart.querySelector('svg')) }",
            arg=name,
        )


@pytest.fixture(scope="module")
def visit(browser: Browser, report: Path) -> Visit:
    return Visit(browser, report)


def test_every_chart_of_every_page_is_drawn(visit: Visit) -> None:
    assert visit.names == [
        "overview", "scores", "learning-rate", "regularisers", "spectra", "diversity", "replay",
        "variants", "cost", "claims", "runs", "samples", "settings",
    ]  # fmt: skip
    for name in visit.names:
        visit.turn_to(name)
        charts = visit.page.locator(f"#{name} .chart")
        for place in range(charts.count()):
            box = charts.nth(place).locator("svg").first.bounding_box()
            assert box is not None and box["width"] > 200 and box["height"] > 100
            marks = charts.nth(place).locator(".mark-symbol path, .mark-line path").count()
            assert marks > 1, charts.nth(place).get_attribute("id")
        assert visit.page.locator(".page:visible").count() == 1
    drawn = visit.page.locator(".chart svg.marks").count()
    assert drawn == visit.page.locator(".chart").count() > 25
    assert visit.said == []
    assert visit.requests == [visit.page.url.split("#")[0]]


def test_hostile_texts_are_shown_and_not_run(visit: Visit) -> None:
    visit.turn_to("samples")
    shown = visit.page.locator("#samples .answers").first.inner_text()
    assert HOSTILE in shown and "\\u202e" in shown
    assert visit.page.locator("#samples .answers").count() == 6
    assert visit.page.locator("img").count() == 0
    assert "failed" in shown and "passed" in shown
    assert visit.said == []


def texts(visit: Visit, column: int) -> list[str]:
    cells = visit.page.locator(f"#runs tbody tr:visible > :nth-child({column})")
    return cells.all_inner_texts()


def test_runs_are_filtered_by_arm_state_and_words(visit: Visit) -> None:
    visit.turn_to("runs")
    every = texts(visit, 1)
    tools = visit.page.locator("#runs .tools")
    tools.get_by_label("arm").select_option("full")
    assert set(texts(visit, 2)) == {"full"} and 0 < len(texts(visit, 1)) < len(every)
    tools.get_by_label("state").select_option("diverged")
    assert texts(visit, 8) == ["diverged", "diverged"]
    assert tools.locator("output").inner_text() == f"2 of {len(every)} rows"
    tools.get_by_label("arm").select_option("")
    tools.get_by_label("state").select_option("")
    tools.get_by_label("Search").fill("lora-mlp 80K")
    assert set(texts(visit, 2)) == {"lora-mlp"} and set(texts(visit, 5)) == {"80k tokens"}
    tools.get_by_label("Search").fill("")
    assert texts(visit, 1) == every


def test_runs_are_sorted_by_numbers_and_by_names(visit: Visit) -> None:
    visit.turn_to("runs")
    head = visit.page.locator("#runs th", has_text="rate").first
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    rates = [float(text) for text in texts(visit, 3)]
    assert rates == sorted(rates) and len(set(rates)) > 3
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    assert [float(text) for text in texts(visit, 3)] == sorted(rates, reverse=True)
    visit.page.locator("#runs th", has_text="arm").get_by_role("button").click()
    assert head.get_attribute("aria-sort") is None
    assert texts(visit, 2) == sorted(texts(visit, 2))


def test_nothing_is_wider_than_a_phone(browser: Browser, report: Path) -> None:
    visit = Visit(browser, report, viewport=PHONE, has_touch=True)
    for name in visit.names:
        visit.turn_to(name)
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], name
    assert visit.said == []
    visit.page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_stand_out_in_light_and_dark(browser: Browser, report: Path, scheme: Any) -> None:
    visit = Visit(browser, report, color_scheme=scheme)
    visit.turn_to("overview")
    page = visit.page
    assert (luminance(page, "body", "backgroundColor") < 0.2) == (scheme == "dark")
    for selector in ("h1", ".prose", ".prose.soft", "td small", "nav a", ".good"):
        assert contrast(page, selector) >= 4.5, selector
    assert contrast(page, "#overview .chart .mark-text text", "fill") >= 4.5
    assert contrast(page, "#overview .chart .mark-symbol path[fill^='#']", "fill") >= 2
    button = page.get_by_role("button", name="Colours")
    for choice in ("dark", "light"):
        button.click()
        assert button.inner_text() == f"Colours: {choice}"
        assert (luminance(page, "body", "backgroundColor") < 0.2) == (choice == "dark")
        assert contrast(page, "#overview .chart .mark-text text", "fill") >= 4.5
    assert visit.said == []
    page.close()


def test_print_shows_every_page_with_its_figures(browser: Browser, report: Path) -> None:
    visit = Visit(browser, report)
    page = visit.page
    page.emulate_media(media="print", color_scheme="dark")
    for name in visit.names:
        assert page.locator(f"#{name} > h2").is_visible(), name
    stills = page.locator(".still svg")
    assert stills.count() > 10 and all(stills.nth(i).is_visible() for i in range(stills.count()))
    assert not page.locator("nav").is_visible() and not page.locator(".tools").first.is_visible()
    assert luminance(page, "body", "backgroundColor") > 0.9
    assert len(page.pdf()) > 100_000
    page.close()


def test_without_scripts_it_is_one_long_page(browser: Browser, report: Path) -> None:
    visit = Visit(browser, report, java_script_enabled=False)
    page = visit.page
    sections = page.locator(".page")
    assert all(sections.nth(place).is_visible() for place in range(sections.count()))
    assert page.locator(".still svg").first.is_visible()
    assert not page.locator(".panels").first.is_visible()
    page.close()


def test_everything_can_be_reached_by_keyboard(browser: Browser, report: Path) -> None:
    visit = Visit(browser, report)
    page = visit.page
    page.keyboard.press("Tab")
    assert focused(page) == "Skip to the content"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    page.locator("nav a").first.focus()
    for _ in range(visit.names.index("runs")):
        page.keyboard.press("Tab")
    assert focused(page) == "Runs"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.querySelector('#runs').checkVisibility()")
    assert focused(page) == "Runs" and page.evaluate("document.activeElement.tagName") == "H2"
    assert page.title().startswith("Runs")
    page.keyboard.press("Tab")
    page.keyboard.type("lora-mlp")
    assert set(texts(visit, 2)) == {"lora-mlp"}
    page.locator("#runs th button").first.focus()
    page.keyboard.press("Enter")
    assert texts(visit, 1) == sorted(texts(visit, 1))
    page.go_back()
    page.wait_for_function("() => document.querySelector('#overview').checkVisibility()")
    page.close()


def test_a_link_opens_its_page_at_its_place(browser: Browser, report: Path) -> None:
    page = browser.new_page(viewport=DESK)
    page.goto(f"{report.as_uri()}#figure-loss_curves")
    assert page.locator("#runs").is_visible() and not page.locator("#overview").is_visible()
    assert page.locator("nav a[aria-current=page]").inner_text() == "Runs"
    page.goto(f"{report.as_uri()}#nowhere")
    assert page.locator("#overview").is_visible()
    page.close()


def test_screen_readers_find_their_way(visit: Visit) -> None:
    page = visit.page
    for role in ("banner", "navigation", "main", "contentinfo"):
        assert page.get_by_role(role).count() == 1, role  # type: ignore[arg-type]
    assert page.locator("html[lang=en]").count() == 1 and page.locator("h1").count() == 1
    identities = page.eval_on_selector_all("[id]", "all => all.map(one => one.id)")
    assert len(identities) == len(set(identities))
    for name in visit.names:
        visit.turn_to(name)
        assert page.evaluate(UNNAMED) == [], name
        levels = page.eval_on_selector_all(
            f"#{name} :is(h2, h3, h4, h5)", "all => all.map(one => Number(one.tagName[1]))"
        )
        assert levels[0] == 2 and all(b - a <= 1 for a, b in itertools.pairwise(levels))
        tables = page.locator(f"#{name} table:not(#vg-tooltip-element table)")
        for place in range(tables.count()):
            table = tables.nth(place)
            assert table.locator("caption").inner_text(timeout=1000) or not table.is_visible()
            assert table.locator("tbody th[scope=row]").count() == table.locator("tbody tr").count()
        assert page.locator(f"#{name}").get_attribute("aria-labelledby") == f"{name}-title"
    snapshot = page.locator("body").aria_snapshot()
    assert 'navigation "Pages"' in snapshot and 'heading "Data and settings"' in snapshot
