"""Which files a name on the command line means, and which split each belongs to."""

import glob
import json
import os
import re
from pathlib import Path

from hf_lm.data.reading import SUFFIXES, suffix
from hf_lm.output_folder import is_run

RECORDS = ("dataset_dict.json", "dataset_info.json", "dataset_infos.json")  # of `datasets`, beside data


def find_files(name: str, *, any_ending: bool = False) -> list[Path] | None:
    """The files that a path or a glob names; None if it can only be a name on the Hub.

    Those with an ending that can be read, or, with `any_ending`, all. Of a folder hidden files, licences and what is
    in the folders of runs below it are left out, and of one that `datasets` saved all but its data. Raises
    FileNotFoundError for a path that leads nowhere and ValueError for a file of another kind.
    """
    path = Path(name).expanduser()
    if path.is_file():
        if not any_ending and suffix(path) not in SUFFIXES:
            raise ValueError(
                f"--dataset {name}: cannot read {path.suffix or 'this'} files; {' '.join(SUFFIXES)} can be."
            )
        return [path]
    if path.is_dir():
        found = sorted(p for p in path.rglob("*") if p.is_file() and (any_ending or suffix(p) in SUFFIXES))
        runs = {p.parent for p in path.rglob("run.yaml") if p.parent != path and is_run(p.parent)}
        found = [p for p in found if not runs.intersection(p.parents)]
        found = [p for p in found if not any(part.startswith(".") for part in p.relative_to(path).parts)]
        found = [p for p in found if p.stem.upper() not in ("README", "LICENSE", "LICENCE", "NOTICE")]
        found = _data_alone(found)
        if not found:
            raise FileNotFoundError(f"--dataset: {name} holds no file that ends in one of {' '.join(SUFFIXES)}.")
        return found
    found = sorted(p for p in map(Path, glob.glob(str(path), recursive=True)) if p.is_file())
    found = _data_alone([p for p in found if any_ending or suffix(p) in SUFFIXES])
    is_path = name.startswith((".", "/", "~")) or suffix(Path(name)) in SUFFIXES
    if not found and (is_path or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?([:@].+)?", name)):
        raise FileNotFoundError(f"--dataset: there is no file or folder {name}.")
    return found or None


def _data_alone(files: list[Path]) -> list[Path]:
    """Files but for the records of `datasets` and, in a folder of its save_to_disk, whatever these do not list.

    Beside its data lie caches of `map`, and parts of an earlier save that had more of them.
    """
    listed = {folder: _listed(folder / "state.json") for folder in {path.parent for path in files}}

    def is_data(path: Path) -> bool:
        known = listed[path.parent]
        return path.name not in RECORDS if known is None else path.name in known

    return [path for path in files if is_data(path)]


def _listed(state: Path) -> set[str] | None:
    """The data files that the state.json of a folder of save_to_disk lists; None where it is none."""
    try:
        return {one["filename"] for one in json.loads(state.read_bytes())["_data_files"]}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def root_of(name: str, files: list[Path]) -> Path:
    """The folder below which the names of files say their splits: that named, or the one that all of a glob are in."""
    path = Path(name).expanduser()
    return path if path.is_dir() else Path(os.path.commonpath([path.parent for path in files]))


def split_of(path: Path, root: Path) -> str:
    """The split of a file: the one that its name says, or train."""
    return named_split(path, root) or "train"


def named_split(path: Path, root: Path) -> str:
    """The split that a file or folder is named for: train..., valid..., val..., dev..., test..., ...-test; or none."""
    inside = path.relative_to(root).parts if path.is_relative_to(root) and path != root else (path.name,)
    for part in inside:
        stem = part.split(".")[0].lower()
        for split, words in (("validation", "valid|validation|val|dev"), ("test", "test"), ("train", "train")):
            if re.fullmatch(rf"(?:{words})(?:[-_\d].*)?|.*[-_](?:{words})", stem):
                return split
    return ""


def file_names(paths: list[Path], root: Path, *, most: int = 4) -> str:
    """Files as a reader meets them: below their folder, the first few."""
    named = [os.path.relpath(path, root) for path in paths[:most]]
    return ", ".join(named) + (f" and {len(paths) - most:,} more" if len(paths) > most else "")
