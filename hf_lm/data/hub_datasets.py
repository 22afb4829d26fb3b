"""Datasets of the Hub."""

import re
from typing import Any

from hf_lm.data.reading import SUFFIXES
from hf_lm.files import hash_text


def load_hub(name: str) -> tuple[dict[str, Any], bytes, str]:
    """The splits of a Hub dataset `name`, `name:config`, `name@revision` under our names, their content and commit.

    Raises ValueError in one line where there is no such dataset, or no network.
    """
    import datasets
    from datasets import config as settings

    path, _, revision = name.partition("@")
    path, _, config = path.partition(":")
    if ":" in revision:
        revision, _, config = revision.partition(":")
    if f".{path}" in SUFFIXES or path == "text":
        raise ValueError(
            f"--dataset {name} is a format, not a data set: give the path of a file that ends in .{path}."
        )
    try:
        found = datasets.load_dataset(path, config or None, revision=revision or None)
    except Exception as error:
        offline = settings.HF_HUB_OFFLINE or isinstance(error, (ConnectionError, OSError))
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        reason = " The Hub was not reached: this machine is offline or HF_HUB_OFFLINE is set." if offline else ""
        raise ValueError(
            f"--dataset {name} is no file or folder here and was not loaded from the Hub: {said}.{reason}"
        ) from None
    names = {"train": "train", "validation": "validation", "valid": "validation", "dev": "validation", "test": "test"}
    by_split = {names[str(split)]: rows for split, rows in found.items() if split in names}
    if "train" not in by_split:
        raise ValueError(f"--dataset {name} has no split train, only {sorted(found)}.")
    content = hash_text(" ".join(f"{split} {rows._fingerprint}" for split, rows in by_split.items()))
    files = by_split["train"].info.download_checksums or {}  # hf://datasets/user/name@COMMIT/path
    commits = {match[1] for file in files if (match := re.match(r"hf://datasets/[^@]+@(\w+)/", file))}
    return by_split, content, commits.pop() if len(commits) == 1 else ""
