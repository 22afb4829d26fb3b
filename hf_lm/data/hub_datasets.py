"""Datasets of the Hub: loaded whole, or streamed into the cache, the beginning or one window after another."""

import json
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from hf_lm.data.reading import SUFFIXES, column_values, until_exit
from hf_lm.files import default_cache, fill_cache, hash_text

if TYPE_CHECKING:
    from datasets import IterableDataset

AFTER = "after.json"  # in the cache of a window: where in the dataset the next one begins
SPLIT = {"train": "train", "validation": "validation", "valid": "validation", "dev": "validation", "test": "test"}


def load_hub(name: str) -> tuple[dict[str, Any], bytes, str]:
    """The splits of a Hub dataset `name`, `name:config`, `name@revision` under our names, their content and commit.

    Raises ValueError in one line where there is no such dataset, or no network.
    """
    by_split = _open(name)
    content = hash_text(" ".join(f"{split} {rows._fingerprint}" for split, rows in by_split.items()))
    files = by_split["train"].info.download_checksums or {}  # hf://datasets/user/name@COMMIT/path
    commits = {match[1] for file in files if (match := re.match(r"hf://datasets/[^@]+@(\w+)/", file))}
    return by_split, content, commits.pop() if len(commits) == 1 else ""


def pin(name: str) -> str:
    """`path:config@commit` of a Hub dataset; without a network `name` must have the commit, 40 hexadecimal digits.

    Raises ValueError in one line.
    """
    from huggingface_hub import HfApi

    path, config, commit = _parts(name)
    if not re.fullmatch(r"[0-9a-f]{40}", commit):
        try:
            commit = HfApi().dataset_info(path, revision=commit or None).sha or ""
        except Exception as error:
            raise _not_loaded(name, error) from None
    return f"{path}{':' if config else ''}{config}@{commit}"


def download_window(pinned: str, text_column: str, max_bytes: int, number: int = 0) -> Path:
    """Text of a Hub dataset at a commit: a folder of the cache. Raises ValueError in one line.

    Window 0 is the first `max_bytes` of each split, a file `<split>.jsonl` each; the next ones are `train.jsonl`, each
    the text after the one before. After the last row the first one follows. Rows are streamed in the order of the Hub:
    no more is downloaded than is read, and a folder that is there is not streamed again. The state of `datasets` after
    a window is kept with it, so that the next one begins there. Only the first window and the last three are kept;
    where the one before is missing, all are streamed again.
    """

    def folder(k: int) -> Path:
        identity = f"{pinned} {text_column} {max_bytes} {k}"
        return default_cache() / "beginnings" / hash_text(identity).hex()

    def write(aside: Path, k: int) -> None:
        if not k:
            for split, rows in _open(pinned, streaming=True).items():
                _, after = _write_texts(rows, aside / f"{split}.jsonl", pinned, text_column, max_bytes)
                if split == "train":
                    (aside / AFTER).write_text(json.dumps(after))
            return
        after, left = json.loads((folder(k - 1) / AFTER).read_bytes()), max_bytes
        while left > 0:
            rows = _open(pinned, streaming=True)["train"]
            if after:
                rows.load_state_dict(after)
            written, after = _write_texts(rows, aside / "train.jsonl", pinned, text_column, left)
            left = 0 if after else left - written
        (aside / AFTER).write_text(json.dumps(after))

    known = next((k for k in range(number, 0, -1) if (folder(k) / AFTER).is_file()), 0)
    for k in range(known, number + 1):
        fill_cache(folder(k), lambda aside, k=k: write(aside, k))
        if k > 3:
            shutil.rmtree(folder(k - 3), ignore_errors=True)
    return folder(number)


def _write_texts(
    rows: "IterableDataset", path: Path, name: str, text_column: str, max_bytes: int
) -> tuple[int, dict[str, Any] | None]:
    """Append texts, one at least, until the next one would exceed `max_bytes`: their bytes, and the state of `rows`
    after the last; None where there are no more."""
    texts = column_values(_until_error(rows, name), text_column, name)
    state, written = rows.state_dict(), 0
    with (
        path.open("a") as file,
        tqdm(desc=f"streaming {path.stem}", total=max_bytes, unit="B", unit_scale=True, delay=2, disable=None) as bar,
    ):
        for text in texts:
            size = len(text.encode("utf-8", "surrogatepass"))
            if written and written + size > max_bytes:
                return written, state
            bar.update(file.write(json.dumps({"text": text}) + "\n"))
            state, written = rows.state_dict(), written + size
    return written, None


def _until_error(rows: Iterable[dict[str, Any]], name: str) -> Iterator[dict[str, Any]]:
    try:
        yield from until_exit(rows)
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


def _open(name: str, *, streaming: bool = False) -> dict[str, Any]:
    import datasets

    path, config, revision = _parts(name)
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

    answered = getattr(error, "response", None) is not None  # an error of HTTP
    offline = settings.HF_HUB_OFFLINE or (isinstance(error, (ConnectionError, OSError)) and not answered)
    said = (str(error).splitlines()[0] if str(error) else type(error).__name__).rstrip(".")
    reason = " The Hub was not reached: this machine is offline or HF_HUB_OFFLINE is set." if offline else ""
    if "scripts are no longer supported" in said:
        reason = f" Of many such datasets the Hub has the rows: --dataset {_parts(name)[0]}@refs/convert/parquet."
    return ValueError(f"--dataset {name} is no file or folder here and was not loaded from the Hub: {said}.{reason}")
