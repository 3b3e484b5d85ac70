"""What is shown of an adapter beside its answers: the short form of its `laura.json`."""

from __future__ import annotations

from typing import Any

from laura.results.schema import Record


def short_record(record: Record | None) -> dict[str, Any] | None:
    """What the page, `/v1/models` and `laura chat` show of a record, ready for JSON.

    Recipe, versions and file hashes are left out, of claims all but the verdict.

    Returns:
        `{"study", "base", "method", "arm", "learning_rate", "tokens", "learning",
        "forgetting", "scores", "claims": {ID: VERDICT}}`; None where there is no record.
    """
    if record is None:
        return None
    kept = {
        "study", "base", "method", "arm", "learning_rate", "tokens", "learning", "forgetting",
        "scores",
    }  # fmt: skip
    claims = {claim.id: claim.verdict for claim in record.claims}
    return {**record.model_dump(mode="json", include=kept), "claims": claims}
