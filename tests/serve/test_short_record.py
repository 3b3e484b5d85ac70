"""The short form of a record: what the page shows is there, what is long is not."""

from __future__ import annotations

import json

from laura.results.schema import Record
from laura.serve.library import short_record
from tests.serve.page_server import RECORD
from tests.test_record import VALUE


def test_numbers_with_errors_base_and_verdicts() -> None:
    short = short_record(Record.model_validate_json(json.dumps(VALUE)))
    assert short is not None
    assert json.loads(json.dumps(short)) == short
    for name in ("base", "scores", "learning", "forgetting", "arm", "method", "learning_rate"):
        assert short[name] == VALUE[name]
    assert short["claims"] == {"forgets-less": "undecided"}
    assert not {"recipe", "weights", "versions"} & short.keys()
    # What the page's and the chat's tests show is of this form.
    assert short.keys() == RECORD.keys()


def test_no_record() -> None:
    assert short_record(None) is None
