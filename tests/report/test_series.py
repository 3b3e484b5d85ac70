"""The report of a series: an index of its settings and the joint claims."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from laura.report.series import write_series_report
from laura.results.errors import StoreError
from laura.results.store import SeriesStore
from tests.report.gallery import JUDGEMENT, claims_value


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory, builder: Any) -> Path:
    folder = tmp_path_factory.mktemp("series") / "both"
    store = SeriesStore(folder)
    (folder / "settings").mkdir(parents=True)
    store.write("both", ["code-instruct", "math <b>", "late"])
    for name, domain in (("code-instruct", "code"), ("math <b>", "math")):
        summary = builder(
            learning=("target_loss",), forgetting=("winogrande",), seeds=(0,), budgets=(20_000,)
        ).build()
        summary |= {"domain": domain}
        study = builder.write(store.setting(name).folder, summary)
        judged = {**JUDGEMENT, "answer": f"Verdict of {name}."}
        (study / "claims.json").write_text(json.dumps(judged))
        (study / "figures").mkdir()
        (study / "figures/tradeoff.svg").touch()
        for form in ("html", "md"):
            (study / f"report.{form}").touch()
    (folder / "claims.json").write_text(json.dumps(claims_value()))
    return folder


def test_every_setting_has_verdict_figure_and_link(series: Path) -> None:
    html = write_series_report(series).read_text(encoding="utf-8")
    assert "Verdict of code-instruct." in html
    data = json.loads(html.split('id="data">')[1].split("</script>")[0])
    assert [one["name"] for one in data["settings"]] == ["code-instruct", "math <b>"]
    assert all(one["configs"] for one in data["settings"])
    assert 'href="settings/code-instruct/report.html"' in html
    assert "math &lt;b&gt;" in html and "math <b>" not in html
    assert "Setting late was not carried out yet" in html
    markdown = write_series_report(series, "md").read_text(encoding="utf-8")
    assert "1 supported, 1 contradicted, 1 mixed, 1 suggested, 2 undecided" in markdown
    assert "LoRA forgets less than full finetuning." in html
    identities = [part.split('"')[0] for part in html.split(' id="')[1:]]
    assert len(identities) == len(set(identities))


def test_a_damaged_setting_is_named_and_the_others_are_shown(series: Path) -> None:
    summary = SeriesStore(series).setting("math <b>").summary_file
    kept, claims = summary.read_text(), series / "claims.json"
    judged = claims.read_text()
    gaps = ["math <b>: is left out, since x", "code-instruct: is left out, since run.json is bad",
            "late: was not carried out", "seen: lora at 0.1, seed 1: diverged"]  # fmt: skip
    seen = {"name": "seen", "domain": "d", "regime": "r", "arms": []}
    try:
        summary.write_text("{")
        claims.write_text(json.dumps({**claims_value(), "settings": [seen], "gaps": gaps}))
        html = write_series_report(series).read_text(encoding="utf-8")
    finally:
        summary.write_text(kept)
        claims.write_text(judged)
    assert "Setting math &lt;b&gt; is not shown: " in html and "is not JSON" in html
    assert "In the claims, setting code-instruct: is left out, since run.json is bad." in html
    assert html.count("was not carried out") == 1 and "diverged" not in html
    assert "Verdict of code-instruct." in html and "Verdict of math" not in html


def test_links_with_spaces_and_marks_work(series: Path) -> None:
    html = write_series_report(series).read_text(encoding="utf-8")
    assert 'href="settings/math%20%3Cb%3E/report.html"' in html
    markdown = write_series_report(series, "md").read_text(encoding="utf-8")
    assert "](settings/math%20%3Cb%3E/report.md)" in markdown
    assert "](settings/code-instruct/figures/tradeoff.svg)" in markdown


def test_without_claims_it_says_how_to_get_them(series: Path) -> None:
    claims = series / "claims.json"
    kept = claims.read_text()
    try:
        claims.write_text("{")
        assert "Claims are not shown" in write_series_report(series).read_text(encoding="utf-8")
        claims.unlink()
        assert "they were not judged" in write_series_report(series).read_text(encoding="utf-8")
    finally:
        claims.write_text(kept)


def test_a_folder_that_is_no_series_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="holds no series"):
        write_series_report(tmp_path)
