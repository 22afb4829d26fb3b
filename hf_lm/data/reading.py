"""Files to text: every format, in bounded memory, with what had to be mended counted."""

import codecs
import contextlib
import csv
import io
import json
import re
import sys
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from hf_lm.data.class_names import names_in_schema, with_names
from hf_lm.data.cutting import cut
from hf_lm.data.opening import CHUNK, check_encoding, check_utf8, reading
from hf_lm.data.patterns import Pattern
from hf_lm.parsing.suggestions import did_you_mean

SUFFIXES = (".txt", ".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow")
SECTION = 2**16  # characters: a text file is cut into documents of at most this length
QUOTED = re.compile(r'"(?:[^"]|"")*"')  # a cell
SURROGATE = re.compile("[\ud800-\udfff]")
LONGEST = 2**20  # characters: so are rows and documents that begin at document_start


def suffix(path: Path) -> str:
    """The ending that says what a file holds, without .gz or .zst."""
    return Path(path.stem).suffix.lower() if path.suffix in (".gz", ".zst") else path.suffix.lower()


def read_documents(
    path: Path,
    *,
    text_column: str,
    document_start: Pattern | None,
    cleaned: Counter,
    columns: dict[str, str] | None = None,
    section: int = SECTION,
) -> Iterator[str]:
    """The documents of a file, none empty. What had to be mended is counted in `cleaned`, the column read noted in
    `columns`.

    A text file is one document, cut into sections of at most `section` characters where a paragraph, a line or a word
    ends; a row of any other format is one document. A number as `text_column` counts in a table without a header, as
    which a .txt is then read. With `document_start`, the lines of the whole file are joined and a document begins at
    each line that matches. Raises ValueError, naming file and line, for what cannot be read.
    """
    without_header = text_column.isdigit() and suffix(path) in (".csv", ".tsv", ".txt")
    if suffix(path) == ".txt" and not without_header:
        chunks: Iterable[str] = _text_chunks(path, cleaned)
        longest = section if document_start is None else LONGEST
        yield from _not_empty(cut(chunks, document_start, longest), cleaned)
    else:
        found = _separated(path, cleaned, header=False) if without_header else READERS[suffix(path)](path, cleaned)
        rows = column_values(found, text_column, str(path), columns)
        yield from rows_to_documents(rows, document_start, cleaned)


def rows_to_documents(rows: Iterable[str], document_start: Pattern | None, cleaned: Counter) -> Iterator[str]:
    """Rows as documents, or, with document_start, as lines of documents."""
    if document_start is not None:
        lines = (row if row.endswith("\n") else row + "\n" for row in (clean(row, cleaned) for row in rows))
        yield from _not_empty(cut(lines, document_start, LONGEST), cleaned)
        return
    for row in rows:
        text = clean(row, cleaned)
        if len(text) > LONGEST:
            cleaned["rows_cut"] += 1
            yield from _not_empty(cut([text], None, LONGEST), cleaned)
        elif text and not text.isspace():
            yield text
        else:
            cleaned["empty_rows"] += 1


def plain_text(value: object, where: str) -> str:
    """A cell as text: "" for null and NaN. Raises ValueError, beginning with `where`, for bytes, lists and objects."""
    if isinstance(value, str):
        return value
    if value is None or value != value:
        return ""
    if isinstance(value, bytes | list | tuple | dict):
        kind = "bytes" if isinstance(value, bytes) else "an object" if isinstance(value, dict) else "a list"
        raise ValueError(f"{where} holds {kind} where a text is needed: {value!r:.40}.")
    return str(value)


def clean(text: str, cleaned: Counter | None = None) -> str:
    """Line ends as \\n, no NUL, and U+FFFD for half a surrogate pair; nothing else about a text is changed."""
    cleaned = Counter() if cleaned is None else cleaned
    try:
        text.encode()
    except UnicodeEncodeError:
        cleaned["lone_surrogates"] += len(SURROGATE.findall(text))
        text = SURROGATE.sub("\ufffd", text)
    if "\0" in text:
        cleaned["nul_characters"] += text.count("\0")
        text = text.replace("\0", "")
    if "\r" in text:
        cleaned["carriage_returns"] += text.count("\r")
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    return text


def _not_empty(documents: Iterable[str], cleaned: Counter) -> Iterator[str]:
    for document in documents:
        if document.isspace():
            cleaned["empty_rows"] += 1
        else:
            yield document


def _text_chunks(path: Path, cleaned: Counter) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8-sig")("replace")
    held = ""  # a \r that ends a chunk may belong to a \r\n
    with reading(path) as file:
        first = True
        while data := file.read(CHUNK):
            if first:
                check_encoding(data, path)
                first = False
            text = held + decoder.decode(data)
            _count_replaced(data, text, cleaned)
            held = "\r" if text.endswith("\r") else ""
            yield clean(text[:-1] if held else text, cleaned)
        yield clean(held + decoder.decode(b"", final=True), cleaned)
    if first:
        cleaned["empty_files"] += 1


def _count_replaced(data: bytes, text: str, cleaned: Counter) -> None:
    """Count the bytes of `data` that are no UTF-8, each of which became U+FFFD in `text`."""
    if "\ufffd" in text:
        cleaned["invalid_utf8"] += text.count("\ufffd") - data.count("\ufffd".encode())


def _decoded(data: bytes, cleaned: Counter) -> str:
    text = data.decode("utf-8-sig", "replace")
    _count_replaced(data, text, cleaned)
    return text


def read_rows(path: Path, *, header: bool = True, cleaned: Counter | None = None) -> list[dict[str, Any]]:
    """The rows of a table. Without `header` the columns of a .csv, .tsv or .txt are called `0`, `1` and so on.

    What had to be mended is counted in `cleaned`. A .txt is read as tab-separated. Raises ValueError, naming file and
    line, for what cannot be read.
    """
    cleaned = Counter() if cleaned is None else cleaned
    if suffix(path) in (".csv", ".tsv", ".txt"):
        return list(_separated(path, cleaned, header=header))
    rows = list(READERS[suffix(path)](path, cleaned))
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            said = f"expected an object with named columns, got a {type(row).__name__}"
            raise ValueError(f"{path}, row {number}: {said}.")
    return rows


def read_lines(path: Path, cleaned: Counter | None = None) -> Iterator[str]:
    """The lines of a text file, without their ends. What had to be mended is counted in `cleaned`."""
    held = ""
    for chunk in _text_chunks(path, Counter() if cleaned is None else cleaned):
        *lines, held = (held + chunk).split("\n")
        yield from lines
    if held:
        yield held


def beginning(texts: Iterable[str], max_bytes: int) -> Iterator[str]:
    """The first texts that together have at most `max_bytes` of UTF-8, at least one."""
    left = max_bytes
    for text in texts:
        size = len(text.encode("utf-8", "surrogatepass"))
        if size > left < max_bytes:
            return
        left -= size
        yield text


def until_exit(rows: Iterable[Any]) -> Iterator[Any]:
    """The rows, for a thread that reads ahead: an error when the main thread has ended, which waits for others."""
    for row in rows:
        if not threading.main_thread().is_alive():
            raise RuntimeError("the process ends")
        yield row


def column_values(
    rows: Iterable[dict[str, Any]], text_column: str, where: str, columns: dict[str, str] | None = None
) -> Iterator[str]:
    """The text of each row; the column is chosen by the first row and noted in `columns` as that of `where`.

    A list of strings is joined by line ends.
    """
    column = None
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise ValueError(f"{where}, row {number}: expected named columns, got a {type(row).__name__}.")
        if column is None:
            column = choose_column(row, text_column, where)
            if columns is not None:
                columns[where] = column
        value = row.get(column)
        said = f"{where}, row {number}: {column!r}"
        if isinstance(value, list):
            value = "\n".join(plain_text(item, said) for item in value if item is not None)
        yield plain_text(value, said)


def choose_column(row: dict[str, Any], text_column: str, where: str) -> str:
    """The column to read: the one named, or `text`, `content`, `document`, or the only one that holds text."""
    names = list(row)
    if text_column:
        if text_column not in names:
            hint = did_you_mean(text_column, names)
            raise ValueError(f"{where} has no column {text_column!r}; it has {names}.{hint} Set --text_column.")
        return text_column
    for name in ("text", "content", "document"):
        if name in names:
            return name
    textual = [name for name in names if isinstance(row[name], str)]
    if len(textual) != 1:
        raise ValueError(f"{where} has the columns {names}; say which holds the text with --text_column.")
    return textual[0]


def _jsonl(path: Path, cleaned: Counter) -> Iterator[dict[str, Any]]:
    check_utf8(path)
    with reading(path) as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield _parse(line, path, number, cleaned)


def _parse(line: bytes, path: Path, number: int, cleaned: Counter) -> Any:
    try:
        return json.loads(_decoded(line, cleaned))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {number}: not JSON: {error.msg} at column {error.colno}.") from None
    except (RecursionError, ValueError) as error:  # nested, or a number of thousands of digits
        why = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ValueError(f"{path}, line {number}: cannot be read as JSON: {why}.") from None


def _json(path: Path, cleaned: Counter) -> Iterator[dict[str, Any]]:
    """A list of objects, an object that holds one such list, or JSON lines."""
    check_utf8(path)
    with reading(path) as file:
        data = file.read()
    try:
        repaired: Counter = Counter()
        found = json.loads(_decoded(data, repaired))
        cleaned.update(repaired)
    except (ValueError, RecursionError):
        lines = [line for line in data.splitlines() if line.strip()]
        found = [_parse(line, path, number, cleaned) for number, line in enumerate(lines, 1)]
    if isinstance(found, dict):
        if found and all(isinstance(value, dict) and ("0" in value or "0" in found) for value in found.values()):
            raise ValueError(
                f"{path} holds columns or numbered rows, as pandas writes them by default, where a list of rows is "
                "needed: write it with to_json(..., orient='records')."
            )
        lists = [value for value in found.values() if isinstance(value, list) and value and isinstance(value[0], dict)]
        found = lists[0] if len(lists) == 1 else [found]
    if isinstance(found, list) and found and isinstance(found[0], str):
        found = [{"text": value} for value in found]
    if not isinstance(found, list):
        raise ValueError(f"{path}: expected a list of objects, got a {type(found).__name__}.")
    yield from found


def _separated(path: Path, cleaned: Counter, *, header: bool = True) -> Iterator[dict[str, Any]]:
    """The rows of a .csv, or of tab-separated lines. Raises ValueError for one of another length than the first."""
    names: list[str] = []
    for number, row in enumerate(_cells(path, cleaned), 1):
        if not row:  # an empty line
            continue
        if not names:
            names = row if header else [str(i) for i in range(len(row))]
            _check_names(names, path)
            if header and len(names) == 1 and suffix(path) == ".csv" and re.search(r"[;\t|]", names[0]):
                raise ValueError(f"{path} has one column, {names[0]!r:.50}: separate the cells of a .csv by commas.")
            if header:
                continue
        if len(row) != len(names):
            raise ValueError(
                f"{path}, row {number}: {len(row)} columns, where the first row has {len(names)}. A cell that holds "
                'a separator needs quotes: "a, b".'
            )
        yield dict(zip(names, row, strict=True))


def _cells(path: Path, cleaned: Counter) -> Iterator[list[str]]:
    if suffix(path) == ".csv":
        return _quoted(path, ",", cleaned)
    if _tabs_are_quoted(path):
        return _quoted(path, "\t", cleaned)
    return (line.split("\t") if line else [] for line in read_lines(path, cleaned))


def _tabs_are_quoted(path: Path) -> bool:
    """Whether the quotes around the cells of tab-separated lines are no part of them.

    They are none where each cell that begins with a quote is quoted as a whole and a program had a reason: it holds a
    quote or a comma, or its column is quoted below the header. Where lines have other numbers of cells, or one, cells
    may hold tabs and line ends: if a reading with quotes allows it.
    """
    lengths: set[int] = set()
    bare: set[int] = set()  # columns with a cell that is not quoted
    without_reason: set[int] = set()
    whole = True
    for number, line in enumerate(filter(None, read_lines(path))):
        row = line.split("\t")
        lengths.add(len(row))
        for column, cell in enumerate(row):
            if cell.startswith('"'):
                whole = whole and QUOTED.fullmatch(cell) is not None
                without_reason |= {column} if number and not re.search('""|,', cell[1:-1]) else set()
            elif cell and number:
                bare.add(column)
    if len(lengths) == 1 and (whole or lengths != {1}):
        return whole and not bare & without_reason
    with contextlib.suppress(ValueError):
        return len({len(row) for row in _quoted(path, "\t", Counter()) if row}) == 1
    return False


def _quoted(path: Path, separator: str, cleaned: Counter) -> Iterator[list[str]]:
    csv.field_size_limit(sys.maxsize)
    lines = (f"{line}\n" for line in read_lines(path, cleaned))
    number = 1
    try:
        for row in csv.reader(lines, delimiter=separator, strict=True):
            yield row
            number += 1
    except csv.Error:
        raise ValueError(
            f'{path}, row {number}: a cell begins with a quote (") and does not end with one; write it as "...", '
            'each quote in it doubled (""), or remove the quote.'
        ) from None


def _check_names(names: Sequence[str], path: Path) -> None:
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f"{path} has {Counter(names)[twice[0]]} columns called {twice[0]!r}; give each its own name.")


def _parquet(path: Path, cleaned: Counter) -> Iterator[dict[str, Any]]:
    import pyarrow
    import pyarrow.parquet as parquet

    with reading(path) as file:
        source = path if path.suffix == ".parquet" else io.BytesIO(file.read())
        try:
            opened = parquet.ParquetFile(source)
            _check_names(opened.schema_arrow.names, path)
            classes = names_in_schema(opened.schema_arrow)
            for batch in opened.iter_batches(batch_size=256):
                yield from (with_names(row, classes) for row in batch.to_pylist())
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is not a parquet file, or is damaged: {str(error).splitlines()[0]}") from None


def _arrow(path: Path, cleaned: Counter) -> Iterator[dict[str, Any]]:
    import pyarrow

    with reading(path) as file:
        source: Any = pyarrow.memory_map(str(path)) if path.suffix == ".arrow" else io.BytesIO(file.read())
        batches: Iterable[Any]
        try:
            try:
                batches = pyarrow.ipc.open_stream(source)
                schema = batches.schema
            except pyarrow.ArrowInvalid:
                opened = pyarrow.ipc.open_file(source)
                batches = (opened.get_batch(i) for i in range(opened.num_record_batches))
                schema = opened.schema
            _check_names(schema.names, path)
            classes = names_in_schema(schema)
            for batch in batches:
                for start in range(0, batch.num_rows, 256):
                    yield from (with_names(row, classes) for row in batch.slice(start, 256).to_pylist())
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is not an arrow file, or is damaged: {str(error).splitlines()[0]}") from None


READERS = {
    **{".jsonl": _jsonl, ".json": _json, ".csv": _separated, ".tsv": _separated},
    **{".parquet": _parquet, ".arrow": _arrow},
}
