"""Which text a run reads: the demo, files, folders, globs, Hub datasets, and weighted mixtures of them."""

import itertools
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import regex
from transformers import PreTrainedTokenizerBase

from hf_lm.data.demos.documentation import demo_split, documentation
from hf_lm.data.hub_datasets import download_window, load_hub, pin
from hf_lm.data.packing import TokenStream
from hf_lm.data.paths import file_names, find_files, named_split, root_of
from hf_lm.data.patterns import Pattern
from hf_lm.data.reading import SECTION, beginning, column_values, read_documents, rows_to_documents, suffix
from hf_lm.data.token_files import PREFIX, TOKENIZER, documents_of, open_tokens, read_record
from hf_lm.files import hash_contents, hash_contents_once, hash_text

if TYPE_CHECKING:
    from datasets import Dataset

SPLITS = ("train", "validation", "test")
GROUPS = 12  # files of which the report speaks one by one
WINDOW = 2**28  # bytes of a streamed dataset that are held at a time
SECTIONS, SHORTEST = 100, 1024  # into which a text file that is all of a data set is cut, and characters of one
FEW = 400  # documents: of fewer, held-out ones are chosen by rank, so that there is always one
Reader = Callable[[], Iterator[str]]


@dataclass
class Corpus:
    """Documents by split, read anew and streamed at each pass, always in the same order.

    `fingerprint` names the content and what was asked of it; `size` estimates the bytes of train; `notes` say in
    sentences what a reader of the report must know; `cleaned` counts what had to be mended, for each
    file or split that was read to its end.
    `groups` reads the training text by file or, in a mixture, by source, where there are several.
    `format`, `origins` and `languages` are as a Table's; `columns` holds the column read of each file or split that
    was begun.
    """

    source: str
    fingerprint: str
    size: int
    readers: dict[str, Reader]
    notes: list[str] = field(default_factory=list)
    cleaned: dict[str, Counter] = field(default_factory=dict)
    groups: dict[str, Reader] = field(default_factory=dict)
    format: str = "built in"
    columns: dict[str, str] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    languages: list[str] = field(default_factory=list)
    stream: Callable[[PreTrainedTokenizerBase], TokenStream] | None = None  # of train, where it is tokenized already
    tokenizer: str = ""  # folder of the tokenizer that wrote it
    commit: str = ""  # of a dataset of the Hub
    window: Callable[[int], Iterator[str]] | None = None  # of a streamed one: train, continued; 0 is what a reader has

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(split for split in SPLITS if split in self.readers)

    def documents(self, split: str) -> Iterator[str]:
        return self.readers[split]()

    def report(self) -> dict[str, Any]:
        return {
            "source": self.source,
            "format": self.format,
            "fingerprint": self.fingerprint,
            "commit": self.commit,
            "notes": self.notes,
        }


def load_corpus(
    dataset: str,
    *,
    text_column: str = "",
    document_start: str = "",
    validation_share: float = 0.05,
    test_share: float = 0.05,
    max_bytes: int = 0,
    streaming: bool = False,
) -> Corpus:
    """The corpus that `--dataset` names.

    `demo`; a file (.txt .jsonl .json .csv .tsv .parquet .arrow, also .gz and .zst), a folder of them or a glob; a Hub
    dataset `name`, `name:config`, `name@revision`; or a mixture `a=0.7,b=0.3` by bytes; `tokens:FOLDER`, a folder of
    token files, or a mixture of such folders by tokens. `text_column` "" guesses.
    `document_start` is a regular expression for the line that begins a document. A missing validation or test split is
    cut from train by document. `max_bytes` of text are read of each split, in its order, and no more is downloaded of
    a Hub dataset; 0 reads all. With `streaming` they are the first window of one dataset of the Hub (WINDOW where
    `max_bytes` is 0), and `Corpus.window` reads the next ones. Raises FileNotFoundError, PermissionError or ValueError
    in one line.
    """
    start = Pattern(document_start, option="--document_start", flags=regex.MULTILINE) if document_start else None
    shares, parts = {"validation": validation_share, "test": test_share}, []
    weighted = _weighted(dataset)
    if any(name.startswith(PREFIX) for name, _ in weighted):
        if max_bytes or streaming:
            option = f"max_bytes {max_bytes}" if max_bytes else "streaming"
            raise ValueError(f"--{option} is for text, and --dataset {dataset} is tokenized already.")
        return _from_tokens(dataset, weighted, text_column)
    if streaming and (len(weighted) > 1 or dataset == "demo" or find_files(dataset) is not None):
        raise ValueError(f"--streaming is for one dataset of the Hub, and --dataset {dataset} is none: leave it out.")
    max_bytes = max_bytes or (WINDOW if streaming else 0)
    for name, weight in weighted:
        corpus = _load_one(name, text_column, start, max_bytes, streaming)
        _limit(corpus, max_bytes)
        _hold_out(corpus, shares)
        parts.append((corpus, weight))
    corpus = parts[0][0]
    if len(parts) > 1:
        corpus = _mix(parts)
        _limit(corpus, max_bytes)
    options = f"{dataset if len(parts) > 1 else ''} {text_column} {document_start} {shares}"
    options += f" {max_bytes}" if max_bytes else ""
    options += " streaming" if streaming else ""
    corpus.fingerprint = hash_text(f"{corpus.fingerprint} {options}").hex()
    return corpus


def _weighted(dataset: str) -> list[tuple[str, float]]:
    pairs = [re.fullmatch(r"(.+)=(\d*\.?\d+)", part.strip()) for part in dataset.split(",")]
    if len(pairs) > 1 and all(pairs):
        weights = [(pair[1], float(pair[2])) for pair in pairs if pair and float(pair[2]) > 0]
        if not weights:
            raise ValueError(f"--dataset {dataset}: every weight is 0; give at least one above it.")
        return weights
    return [(dataset, 1.0)]


def _load_one(name: str, text_column: str, start: Pattern | None, max_bytes: int, streaming: bool) -> Corpus:
    if name == "demo":
        return _demo()
    files = find_files(name)
    if files is not None:
        return _from_files(name, files, text_column, start)
    if not max_bytes:
        return _from_hub(name, text_column, start)
    pinned = pin(name)
    folder = download_window(pinned, text_column, max_bytes)
    corpus = _from_files(str(folder), sorted(folder.glob("*.jsonl")), "text", start)
    corpus.source, corpus.format, corpus.commit = name, "a dataset of the Hub, streamed", pinned.partition("@")[2]
    corpus.origins = {}
    if streaming:

        def window(number: int) -> Iterator[str]:
            path = download_window(pinned, text_column, max_bytes, number) / "train.jsonl"
            return _reader(corpus, [path], "text", start)()

        corpus.window = window
        corpus.notes.append(
            f"streamed in windows of {max_bytes:,} bytes: tokenizer, baselines and proofs know the first one"
        )
    return corpus


def _limit(corpus: Corpus, max_bytes: int) -> None:
    """Let each split end before the document that would exceed `max_bytes`, not before its first one."""
    if not max_bytes:
        return

    corpus.readers = {split: lambda read=read: beginning(read(), max_bytes) for split, read in corpus.readers.items()}
    corpus.size, corpus.groups = min(corpus.size, max_bytes), {}
    corpus.notes.append(f"at most the first {max_bytes:,} bytes of each split of {corpus.source} are read")


def _from_files(name: str, files: list[Path], text_column: str, start: Pattern | None) -> Corpus:
    root = root_of(name, files)
    by_split: dict[str, list[Path]] = {}
    alone = len(files) == 1 and not Path(name).expanduser().is_dir()
    said = {path: "train" if alone else named_split(path, root) for path in files}
    named = [(split or "train", path) for path, split in said.items()]
    for split, path in named:
        by_split.setdefault(split, []).append(path)
    if "train" not in by_split:
        raise ValueError(f"--dataset {name} has no training text, only {sorted(by_split)}.")
    content = hash_contents_once((f"{split} {path.name}", path) for split, path in named)
    size = sum(
        path.stat().st_size * (3 if path.suffix in (".gz", ".zst", ".parquet") else 1) for path in by_split["train"]
    )
    section = SECTION
    if alone and start is None:  # of which validation and test must be cut
        section = min(SECTION, max(SHORTEST, size // SECTIONS))
        content += f" {section}" if section < SECTION else ""
    corpus = Corpus(Path(name).name, content, size, {})
    endings = sorted({suffix(path) for paths in by_split.values() for path in paths})
    corpus.format = " and ".join(endings) + (
        ", a document a file" if endings == [".txt"] and not text_column.isdigit() else ", a document a row"
    )
    if start is not None:
        corpus.format = " and ".join(endings) + f", a document from each line that matches {start.pattern!r}"
    corpus.origins = {split: file_names(paths, root) for split, paths in by_split.items()}
    corpus.readers = {split: _reader(corpus, paths, text_column, start, section) for split, paths in by_split.items()}
    unnamed = [path for path, split in said.items() if not split]
    if "train" in said.values() and unnamed:
        corpus.notes.append(f"no split is in the name of {file_names(unnamed, root)}: read as train")
    if len(by_split["train"]) > 1:
        first = by_split["train"][:GROUPS]
        corpus.groups = {os.path.relpath(path, root): _reader(corpus, [path], text_column, start) for path in first}
    return corpus


def _from_tokens(dataset: str, named: list[tuple[str, float]], text_column: str) -> Corpus:
    """Folders of token files; validation and test are the text files below them that are named so."""
    if plain := [name for name, _ in named if not name.startswith(PREFIX)]:
        raise ValueError(f"--dataset {dataset} mixes token files with the text {plain[0]}: tokenize it first.")
    folders = [(Path(name.removeprefix(PREFIX)).expanduser(), weight) for name, weight in named]
    records = [read_record(folder) for folder, _ in folders]
    corpus = Corpus(dataset, "", 0, {"train": documents_of(folders)}, format="token files and held-out text")
    corpus.tokenizer, corpus.stream = str(folders[0][0] / TOKENIZER), partial(open_tokens, folders)
    held = {split: [folder / split for folder, _ in folders if (folder / split).is_dir()] for split in SPLITS[1:]}
    held = {
        split: [path for place in places for path in find_files(str(place)) or ()] for split, places in held.items()
    }
    if not held["validation"]:
        raise FileNotFoundError(
            f"--dataset {dataset} has no held-out text: put documents, as .jsonl, .parquet or .txt, into "
            f"{folders[0][0] / 'validation'}/ (and test/). recipes/corpus.py does so."
        )
    corpus.readers |= {split: _reader(corpus, paths, text_column) for split, paths in held.items() if paths}
    corpus.size = sum(record.get("bytes", 4 * record["tokens"]) for record in records)
    for (folder, _), record in zip(folders, records, strict=True):
        size = f", {record['bytes']:,} bytes of text" if "bytes" in record else ""
        corpus.notes.append(f"{folder.name}: {record['documents']:,} documents, {record['tokens']:,} tokens{size}")
    corpus.origins = {"train": ", ".join(f"{name}/*.ds" for name, _ in named)}
    content = hash_contents((path.name, path) for paths in held.values() for path in paths)
    corpus.fingerprint = hash_text(f"{named} {records} {content} {text_column}").hex()
    if len(folders) > 1:
        total = sum(weight for _, weight in folders)
        shares = ", ".join(f"{weight / total:.0%} {folder.name}" for folder, weight in folders)
        corpus.notes.append(f"a mixture by tokens, {shares}, as long as the source that ends first")
    return corpus


def _reader(
    corpus: Corpus, paths: list[Path], text_column: str, start: Pattern | None = None, section: int = SECTION
) -> Reader:
    """A reader of files one after the other, which notes in the corpus what was mended and read."""

    def read() -> Iterator[str]:
        for path in paths:
            counted = Counter()
            options = {"text_column": text_column, "document_start": start, "columns": corpus.columns}
            yield from read_documents(path, **options, cleaned=counted, section=section)
            corpus.cleaned[str(path)] = counted

    return read


def _demo() -> Corpus:
    """Built-in documentation; all documents of a module fall into one split, chosen by the module's name."""
    rows = documentation()
    by_split: dict[str, list[str]] = {split: [] for split in SPLITS}
    for row in rows:
        by_split[demo_split(row["module"])].append(row["text"])
    content = hash_text("\0".join(row["module"] + row["text"] for row in rows)).hex()
    readers = {
        split: (lambda texts=texts: rows_to_documents(texts, None, Counter())) for split, texts in by_split.items()
    }
    notes = [
        f"the documentation of {len(rows):,} modules of Python and of packages beside it, one document each; "
        f"{len(by_split['validation'])} are validation and {len(by_split['test'])} test, by the module's name; "
        "a docstring that occurs twice is kept once",
    ]
    size = sum(len(text.encode()) for text in by_split["train"])
    return Corpus("demo", content, size, readers, notes, languages=["en"])


def _from_hub(name: str, text_column: str, start: Pattern | None) -> Corpus:
    by_split, content, commit = load_hub(name)
    corpus = Corpus(name, content.hex(), by_split["train"].data.nbytes, {}, format="a dataset of the Hub")
    corpus.commit = commit

    def reader(split: str, rows: "Dataset") -> Reader:
        def read() -> Iterator[str]:
            counted: Counter = Counter()
            batches = cast(Iterator[dict[str, list]], rows.iter(batch_size=1000))
            flat = (
                dict(zip(batch, values, strict=True))
                for batch in batches
                for values in zip(*batch.values(), strict=True)
            )
            yield from rows_to_documents(column_values(flat, text_column, name, corpus.columns), start, counted)
            corpus.cleaned[f"{name} {split}"] = counted

        return read

    corpus.readers = {split: reader(split, rows) for split, rows in by_split.items()}
    return corpus


def _hold_out(corpus: Corpus, shares: dict[str, float]) -> None:
    """Cut the missing validation and test splits from train, by document."""
    missing = {split: share for split, share in shares.items() if split not in corpus.readers and share > 0}
    base = corpus.readers["train"]
    first = list(itertools.islice(base(), FEW))
    if not first:
        raise ValueError(f"--dataset {corpus.source} holds no text: it is empty, or only white space.")
    if not missing:
        return
    side = choose_sides(first, missing)
    if side is None:
        raise ValueError(
            f"--dataset {corpus.source} has {len(set(first))} different documents, too few to hold out "
            f"{' and '.join(missing)}: say where documents begin with --document_start, or split into files."
        )
    for split in ("train", *missing):
        corpus.readers[split] = lambda split=split: (text for text in base() if side(text) == split)
    if window := corpus.window:
        corpus.window = lambda number: (text for text in window(number) if side(text) == "train")
    corpus.origins |= dict.fromkeys(missing, "cut from train")
    corpus.notes.append(cut_note(corpus.source, missing, "document"))


def choose_sides(first: list[str], shares: dict[str, float]) -> Callable[[str], str] | None:
    """Which split each text falls into when `shares` are held out of train; None where there are too few texts.

    The hash of a text decides, so that equal ones fall on one side, and neither their order nor adding more of them
    moves one. `first` are all texts, or the first 400: of fewer, or of less than 100 different ones, those held out
    are chosen by rank.
    """
    hashes = sorted({hash_text(text) for text in first})
    if len(hashes) < len(shares) + 1:
        return None
    if len(first) < FEW or len(hashes) < FEW // 4:
        taken = itertools.accumulate(max(1, round(share * len(hashes))) for share in shares.values())
        bounds = [hashes[min(count, len(hashes) - 1)] for count in taken]
    else:
        bounds = [int(total * 2**128).to_bytes(16, "big") for total in itertools.accumulate(shares.values())]

    def side(text: str) -> str:
        place = hash_text(text)
        return next((split for split, bound in zip(shares, bounds, strict=True) if place < bound), "train")

    return side


def cut_note(source: str, shares: dict[str, float], unit: str) -> str:
    shown = " and ".join(f"{split} ({share:.0%})" for split, share in shares.items())
    return f"{source} has no {' and '.join(shares)} split: {shown} cut from train by {unit}"


def _mix(parts: list[tuple[Corpus, float]]) -> Corpus:
    """Sources by weight: each next training document comes from the source furthest behind its share of bytes.

    Train ends with the first source that is used up; validation and test hold all of each source.
    """
    total = sum(weight for _, weight in parts)

    def train() -> Iterator[str]:
        readers = [corpus.documents("train") for corpus, _ in parts]
        drawn = [0.0] * len(parts)
        while True:
            i = min(range(len(parts)), key=lambda i: drawn[i] / parts[i][1])
            text = next(readers[i], None)
            if text is None:
                return
            drawn[i] += len(text.encode())
            yield text

    def whole(split: str) -> Reader:
        return lambda: itertools.chain.from_iterable(
            corpus.documents(split) for corpus, _ in parts if split in corpus.readers
        )

    size = min(int(corpus.size * total / weight) for corpus, weight in parts)
    mixed = ", ".join(f"{weight / total:.0%} {corpus.source}" for corpus, weight in parts)
    notes = [f"a mixture by bytes, {mixed}, as long as the source that ends first"]
    cleaned: dict[str, Counter] = {}
    columns: dict[str, str] = {}
    for corpus, _ in parts:
        notes += corpus.notes
        corpus.cleaned, corpus.columns = cleaned, columns
    held = {split: whole(split) for split in SPLITS[1:] if any(split in corpus.readers for corpus, _ in parts)}
    content = " ".join(f"{corpus.fingerprint} {weight}" for corpus, weight in parts)
    groups = {corpus.source: corpus.readers["train"] for corpus, _ in parts}
    mixture = Corpus(mixed, content, size, {"train": train} | held, notes, cleaned, groups)
    mixture.format, mixture.columns = "; ".join(f"{corpus.source}: {corpus.format}" for corpus, _ in parts), columns
    for split in mixture.splits:
        read = [(corpus.source, corpus.origins[split]) for corpus, _ in parts if split in corpus.origins]
        mixture.origins[split] = "; ".join(f"{source}: {origin}" for source, origin in read)
    return mixture
