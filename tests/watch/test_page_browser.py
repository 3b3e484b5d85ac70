"""The live page in a real browser: a study that goes on, and what is asked of it.

Deselect with `-m "not browser"` where there is none.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from laura.study.steering import SkippedRun, ask_for_seed, read_steering
from scripts.watch_pictures import served
from tests.browsing import UNNAMED, Visit, contrast, launched

pytestmark = [pytest.mark.slow, pytest.mark.browser]
RUN = "full@0.003@1"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launched() as started:
        yield started


@pytest.fixture
def url(running: Path) -> Iterator[str]:
    with served(running) as found:
        yield found


@pytest.fixture
def visit(browser: Browser, url: str) -> Iterator[Visit]:
    made = Visit(browser, url)
    made.page.wait_for_selector("#labs .cell")
    yield made
    made.page.close()


def cell(page: Page, key: str) -> Any:
    return page.locator(f'[data-key="{key}"]')


def test_it_shows_the_study_and_a_reload_forgets_nothing(visit: Visit, url: str) -> None:
    page = visit.page
    expect(page.locator("#status")).to_contain_text("left")
    expect(page.locator("#more")).to_contain_text("5 of 8 runs done, 1 running")
    assert page.locator("#labs .cell").count() == page.locator("#total span").count() == 8
    expect(cell(page, RUN)).to_contain_text("%")
    expect(cell(page, "lora@0.03@1")).to_contain_text("in line")
    expect(cell(page, "full@0.001@0")).to_contain_text("✓ +")
    assert page.locator("#front .mark").count() > 4
    assert page.locator("#run polyline").count() >= 3
    expect(page.locator("#log")).to_contain_text("measured at 600 tokens")
    cell(page, "lora@0.01@0").click()
    before = page.inner_text("#main")
    page.reload()
    page.wait_for_selector("#labs .cell")
    assert page.inner_text("#main") == before
    expect(page.locator("#run h3").first).to_have_text("lora 1e-2, seed 0")
    assert visit.said == []
    assert all(request.startswith(url) for request in visit.requests if "data:" not in request)


def test_stop_skip_and_take_back(visit: Visit, running: Path) -> None:
    page = visit.page
    page.get_by_role("button", name="Stop").click()
    expect(page.locator("#status")).to_have_text("Stopping")
    assert read_steering(running).stop is not None
    page.get_by_role("button", name="Do not stop").click()
    expect(page.locator("#status")).to_contain_text("left")
    assert read_steering(running).stop is None
    cell(page, "lora@0.03@1").click()
    page.get_by_role("button", name="Skip this run").click()
    expect(cell(page, "lora@0.03@1")).to_have_text("skipped")
    expect(page.locator("#toast")).to_contain_text("can be taken back")
    run = SkippedRun(arm="lora", learning_rate=3e-2, seed=1)
    assert read_steering(running).skipped == (run,)
    page.reload()
    page.get_by_role("button", name="Take it back").click()
    expect(cell(page, "lora@0.03@1")).to_have_text("in line")
    assert read_steering(running).skipped == ()


def test_a_rate_and_a_seed_are_added_once_that_was_meant(visit: Visit, running: Path) -> None:
    page, asked = visit.page, list[str]()

    def answer(dialog: Any) -> None:
        asked.append(dialog.message)
        dialog.accept() if len(asked) > 1 else dialog.dismiss()

    page.on("dialog", answer)
    page.get_by_role("button", name="+ rate 9e-3").click()
    assert not (running / "steering.json").exists()
    page.get_by_role("button", name="+ rate 9e-3").click()
    expect(cell(page, "full@0.009@0")).to_have_text("in line")
    assert "4 runs, about" in asked[1] and "after 11 points had been measured" in asked[1]
    other = page.get_by_label("Another rate of lora")
    other.fill("7")
    other.press("Enter")
    expect(page.locator("#toast")).to_have_text("A rate must be above 0 and at most 1.")
    other.fill("2e-2")
    other.press("Enter")
    expect(cell(page, "lora@0.02@1")).to_have_text("in line")
    page.get_by_role("button", name="+ seed 2").click()
    expect(cell(page, "lora@0.02@2")).to_have_text("in line")
    rates = [(one.arm, one.learning_rate) for one in read_steering(running).rates]
    assert rates == [("full", 9e-3), ("lora", 2e-2)]
    assert read_steering(running).seeds[0].seed == 2
    # What another page or command changes is seen here too.
    ask_for_seed(running, 5)
    expect(cell(page, "full@0.001@5")).to_have_text("in line")


def test_a_study_that_is_deleted_or_finished_says_so(
    visit: Visit, running: Path, finished: Any
) -> None:
    page = visit.page
    shutil.rmtree(running)
    expect(page.locator("#status")).to_have_text("No study here")
    expect(page.locator("#more")).to_contain_text("deleted or moved")
    assert not page.locator("#main").is_visible()
    shutil.copytree(finished[1], running)
    expect(page.locator("#status")).to_have_text("Finished")
    expect(page.locator("#more")).to_contain_text("8 of 8 runs done")
    assert page.locator("#sofar").inner_text() != ""


def test_the_page_says_when_its_own_server_has_ended(browser: Browser, running: Path) -> None:
    with served(running) as url:
        visit = Visit(browser, url)
        visit.page.wait_for_selector("#labs .cell")
    expect(visit.page.locator("#status")).to_have_text("Nobody answers")
    assert visit.page.locator("#labs .cell").count() == 8  # what was known stays
    visit.page.close()


@pytest.mark.parametrize("width", [400, 800, 1280])
@pytest.mark.parametrize("shade", ["light", "dark"])
def test_nothing_overflows_and_everything_is_legible(
    browser: Browser, url: str, width: int, shade: Any
) -> None:
    size: Any = {"width": width, "height": 900}
    visit = Visit(browser, url, viewport=size, color_scheme=shade)
    page = visit.page
    page.wait_for_selector("#front svg")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(UNNAMED) == []
    for place in ("#status", "#more", "#legend", ".cell.done span", ".cell.line span", "#log li"):
        assert contrast(page, place, on=".cell.done" if ".cell" in place else "body") >= 4.5
    cut = "() => [...document.querySelectorAll('.cell span')].filter("
    cut += "e => e.getBoundingClientRect().right > e.parentElement.getBoundingClientRect().right)"
    assert page.evaluate(f"({cut})().length") == 0
    page.close()


def test_no_page_elsewhere_can_press_its_buttons(
    browser: Browser, url: str, running: Path, tmp_path: Path
) -> None:
    """Even one that has got hold of the address, from another server of this machine."""
    with served(running) as elsewhere:  # any page with another origin
        visit = Visit(browser, elsewhere)
        sent = """address => fetch(address + 'stop', {method: 'POST', mode: 'no-cors',
            headers: {'content-type': 'text/plain'}, body: '{"wanted": true}'})
            .then(r => r.type, e => 'refused')"""
        visit.page.goto("about:blank")
        assert visit.page.evaluate(sent, url) in ("opaque", "refused")
        framed = "address => { document.body.innerHTML = `<iframe src='${address}'></iframe>`; }"
        visit.page.evaluate(framed, url)
        visit.page.wait_for_timeout(500)
        assert visit.page.frames[-1].evaluate("document.body.innerText").find("runs done") < 0
        visit.page.close()
    assert not (running / "steering.json").exists()
