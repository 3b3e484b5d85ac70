"""Putting an adapter or a model onto the Hub, as it stands in its folder."""

from __future__ import annotations

from pathlib import Path

from laura.models.adapter_files import CONFIG, read_whole
from laura.models.fetch import first_line
from laura.models.load import check_model_folder
from laura.models.model_card import HUB_ID
from laura.results.errors import HubError
from laura.results.progress import SILENT, Progress
from laura.results.store import MANIFEST, read_json

LOG_IN = "log in with `hf auth login`, or set HF_TOKEN to a token that may write"


def push(folder: Path, repository: str, public: bool = False, progress: Progress = SILENT) -> str:
    """Upload a folder to a repository of the Hub, which is made where there is none.

    Args:
        folder: Of an adapter, or of a whole model.
        repository: OWNER/NAME, or NAME among one's own.
        public: Whether a new repository can be read by all; one that is there stays as it is.
        progress: Told what others need besides.

    Returns:
        The address of its page.

    Raises:
        AdapterError, ModelError: the folder holds neither, or a damaged one.
        HubError: the Hub cannot be reached or refuses.
    """
    adapter = (folder / CONFIG).is_file()
    if adapter:
        read_whole(folder)
    else:
        check_model_folder(folder)
    base = str(read_json(folder / CONFIG).get("base_model_name_or_path")) if adapter else ""
    address = _upload(folder, repository, public)
    if adapter and not HUB_ID.fullmatch(base):
        progress.say(
            f"its base is {base}, which others do not have: they must name their own, as in "
            f"PeftModel.from_pretrained(BASE, {repository!r})"
        )
    return address


def _upload(folder: Path, repository: str, public: bool) -> str:
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    if get_token() is None:
        raise HubError(f"the Hub takes {repository} only from whom it knows: {LOG_IN}")
    api = HfApi()
    try:
        made = api.create_repo(repository, private=not public, exist_ok=True)
        # The manifest is a study's own book-keeping.
        api.upload_folder(
            repo_id=made.repo_id,
            folder_path=folder,
            ignore_patterns=[MANIFEST],
            commit_message=f"{folder.resolve().name}, pushed by Laura",
        )
    except HFValidationError as error:
        raise HubError(f"{repository!r} is no Hub id; write OWNER/NAME") from error
    except HfHubHTTPError as error:
        raise HubError(f"the Hub refused {repository} ({first_line(error)}); {LOG_IN}") from error
    except ValueError as error:
        said = " ".join(str(error).split())
        raise HubError(f"the Hub refused {folder}: {said}; mend it and push again") from error
    except Exception as error:  # the Hub's HTTP library, and its errors, change with its version
        raise HubError(
            f"the Hub cannot be reached ({first_line(error)}); connect to the internet, and give "
            "the same command again"
        ) from error
    return str(made)
