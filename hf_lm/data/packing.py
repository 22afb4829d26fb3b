"""From documents to blocks: tokenized once into memory-mapped files, cut into blocks as they are read."""

import bisect
import json
import queue
import threading
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from hf_lm.data.batches import TokenId
from hf_lm.files import default_cache, fill_cache, hash_text
from hf_lm.tokenization.tokenizer import encode_documents, tokenizer_fingerprint

BATCH = 2**21  # characters tokenized at a time: enough to keep every core busy, little to hold
FORMAT = "2"  # of the cache
SAMPLED = 16  # documents of the smallest sample: an interval over fewer says little
TOKENS = "tokens.bin"  # of a folder that tokenize_documents fills


@dataclass(frozen=True)
class TokenStream:
    """Documents as one run of token ids on disk: `<|endoftext|>` before each, and once more at the end.

    Where a tokenizer begins a document with another token than it ends it with (Llama), documents are `bos ... eos`.
    """

    tokens: np.ndarray  # (tokens,) memory-mapped
    starts: np.ndarray  # (documents,) where each document's first marker stands
    bytes: np.ndarray  # (documents,) of UTF-8
    words: np.ndarray  # (documents,) as white space parts them; zeros where they were not counted
    begin: int  # id of the marker before a document
    end: int  # id of the one after it
    cleaned: dict[str, dict[str, int]] = field(default_factory=dict)  # by source: what was mended in it while reading

    def __reduce__(self) -> Any:
        """For another process: it opens the files, where these are the whole of a folder of `tokenize_documents`."""
        tokens = self.tokens
        if isinstance(tokens, np.memmap) and tokens.filename and Path(tokens.filename).name == TOKENS:
            return _open, (Path(tokens.filename).parent,)
        return super().__reduce__()

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def total(self) -> int:
        return len(self.tokens)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each document, with its begin marker; the last one's end marker is among them."""
        return np.diff(self.starts, append=self.total)

    def document(self, i: int) -> np.ndarray:
        """The ids of document i, from its begin marker to its end marker."""
        last = i + 1 == len(self.starts)
        stop = len(self.tokens) if last else self.starts[i + 1] + (self.begin == self.end)
        return self.tokens[self.starts[i] : stop]

    def take(self, documents: Sequence[int]) -> "TokenStream":
        """Some of the documents, in memory."""
        shared = self.begin == self.end  # one marker ends a document and begins the next
        parts = [self.document(i)[: -1 if shared else None] for i in documents]
        starts = np.cumsum([0, *(len(part) for part in parts[:-1])])
        if shared:
            parts.append(np.array([self.end], self.tokens.dtype))
        chosen = np.asarray(documents, np.int64)
        return replace(
            self,
            tokens=np.concatenate(parts),
            starts=starts,
            bytes=np.asarray(self.bytes)[chosen],
            words=np.asarray(self.words)[chosen],
        )

    def sample(self, tokens: int) -> "TokenStream":
        """As many documents, drawn at random, as have no more tokens together, but SAMPLED at least; or all.

        In their order. The same documents for each run, and among those of a larger sample.
        """
        drawn = np.random.default_rng(0).permutation(len(self))
        count = max(SAMPLED, int(np.searchsorted(np.cumsum(self.lengths[drawn]), tokens, side="right")))
        return self if count >= len(self) else self.take(np.sort(drawn[:count]).tolist())


def cache_folder(fingerprint: str, tokenizer: PreTrainedTokenizerBase, split: str) -> Path:
    """The cache of a split, named by its text (the corpus' fingerprint) and by what the tokenizer does."""
    identity = f"{FORMAT} {fingerprint} {split} {markers(tokenizer)} {tokenizer_fingerprint(tokenizer)}"
    return default_cache() / "tokens" / hash_text(identity).hex()


def markers(tokenizer: PreTrainedTokenizerBase) -> tuple[TokenId, TokenId]:
    """The ids of the marker before a document and of the one after it."""
    end = next(i for i in (tokenizer.eos_token_id, tokenizer.sep_token_id, tokenizer.bos_token_id) if i is not None)
    return (end if tokenizer.bos_token_id is None else tokenizer.bos_token_id), end


def tokenize_documents(
    documents: Iterable[str],
    *,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    count_words: bool = False,
    cleaned: Mapping[str, Mapping[str, int]] | None = None,  # filled as documents are read, kept with them
    name: str = "text",  # in the progress bar and in errors
) -> TokenStream:
    """Tokenize documents into `folder`, or open what stands there already without reading a document.

    Memory grows by 24 bytes a document: text is read by one thread while another tokenizes, some megabytes at a time.
    A folder that is damaged is made again (`hf_lm.files.fill_cache`). Raises ValueError if there are no documents.
    """

    def write(aside: Path) -> None:
        with tqdm(desc=f"tokenizing {name}", unit="B", unit_scale=True, delay=2, leave=False, disable=None) as bar:
            about = _write(documents, tokenizer, aside, count_words, bar, name)
        about["cleaned"] = {source: dict(counts) for source, counts in (cleaned or {}).items()}
        (aside / "stream.json").write_text(json.dumps(about))

    fill_cache(folder, write)
    return _open(folder)


def _write(
    documents: Iterable[str], tokenizer: PreTrainedTokenizerBase, folder: Path, count_words: bool, bar: tqdm, name: str
) -> dict[str, Any]:
    begin, end = markers(tokenizer)
    dtype = np.uint16 if len(tokenizer) <= 2**16 else np.uint32
    starts, sizes, words = array("q"), array("q"), array("q")
    position = 0
    with (folder / TOKENS).open("wb") as file:
        for batch in _read_ahead(batches(documents)):
            encoded = encode_documents(tokenizer, batch)
            out = []
            for text, ids in zip(batch, encoded, strict=True):
                starts.append(position)
                sizes.append(len(text.encode()))
                words.append(len(text.split()) if count_words else 0)
                out.append(begin)
                out += ids
                if begin != end:
                    out.append(end)
                position += len(ids) + 1 + (begin != end)
            np.asarray(out, dtype).tofile(file)
            bar.update(sum(sizes[-len(batch) :]))
        if begin == end and starts:
            np.asarray([end], dtype).tofile(file)
    if not starts:
        raise ValueError(f"there are no documents to tokenize in {name}.")
    for name, values in (("starts", starts), ("bytes", sizes), ("words", words)):
        np.save(folder / f"{name}.npy", np.asarray(values, np.int64))
    return {"dtype": np.dtype(dtype).name, "begin": begin, "end": end}


def _open(folder: Path) -> TokenStream:
    about = json.loads((folder / "stream.json").read_text())
    tokens = np.memmap(folder / TOKENS, about["dtype"], mode="r")
    arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("starts", "bytes", "words")}
    return TokenStream(tokens, **arrays, begin=about["begin"], end=about["end"], cleaned=about["cleaned"])


def batches(documents: Iterable[str], *, characters: int = 0) -> Iterator[list[str]]:
    """As many documents at a time as together have so many characters, 0 for BATCH, or more."""
    batch, size = [], 0
    for text in documents:
        batch.append(text)
        size += len(text)
        if size >= (characters or BATCH):
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _read_ahead(some: Iterator[list[str]]) -> Iterator[list[str]]:
    """Read the next batch in a thread while the current one is tokenized, which holds no Python lock."""

    def begin() -> queue.Queue:
        ready: queue.Queue = queue.Queue()

        def read() -> None:
            try:
                ready.put(next(some, None))
            except BaseException as error:  # raised again where it is read
                ready.put(error)

        threading.Thread(target=read, daemon=True).start()  # a reader that hangs keeps no program from ending
        return ready

    ahead = begin()
    while (batch := ahead.get()) is not None:
        if isinstance(batch, BaseException):
            raise batch
        ahead = begin()
        yield batch


@dataclass(frozen=True)
class _Parts:
    """A stream whose documents are in another order: part k has the tokens from `sources[k]` on, and begins at
    `begins[k]` of the new stream. The marker that ends the whole stream is a part of its own, the last one."""

    tokens: np.ndarray
    sources: np.ndarray  # (parts,)
    begins: np.ndarray  # (parts + 1,): the last is the end of the stream
    skipped: int  # tokens before the first block

    @classmethod
    def shuffled(cls, stream: TokenStream, block_size: int, seed: tuple[int, int]) -> "_Parts":
        random = np.random.default_rng(seed)
        lengths = np.diff(stream.starts, append=stream.total - (stream.begin == stream.end))
        order = random.permutation(len(stream))
        sources = np.asarray(stream.starts)[order]
        lengths = lengths[order]
        if stream.begin == stream.end:  # the stream then ends with a marker that begins no document
            sources, lengths = np.append(sources, stream.total - 1), np.append(lengths, 1)
        begins = np.concatenate([[0], np.cumsum(lengths)])
        return cls(stream.tokens, sources, begins, int(random.integers(stream.total % block_size + 1)))

    def read(self, place: slice) -> np.ndarray:
        at, stop = place.start + self.skipped, place.stop + self.skipped
        k = int(np.searchsorted(self.begins, at, side="right")) - 1
        pieces = []
        while at < stop:
            end = min(stop, self.begins[k + 1])
            source = self.sources[k] - self.begins[k]
            pieces.append(self.tokens[source + at : source + end])
            at, k = end, k + 1
        return np.concatenate(pieces)


class Blocks:
    """A token stream as a dataset of blocks of `block_size` tokens; the tail that fills no block is left out.

    A block is read from the memory-mapped stream when it is asked for. With `isolate` its `position_ids` restart at
    each document, which is what keeps documents apart in the model. The first epoch has the documents in the order of
    the stream; `start_epoch` puts them in another order. With `window`, epoch n has the blocks of the stream
    `window(n)` instead, as many as the first one: of a longer one the last are left out, of a shorter one some come
    twice; `waits()` says whether the next one is still being read. Raises ValueError if there is not one block.
    """

    def __init__(
        self,
        stream: TokenStream,
        *,
        block_size: int,
        isolate: bool,
        window: Callable[[int], TokenStream] | None = None,
        waits: Callable[[], bool] = bool,  # never
    ) -> None:
        if stream.total < block_size:
            raise ValueError(
                f"the training text has {stream.total} tokens, fewer than one block of {block_size}: give more text "
                "or a smaller --block_size."
            )
        self.stream, self.block_size, self.isolate, self.window = stream, block_size, isolate, window
        self.waits = waits
        self.count = stream.total // block_size
        self._parts: _Parts | None = None  # of the epoch's order; None: that of the stream

    def start_epoch(self, epoch: int, *, seed: int) -> None:
        """Put the documents in the order of an epoch, and cut their stream into blocks again.

        The order depends on `seed` and `epoch` alone, so a resumed run has it again; epoch 0 has that of the stream.
        As many tokens as fill no block are left out, before the first block or after the last one, so that a single
        document is cut elsewhere too. Takes 24 bytes of memory a document.
        """
        if self.window:
            self.stream = self.window(epoch)
        elif epoch:
            self._parts = _Parts.shuffled(self.stream, self.block_size, (seed, epoch))
        else:
            self._parts = None

    def __getstate__(self) -> dict[str, Any]:
        """For workers that are not forked: they open the tokens themselves, and begin no epoch."""
        parts = None if self._parts is None else replace(self._parts, tokens=np.zeros(0, np.uint16))
        return vars(self) | {"window": None, "waits": bool, "_parts": parts}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        if self._parts is not None:
            self._parts = replace(self._parts, tokens=self.stream.tokens)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> dict[str, Any]:
        if not 0 <= i < len(self):  # ends a loop over the blocks
            raise IndexError(f"block {i} of {len(self)}")
        return self.__getitems__([i])[0]

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        import torch

        size, there = self.block_size, self.stream.total // self.block_size
        read = self.stream.tokens.__getitem__ if self._parts is None else self._parts.read
        ids = np.stack([read(slice(i % there * size, (i % there + 1) * size)) for i in indices]).astype(np.int64)
        features = [{"input_ids": row} for row in torch.from_numpy(ids)]
        if self.isolate:
            places = np.arange(size)
            begins = np.where(ids == self.stream.begin, places, 0)
            positions = places - np.maximum.accumulate(begins, axis=1)
            for feature, row in zip(features, torch.from_numpy(positions), strict=True):
                feature["position_ids"] = row
        return features


def collate_blocks(features: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Stack blocks into (batch, time); every token is a label. No attention mask: with one, packed documents leak."""
    import torch

    batch = {
        key: torch.stack([f[key] for f in features]) for key in ("input_ids", "position_ids") if key in features[0]
    }
    return batch | {"labels": batch["input_ids"]}


def fill_blocks(lengths: Sequence[int], block_size: int) -> list[list[int]]:
    """Rows of the given lengths put into blocks of at most `block_size` tokens, whole: best fit, longest first."""
    blocks: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # (room that is left, block), sorted
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        at = bisect.bisect_left(rooms, (lengths[i], -1))
        room, block = rooms.pop(at) if at < len(rooms) else (block_size, len(blocks))
        if block == len(blocks):
            blocks.append([])
        blocks[block].append(i)
        bisect.insort(rooms, (room - lengths[i], block))
    return blocks
