"""The report in a real browser: the system's Chromium, driven by Playwright.

Deselect with `-m "not browser"` where there is none.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser

from laura.report.series import write_series_report
from laura.results.store import SeriesStore
from tests import browsing
from tests.browsing import UNNAMED, contrast, focused, launched, luminance
from tests.report.conftest import Builder, both
from tests.report.gallery import HOSTILE, claims_value, crowd, write_gallery

pytestmark = [pytest.mark.slow, pytest.mark.browser]


@pytest.fixture(scope="module")
def report(drawn: tuple[Path, str, str]) -> Path:
    return drawn[0] / "report.html"


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The paper's arms."""
    folder = tmp_path_factory.mktemp("crowd") / "study"
    write_gallery(Builder, folder, crowd())
    both(folder)
    return folder / "report.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launched() as started:
        yield started


# Boxes of a figure's names that lie on one another.
OVERLAPS = """selector => {
  const boxes = [...document.querySelectorAll(selector)]
    .map(e => [e.textContent, e.getBoundingClientRect()]);
  return boxes.flatMap(([text, a], at) => boxes.slice(at + 1)
    .filter(([, b]) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1.5
      && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 3)
    .map(([other]) => text + " / " + other));
}"""
# Elements that stand out of the window, but for what scrolls inside its own box.
OUTSIDE = """() => [...document.querySelectorAll("body *")]
  .filter(e => e.checkVisibility() && !e.closest(".scroll, pre, .skip, .hidden, .picture, svg"))
  .filter(e => e.getBoundingClientRect().right > innerWidth + 1)
  .map(e => e.outerHTML.slice(0, 80))"""
CUT = """() => [...document.querySelectorAll(".drawing svg text, #rates svg text, .axis svg text")]
  .filter(e => e.getBoundingClientRect().left < -1
    || e.getBoundingClientRect().right > innerWidth + 1)
  .map(e => e.textContent)"""


class Visit(browsing.Visit):
    """The report opened in a window of its own."""

    def __init__(self, browser: Browser, report: Path, **options: Any) -> None:
        super().__init__(browser, report.as_uri(), **options)

    @property
    def names(self) -> list[str]:
        """The tables behind the story."""
        found: list[str] = self.page.eval_on_selector_all(
            "details.page", "pages => pages.map(page => page.id)"
        )
        return found

    def unfold(self, name: str) -> None:
        """Open one of them."""
        self.page.evaluate("name => { document.getElementById(name).open = true }", name)

    @property
    def status(self) -> int:
        """How many questions the page says there are."""
        return int(self.page.locator(".item.head [role=status]").inner_text().split()[0])


@pytest.fixture(scope="module")
def visit(browser: Browser, report: Path) -> Visit:
    return Visit(browser, report)


def test_the_story_is_drawn_and_asks_for_nothing(visit: Visit) -> None:
    page = visit.page
    configs = page.evaluate("D.configs.filter(one => shownArms().has(one.arm)).length")
    assert page.locator("#hero .mark").count() == configs > 10
    assert page.locator("#rates svg").count() == 3
    assert page.locator("#evidence .strip svg").count() == 3
    assert page.locator("#by-task button").count() == 1
    assert visit.said == [] and visit.requests == [page.url.split("#")[0]]


def test_the_answer_stands_first_with_its_certainty_and_command(
    browser: Browser, tmp_path: Path
) -> None:
    folder = tmp_path / "study"
    write_gallery(Builder, folder)
    claims = {
        **claims_value(), "verdict": "suggested", "missing": "3 fresh seeds would tell",
        "options": "--confirm full@3e-05", "more_runs": 3,
        "named": [{"arm": "full", "learning_rate": 3e-5, "budget": 80_000}],
    }  # fmt: skip
    (folder / "claims.json").write_text(json.dumps(claims))
    both(folder)
    visit = Visit(browser, folder / "report.html")
    told = visit.page.locator(".do").inner_text()
    assert "Suggested" in told and "3 fresh seeds would tell" in told and "3 runs, about" in told
    command = visit.page.locator("#command").inner_text()
    assert command == f"laura compare {folder}/recipe.yaml --out {folder} --confirm full@3e-05"
    assert visit.page.locator("#beside tbody tr").first.inner_text().startswith("full 3e-5 named")
    visit.page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 400, 800, 1280])
def test_nothing_overflows_or_overlaps(
    browser: Browser, report: Path, crowded: Path, width: int, scheme: Any
) -> None:
    for study in (report, crowded):
        visit = Visit(browser, study, viewport={"width": width, "height": 900}, color_scheme=scheme)
        page = visit.page
        for name in visit.names:
            visit.unfold(name)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate(OUTSIDE) == [] and page.evaluate(CUT) == []
        assert page.evaluate(OVERLAPS, "#hero .label") == []
        for place in range(3):
            assert page.evaluate(OVERLAPS, f"#rates figure:nth-child({place + 1}) text") == []
        assert page.locator("#hero .label").count() >= 3
        assert visit.said == []
        page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_stand_out_in_light_and_dark(browser: Browser, report: Path, scheme: Any) -> None:
    visit = Visit(browser, report, color_scheme=scheme)
    page = visit.page
    assert (luminance(page, "body", "backgroundColor") < 0.2) == (scheme == "dark")
    for selector in ("h1", "p.soft", ".word.undecided", ".item small", "#hero .label",
                     ".item .won", ".item .lost", "#beside b", ".quiet"):  # fmt: skip
        assert contrast(page, selector) >= 4.5, selector
    for place in range(page.locator("#hero .label").count()):
        assert contrast(page, f"#hero .label >> nth={place}", "fill") >= 4.5
    button = page.locator("#theme")
    for choice in ("dark", "light"):
        button.click()
        assert button.inner_text() == f"Colours: {choice}"
        assert (luminance(page, "body", "backgroundColor") < 0.2) == (choice == "dark")
        assert contrast(page, "#hero .label >> nth=1", "fill") >= 4.5
    assert visit.said == []
    page.close()


def test_every_arm_of_a_crowd_has_a_colour_that_stands_out(browser: Browser, crowded: Path) -> None:
    for scheme in ("light", "dark"):
        visit = Visit(browser, crowded, color_scheme=scheme)
        keys = visit.page.locator(".key button")
        assert keys.count() == len(crowd()) > 9
        looks = set()
        for place in range(keys.count()):
            assert contrast(visit.page, f".key button >> nth={place}") >= 4.5
            mark = keys.nth(place).locator("path")
            looks.add((mark.get_attribute("stroke"), mark.get_attribute("d")))
        assert len(looks) == keys.count()
        visit.page.close()


def test_names_of_points_in_one_place_leave_one_another_room(visit: Visit) -> None:
    boxes = visit.page.evaluate(
        """placeLabels(
            Array.from({ length: 40 }, (_, at) => ({ x: 200 + at / 9, y: 200, text: "full 3e-5" })),
            [], [0, 0, 400, 400]).map(one => one.box)"""
    )
    assert 4 <= len(boxes) < 40
    for (a, b, c, d), (e, f, g, h) in itertools.combinations(boxes, 2):
        assert min(c, g) <= max(a, e) or min(d, h) <= max(b, f)


def test_a_method_has_one_hue_whatever_its_place(visit: Visit) -> None:
    dressed = """arms => [...dress(arms)].map(([name, look]) => [name, look.colour])"""
    lora, full = ({"name": name, "method": name} for name in ("lora", "full"))
    for arms in ([lora, full], [full, lora]):
        found = dict(visit.page.evaluate(dressed, arms))
        assert found == {"lora": "var(--lora-0)", "full": "var(--full-0)"}


# ----- the trade-off is explored -----


def test_axes_are_chosen_and_end_where_data_do(browser: Browser, report: Path) -> None:
    page = Visit(browser, report).page
    forgotten = page.locator("#axes").get_by_label("Forgotten")
    before = page.locator("#hero svg").inner_html()
    options = forgotten.locator("option").all_inner_texts()
    assert options[0] == "mean of all tasks" and "Source loss, nats per token" in options
    forgotten.select_option("Source loss, nats per token")
    assert page.locator("#hero svg").inner_html() != before
    assert "nats per token forgotten" in str(page.locator("#hero svg").text_content())
    most, end = page.evaluate(
        "[Math.max(...D.configs.map(one => one.values.source_loss[0])),"
        " extent(D.configs, D.x[state.x], D.y[state.y])[3]]"
    )
    assert most < end < 1.1 * most
    page.close()


def test_a_point_is_named_and_opens_its_questions(browser: Browser, report: Path) -> None:
    visit = Visit(browser, report)
    page = visit.page
    mark = page.locator("#hero .mark[aria-label^='lora-r64 3e-4, 80k']")
    mark.hover()
    assert "lora-r64 3e-4, 80k tokens" in page.locator(".tip").inner_text()
    mark.click()
    assert "lora-r64 3e-4, 80k" in page.locator("#pair").locator("select").nth(1).evaluate(
        "one => one.selectedOptions[0].text"
    )
    assert page.evaluate("document.activeElement.id") == "lost-title"
    other = page.locator("#hero .mark[aria-label^='full 1e-5, 80k']")
    other.focus()
    assert page.locator(".tip").inner_text().startswith("full 1e-5")
    page.keyboard.press("Enter")
    assert "full 1e-5, 80k" in page.locator(".item.head").inner_text()
    page.locator(".key button", has_text="lora-r64").click()
    assert page.locator("#hero .mark[aria-label^='lora-r64']").count() == 0
    assert visit.said == []
    page.close()


def test_questions_are_filtered_and_counted_whole(browser: Browser, report: Path) -> None:
    visit = Visit(browser, report)
    page = visit.page
    # Right under the base is every second, under every run every third.
    lost = [place for place in range(20) if place % 2 == 0 and place % 3]
    won = [place for place in range(20) if place % 2 and place % 3 == 0]
    press = page.locator("#lost")
    press.get_by_role("button", name="Right, then wrong").click()
    assert visit.status == len(lost)
    press.get_by_role("button", name="By both").click()
    assert visit.status == len(lost)
    press.get_by_role("button", name="Only full").click()
    assert visit.status == 0 and "None." in page.locator("#items").inner_text()
    press.get_by_role("button", name="By either").click()
    press.get_by_role("button", name="Wrong, then right").click()
    assert visit.status == len(won)
    first = page.locator(".item:not(.head)").first
    assert "✗ wrong: base says 3" in str(first.locator("> div").nth(1).text_content())
    assert "✓ right: full says 3" in str(first.locator("> div").nth(2).text_content())
    page.locator("#by-task button").first.click()
    assert page.locator("#by-task button").first.get_attribute("aria-pressed") == "true"
    assert page.locator(".item:not(.head)").count() == min(9, visit.status)
    assert visit.said == []
    page.close()


def test_hostile_texts_are_shown_and_not_run(visit: Visit) -> None:
    shown = visit.page.locator("#items").inner_text()
    assert HOSTILE in shown and "\\u202e" in shown
    assert visit.page.locator("img").count() == 0
    assert visit.said == []


@pytest.mark.parametrize("hostile", [HOSTILE, "=cmd|'/c calc'!A1", "a" * 300, "\u202e<b>&amp;"])
def test_an_arm_may_be_called_anything(browser: Browser, tmp_path: Path, hostile: str) -> None:
    arms: dict[str, tuple[str, list[float], float | None]] = {
        hostile: ("lora", [1e-4, 3e-4], 3e-4),
        "full": ("full", [1e-5, 3e-5], 3e-5),
    }
    study = Builder.write(tmp_path / "study", Builder(arms=arms, diverged=()).build())
    both(study)
    visit = Visit(browser, study / "report.html", viewport={"width": 400, "height": 900})
    assert visit.page.locator(".key button").first.inner_text() == hostile
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= 400
    assert visit.page.locator("img").count() == 0 and visit.said == []
    visit.page.close()


def download(visit: Visit, press: Any) -> tuple[str, bytes]:
    with visit.page.expect_download() as waiting:
        press.click()
    return waiting.value.suggested_filename, Path(waiting.value.path()).read_bytes()


def test_figures_and_tables_are_saved(browser: Browser, report: Path) -> None:
    visit = Visit(browser, report)
    files = visit.page.locator("#tradeoff-files")
    name, svg = download(visit, files.get_by_role("button", name="SVG"))
    assert name == "tradeoff.svg" and svg.startswith(b"<svg") and b"var(--" not in svg
    name, png = download(visit, files.get_by_role("button", name="PNG"))
    assert name == "tradeoff.png" and png.startswith(b"\x89PNG") and len(png) > 10_000
    name, text = download(visit, files.get_by_role("button", name="CSV"))
    lines = text.decode().splitlines()
    assert name == "tradeoff.csv" and lines[0].startswith("arm,rate,budget,seeds,learnt: GSM8K")
    assert len(lines) == 1 + visit.page.evaluate("D.configs.length")
    visit.unfold("numbers")
    table = visit.page.locator(".scroll:has(#arms-table) + .files")
    name, tex = download(visit, table.get_by_role("button", name="LaTeX"))
    assert name == "arms-table.tex" and b"\\begin{tabular}" in tex and b"$\\pm$" in tex
    name, markdown = download(visit, table.get_by_role("button", name="Markdown"))
    rows = markdown.decode().splitlines()
    assert name == "arms-table.md" and len({row.count(" | ") for row in rows}) == 1
    assert visit.said == []
    visit.page.close()


# ----- a series: one setting after the other -----


def test_settings_of_a_series_are_turned_through(browser: Browser, tmp_path: Path) -> None:
    folder = tmp_path / "both"
    store = SeriesStore(folder)
    (folder / "settings").mkdir(parents=True)
    store.write("both", ["code", "math <b>"])
    for name in ("code", "math <b>"):
        study = store.setting(name).folder
        write_gallery(Builder, study)
        if name != "code":
            summary = json.loads((study / "summary.json").read_text())
            summary["arms"] = [arm for arm in summary["arms"] if arm["name"] != "full-decay"]
            for part in ("points", "runs"):
                summary[part] = [one for one in summary[part] if one["arm"] != "full-decay"]
            (study / "summary.json").write_text(json.dumps(summary))
    (folder / "claims.json").write_text(json.dumps(claims_value()))
    visit = Visit(browser, write_series_report(folder), viewport={"width": 400, "height": 900})
    page = visit.page
    assert page.locator("#setting button").all_inner_texts() == ["code", "math <b>"]
    assert page.locator(".key button").count() == 8
    page.locator("#setting button").nth(1).click()
    assert page.locator(".key button").count() == 7
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    assert page.locator("#evidence .strip").count() == 3 and visit.said == []
    page.close()


# ----- the tables behind it -----


def texts(visit: Visit, column: int) -> list[str]:
    cells = visit.page.locator(f"#runs tbody tr:visible > :nth-child({column})")
    return cells.all_inner_texts()


def test_runs_are_filtered_by_arm_state_and_words(visit: Visit) -> None:
    visit.unfold("runs")
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
    visit.unfold("runs")
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


def test_print_opens_everything(browser: Browser, report: Path) -> None:
    visit = Visit(browser, report)
    page = visit.page
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print", color_scheme="dark")
    for name in visit.names:
        assert page.locator(f"#{name} > summary").is_visible(), name
        assert page.locator(f"#{name}").evaluate("fold => fold.open")
    stills = page.locator("details .picture svg")
    assert stills.count() > 10 and all(stills.nth(i).is_visible() for i in range(stills.count()))
    ink = "all => [...new Set(all.map(one => getComputedStyle(one).fill))]"
    fills = page.eval_on_selector_all("details .picture svg text", ink)
    assert "rgb(34, 34, 34)" in fills and "none" not in fills  # as in the files
    assert not page.locator(".tools").first.is_visible()
    assert not page.locator("#theme").is_visible()
    assert luminance(page, "body", "backgroundColor") > 0.9
    assert len(page.pdf()) > 100_000
    page.close()


def test_without_scripts_answer_figure_and_tables_are_there(browser: Browser, report: Path) -> None:
    page = Visit(browser, report, java_script_enabled=False).page
    assert page.locator("h1").is_visible()
    assert page.locator("#figure-tradeoff svg").is_visible()
    assert page.locator("#evidence .strip").count() == 3
    assert not page.locator("#lost").is_visible()
    page.locator("#claims > summary").click()
    assert page.locator("#claims-table").is_visible()
    page.close()


def test_everything_can_be_reached_by_keyboard(browser: Browser, report: Path) -> None:
    visit = Visit(browser, report)
    page = visit.page
    page.keyboard.press("Tab")
    assert focused(page) == "Skip to the content"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    page.locator("#runs > summary").focus()
    page.keyboard.press("Enter")
    assert page.locator("#runs-table").is_visible()
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Tab")
    page.keyboard.type("lora-mlp")
    assert set(texts(visit, 2)) == {"lora-mlp"}
    page.locator("#runs th button").first.focus()
    page.keyboard.press("Enter")
    assert texts(visit, 1) == sorted(texts(visit, 1))
    page.close()


def test_a_link_opens_what_holds_its_place(browser: Browser, report: Path) -> None:
    page = browser.new_page()
    page.goto(f"{report.as_uri()}#figure-loss_curves")
    assert page.locator("#figure-loss_curves").is_visible()
    assert not page.locator("#claims-table").is_visible()
    page.goto(f"{report.as_uri()}#nowhere")
    assert page.locator("h1").is_visible()
    page.close()


def test_screen_readers_find_their_way(browser: Browser, report: Path) -> None:
    visit = Visit(browser, report)
    page = visit.page
    page.eval_on_selector_all("details", "all => all.forEach(one => { one.open = true })")
    for role in ("banner", "main", "contentinfo"):
        assert page.get_by_role(role).count() == 1, role  # type: ignore[arg-type]
    assert page.locator("html[lang=en]").count() == 1 and page.locator("h1").count() == 1
    identities = page.eval_on_selector_all("[id]", "all => all.map(one => one.id)")
    assert len(identities) == len(set(identities))
    assert page.evaluate(UNNAMED) == []
    levels = page.eval_on_selector_all(
        ":is(h1, h2, h3, h4, h5)", "all => all.map(one => Number(one.tagName[1]))"
    )
    assert levels[0] == 1 and all(b - a <= 1 for a, b in itertools.pairwise(levels))
    tables = page.locator("table")
    for place in range(tables.count()):
        table = tables.nth(place)
        assert table.locator("caption").inner_text(timeout=1000)
        assert table.locator("tbody th[scope=row]").count() == table.locator("tbody tr").count()
    snapshot = page.locator("body").aria_snapshot()
    assert 'heading "What was lost"' in snapshot and 'heading "How it was measured"' in snapshot
