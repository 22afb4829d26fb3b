"""Tagged sentences: CoNLL's files of columns, rows of words and tags, and the demo's facts about countries."""

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from hf_lm.data.overlap import UNSPACED, WORD
from hf_lm.data.paths import file_names, find_files, root_of, split_of
from hf_lm.data.reading import SUFFIXES, clean, plain_text, read_lines, suffix
from hf_lm.data.tables import DEMOS, Row, Table, check_columns, drop_empty_splits, hold_out, load_table, pick_column
from hf_lm.files import hash_contents
from hf_lm.tasks.entities import is_tag, normal_tag

TOKENS = ("tokens", "words", "sentence", "text")
TAGS = ("ner_tags", "tags", "ner", "labels", "label")
COUNTRIES = "demo:countries"
FEW_DOCUMENTS = 20  # of fewer, sentences are held out and not documents
QUESTIONS = {  # of the demo: how each begins and ends around the name of a country, and what its answer is
    "Which language is official in ": "language",
    "What is the currency of ": "currency",
    "On which day does the week begin in ": "weekday",
    "What is the code of ": "code",
    "How many letters has the name ": "number",
}


def load_tagged_words(dataset: str, *, text_column: str = "", label_column: str = "") -> Table:
    """The sentences that `--dataset` names, see `read_tagged_words`; the columns of a CoNLL file are numbered from 0.

    A CoNLL file has a word a line, its columns divided by spaces or tabs, and an empty line after a sentence. Files
    that end in .json, .jsonl, .csv, .parquet or .arrow are rows. Raises FileNotFoundError or ValueError in one line.
    """
    files = None if dataset in DEMOS else find_files(dataset, any_ending=True)
    if files is None or any(suffix(path) in SUFFIXES and suffix(path) not in (".txt", ".tsv") for path in files):
        table = load_table(dataset)
        read_tagged_words(table, text_column=text_column, label_column=label_column)
        return table
    root, alone = root_of(dataset, files), len(files) == 1 and not Path(dataset).expanduser().is_dir()
    rows: dict[str, list[Row]] = {}
    origins: dict[str, list[Path]] = {}
    for path in files:
        split = "train" if alone else _split_of(path, root)
        rows.setdefault(split, []).extend(read_columns(path, word=text_column or "0", tag=label_column or "-1"))
        origins.setdefault(split, []).append(path)
    if not rows.get("train"):
        raise ValueError(f"--dataset {dataset} has no training sentences, only {sorted(rows)}.")
    table = Table(Path(dataset).name, hash_contents((path.name, path) for path in files), rows)
    table.format = "columns of words and tags, as CoNLL has them"
    table.origins = {split: file_names(paths, root) for split, paths in origins.items()}
    read_tagged_words(table)
    return table


def _split_of(path: Path, root: Path) -> str:
    """As for any file, and testa and testb, which CoNLL 2003 calls validation and test."""
    named = {"testa": "validation", "testb": "test", "train": "train"}
    ending = re.search(r"(testa|testb|train)$", path.name.lower())
    return named[ending[1]] if ending else split_of(path, root)


def read_columns(path: Path, *, word: str = "0", tag: str = "-1") -> Iterator[Row]:
    """The sentences of a CoNLL file as {"tokens", "ner_tags", "document"}; `word` and `tag` are numbers of columns.

    -DOCSTART- begins a document and comments, lines of # without a tag, are skipped. Raises ValueError with the number
    of a line that lacks a column.
    """
    if not all(re.fullmatch(r"-?\d+", column) for column in (word, tag)):
        raise ValueError(
            f"{path} has columns without names: give --text_column and --label_column as numbers, from 0."
        )
    tokens: list[str] = []
    tags: list[str] = []
    document = 0
    for number, line in enumerate([*read_lines(path), ""], 1):
        fields = line.split("\t") if "\t" in line else [field for field in line.split(" ") if field]
        started = fields[:1] == ["-DOCSTART-"]
        if started or not line.strip():
            if tokens:
                yield {"tokens": tokens, "ner_tags": tags, "document": document}
                tokens, tags = [], []
            document += started
            continue
        if line.startswith("#") and not is_tag(fields[-1]):
            continue
        try:
            read, labelled = fields[int(word)], fields[int(tag)]
        except IndexError:
            raise ValueError(
                f"{path}, line {number}: {len(fields)} columns, where a word and its tag are needed; give "
                "the two columns with --text_column and --label_column, counted from 0."
            ) from None
        if len(fields) < 2:
            raise ValueError(f"{path}, line {number}: one column, where a word and its tag are needed.")
        tokens.append(read)
        tags.append(labelled)


def read_tagged_words(table: Table, *, text_column: str = "", label_column: str = "") -> None:
    """Reduce a table to rows of {"text", "spans": [[start, end]], "tags": [str]} and cut the splits it lacks.

    `spans` are the words of a text by their characters. Words and tags are lists, or strings with white space between.
    Words are joined with spaces, but for those in a script that has none. Where documents are marked and there are
    enough, a document is held out as a whole. `labels` are the tags of all splits, O first. Raises ValueError for rows
    with as many tags as words not, and for tags that mark no entities.
    """
    where = f"--dataset {table.source}"
    if table.source == COUNTRIES:
        table.columns = {"text": "context", "tags": "answers"}
        table.rows["train"] = list(_about_countries(table.rows["train"]))
        table.notes.append("its words are tagged by the answers to its questions; the sentences follow five patterns")
    else:
        names = {
            "text": pick_column(table.rows["train"], text_column, TOKENS, option="--text_column", where=where),
            "tags": pick_column(table.rows["train"], label_column, TAGS, option="--label_column", where=where),
        }
        table.columns = names
        check_columns(table, (*names.values(), "document"))
        for split, rows in table.rows.items():
            read = (_row(row, names, f"{where}, row {i} of {split}") for i, row in enumerate(rows, 1))
            table.rows[split] = [row for row in read if row["tags"]]
            table.left_out["rows_without_words"] += len(rows) - len(table.rows[split])
    drop_empty_splits(table, "with words and tags")
    documents = {row.get("document", 0) for row in table.rows["train"]}
    unit = "document" if len(documents) >= FEW_DOCUMENTS else "sentence"
    group = lambda row: str(row["document"]) if unit == "document" else row["text"]  # noqa: E731
    hold_out(table, {"validation": 0.1, "test": 0.1}, group=group, unit=unit)
    known = {split: {tag for row in rows for tag in row["tags"]} for split, rows in table.rows.items()}
    table.labels = sorted(set().union(*known.values(), {"O"}), key=lambda tag: (tag != "O", tag[2:], tag))
    if len(known["train"]) < 2:
        raise ValueError(
            f"{where} has one tag only in train, {min(known['train'])!r}: there is nothing to tell apart."
        )
    for split, tags in known.items():
        if unseen := sorted(tags - known["train"]):
            table.notes.append(f"{split} has tags that train has not: {', '.join(unseen)}")


def _row(row: Row, names: dict[str, str], where: str) -> Row:
    words, tags = (_list(row.get(names[key])) for key in ("text", "tags"))
    if len(words) != len(tags):
        raise ValueError(f"{where} has {len(words)} words and {len(tags)} tags: each word needs one.")
    if any(isinstance(tag, int) for tag in tags):
        raise ValueError(
            f"{where}: tags are numbers without names: give names such as B-PER, or a dataset whose features name "
            "them (ClassLabel)."
        )
    try:
        pairs = [
            (clean(plain_text(word, "a word")).strip(), normal_tag(str(tag)))
            for word, tag in zip(words, tags, strict=True)
        ]
    except ValueError as error:
        raise ValueError(f"{where}: {error}.") from None
    kept = [(word, tag) for word, tag in pairs if word]
    text, spans = join_words([word for word, _ in kept])
    return {"text": text, "spans": spans, "tags": [tag for _, tag in kept], "document": row.get("document", 0)}


def _list(value: str | Iterable[Any] | None) -> Sequence[Any]:
    if value is None:
        return []
    return value.split() if isinstance(value, str) else list(value)


def join_words(words: Sequence[str]) -> tuple[str, list[list[int]]]:
    """Words as a text, and the first character and the last + 1 of each; Chinese and Japanese words adjoin."""
    text, spans = "", []
    for word in words:
        adjoin = text and re.fullmatch(UNSPACED, text[-1]) and re.match(UNSPACED, word)
        text += "" if adjoin or not text else " "
        spans.append([len(text), len(text) + len(word)])
        text += word
    return text, spans


def words_in(text: str) -> list[list[int]]:
    """The words of running text by their characters: letters and digits, a Chinese character, or another mark."""
    return [list(match.span()) for match in WORD.finditer(text)]


def _about_countries(rows: Iterable[Row]) -> Iterator[Row]:
    """The demo's contexts, a row each: their answers and the name of the country are entities."""
    marked: dict[str, set[tuple[int, int, str]]] = {}
    names: dict[str, str] = {}
    for row in rows:
        context, asked = row["context"], row["question"]
        begin, kind = next((begin, kind) for begin, kind in QUESTIONS.items() if asked.startswith(begin))
        name = names[context] = asked.removeprefix(begin).removesuffix("?")
        places = marked.setdefault(context, set())
        for text, start in zip(row["answers"]["text"], row["answers"]["answer_start"], strict=True):
            places.add((start, start + len(text), kind))
        for match in re.finditer(rf"(?:This is about |People in )({re.escape(name)})", context):
            places.add((*match.span(1), "country"))
    for context, places in marked.items():
        spans = words_in(context)
        tags = ["O"] * len(spans)
        for start, end, kind in places:
            inside = [i for i, (begin, _) in enumerate(spans) if start <= begin < end]
            for i in inside:
                tags[i] = f"{'B' if i == inside[0] else 'I'}-{kind}"
        yield {"text": context, "spans": spans, "tags": tags, "document": names[context]}
