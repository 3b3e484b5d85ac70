"""report.md: the page's content, as text that nothing in it can break."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from laura.report.markdown import escaped, fenced
from laura.report.page import write_report
from tests.report.gallery import HOSTILE, write_gallery


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory, builder: Any) -> tuple[Path, str, str]:
    """Folder, Markdown and HTML of the same study."""
    study = tmp_path_factory.mktemp("md") / "study"
    write_gallery(builder, study)
    markdown, html = write_report(study, form="md"), write_report(study)
    return study, markdown.read_text(encoding="utf-8"), html.read_text(encoding="utf-8")


def test_it_has_the_pages_and_tables_of_the_html(reports: tuple[Path, str, str]) -> None:
    _, markdown, html = reports
    titles = re.findall(r'<h2 id="[\w-]+" tabindex="-1">(.*?)</h2>', html)
    assert re.findall("^## (.*)$", markdown, re.M) == titles
    captions = re.findall(r"<caption>(.*?)</caption>", html)
    assert len(captions) > 12 and len(captions) == len(re.findall(r"^\*[^*].*\*$", markdown, re.M))


def test_figures_are_linked_and_there(reports: tuple[Path, str, str]) -> None:
    study, markdown, _ = reports
    linked = re.findall(r"\]\((figures/\w+\.svg)\)", markdown)
    assert len(linked) == len(set(linked)) == 16
    assert all(
        (study / file).is_file() and (study / file).with_suffix(".png").is_file() for file in linked
    )


def test_what_is_folded_and_what_captions_add_is_there_too(reports: tuple[Path, str, str]) -> None:
    _, markdown, html = reports
    for words in (
        "The other arms, one by one",
        "Decay keeps a little of what full finetuning forgets.",
        "In colour are full, lora-r16, lora-r64: the plainest arms",
        "Loss spikes by arm and learning rate",
    ):
        assert words in markdown and words in html


def test_every_table_is_rectangular(reports: tuple[Path, str, str]) -> None:
    for table in re.findall(r"(?:^\|.*\n)+", reports[1], re.M):
        rows = table.replace("\\|", "").splitlines()
        assert len({row.count("|") for row in rows}) == 1 and len(rows) > 2


def test_hostile_texts_stay_in_their_fences(reports: tuple[Path, str, str]) -> None:
    outside = re.sub(r"^(`{3,})\n.*?^\1$", "", reports[1], flags=re.M | re.S)
    assert HOSTILE in reports[1] and "<img" not in outside and "<script" not in outside


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
