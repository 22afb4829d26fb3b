"""Datasets of the Hub: loaded whole, or their beginnings streamed into the cache."""

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from hf_lm.data.reading import SUFFIXES, beginning, column_values
from hf_lm.files import default_cache, fill_cache, hash_text

SPLIT = {"train": "train", "validation": "validation", "valid": "validation", "dev": "validation", "test": "test"}


def load_hub(name: str) -> tuple[dict[str, Any], bytes, str]:
    """The splits of a Hub dataset `name`, `name:config`, `name@revision` under our names, their content and commit.

    Raises ValueError in one line where there is no such dataset, or no network.
    """
    path, config, revision = _parts(name)
    by_split = _open(name, path, config, revision)
    content = hash_text(" ".join(f"{split} {rows._fingerprint}" for split, rows in by_split.items()))
    files = by_split["train"].info.download_checksums or {}  # hf://datasets/user/name@COMMIT/path
    commits = {match[1] for file in files if (match := re.match(r"hf://datasets/[^@]+@(\w+)/", file))}
    return by_split, content, commits.pop() if len(commits) == 1 else ""


def download_beginning(name: str, text_column: str, max_bytes: int) -> tuple[Path, str]:
    """The first `max_bytes` of text of each split of a Hub dataset: a folder of the cache with a file `<split>.jsonl`
    each, and the commit.

    Rows are streamed, in the order of the Hub: no more is downloaded than is read. A folder that is there is not
    streamed again; without a network `name` must have the commit, `@` and 40 hexadecimal digits. Raises ValueError in
    one line.
    """
    from huggingface_hub import HfApi

    path, config, commit = _parts(name)
    if not re.fullmatch(r"[0-9a-f]{40}", commit):
        try:
            commit = HfApi().dataset_info(path, revision=commit or None).sha or ""
        except Exception as error:
            raise _not_loaded(name, error) from None
    identity = f"{path} {config} {commit} {text_column} {max_bytes}"
    folder = default_cache() / "beginnings" / hash_text(identity).hex()

    def write(aside: Path) -> None:
        for split, rows in _open(name, path, config, commit, streaming=True).items():
            texts = column_values(_until_error(rows, name), text_column, name)
            with (
                (aside / f"{split}.jsonl").open("w") as file,
                tqdm(
                    desc=f"streaming {split}", total=max_bytes, unit="B", unit_scale=True, delay=2, disable=None
                ) as bar,
            ):
                for text in beginning(texts, max_bytes):
                    bar.update(file.write(json.dumps({"text": text}) + "\n"))

    fill_cache(folder, write)
    return folder, commit


def _until_error(rows: Iterable[dict[str, Any]], name: str) -> Iterator[dict[str, Any]]:
    try:
        yield from rows
    except Exception as error:  # of the network, or of the format
        raise _not_loaded(name, error) from None


def _parts(name: str) -> tuple[str, str, str]:
    """Path, configuration and revision of `path:config@revision`, in either order."""
    path, _, revision = name.partition("@")
    path, _, config = path.partition(":")
    if ":" in revision:
        revision, _, config = revision.partition(":")
    if f".{path}" in SUFFIXES or path == "text":
        raise ValueError(
            f"--dataset {name} is a format, not a data set: give the path of a file that ends in .{path}."
        )
    return path, config, revision


def _open(name: str, path: str, config: str, revision: str, *, streaming: bool = False) -> dict[str, Any]:
    import datasets

    try:
        found = datasets.load_dataset(path, config or None, revision=revision or None, streaming=streaming)
    except Exception as error:
        raise _not_loaded(name, error) from None
    by_split = {SPLIT[str(split)]: rows for split, rows in found.items() if split in SPLIT}
    if "train" not in by_split:
        raise ValueError(f"--dataset {name} has no split train, only {sorted(found)}.")
    return by_split


def _not_loaded(name: str, error: Exception) -> ValueError:
    from datasets import config as settings

    offline = settings.HF_HUB_OFFLINE or isinstance(error, (ConnectionError, OSError))
    said = str(error).splitlines()[0] if str(error) else type(error).__name__
    reason = " The Hub was not reached: this machine is offline or HF_HUB_OFFLINE is set." if offline else ""
    return ValueError(f"--dataset {name} is no file or folder here and was not loaded from the Hub: {said}.{reason}")
