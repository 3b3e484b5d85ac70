"""report.html and report.md: whole, safe, the same every time, without network or torch."""

from __future__ import annotations

import json
import re
import struct
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from laura.report.arms import groups
from laura.report.figures import CHARTS, script_json
from laura.report.html import escaped, fenced, write_report
from laura.report.samples import turned
from laura.report.study import read_summary
from laura.results.errors import StoreError
from tests.report.gallery import HOSTILE, JUDGEMENT

Build = Callable[..., dict[str, Any]]
MakeStudy = Callable[..., Path]


class Reader(HTMLParser):
    """Collects what a page would request, its visible text, and its embedded JSON."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.requests: list[tuple[str, str]] = []
        self.tags: list[str] = []
        self.handlers: list[str] = []
        self.identities: list[str] = []
        self.words = ""
        self.json: list[Any] = []
        self._inside: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append(tag)
        self.handlers += [name for name in found if name.startswith("on")]
        for name in ("src", "href", "srcset", "action", "xlink:href", "data"):
            if found.get(name):
                self.requests.append((tag, str(found[name])))
        if found.get("id"):
            self.identities.append(str(found["id"]))
        if tag in ("script", "style"):
            self._inside.append((tag, found))

    def handle_endtag(self, tag: str) -> None:
        if self._inside and self._inside[-1][0] == tag:
            self._inside.pop()

    def handle_data(self, data: str) -> None:
        if not self._inside:
            self.words += data
        elif self._inside[-1][1].get("type") == "application/json":
            self.json.append(json.loads(data))


def small(build: Build, **gaps: Any) -> dict[str, Any]:
    """A study with as few panels as possible."""
    few: dict[str, Any] = {"learning": ("target_loss",), "forgetting": ("kl",)}
    return build(**{**few, "seeds": (0,), "budgets": (20_000,), **gaps})


def read(page: Path) -> Reader:
    return Reader(page.read_text(encoding="utf-8"))


Drawn = tuple[Path, str, str]


def test_a_whole_study_gives_page_and_figures(drawn: Drawn) -> None:
    study, _, html = drawn
    page = Reader(html)
    for words in (
        JUDGEMENT["answer"], JUDGEMENT["caveats"][0], "loss left the finite numbers", "lora-r16",
        "3e-4", "5.00 GiB", "1 h 2 min",
        "# <script>alert(1)</script>",  # the recipe, shown and not run
    ):  # fmt: skip
        assert words in page.words
    for chart in CHARTS:
        assert f"figure-{chart.name}" in page.identities
        svg = (study / "figures" / f"{chart.name}.svg").read_text(encoding="utf-8")
        png = (study / "figures" / f"{chart.name}.png").read_bytes()
        assert svg.startswith("<svg") and svg.count("<path") > 20
        assert png.startswith(b"\x89PNG") and len(png) > 20_000
        width, height = struct.unpack(">II", png[16:24])
        assert width > 700 and height > 300
    [data] = page.json
    [setting] = data["settings"]
    summary = json.loads((study / "summary.json").read_text())
    assert [arm["name"] for arm in setting["arms"]] == [arm["name"] for arm in summary["arms"]]
    places = {(p["arm"], p["learning_rate"], p["budget"]) for p in summary["points"]}
    assert {(c["arm"], c["rate"], c["budget"]) for c in setting["configs"]} == places


def test_a_configuration_is_the_mean_of_its_seeds(drawn: Drawn) -> None:
    study, _, html = drawn
    [setting] = Reader(html).json[0]["settings"]
    points = json.loads((study / "summary.json").read_text())["points"]
    for one in setting["configs"]:
        place = (one["arm"], one["rate"], one["budget"])
        own = [p for p in points if (p["arm"], p["learning_rate"], p["budget"]) == place]
        for key, sign in (("gsm8k", 100), ("mean", -100), ("source_loss", 1)):
            changes = [sign * point["changes"][key]["value"] for point in own]
            value, half, kind = one["values"][key]
            assert value == pytest.approx(sum(changes) / len(own), rel=1e-3, abs=1e-5)
            assert half > 0 and kind == "items"  # with two seeds the luck of seeds is not known


def test_questions_have_every_verdict_and_the_texts_of_those_that_turned(drawn: Drawn) -> None:
    [setting] = Reader(drawn[2]).json[0]["settings"]
    questions = setting["questions"]
    [task] = questions["tasks"]
    # The gallery's base has every second item right, and every run every third.
    assert task["base"] == "10" * 10
    assert set(task["tuned"]) == {"100" * 6 + "10"} and len(task["tuned"]) > 10
    wanted = [place for place in range(20) if (place % 2 == 0) != (place % 3 == 0)]
    assert [item[0] for item in task["items"]] == wanted and task["turned"] == len(wanted)
    place, question, choices, answers = task["items"][0]
    assert question.startswith(f"Question {place}") or HOSTILE in question
    assert choices == [] and len(answers) == 1 + len(questions["models"])
    assert questions["pool"][answers[0]].startswith(f"base says {place}\\u202e")


def test_a_page_holds_no_more_text_than_it_may(drawn: Drawn, monkeypatch: Any) -> None:
    monkeypatch.setattr(turned, "MOST_CHARACTERS", 9000)
    summary = read_summary(drawn[0])
    found = turned.read_questions(drawn[0], summary, groups(summary))
    [task] = found["tasks"]
    assert 0 < len(task["items"]) < task["turned"] and len(task["base"]) == 20


def test_the_page_needs_no_network(drawn: Drawn) -> None:
    page, style = Reader(drawn[2]), drawn[2].split("</style>")[0]
    assert [where for where in page.requests if not where[1].startswith("#")] == []
    assert not {"link", "iframe", "object", "embed", "img"} & set(page.tags)
    assert "default-src 'none'" in drawn[2] and "connect-src" not in drawn[2]
    assert "@import" not in style and "url(" not in style


def test_the_same_study_gives_the_same_bytes(build: Build, make_study: MakeStudy) -> None:
    study = make_study(small(build))
    found = []
    for _ in range(2):
        files = [write_report(study), *sorted((study / "figures").iterdir())]
        found.append({file.name: file.read_bytes() for file in files})
    assert len(found[0]) > 9 and found[0] == found[1]


def test_hostile_names_stay_text(build: Build, make_study: MakeStudy) -> None:
    arms = {HOSTILE: ("lora", [1e-4], 1e-4)}
    summary = small(build, arms=arms, diverged=())
    summary["tasks"]["target_loss"]["title"] = HOSTILE
    summary["runs"][0]["reason"] = HOSTILE
    study = make_study(summary)
    (study / "claims.json").write_text(json.dumps({**JUDGEMENT, "answer": HOSTILE}))
    page = read(write_report(study))
    assert HOSTILE in page.words
    assert "img" not in page.tags and page.handlers == []
    assert page.json[0]["settings"][0]["arms"][0]["name"] == HOSTILE


def test_script_json_cannot_leave_its_element() -> None:
    value = {"a": "</script><!-- & \u2028"}
    text = str(script_json(value))
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == value


@pytest.mark.usefixtures("undrawn")
def test_gaps_are_named_and_do_not_stop_the_page(build: Build, make_study: MakeStudy) -> None:
    arms = {
        "lora-r16": ("lora", [1e-4, 3e-4], 3e-4),
        "full": ("full", [1e-5, 1e-4], None),
    }
    summary = build(
        arms=arms,
        seeds=(0,),
        budgets=(20_000,),
        diverged=(("full", 1e-5), ("full", 1e-4)),
        missing=("winogrande",),
    )
    summary["runs"].append(
        {"id": "deadbeef", "arm": "lora-r16", "learning_rate": 1e-3, "seed": 0, "state": "open"}
    )
    study = make_study(summary)
    (study / "recipe.yaml").unlink()
    (study / "cost.json").write_text('{"format": 2, "runs": [{"id": "x"}]}')
    words = read(write_report(study)).words
    assert "Arm full has no measured run" in words
    assert "WinoGrande, acc was not measured on any tuned model" in words
    assert "Only one seed at the best learning rate for lora-r16" in words
    assert "lora-r16 at learning rate 1e-3: not finished" in words
    assert "no readable recipe.yaml" in words
    assert "Costs are not shown" in words and "runs.0.arm: Field required" in words
    assert "What each arm cost on this machine" not in words


def test_a_study_where_everything_failed_still_has_a_page(
    build: Build, make_study: MakeStudy
) -> None:
    summary = build(diverged=(("full", 1e-5), ("full", 3e-5), ("full", 1e-4)))
    summary["points"] = []
    for run in summary["runs"]:
        run |= {"state": "failed", "reason": "the disk is full", "loss_curve": []}
    study = make_study(summary, costs=False)
    (study / "figures").mkdir()
    (study / "figures" / "tradeoff.svg").write_text("old")
    page = read(write_report(study))
    assert "Nothing to draw" in page.words and page.json[0]["settings"][0]["configs"] == []
    assert "costs-table" not in page.words and "no readable cost.json" in page.words
    assert not (study / "figures" / "tradeoff.svg").exists()


def test_no_summary_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="laura compare"):
        write_report(tmp_path)
    with pytest.raises(StoreError, match="is not a folder"):
        write_report(tmp_path / "nowhere")


def test_reading_a_study_imports_nothing_heavy() -> None:
    program = (
        "import sys, laura.report.study, laura.report.tables, laura.report.samples.show\n"
        "heavy = {'altair', 'rich', 'jinja2', 'vl_convert', 'torch', 'transformers', 'datasets'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[2], check=True)


# ----- Markdown -----


def test_it_has_the_pages_and_tables_of_the_html(drawn: Drawn) -> None:
    _, markdown, html = drawn
    titles = re.findall(r"<summary><h3>(.*?)</h3></summary>", html)
    own = re.findall("^## (.*)$", markdown, re.M)
    # The page tells of these above its tables, and Markdown among its other pages.
    assert [title for title in own if title not in ("Overview", "Samples")] == [
        title for title in titles if title != "All numbers"
    ]
    captions = re.findall(r"<caption>(.*?)</caption>", html)
    assert len(captions) > 12 and len(captions) == len(re.findall(r"^\*[^*].*\*$", markdown, re.M))


def test_figures_are_linked_and_there(drawn: Drawn) -> None:
    study, markdown, _ = drawn
    linked = re.findall(r"\]\((figures/\w+\.svg)\)", markdown)
    assert len(linked) == len(set(linked)) == len(CHARTS)
    assert all(
        (study / file).is_file() and (study / file).with_suffix(".png").is_file() for file in linked
    )


def test_what_is_folded_and_what_captions_add_is_there_too(drawn: Drawn) -> None:
    _, markdown, html = drawn
    for words in (
        "The other arms, one by one",
        "Decay keeps a little of what full finetuning forgets.",
        "In colour are full, lora-r16, lora-r64: the plainest arms",
        "Loss spikes by arm and learning rate",
    ):
        assert words in markdown and words in html


def test_every_table_is_rectangular(drawn: Drawn) -> None:
    for table in re.findall(r"(?:^\|.*\n)+", drawn[1], re.M):
        rows = table.replace("\\|", "").splitlines()
        assert len({row.count("|") for row in rows}) == 1 and len(rows) > 2


def test_hostile_texts_stay_in_their_fences(drawn: Drawn) -> None:
    outside = re.sub(r"^(`{3,})\n.*?^\1$", "", drawn[1], flags=re.M | re.S)
    assert HOSTILE in drawn[1] and "<img" not in outside and "<script" not in outside


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a|b", "a\\|b"),
        ("*a* _b_ <b>", "\\*a\\* \\_b\\_ &lt;b&gt;"),
        ("[a](b)", "\\[a\\](b)"),
        ("# a\nb", "\\# a b"),
        ("- a", "\\- a"),
        ("1. a", "\\1. a"),
        ("-0.5 ± 1", "-0.5 ± 1"),
        ("give `a_b|<c>` a_b", "give `a_b\\|<c>` a\\_b"),
        ("a ` b <", "a \\` b &lt;"),
    ],
)
def test_escaped(text: str, expected: str) -> None:
    assert escaped(text) == expected


def test_no_text_closes_its_fence() -> None:
    assert fenced("a\n```\nb").splitlines()[0] == "````"
