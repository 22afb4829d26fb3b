"""A finished run to the Hub: one commit, after everything is safely on disk."""

import os
import re
from pathlib import Path

# What makes a published model; checkpoints, optimizer states and logs stay here.
PUBLISHED = (
    *("*.json", "*.safetensors", "*.jinja", "*.py", "*.txt", "*.model", "README.md", "run.yaml"),
    *("predictions.jsonl", "plots/*.png"),
)
KEPT_HERE = ("checkpoint-*/*", ".*", "*/.*", "runs/*", "logs/*", "trainer_state.json", "*.tmp")


def push_to_hub(folder: str | Path, repo_id: str, *, private: bool = False, token: str | None = None) -> str:
    """Upload a run's output folder as a model repository, in one commit; returns its address.

    The repository is made if it is not there. Nothing in the folder changes, whatever happens. Raises ValueError if
    the folder holds no complete model, the name cannot be one or there is no token, and ConnectionError, with the
    command that tries again, if the Hub did not take it.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    folder = Path(folder)
    check_complete(folder)
    token = check_repository(repo_id, token)
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=token)
    again = f"The run is complete in {folder}; try again with: hf-lm push {folder} {repo_id}"
    try:
        url = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            allow_patterns=list(PUBLISHED),
            ignore_patterns=list(KEPT_HERE),
            commit_message="Upload with hf_lm",
        )
    except OfflineModeIsEnabled:
        raise ConnectionError(f"the Hub was not reached: HF_HUB_OFFLINE is set. {again}") from None
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else "no answer"
        said = {401: "the token was not accepted", 403: "the token may not write there"}.get(status, "")
        said = said or (getattr(error, "server_message", None) or str(error).strip().splitlines()[0])
        raise ConnectionError(f"the Hub answered {status}: {_without(token, said)}. {again}") from None
    except Exception as error:  # connections end in many ways, each with an exception of its own
        said = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConnectionError(f"the upload broke off ({_without(token, said)}). {again}") from None
    return str(url)


def check_repository(repo_id: str, token: str | None = None) -> str:
    """The token to push to a repository with: the one given, or the one that this machine has.

    Nothing is asked of the Hub. Raises ValueError for a name that cannot be a repository, or where there is no token.
    """
    from huggingface_hub import get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"{repo_id!r} cannot be a repository: {error}") from None
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo_id):
        raise ValueError(f"{repo_id!r} names no repository; give user/name.")
    token = token or get_token()
    if not token:
        raise ValueError("there is no Hub token: run `hf auth login` or set HF_TOKEN.")
    return token


def _without(token: str, text: str) -> str:
    return text.replace(token, "***")


def check_complete(folder: Path) -> None:
    """Raise ValueError or FileNotFoundError if a folder does not hold a model that others could load."""
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}.")
    missing = [name for name in ("config.json", "tokenizer_config.json") if not (folder / name).is_file()]
    if not list(folder.glob("model*.safetensors")):
        missing.append("model.safetensors")
    if missing:
        raise ValueError(f"{folder} holds no complete model: {', '.join(missing)} missing. Did the run end?")
