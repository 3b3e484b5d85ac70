"""Rows of data sets on the Hub, through `datasets`, with every refusal explained."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from laura.results.errors import DataError, HubError, LauraError

ANSWER_SECONDS = 15.0


def hub_rows(
    repository: str,
    config: str | None,
    split: str,
    *,
    folder: str | None = None,
    streaming: bool = True,
    local_hint: str = "",
) -> Iterator[dict[str, Any]]:
    """Rows of one split, in the Hub's order.

    Args:
        repository: Data set id, such as `openai/gsm8k`.
        config: Configuration name, or None.
        split: The Hub's name of the split.
        folder: Folder of the repository to read, or None.
        streaming: Read row by row instead of fetching the whole split first.
        local_hint: File that would have been used from a data folder.

    Raises:
        HubError: no network, no such data set, or access is refused; says how
            to use local files instead.
        DataError: the configuration or split does not exist.
    """
    import datasets

    _check_reachable(repository, local_hint)
    try:
        rows = datasets.load_dataset(
            repository, config, split=split, data_dir=folder, streaming=streaming
        )
        for row in rows:
            yield dict(row)
    except LauraError:
        raise
    except ValueError as error:
        raise DataError(
            f"{repository} on the Hub: {_first_line(error)}; give the configuration as `subset` "
            "and the split as `split`"
        ) from error
    except Exception as error:
        raise HubError(_refusal(repository, _first_line(error), local_hint)) from error


def _check_reachable(repository: str, local_hint: str) -> None:
    """Ask once, with a short wait; `datasets` itself retries for half a minute."""
    import huggingface_hub
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    if constants.HF_HUB_OFFLINE:
        return
    try:
        huggingface_hub.HfApi().dataset_info(repository, timeout=ANSWER_SECONDS)
    except HFValidationError as error:
        raise DataError(f"{repository!r} is not a Hub data set id: {_first_line(error)}") from error
    except HfHubHTTPError as error:
        code = getattr(error.response, "status_code", None)
        if code in (401, 403, 404):
            reason = (
                "it does not exist, or you may not read it; check the id, accept its terms on "
                "its page and log in with `hf auth login`"
            )
            raise HubError(_refusal(repository, reason, local_hint)) from error
        raise HubError(_refusal(repository, _first_line(error), local_hint)) from error
    except Exception as error:
        reason = f"the Hub cannot be reached ({_first_line(error)})"
        raise HubError(_refusal(repository, reason, local_hint)) from error


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:300] if text else type(error).__name__


def _refusal(repository: str, reason: str, local_hint: str) -> str:
    from huggingface_hub import constants

    place = f" with {local_hint} in it" if local_hint else ""
    offline = constants.HF_HUB_OFFLINE
    last = (
        "unset HF_HUB_OFFLINE to download it"
        if offline
        else "if it was downloaded before, set HF_HUB_OFFLINE=1"
    )
    return (
        f"data set {repository}: {reason}. Without the Hub: give --data-dir (or set LAURA_DATA) "
        f"to a folder{place}, or name a JSON Lines file as the source; or {last}"
    )
