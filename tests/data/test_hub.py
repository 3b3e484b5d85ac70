from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from laura.data.sources import hub_rows
from laura.results.errors import DataError, HubError, LauraError


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


def hub_says(monkeypatch: pytest.MonkeyPatch, answer: Exception | None) -> None:
    import huggingface_hub

    def dataset_info(self: Any, repository: str, timeout: float) -> None:
        if answer:
            raise answer

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", dataset_info)


def datasets_says(monkeypatch: pytest.MonkeyPatch, answer: Exception | list[Any]) -> None:
    import datasets

    def load_dataset(*args: Any, **options: Any) -> list[Any]:
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)


def refused(status: int) -> Exception:
    from huggingface_hub.errors import HfHubHTTPError

    response: Any = SimpleNamespace(status_code=status, headers={}, request=None)
    return HfHubHTTPError("no", response=response)


def test_rows_come_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    hub_says(monkeypatch, None)
    datasets_says(monkeypatch, [{"a": 1}, {"a": 2}])
    assert list(hub_rows("x/y", None, "train")) == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (refused(404), "does not exist, or you may not read it.*hf auth login"),
        (refused(401), "does not exist, or you may not read it"),
        (refused(500), "data set x/y: no.* --data-dir"),
        (OSError("no route"), "cannot be reached .no route.*a folder with a.jsonl"),
    ],
)
def test_the_hub_refuses(monkeypatch: pytest.MonkeyPatch, answer: Exception, message: str) -> None:
    hub_says(monkeypatch, answer)
    with pytest.raises(HubError, match=message):
        list(hub_rows("x/y", None, "train", local_hint="a.jsonl"))


@pytest.mark.parametrize(
    ("answer", "kind", "message"),
    [
        (ValueError("BuilderConfig 'z' not found"), DataError, "BuilderConfig .* `subset`"),
        (ValueError('Unknown split "z"'), DataError, "Unknown split .* `split`"),
        (ConnectionError("cut off"), HubError, "cut off.*HF_HUB_OFFLINE=1"),
        (RuntimeError(), HubError, "RuntimeError"),
    ],
)
def test_loading_fails(
    monkeypatch: pytest.MonkeyPatch, answer: Exception, kind: type[LauraError], message: str
) -> None:
    hub_says(monkeypatch, None)
    datasets_says(monkeypatch, answer)
    with pytest.raises(kind, match=message):
        list(hub_rows("x/y", "z", "train"))


def test_a_name_that_is_no_data_set_id() -> None:
    with pytest.raises(DataError, match="is not a Hub data set id"):
        list(hub_rows("x--y/..", None, "train"))
