"""Labelled rows: which table a task reads, from files as they come or from the Hub, split so that none leaks."""

import contextlib
import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hf_lm.data.class_names import names_in_features, with_names
from hf_lm.data.demos.cldr import country_questions, phrases
from hf_lm.data.demos.dialogues import dialogues, preferences, sums
from hf_lm.data.demos.documentation import demo_split, docstring_summaries
from hf_lm.data.demos.opinions import opinions
from hf_lm.data.hub_datasets import load_hub
from hf_lm.data.paths import file_names, find_files, root_of, split_of
from hf_lm.data.reading import SUFFIXES, clean, plain_text, read_lines, read_rows, suffix
from hf_lm.data.sources import SPLITS, choose_sides, cut_note
from hf_lm.files import hash_contents, hash_text
from hf_lm.parsing.suggestions import did_you_mean

if TYPE_CHECKING:
    from datasets import Dataset

PRINTED = re.compile(r"\[(['\"].*['\"]\s*)?\]|\{'.*\}", re.DOTALL)  # a list of texts or an object, in a cell
Row = dict[str, Any]
Read = Iterator[tuple[str, list[Path], Iterable[Row]]]  # a split, files of it and their rows


@dataclass
class Table:
    """Rows by split. `notes` say in sentences what a reader of the report must know; `left_out` counts rows.

    How it was understood: `format` in words, `columns` as the task calls them and as the data does, `origins` of each
    split. `languages` are those that are known, not guessed; `labels` the classes, where rows have one.
    """

    source: str
    fingerprint: str
    rows: dict[str, list[Row]]
    notes: list[str] = field(default_factory=list)
    left_out: Counter = field(default_factory=Counter)
    format: str = "built in"
    columns: dict[str, str] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    languages: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    commit: str = ""  # of a dataset of the Hub

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(split for split in SPLITS if split in self.rows)


# The rows, what a reader must know of them, and their languages. Rows with a module are split by it.
DEMOS: dict[str, tuple[Callable[[], list[Row]], str, list[str]]] = {
    "demo:opinions": (
        opinions,
        "opinions in English and Chinese that were put together for this project: easier than real ones",
        ["en", "zh"],
    ),
    "demo:docstrings": (
        docstring_summaries,
        "docstrings of Python and of packages beside it, split by module",
        ["en"],
    ),
    "demo:phrases": (
        lambda: phrases("en", "de"),
        "dates, amounts, spans of time and names as CLDR has them in English and German",
        ["en", "de"],
    ),
    "demo:countries": (
        country_questions,
        "CLDR's facts about countries in sentences written for this project",
        ["en"],
    ),
    "demo:dialogues": (
        dialogues,
        "short dialogues made from docstrings for this project: what a function does, and where it is; by module",
        ["en"],
    ),
    "demo:preferences": (
        preferences,
        "pairs made from docstrings for this project: the plain answer is preferred to one with empty phrases",
        ["en"],
    ),
    "demo:sums": (sums, "sums of two numbers below 20, as text", []),
}


def _demo(name: str) -> Table:
    rows_of, note, languages = DEMOS[name]
    by_split: dict[str, list[Row]] = {}
    for row in rows_of():
        by_split.setdefault(demo_split(row["module"]) if "module" in row else "train", []).append(row)
    by_split = {split: by_split[split] for split in SPLITS if split in by_split}
    return Table(name, hash_text(str(by_split)).hex(), by_split, [note], languages=list(languages))


def load_table(dataset: str, *, endings: Literal["columns", "labels"] = "columns", header: bool = True) -> Table:
    """The table that `--dataset` names: a demo, a file, a folder, a glob, or a Hub dataset `name:config@revision`.

    Files with endings of their own hold a row a line: with `endings` "columns" `train.en` and `train.de` are one table
    with the columns `en` and `de`; with "labels" `reviews.pos` and `reviews.neg` are the classes `pos` and `neg` of a
    column `text`, and so are the folders `pos/` and `neg/` of text files. Without `header` the first line of a .csv or
    .tsv is a row, and columns are called by their position, `0`, `1`. Held-out splits that are missing stay missing
    (see `hold_out`). Raises FileNotFoundError or ValueError in one line.
    """
    if dataset in DEMOS:
        return _demo(dataset)
    files = find_files(dataset, any_ending=True)
    if files is None:
        by_split, content, commit = load_hub(dataset)
        rows_of = {split: _hub_rows(rows) for split, rows in by_split.items()}
        return Table(dataset, content.hex(), rows_of, format="a dataset of the Hub", commit=commit)
    root = root_of(dataset, files)
    named = [path for path in files if suffix(path) in SUFFIXES and suffix(path) != ".txt"]
    if not named and [path.suffix for path in files] == [".txt"]:  # as tables of sentence pairs are often called
        named = files
    repaired: Counter = Counter()
    if named:
        alone = len(named) == 1 and not Path(dataset).expanduser().is_dir()
        form, read = _read_tables(named, root, header, repaired, alone=alone)
    elif endings == "labels":
        form, read = "texts in files or folders that are called by their class", _read_labelled(files, root, repaired)
    else:
        form, read = "line-aligned files, each a column that its ending names", _read_aligned(files, root, repaired)
    rows: dict[str, list[Row]] = {}
    origins: dict[str, list[Path]] = {}
    for split, paths, some in read:
        rows.setdefault(split, []).extend(map(_with_integers, some))
        origins.setdefault(split, []).extend(paths)
    if not rows.get("train"):
        held = sorted(split for split in rows if rows[split])
        raise ValueError(
            f"--dataset {dataset} has no training rows"
            + (f", only {held}: of a file given by itself all three are made." if held else ": it is empty.")
        )
    content = hash_contents((path.name, path) for path in files)
    named_files = {split: file_names(paths, root) for split, paths in origins.items()}
    table = Table(Path(dataset).name, content, rows, format=form, origins=named_files)
    table.left_out.update(repaired)
    return table


def _read_tables(files: list[Path], root: Path, header: bool, repaired: Counter, *, alone: bool) -> tuple[str, Read]:
    form = "rows of " + " and ".join(sorted({suffix(path) for path in files}))
    form += "" if header else " without a header, so columns are called by their position"
    split = lambda path: "train" if alone else split_of(path, root)  # noqa: E731
    return form, ((split(path), [path], read_rows(path, header=header, cleaned=repaired)) for path in files)


def _read_labelled(files: list[Path], root: Path, repaired: Counter) -> Read:
    for path in files:
        lines, label = read_lines(path, repaired), path.suffix.removeprefix(".")
        if path.suffix == ".txt":  # a file is a text
            lines, label = ["\n".join(lines).strip()], path.parent.name
        yield split_of(path, root), [path], ({"text": line, "label": label} for line in lines)


def _read_aligned(files: list[Path], root: Path, repaired: Counter) -> Read:
    for stem, paths in itertools.groupby(sorted(files), key=lambda path: path.with_suffix("")):
        together = list(paths)
        yield split_of(stem, root), together, _aligned(together, repaired)


def _hub_rows(rows: "Dataset") -> list[Row]:
    """Rows with class labels, and lists of them, as their names."""
    names = names_in_features(rows.features)
    return [with_names(row, names) for row in rows.to_list()]


def _with_integers(row: Row) -> Row:
    """A row with 1 for 1.0, as a column of integers is written where values are missing: both are one class."""
    whole = {key: int(value) for key, value in row.items() if isinstance(value, float) and abs(value) < 2**53}
    return row | {key: value for key, value in whole.items() if value == row[key]}


def _aligned(paths: list[Path], repaired: Counter) -> list[Row]:
    """Line-aligned files as rows; the endings are the columns."""
    if len(paths) < 2:
        raise ValueError(
            f"{paths[0]}: do not know what a row is. Line-aligned files come in pairs (train.en, train.de); tables "
            f"end in one of {' '.join(SUFFIXES)}."
        )
    columns = {path.suffix.removeprefix("."): list(read_lines(path, repaired)) for path in paths}
    lengths = {name: len(lines) for name, lines in columns.items()}
    if len(set(lengths.values())) > 1:
        said = ", ".join(f"{paths[0].stem}.{name} has {n:,} lines" for name, n in lengths.items())
        raise ValueError(f"{paths[0].parent}: line-aligned files must be equally long: {said}.")
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def cell(row: Row, column: str, where: str, left_out: Counter) -> str:
    """A cell as clean text; "" where the column is missing, null or NaN. Raises ValueError for what is no text."""
    return clean(plain_text(row.get(column), f"{where}: {column!r}"), left_out).strip()


def whole_number(text: str) -> str:
    """An integer without decimals, "1" for "1.0", as a .csv has it beside missing values; other texts as they are."""
    return re.sub(r"^(-?\d+)\.0+$", r"\1", text)


def column_names(rows: Sequence[Row]) -> list[str]:
    """The columns that any of the first hundred rows has: JSON may leave out one that is empty."""
    return list(dict.fromkeys(name for row in rows[:100] for name in row))


def pick_column(rows: Sequence[Row], asked: str, guesses: Sequence[str], *, option: str, where: str) -> str:
    """The column to read: the one asked for, else the first of `guesses` that is there.

    Raises ValueError that lists the columns there are, and for a column of lists or objects as Python prints them.
    """
    names = column_names(rows)
    may_lack = re.search(r"\.(txt|[ct]sv)(\.gz|\.zst)?$", where)
    without_header = " In a file without a header columns are called 0, 1 and so on." if may_lack else ""
    if asked and asked not in names:
        hint = did_you_mean(asked, names)
        raise ValueError(f"{where} has no column {asked!r}; it has {names}.{hint} Set {option}.{without_header}")
    name = asked or next((name for name in guesses if name in names), "")
    if not name:
        raise ValueError(f"{where} has the columns {names}; say which one to read with {option}.{without_header}")
    cells = [row[name] for row in rows[:100] if row.get(name)]
    printed = all(isinstance(one, str) and PRINTED.fullmatch(one) for one in cells)
    if printed and (other := [one for one in cells if not _is_json(one)]):  # JSON may be a text that is learned
        raise ValueError(
            f"{where}: {name!r} holds lists or objects as Python prints them ({other[0][:40]}), which a .csv cannot "
            "hold: write the table as .jsonl or .parquet."
        )
    return name


def _is_json(text: str) -> bool:
    with contextlib.suppress(ValueError, RecursionError):
        json.loads(text)
        return True
    return False


def check_columns(table: Table, read: Sequence[str]) -> None:
    """Say which columns of a table are not among those that are read, before its rows are reduced to them.

    Raises ValueError for a held-out split without the first of them, which asks: its rows would all be left out.
    """
    for split, rows in table.rows.items():
        if rows and read[0] not in (names := column_names(rows)):
            raise ValueError(f"--dataset {table.source}: {split} has no column {read[0]!r}; it has {names}.")
    unread = [name for name in column_names(table.rows["train"]) if name not in read]
    if unread and table.source not in DEMOS:
        more = f" and {len(unread) - 8} more" if len(unread) > 8 else ""
        table.notes.append(f"columns that are not read: {', '.join(map(repr, unread[:8]))}{more}")


def drop_empty_splits(table: Table, needs: str) -> None:
    """Leave out held-out splits that have no rows any more, and say so. Raises ValueError if train has none."""
    if not table.rows["train"]:
        raise ValueError(f"--dataset {table.source} has no training row {needs}.")
    for split in [split for split in table.splits if not table.rows[split]]:
        table.notes.append(f"the split {split} has no row {needs} and was left out")
        del table.rows[split]


def hold_out(table: Table, shares: dict[str, float], *, group: Callable[[Row], str], unit: str) -> None:
    """Cut the missing splits among `shares` from train, keeping rows with one `group` (the text they share) together.

    Raises ValueError where there are too few groups.
    """
    missing = {split: share for split, share in shares.items() if split not in table.rows and share > 0}
    if not missing:
        return
    groups = [group(row) for row in table.rows["train"]]
    side = choose_sides(groups, missing)
    if side is None:
        raise ValueError(
            f"--dataset {table.source} has {len(set(groups))} different rows, too few to hold out "
            f"{' and '.join(missing)}: give more, or files called validation and test."
        )
    by_split: dict[str, list[Row]] = {split: [] for split in ("train", *missing)}
    for row, key in zip(table.rows["train"], groups, strict=True):
        by_split[side(key)].append(row)
    table.rows |= by_split
    table.origins |= dict.fromkeys(missing, "cut from train")
    table.notes.append(cut_note(table.source, missing, unit))
