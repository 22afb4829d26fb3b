"""Token files as datatrove's tokenizer writes them, read where they are as one token stream.

A file `NAME.ds` holds ids without a header, little-endian uint16 or uint32, and `NAME.ds.index` where each document
ends, in tokens, as uint64. `tokens.json` beside them, which `record_tokens` writes, says which tokenizer wrote them.
"""

import bisect
import hashlib
import itertools
import json
import mmap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

from hf_lm.data.packing import TokenStream, markers
from hf_lm.files import write_whole
from hf_lm.tokenization.tokenizer import load_tokenizer, tokenizer_fingerprint

PREFIX = "tokens:"  # of --dataset
RECORD, TOKENIZER = "tokens.json", "tokenizer"  # in the folder of the files
CHUNK = 2**22  # tokens read at a time
PARTS = 8  # of a longer file, spread over it, that are read to recognise it: together CHUNK tokens
DOCUMENTS = 2**12  # looked at at a time: each touches pages of the file


class JoinedArray:
    """Arrays end to end as one, none of them copied: a slice that lies within one array is a view of it.

    `shifts` are added to the values of each array. Slices have no step.
    """

    def __init__(self, parts: Sequence[np.ndarray], shifts: Sequence[int] = ()) -> None:
        self.parts, self.shifts = list(parts), list(shifts) or [0] * len(parts)
        self.ends = list(itertools.accumulate(map(len, self.parts)))
        self.dtype = self.parts[0].dtype

    def __len__(self) -> int:
        return self.ends[-1]

    @property
    def shape(self) -> tuple[int]:
        return (len(self),)

    def __getitem__(self, key: int | slice) -> Any:
        if not isinstance(key, slice):
            at = range(len(self))[key]
            return self[at : at + 1][0]
        start, stop, _ = key.indices(len(self))
        pieces = []
        while start < stop:
            number = bisect.bisect_right(self.ends, start)
            part, shift = self.parts[number], self.shifts[number]
            first = self.ends[number] - len(part)
            piece = part[start - first : stop - first]
            pieces.append(piece + np.asarray(shift, self.dtype) if shift else piece)
            start += len(piece)
        if len(pieces) == 1:
            return pieces[0]
        return np.concatenate(pieces) if pieces else np.zeros(0, self.dtype)

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype)


def record_tokens(folder: str | Path, tokenizer: PreTrainedTokenizerBase, **about: object) -> dict[str, Any]:
    """Check the `.ds` files of a folder completely, and write tokens.json and tokenizer/ beside them.

    Reads every token once: each index fits its file, every document ends with the end marker, no marker stands inside
    a document (a text that spells `<|endoftext|>`, encoded as that token), and every id is one of the tokenizer's.
    `about` is kept in tokens.json: `bytes` of text, how the files were made. Raises ValueError in one line, naming the
    file. Returns what was written.
    """
    folder = Path(folder)
    paths = sorted(folder.glob("*.ds"))
    if not paths:
        raise FileNotFoundError(f"{folder} holds no .ds file, which datatrove's DocumentTokenizer writes.")
    begin, end = markers(tokenizer)
    dtype = np.uint16 if len(tokenizer) <= 2**16 else np.uint32
    files: dict[str, dict[str, Any]] = {}
    for path in paths:
        tokens, index = _open_file(path, np.dtype(dtype))
        _check_documents(path, tokens, index, begin=begin, end=end, vocab_size=len(tokenizer))
        files[path.name] = {"documents": len(index), "tokens": len(tokens), "hash": _hash(tokens, index)}
    record = {
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "dtype": np.dtype(dtype).name,
        "documents": sum(file["documents"] for file in files.values()),
        "tokens": sum(file["tokens"] for file in files.values()),
        "files": files,
    } | about
    tokenizer.save_pretrained(folder / TOKENIZER)
    write_whole(folder / RECORD, json.dumps(record, indent=1) + "\n")
    return record


def read_record(folder: Path) -> dict[str, Any]:
    """What tokens.json of a folder says. Raises FileNotFoundError or ValueError in one line."""
    try:
        record = json.loads((folder / RECORD).read_bytes())
        if not record["files"] or not isinstance(record["tokenizer"], str):
            raise ValueError("it names no files")
        np.dtype(record["dtype"])
    except FileNotFoundError:
        what = f"has no {RECORD}" if folder.is_dir() else "is not a folder"
        raise FileNotFoundError(
            f"--dataset {PREFIX}{folder} {what}: recipes/corpus.py writes such a folder; for other files of datatrove "
            f"call hf_lm.data.token_files.record_tokens({str(folder)!r}, TOKENIZER) once."
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"--dataset {PREFIX}{folder}: {RECORD} cannot be read ({error}): make it again.") from None
    return record


def open_tokens(folders: Sequence[tuple[Path, float]], tokenizer: PreTrainedTokenizerBase) -> TokenStream:
    """The files of one folder, or of several by weight, as one token stream that is read from them when it is used.

    Of several folders, each gives its first documents, as many tokens as its weight asks for; the first that is used
    up ends all. The sizes of `bytes` and `words` are not known and zero. Raises ValueError in one line for a tokenizer
    other than the one that wrote the tokens, for an index that does not fit its file, and for a file that is not the
    one that tokens.json records: of a file of more than CHUNK tokens, PARTS are compared.
    """
    begin, end = markers(tokenizer)
    opened = []
    for folder, _ in folders:
        record = read_record(folder)
        if record["tokenizer"] != tokenizer_fingerprint(tokenizer):
            raise ValueError(
                f"--dataset {PREFIX}{folder} was written by another tokenizer than {tokenizer.name_or_path or 'this'}:"
                f" give --tokenizer {folder / TOKENIZER}, or tokenize the text again."
            )
        dtype = np.dtype(record["dtype"])
        files = [_open_file(folder / name, dtype, expected=file) for name, file in record["files"].items()]
        opened.append([file for file in files if len(file[1])])
    totals = [sum(len(tokens) for tokens, _ in files) for files in opened]
    if len(folders) > 1:
        unit = min(total / weight for total, (_, weight) in zip(totals, folders, strict=True))
        opened = [_first(files, int(unit * weight)) for files, (_, weight) in zip(opened, folders, strict=True)]
    tokens, starts, shifts, position = [], [], [], 0
    if begin == end:
        tokens.append(np.array([end], opened[0][0][0].dtype))
    for file, index in itertools.chain.from_iterable(opened):
        tokens.append(file)
        starts += [np.zeros(1, np.int64), index[:-1]]
        shifts += [position, position]
        position += len(file)
    joined = JoinedArray(starts, shifts)
    unknown = np.broadcast_to(np.int64(0), joined.shape)
    return TokenStream(
        cast(np.ndarray, JoinedArray(tokens)), cast(np.ndarray, joined), unknown, unknown, begin=begin, end=end
    )


def documents_of(folders: Sequence[tuple[Path, float]]) -> Callable[[], Iterator[str]]:
    """A reader of the text of the folders' documents: their tokens, decoded one by one."""

    def read() -> Iterator[str]:
        tokenizer = load_tokenizer(str(folders[0][0] / TOKENIZER))
        stream = open_tokens(folders, tokenizer)
        for i in range(len(stream)):
            yield cast(str, tokenizer.decode(stream.document(i)[1:-1]))

    return read


def _first(files: list[tuple[np.ndarray, np.ndarray]], count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Files, and the documents of the last, until they hold `count` tokens; at least one document."""
    taken: list[tuple[np.ndarray, np.ndarray]] = []
    for tokens, index in files:
        documents = max(int(np.searchsorted(index, count, "right")), 0 if taken else 1)
        if not documents:
            break
        taken.append((tokens[: int(index[documents - 1])], index[:documents]))
        count -= len(tokens)
        if documents < len(index):
            break
    return taken


def _open_file(
    path: Path, dtype: np.dtype, *, expected: dict[str, Any] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and document ends of a file, both memory-mapped. Raises ValueError or FileNotFoundError in one line."""
    index_path = path.with_name(f"{path.name}.index")
    for wanted in (path, index_path):
        if not wanted.is_file():
            raise FileNotFoundError(f"--dataset {PREFIX}{path.parent}: the file {wanted.name} is missing.")
    sizes = path.stat().st_size, index_path.stat().st_size
    tokens, index = (
        np.memmap(name, kind, mode="r") if size and not size % kind.itemsize else np.zeros(0, kind)
        for name, kind, size in zip((path, index_path), (dtype, np.dtype(np.int64)), sizes, strict=True)
    )
    last = int(index[-1]) if len(index) else 0
    if sizes[0] % dtype.itemsize or sizes[1] % 8 or last != len(tokens):
        raise ValueError(
            f"--dataset {PREFIX}{path.parent}: {index_path.name} does not fit {path.name}: its documents end at token "
            f"{last:,}, and the file holds {sizes[0] / dtype.itemsize:,.10g} tokens of {dtype.name}. Write both again."
        )
    if expected is None:
        return tokens, index
    if (expected["documents"], expected["tokens"]) != (len(index), len(tokens)):
        raise ValueError(
            f"--dataset {PREFIX}{path.parent}: {path.name} holds {len(tokens):,} tokens in {len(index):,} documents, "
            f"and {RECORD} records {expected['tokens']:,} in {expected['documents']:,}: write the files again."
        )
    if expected.get("hash", found := _hash(tokens, index)) != found:
        raise ValueError(
            f"--dataset {PREFIX}{path.parent}: {path.name} or its index was changed after {RECORD} was written: bring "
            "the file back, or write the files again."
        )
    return tokens, index


def _hash(*arrays: np.ndarray) -> str:
    """What the arrays of a file are recognised by: all of them up to CHUNK values, and PARTS of longer ones."""
    digest = hashlib.blake2b(digest_size=16)
    for array in arrays:
        size = len(array) if len(array) <= CHUNK else CHUNK // PARTS
        for start in np.linspace(0, len(array) - size, 1 if size == len(array) else PARTS, dtype=np.int64):
            digest.update(array[start : start + size].tobytes())
        _release(array)
    return digest.hexdigest()


def _check_documents(
    path: Path, tokens: np.ndarray, index: np.ndarray, *, begin: int, end: int, vocab_size: int
) -> None:
    """Raise ValueError where the markers in a file are not exactly those that its index names."""
    ends, count, previous = 0, 0, 0
    for start in range(0, len(index), DOCUMENTS):
        some = index[start : start + DOCUMENTS]
        lengths = np.diff(some, prepend=previous)
        if (lengths < 1).any():
            raise ValueError(f"{path.name}.index does not rise at document {start + int(np.argmax(lengths < 1)):,}.")
        wrong = tokens[some - 1] != end
        if begin != end:
            wrong |= tokens[some - lengths] != begin
        if wrong.any():
            raise ValueError(
                f"{path.name}: document {start + int(np.argmax(wrong)):,} is not closed by the tokenizer's marker (id "
                f"{end}): it was written with another tokenizer, or without eos_token."
            )
        previous, ends = int(some[-1]), ends + len(some)
        _release(tokens)
    for start in range(0, len(tokens), CHUNK):
        some = tokens[start : start + CHUNK]
        if int(some.max()) >= vocab_size:
            raise ValueError(
                f"{path.name} holds the id {int(some.max())}, and the tokenizer has {vocab_size:,}: another wrote it."
            )
        count += int(np.count_nonzero(some == end))
        _release(tokens)
    if count != ends:
        raise ValueError(
            f"{path.name} has {count - ends:,} markers (id {end}) inside documents: a text spells the marker, and it "
            "was encoded as the token. Tokenize with encode_special_tokens, as recipes/corpus.py does."
        )


def _release(tokens: np.ndarray) -> None:
    """Give back the memory of what was read of a mapped file, which else counts as the process's until it ends."""
    if isinstance(tokens.base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):  # not on Windows
        tokens.base.madvise(mmap.MADV_DONTNEED)
