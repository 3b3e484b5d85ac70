"""lm-eval's tasks measured by Laura: the same marks as lm-eval's own run, item by item."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from laura.engine.engine import Engine
from laura.results.errors import DataError, UsageError
from laura.results.task_result import summarise
from tests.evals.lm_eval_rows import evaluated, plain, write_task, write_tasks

# lm-eval and the libraries it loads warn of their own future; ours stay errors.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:lm_eval"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:sacrebleu"),
]

MEAN = {"aggregation": "mean", "higher_is_better": True}


def measured(name: str, engine: Any, folder: Path, limit: int | None = None) -> Any:
    from laura.evals.lm_eval import tasks as lm_eval_tasks

    plan = lm_eval_tasks.plan(f"lm_eval:{name}", limit, folder)
    (found,) = plan.measure(engine, [None])
    return plan, found


def test_marks_equal_lm_evals_own_run(
    tiny_folder: Path, tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    engine = Engine(tiny_model, tiny_tokenizer)
    names = write_tasks(tmp_path)
    wanted = evaluated(plain(tiny_folder), names, tmp_path)
    metrics = {}
    for name in names:
        plan, found = measured(name, engine, tmp_path)
        indices = [index for index, _ in plan.covers]
        theirs = wanted["samples"][name]
        assert indices == [sample["doc_id"] for sample in theirs]
        assert [item["index"] for item in found.items] == indices
        metrics[name] = list(found.directions)
        for metric in set(found.directions) - {"nats_per_byte"}:
            assert [item[metric] for item in found.items] == [s[metric] for s in theirs]
            value = summarise(found.items, metric, True).value
            assert value == pytest.approx(wanted["results"][name][f"{metric},none"])
        json.dumps([found.items, found.samples])
    assert metrics == {
        "here_choice": ["acc", "acc_norm"],
        "here_pairs": ["acc"],
        "here_rolling": ["nats_per_byte"],
        "here_generate": ["exact_match"],
    }
    loss = summarise(found_of("here_rolling", engine, tmp_path).items, "nats_per_byte", False)
    bits = wanted["results"]["here_rolling"]["bits_per_byte,none"]
    assert loss.value == pytest.approx(bits * math.log(2), rel=1e-5)
    assert "perplexity" in found_of("here_pairs", engine, tmp_path).left_out


def found_of(name: str, engine: Any, folder: Path) -> Any:
    return measured(name, engine, folder)[1]


def test_shots_and_filters_are_lm_evals(
    tiny_folder: Path, tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    rows = [{"q": f"what {i}", "a": f"{i} and {i + 1}"} for i in range(9)]
    first = [{"function": "regex", "regex_pattern": "([0-9])"}, {"function": "take_first"}]
    name = write_task(
        tmp_path, "here_filters", rows, output_type="generate_until", doc_to_text="{{q}}:",
        doc_to_target="{{a}}", num_fewshot=2, fewshot_split="test",
        generation_kwargs={"until": ["\n"], "max_gen_toks": 6, "do_sample": False},
        metric_list=[{"metric": "exact_match", **MEAN}],
        filter_list=[
            {"name": "digit", "filter": first},
            {"name": "whole", "filter": [{"function": "take_first"}]},
        ],
    )  # fmt: skip
    plan, found = measured(name, Engine(tiny_model, tiny_tokenizer), tmp_path)
    theirs = evaluated(plain(tiny_folder), [name], tmp_path)["samples"][name]
    assert list(found.directions) == ["exact_match,digit", "exact_match,whole"]
    assert "2 shots" in plan.version
    for sample in theirs:
        mine = found.samples[sample["doc_id"]]
        assert mine["requests"][0]["arguments"][0] == sample["arguments"][0][0]
        assert mine["filtered"][sample["filter"]] == sample["filtered_resps"]
        assert mine[f"exact_match,{sample['filter']}"] == sample["exact_match"]


def test_version_changes_with_the_rows(tmp_path: Path) -> None:
    from laura.evals.lm_eval import tasks as lm_eval_tasks

    versions = []
    for number, words in enumerate(("a cat", "a cat", "a dog")):
        rows = [{"q": words, "options": ["x", "y"], "gold": 0}] * 3
        write_task(
            tmp_path / str(number), "here", rows, output_type="multiple_choice",
            doc_to_text="{{q}}", doc_to_choice="options", doc_to_target="gold",
            metric_list=[{"metric": "acc", **MEAN}],
        )  # fmt: skip
        versions.append(lm_eval_tasks.plan("lm_eval:here", None, tmp_path / str(number)).version)
    assert versions[0] == versions[1] != versions[2]
    assert versions[0].startswith("lm-eval 0.4.") and "; 2.0; 0 shots" in versions[0]


def _refused(folder: Path, **config: Any) -> str:
    rows = [{"q": "a", "options": ["x", "y"], "gold": 0}] * 3
    write_task(
        folder, "here", rows, output_type="multiple_choice", doc_to_text="{{q}}",
        doc_to_choice="options", doc_to_target="gold", **config,
    )  # fmt: skip
    return "lm_eval:here"


def test_what_cannot_be_measured_is_refused_by_name(
    tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    from laura.evals.lm_eval import tasks as lm_eval_tasks

    f1 = {"metric": "f1", "aggregation": "f1", "higher_is_better": True}
    name = _refused(tmp_path / "f1", metric_list=[f1])
    plan = lm_eval_tasks.plan(name, None, tmp_path / "f1")
    with pytest.raises(UsageError, match="f1 is summed up over the whole set"):
        plan.measure(Engine(tiny_model, tiny_tokenizer), [None])
    mean = [{"metric": "acc", **MEAN}]
    name = _refused(tmp_path / "code", metric_list=mean, unsafe_code=True)
    with pytest.raises(UsageError, match="runs code"):
        lm_eval_tasks.plan(name, None, tmp_path / "code")
    with pytest.raises(UsageError, match="is not a folder"):
        lm_eval_tasks.plan(name, None, tmp_path / "nowhere")
    (tmp_path / "code" / "here.jsonl").unlink()
    name = _refused(tmp_path / "gone", metric_list=mean)
    (tmp_path / "gone" / "here.jsonl").unlink()
    with pytest.raises(DataError, match="lm-eval cannot use this task"):
        lm_eval_tasks.plan(name, None, tmp_path / "gone")


@pytest.mark.slow
def test_lm_evals_own_names(tmp_path: Path) -> None:
    """The packaged thousands of tasks: a wrong name, a group, and data that is not there."""
    from laura.evals.lm_eval import tasks as lm_eval_tasks

    with pytest.raises(UsageError, match="lm_eval:hellaswag"):
        lm_eval_tasks.plan("lm_eval:helaswag")
    with pytest.raises(UsageError, match="group of lm-eval's tasks"):
        lm_eval_tasks.plan("lm_eval:mmlu")
    with pytest.raises(DataError, match=r"lm_eval:piqa.*Hub"):  # tests are offline
        lm_eval_tasks.plan("lm_eval:piqa")
