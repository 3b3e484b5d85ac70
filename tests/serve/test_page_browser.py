"""The page in a real browser, against a server that speaks the surface with canned answers."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, expect

from tests import browsing
from tests.browsing import PHONE, UNNAMED, contrast, focused, launched
from tests.serve.page_server import (
    ADMIN_KEY,
    ANSWERS,
    BASE,
    HOSTILE,
    KEY,
    POET,
    QUESTION,
    SLOW,
    Behaviour,
    served,
)

pytestmark = [pytest.mark.slow, pytest.mark.browser]

ESCAPED = HOSTILE.replace("\u202e", "\\u202e")
COMPLETE = "The answers are complete."


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launched() as started:
        yield started


@pytest.fixture
def behaviour() -> Behaviour:
    return Behaviour()


@pytest.fixture
def url(behaviour: Behaviour) -> Iterator[str]:
    with served(behaviour) as address:
        yield address


class Visit(browsing.Visit):
    """The page, and what a person does with it."""

    def choose(self, *names: str) -> None:
        for place, name in enumerate(names, 1):
            self.page.get_by_label(f"Adapter {place}", exact=True).select_option(name)

    def ask(self, question: str) -> None:
        # Before the models are there, there is nobody to ask.
        self.page.get_by_label("Adapter 1", exact=True).locator("option").nth(1).wait_for(
            state="attached"
        )
        self.page.get_by_label("Your question").fill(question)
        self.page.keyboard.press("Enter")

    def answer(self, name: str, turn: int = -1) -> Any:
        """The column of a model in a turn."""
        columns = self.page.locator(".turn").nth(turn).locator(".answer")
        return columns.filter(has=self.page.get_by_role("heading", name=name, exact=True))

    def status(self, text: str) -> None:
        expect(self.page.locator("#status")).to_have_text(text)


@pytest.fixture
def visit(browser: Browser, url: str) -> Iterator[Visit]:
    opened = Visit(browser, url)
    yield opened
    opened.page.close()


def test_answers_stream_side_by_side_and_differences_are_marked(
    visit: Visit, behaviour: Behaviour, url: str
) -> None:
    visit.choose(POET)
    visit.ask(QUESTION)
    # All have written their first word, and none more: they are asked at once and streamed.
    for name in (BASE, POET):
        expect(visit.answer(name).locator(".text")).to_have_text("The")
        expect(visit.answer(name).locator(".state")).to_have_text("writing")
    left, right = (visit.answer(name).bounding_box() for name in (BASE, POET))
    assert left["y"] == right["y"] and left["x"] + left["width"] <= right["x"]
    behaviour.ready.set()
    visit.status(COMPLETE)
    poet = visit.answer(POET).locator(".text")
    assert visit.answer(BASE).locator(".text").inner_text() == ANSWERS[BASE]
    assert poet.locator("del").all_inner_texts() == ["the", "well"]
    assert poet.locator("ins").all_inner_texts() == ["a golden"]
    styles = "e => getComputedStyle(e).textDecorationLine"
    assert poet.locator("del").first.evaluate(styles) == "line-through"
    assert poet.locator("ins").first.evaluate(styles) == "underline"
    spoken = "e => getComputedStyle(e, '::before').content"
    assert "removed" in poet.locator("del").first.evaluate(spoken)
    summary = "Against the base: 2 words removed, 2 added, 9 the same."
    assert summary in visit.answer(POET).inner_text()
    visit.page.get_by_label("Mark differences").uncheck()
    assert poet.inner_text() == ANSWERS[POET] and poet.locator("del, ins").count() == 0
    visit.page.get_by_label("Mark differences").check()
    assert poet.locator("del").count() == 2
    assert visit.said == []
    assert all(request.startswith(url) for request in visit.requests)


def test_each_model_is_reminded_of_its_own_answers_and_asked_with_the_settings(
    visit: Visit, behaviour: Behaviour
) -> None:
    behaviour.ready.set()
    visit.choose(POET)
    visit.page.get_by_text("Settings", exact=True).click()
    visit.page.get_by_label("Temperature").fill("0.7")
    visit.page.get_by_label("Most new tokens").fill("40")
    visit.page.get_by_label("Seed").fill("5")
    visit.ask(QUESTION)
    visit.status(COMPLETE)
    visit.ask("And then?")
    expect(visit.page.locator(".turn")).to_have_count(2)
    visit.status(COMPLETE)
    expect(visit.answer(POET).locator(".state")).to_contain_text("tokens")
    last = {body["model"]: body for _, body in behaviour.asked[2:]}
    assert set(last) == {BASE, POET}
    for name, body in last.items():
        assert [m["content"] for m in body["messages"]] == [QUESTION, ANSWERS[name], "And then?"]
        assert (body["temperature"], body["max_tokens"], body["seed"]) == (0.7, 40, 5)
    visit.page.get_by_role("button", name="Clear").click()
    assert visit.page.locator(".turn").count() == 0
    visit.ask("Anew")
    visit.status(COMPLETE)
    assert len(behaviour.asked[-1][1]["messages"]) == 1
    visit.page.get_by_label("Most new tokens").fill("0")
    visit.ask("Refused before it is sent")
    assert visit.page.locator(".turn").count() == 1
    assert visit.said == []


@pytest.mark.parametrize("how", ["button", "key"])
def test_stop_ends_the_answers_here_and_on_the_server(
    visit: Visit, behaviour: Behaviour, how: str
) -> None:
    visit.choose(POET)
    visit.ask(SLOW)
    expect(visit.answer(POET).locator(".text")).to_contain_text("word word word")
    if how == "button":
        visit.page.get_by_role("button", name="Stop").click()
    else:
        visit.page.keyboard.press("Escape")
    visit.status("Stopped.")
    expect(visit.answer(POET).locator(".state")).to_contain_text("stopped")
    assert behaviour.broken_off.wait(10)
    # What is unfinished is not compared, and the next question can be asked.
    assert visit.answer(POET).locator("del, ins").count() == 0
    behaviour.ready.set()
    visit.ask(QUESTION)
    visit.status(COMPLETE)
    assert visit.said == []


def test_hostile_names_and_answers_are_shown_and_not_run(
    visit: Visit, behaviour: Behaviour
) -> None:
    behaviour.ready.set()
    visit.choose(POET, HOSTILE)
    visit.ask("<img src=x onerror=alert(1)>")
    visit.status(COMPLETE)
    page = visit.page
    assert page.locator(".question").inner_text() == "<img src=x onerror=alert(1)>"
    assert page.locator("#records h4").all_inner_texts() == [BASE, POET, ESCAPED]
    assert "\\u202eevil" in visit.answer(ESCAPED).inner_text()
    assert page.locator("img, body script, b:not(.card b)").count() == 0
    assert page.evaluate("window.stolen") is None
    page.goto(page.url + "#live")
    expect(page.get_by_role("row", name="<script>")).to_contain_text("2.9 MiB")
    # Even a slip could not: the policy lets no text become HTML.
    assert page.evaluate(
        "() => { try { document.body.innerHTML = '<b>x</b>'; } catch (e) { return e.name } }"
    ) == "TypeError"  # fmt: skip
    assert all("TrustedHTML" in text for text in visit.said)


def test_the_record_of_an_adapter_is_told(visit: Visit) -> None:
    visit.choose(POET)
    cards = visit.page.locator("#records .card")
    shown = cards.nth(1).inner_text()
    for words in (
        "Warning: forgets more than the policy allows",
        "Learned: +20.0 ± 1.0 percentage points on gsm8k, 95 % interval 10.0 to 30.0; seeds: 3",
        "Forgot: −1.2 ± 0.5 percentage points on hellaswag, 95 % interval −3.0 to 1.0; seeds: 3",
        "On tiny-llama; lora, arm lora-all, learning rate 2e−4",
        "Claims: 1 supported, 1 undecided",
    ):
        assert words in shown
    cards.nth(1).get_by_text("Scores", exact=True).click()
    row = cards.nth(1).get_by_role("row", name="GSM8K")
    assert row.locator("td").all_inner_texts() == ["10.0 ± 2.0", "30.0 ± 3.0", "+20.0 ± 1.0"]
    assert cards.nth(0).get_by_role("heading").inner_text() == BASE
    visit.choose(HOSTILE)
    assert "No laura.json" in cards.nth(1).inner_text()


def test_keys_are_asked_for_and_kept_in_the_tab(
    browser: Browser, url: str, behaviour: Behaviour
) -> None:
    behaviour.needs_keys = True
    behaviour.ready.set()
    visit = Visit(browser, url)
    page = visit.page
    field = page.get_by_label("API key")
    expect(field).to_be_focused()
    field.fill("sk-laura-wröng")
    page.keyboard.press("Enter")
    expect(page.locator("#key-note")).to_contain_text("A key is needed.")
    field.fill("sk-laura-wrong")
    page.keyboard.press("Enter")
    expect(page.locator("#key-note")).to_contain_text("not known")
    field.fill(KEY)
    page.keyboard.press("Enter")
    expect(field).to_be_hidden()
    visit.ask(QUESTION)
    visit.status(COMPLETE)
    page.get_by_role("link", name="Live").click()
    page.get_by_label("Admin key").fill(ADMIN_KEY)
    page.keyboard.press("Enter")
    expect(page.locator("#live-status")).to_have_text("Ready; nothing waits.")
    stored = "JSON.stringify([Object.values(sessionStorage).sort(), localStorage, document.cookie])"
    assert page.evaluate(stored) == f'[["{ADMIN_KEY}","{KEY}"],{{}},""]'
    assert all("401" in text for text in visit.said)  # the browser itself notes each refusal
    assert not any(KEY in request for request in visit.requests)
    page.close()


def test_a_failing_model_leaves_the_others_alone(visit: Visit, behaviour: Behaviour) -> None:
    behaviour.failing = POET
    behaviour.ready.set()
    visit.choose(POET)
    visit.ask(QUESTION)
    visit.status("1 of 2 failed.")
    expect(visit.answer(POET).locator(".state")).to_have_text("the engine has stopped")
    assert visit.answer(BASE).locator(".text").inner_text() == ANSWERS[BASE]
    behaviour.failing = ""
    visit.ask("Again")
    visit.status(COMPLETE)
    # The half answer is not held against the model.
    asked = {body["model"]: body["messages"] for _, body in behaviour.asked[2:]}
    assert len(asked[POET]) == 1 and len(asked[BASE]) == 3
    behaviour.full = POET
    visit.ask("Once more")
    visit.status("1 of 2 failed.")
    told = "The queue is full; try again in 7 s."
    expect(visit.answer(POET).locator(".state")).to_have_text(told)


def test_a_base_without_a_chat_template_goes_on_with_the_question(
    visit: Visit, behaviour: Behaviour
) -> None:
    behaviour.has_template = False
    behaviour.ready.set()
    visit.ask(QUESTION)
    visit.status(COMPLETE)
    assert visit.answer(BASE).locator(".text").inner_text() == ANSWERS[BASE]
    path, body = behaviour.asked[-1]
    assert path == "/v1/completions" and body["prompt"] == f"{QUESTION}\n\n"
    assert "messages" not in body


def test_the_live_view(visit: Visit) -> None:
    page = visit.page
    page.get_by_role("link", name="Live").click()
    expect(page.locator("#live-status")).to_have_text("Ready; nothing waits.")
    assert page.locator("#numbers").inner_text().split("\n")[:4] == [
        "Tokens per second", "41.3", "In work", "2",
    ]  # fmt: skip
    cells = page.get_by_role("row", name="umbrella").locator("td").all_inner_texts()
    assert cells == ["0", "0", "0", "0", "99"]
    assert page.get_by_role("row", name="weights").locator("td").inner_text() == "512 MiB"

    def asked() -> int:
        return sum(request.endswith("/admin/state") for request in visit.requests)

    before = asked()
    page.wait_for_timeout(4500)
    assert 1 <= asked() - before <= 3
    page.get_by_role("button", name="Pause").click()
    page.wait_for_timeout(300)
    paused = asked()
    page.wait_for_timeout(2500)
    assert asked() == paused
    page.get_by_role("button", name="Pause").click()
    page.get_by_role("link", name="Chat").click()
    page.wait_for_timeout(300)
    hidden = asked()
    page.wait_for_timeout(2500)
    assert asked() == hidden and visit.said == []


def test_nothing_is_wider_than_a_phone(browser: Browser, url: str, behaviour: Behaviour) -> None:
    behaviour.ready.set()
    visit = Visit(browser, url, viewport=PHONE, has_touch=True)
    page = visit.page
    visit.choose(POET, HOSTILE)
    for summary in page.locator("summary").all():
        summary.click()
    visit.ask("long" * 60)
    visit.status(COMPLETE)
    boxes = [visit.answer(name).bounding_box() for name in (BASE, POET, ESCAPED)]
    assert boxes[0]["y"] < boxes[1]["y"] < boxes[2]["y"]
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    page.get_by_role("link", name="Live").click()
    expect(page.locator("#state")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    assert visit.said == []
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_stand_out_in_light_and_dark(
    browser: Browser, url: str, behaviour: Behaviour, scheme: Any
) -> None:
    behaviour.ready.set()
    visit = Visit(browser, url, color_scheme=scheme)
    visit.choose(POET)
    visit.ask(QUESTION)
    visit.status(COMPLETE)
    page = visit.page
    for selector in ("h1", "nav a:not([aria-current])", ".answer h5", ".state", "#status"):
        assert contrast(page, selector) >= 4.5, selector
    assert contrast(page, ".card .soft", on=".card") >= 4.5
    for mark in (".answer ins", ".answer del", "#ask"):
        assert contrast(page, mark, on=mark) >= 4.5, mark
    page.close()


def test_everything_can_be_reached_by_keyboard_in_order(visit: Visit) -> None:
    page = visit.page
    visit.choose(POET)
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("Tab")
    assert focused(page) == "Skip to the content"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    order = []
    for _ in range(9):
        page.keyboard.press("Tab")
        order.append(
            page.evaluate(
                "(document.activeElement.labels?.[0] ?? document.activeElement).firstChild"
                ".textContent.trim() || document.activeElement.id"
            )
        )
    assert order == [
        "Adapter 1", "Adapter 2", "Settings", "Scores", "Claims: 1 supported, 1 undecided",
        "mark", "Your question", "Ask", "Clear",
    ]  # fmt: skip
    page.get_by_role("link", name="Live").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Live", exact=True)).to_be_focused()
    assert page.title() == "Live · Laura"


def test_screen_readers_find_their_way(visit: Visit, behaviour: Behaviour) -> None:
    behaviour.ready.set()
    visit.choose(POET, HOSTILE)
    visit.ask(QUESTION)
    visit.status(COMPLETE)
    page = visit.page
    identities = page.eval_on_selector_all("[id]", "all => all.map(one => one.id)")
    assert len(identities) == len(set(identities))
    for view in ("Live", "Chat"):
        page.get_by_role("link", name=view).click()
        expect(page.get_by_role("heading", name=view, exact=True)).to_be_visible()
        assert page.evaluate(UNNAMED) == []
        levels = page.eval_on_selector_all(
            ":is(h1, h2, h3, h4, h5)",
            "all => all.filter(e => e.checkVisibility()).map(one => Number(one.tagName[1]))",
        )
        assert levels[0] == 1 and all(b - a <= 1 for a, b in itertools.pairwise(levels))
    assert page.locator("[role=status]").count() == 2 and page.locator("h1").count() == 1
    assert page.get_by_role("status").inner_text() == COMPLETE


def common_words(old: list[str], fresh: list[str]) -> int:
    """Length of the longest common subsequence, by the textbook."""
    table = [[0] * (len(fresh) + 1) for _ in range(len(old) + 1)]
    for i, one in enumerate(old):
        for j, other in enumerate(fresh):
            best = max(table[i][j + 1], table[i + 1][j])
            table[i + 1][j + 1] = table[i][j] + 1 if one == other else best
    return table[-1][-1]


def test_differences_by_words_are_whole_and_smallest(visit: Visit) -> None:
    draw = random.Random(0)

    def text() -> str:
        words = draw.choices(["a", "b", "cat", "ça", "猫", "हिन्दी"], k=draw.randrange(14))
        return draw.choice(["", "\n"]) + " ".join(words) + draw.choice(["", " \n"])

    pairs = [(text(), text()) for _ in range(200)]
    pairs += [("", ""), ("x", ""), ("", "x y"), ("same", "same"), ("a  b", "a\nb")]
    found = visit.page.evaluate(
        "async (pairs) => { const { difference } = await import('/static/words.js');"
        " return pairs.map(([before, after]) => difference(before, after)) }",
        [list(pair) for pair in pairs],
    )
    for (before, after), pieces in zip(pairs, found, strict=True):
        kept = "".join(piece["text"] for piece in pieces if piece["kind"] != "removed")
        assert kept == after
        old = [
            word for piece in pieces if piece["kind"] != "added" for word in piece["text"].split()
        ]
        assert old == before.split()
        same = [piece["text"].split() for piece in pieces if piece["kind"] == "same"]
        assert sum(map(len, same)) == common_words(before.split(), after.split())
