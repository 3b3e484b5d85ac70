"""The data sets Laura knows by name: where they live and what their fields mean.

Adding a data set is one line in `NAMED`, adding the rows of a benchmark is one
line in `BENCHMARK_ROWS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from laura.data.formats import Columns

Rows = Iterable[dict[str, Any]]

TRAIN = {"train": "train"}
TRAIN_TEST = {"train": "train", "test": "test"}
TRAIN_VALIDATION = {"train": "train", "validation": "validation"}
ALL_SPLITS = {"train": "train", "validation": "validation", "test": "test"}


def wikitext_articles(rows: Rows) -> Iterator[dict[str, Any]]:
    """Join the Hub's lines of wikitext into articles, cut at first-level headings.

    A heading is a line ` = Title = `; deeper ones have more equals signs. Text
    before the first heading is an article of its own.
    """
    lines: list[str] = []
    for row in rows:
        line = row.get("text")
        if not isinstance(line, str):
            yield row
            continue
        words = line.split()
        heading = len(words) >= 3 and words[0] == words[-1] == "=" and words[1] != "="
        if heading and any(part.strip() for part in lines):
            yield {"text": "".join(lines).strip("\n")}
            lines = []
        lines.append(line)
    if any(part.strip() for part in lines):
        yield {"text": "".join(lines).strip("\n")}


@dataclass(frozen=True)
class KnownSet:
    """One data set known by name: for its examples, or for the rows of a benchmark.

    Attributes:
        hub: Data set id on the Hub; empty for a set that comes with Laura.
        config: Hub configuration; None where there is only one.
        splits: Our split name to the Hub's.
        local: Split to file in the data folder.
        fields: Of a benchmark, what every row must have.
        builtin: File that comes with Laura; its rows name their split, where there
            are several and the name has no place for one.
        columns: Which fields hold what; None where its rows tell, as those of a file do.
        default_split: What `split: null` means.
        folder: Hub folder (`data_dir`) that holds the rows, where there are several.
        regroup: Makes documents of the Hub's rows, where a row is less than one.
        huge: True where the whole set is too large to load without a limit.
        task_ids: Of a benchmark where one local file holds every split: split to the
            `task_id` of its rows. The Hub's splits are split already.
    """

    hub: str
    config: str | None
    splits: Mapping[str, str]
    local: Mapping[str, str] = field(default_factory=dict)
    fields: tuple[str, ...] = ()
    builtin: str = ""
    columns: Columns | None = None
    default_split: str = "train"
    folder: str | None = None
    regroup: Callable[[Rows], Iterator[dict[str, Any]]] | None = None
    huge: bool = False
    task_ids: Mapping[str, range] = field(default_factory=dict)


def _micro(domain: str) -> dict[str, str]:
    return {split: f"micro/{domain}_{split}.jsonl.gz" for split in ALL_SPLITS}


# fmt: off
NAMED: dict[str, KnownSet] = {
    "gsm8k": KnownSet("openai/gsm8k", "main", TRAIN_TEST, columns=Columns(prompt=("question",), completion="answer"), local={"train": "gsm8k/train.jsonl.gz", "test": "gsm8k/test.jsonl"}),  # noqa: E501
    "metamathqa": KnownSet("meta-math/MetaMathQA", None, TRAIN, columns=Columns(prompt=("query",), completion="response"), local={"train": "metamathqa/train.jsonl.gz"}),  # noqa: E501
    "magicoder-evol-instruct": KnownSet("ise-uiuc/Magicoder-Evol-Instruct-110K", None, TRAIN, columns=Columns(prompt=("instruction",), completion="response"), local={"train": "magicoder-evol-instruct/train.jsonl.gz"}),  # noqa: E501
    "codealpaca": KnownSet("sahil2801/CodeAlpaca-20k", None, TRAIN, columns=Columns(prompt=("instruction", "input"), completion="output"), local={"train": "codealpaca/new_codealpaca.jsonl.gz"}),  # noqa: E501
    "starcoder-python": KnownSet("bigcode/starcoderdata", None, TRAIN, columns=Columns(text="content"), local={"train": "starcoder-python/train.jsonl.gz"}, folder="python", huge=True),  # noqa: E501
    "openwebmath": KnownSet("open-web-math/open-web-math", None, TRAIN, columns=Columns(text="text"), local={"train": "openwebmath/train.jsonl.gz"}, huge=True),  # noqa: E501
    "tulu-v2-mix": KnownSet("allenai/tulu-v2-sft-mixture", None, TRAIN, local={"train": "tulu-v2-mix/train.jsonl.gz"}),  # noqa: E501
    "wikitext": KnownSet("Salesforce/wikitext", "wikitext-2-raw-v1", ALL_SPLITS, columns=Columns(text="text"), local={"validation": "wikitext2/valid.jsonl.gz", "test": "wikitext2/test.jsonl.gz"}, default_split="test", regroup=wikitext_articles),  # noqa: E501
    "c4": KnownSet("allenai/c4", "en", TRAIN_VALIDATION, columns=Columns(text="text"), local={"train": "c4_sample/c4.jsonl.gz", "validation": "c4_sample/c4.jsonl.gz"}, huge=True),  # noqa: E501
    "builtin:word-problems": KnownSet("", None, ALL_SPLITS, columns=Columns(prompt=("question",), completion="answer"), builtin="word_problems.jsonl.gz"),  # noqa: E501
    "builtin:plain-text": KnownSet("", None, TRAIN, columns=Columns(text="text"), builtin="source_text.jsonl.gz"),  # noqa: E501
    "micro-math": KnownSet("", None, ALL_SPLITS, columns=Columns(prompt=("question",), completion="answer"), local=_micro("math"), builtin="micro/math_{split}.jsonl.gz"),  # noqa: E501
    "micro-code": KnownSet("", None, ALL_SPLITS, columns=Columns(prompt=("prompt",), completion="canonical_solution"), local=_micro("code"), builtin="micro/code_{split}.jsonl.gz"),  # noqa: E501
    "micro-math-text": KnownSet("", None, ALL_SPLITS, columns=Columns(prompt=("question",), completion="answer", joined="\n"), local=_micro("math"), builtin="micro/math_{split}.jsonl.gz"),  # noqa: E501
    "micro-code-text": KnownSet("", None, ALL_SPLITS, columns=Columns(prompt=("prompt",), completion="canonical_solution", joined=""), local=_micro("code"), builtin="micro/code_{split}.jsonl.gz"),  # noqa: E501
    "micro-source": KnownSet("", None, {"test": "test"}, columns=Columns(text="text"), local={"test": "micro/source.jsonl.gz"}, default_split="test", builtin="micro/source.jsonl.gz"),  # noqa: E501
}
# fmt: on


def _micro_rows(name: str, *fields: str) -> KnownSet:
    file = f"micro/{name}.jsonl.gz"
    return KnownSet("", None, {"test": "test"}, {"test": file}, fields, builtin=file)


# Task ids of the splits, as in Austin et al. 2021, arXiv:2108.07732, and its repository.
MBPP_IDS = {
    "prompt": range(1, 11),
    "test": range(11, 511),
    "validation": range(511, 601),
    "train": range(601, 975),
}
MBPP_SPLITS = {split: split for split in MBPP_IDS}

# fmt: off
BENCHMARK_ROWS: dict[str, KnownSet] = {
    "hellaswag": KnownSet("Rowan/hellaswag", None, TRAIN_VALIDATION, {"validation": "hellaswag/validation.jsonl.gz"}, ("activity_label", "ctx_a", "ctx_b", "endings", "label")),  # noqa: E501
    "arc_challenge": KnownSet("allenai/ai2_arc", "ARC-Challenge", ALL_SPLITS, {split: f"arc_challenge/{split}.jsonl" for split in ALL_SPLITS}, ("question", "choices", "answerKey")),  # noqa: E501
    "winogrande": KnownSet("allenai/winogrande", "winogrande_xl", TRAIN_VALIDATION, {"train": "winogrande/train_m.jsonl", "validation": "winogrande/dev.jsonl"}, ("sentence", "option1", "option2", "answer")),  # noqa: E501
    "micro_facts": _micro_rows("facts", "question", "choices", "answerKey"),
    "micro_events": _micro_rows("events", "activity_label", "ctx_a", "ctx_b", "endings", "label"),
    "micro_pronouns": _micro_rows("pronouns", "sentence", "option1", "option2", "answer"),
    "micro_code": KnownSet("", None, ALL_SPLITS, _micro("code"), ("prompt", "test", "entry_point"), builtin="micro/code_{split}.jsonl.gz"),  # noqa: E501
    "micro_math": KnownSet("", None, ALL_SPLITS, _micro("math"), ("question", "answer"), builtin="micro/math_{split}.jsonl.gz"),  # noqa: E501
    "gsm8k": KnownSet("openai/gsm8k", "main", TRAIN_TEST, NAMED["gsm8k"].local, ("question", "answer")),  # noqa: E501
    "humaneval": KnownSet("openai/openai_humaneval", None, {"test": "test"}, {"test": "humaneval/HumanEval.jsonl"}, ("task_id", "prompt", "entry_point", "test")),  # noqa: E501
    "mbpp": KnownSet("google-research-datasets/mbpp", "full", MBPP_SPLITS, {split: "mbpp/mbpp.jsonl" for split in MBPP_IDS}, ("task_id", "text", "code", "test_list"), task_ids=MBPP_IDS),  # noqa: E501
}
# fmt: on
