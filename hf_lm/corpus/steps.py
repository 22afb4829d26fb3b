"""Steps of a pipeline that datatrove does not have: counting, words, scripts, held-out text, leakage, our tokens."""

# datatrove comes with the extra `corpus`.
# pyright: reportMissingImports=false

import itertools
import os
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import numpy as np
from tokenizers.processors import TemplateProcessing

from hf_lm.data.overlap import UNSPACED
from hf_lm.data.packing import markers
from hf_lm.data.paths import find_files
from hf_lm.data.reading import beginning, read_documents
from hf_lm.data.scripts import main_script
from hf_lm.data.sources import load_corpus
from hf_lm.evaluation.leakage import hash_runs, holding_runs
from hf_lm.files import hash_text
from hf_lm.parsing.suggestions import did_you_mean
from hf_lm.tokenization.tokenizer import encode_documents, load_tokenizer, train_bpe

try:
    from datatrove.data import Document
    from datatrove.executor import LocalPipelineExecutor, RayPipelineExecutor, SlurmPipelineExecutor
    from datatrove.pipeline.base import PipelineStep
    from datatrove.pipeline.dedup import MinhashDedupSignature
    from datatrove.pipeline.filters import (
        FineWebQualityFilter,
        GopherQualityFilter,
        GopherRepetitionFilter,
        LanguageFilter,
    )
    from datatrove.pipeline.filters.base_filter import BaseFilter
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.readers.base import BaseDiskReader
    from datatrove.pipeline.tokens import DocumentTokenizer
    from datatrove.pipeline.writers import JsonlWriter
    from datatrove.utils.logging import logger
    from datatrove.utils.word_tokenizers import WhitespaceTokenizer
except ImportError as error:
    raise ImportError(f"recipes/corpus.py needs datatrove ({error}): pip install 'hf-lm[corpus]'") from None

EXECUTORS = {"local": LocalPipelineExecutor, "slurm": SlurmPipelineExecutor, "ray": RayPipelineExecutor}
TRAINED_ON = 32_000_000  # bytes of text that a tokenizer is trained on
HELD_OUT = 4_000_000  # bytes of compressed text in each held-out split at most, about 10 MB of text
BATCH = 64  # documents that are tokenized at a time
LETTERS = rf"[^\W{UNSPACED[1:-1]}]+"
WORD = re.compile(rf"{UNSPACED}|(?<=\w)['’]{LETTERS}|{LETTERS}|--+|\.\.+|[^\w\s]")  # don't is two: don and 't
ENDINGS = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")


def _without_traceback(record: dict[str, Any]) -> None:
    """Leave out of datatrove's log what a user can do nothing with: where an error of his files was raised."""
    if isinstance(record["exception"] and record["exception"].value, ValueError | OSError):
        record["exception"] = None


logger.configure(patcher=cast(Any, _without_traceback))  # also in the processes of tasks, which import this


class DemoReader(PipelineStep):
    """The built-in text; the first task reads it."""

    name, type = "demo", "READER"

    def run(self, data: object = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        corpus = load_corpus("demo")
        texts = itertools.chain.from_iterable(corpus.documents(split) for split in corpus.splits) if rank == 0 else ()
        yield from (Document(text, str(i)) for i, text in enumerate(texts))


def input_files(dataset: str) -> dict[str, int]:
    """The files of a folder or of the Hub (`hf://datasets/...`) that can be read, with bytes; {} for the demo.

    Raises FileNotFoundError or ValueError in one line.
    """
    from datatrove.io import get_datafolder

    if dataset == "demo":
        return {}
    there = get_datafolder(dataset).find("", detail=True) if "://" in dataset or Path(dataset).is_dir() else {}
    found = cast(dict[str, dict[str, Any]], there)
    files = {name: info.get("size") or 0 for name, info in sorted(found.items()) if name.endswith(ENDINGS)}
    if not files:
        raise FileNotFoundError(f"--dataset {dataset} is no folder with files that end in {' '.join(ENDINGS)}.")
    if len({name.endswith(".parquet") for name in files}) > 1:
        raise ValueError(f"--dataset {dataset} holds both .parquet and .jsonl files: give a folder of one kind.")
    return files


class Reader(BaseDiskReader):
    """Documents as every recipe reads them: what can be mended is mended and counted, the rest ends the run.

    datatrove's readers pass over a row that they cannot read, and over all of a file after a byte that is no UTF-8.
    """

    name = "reader"

    def read_file(self, filepath: str) -> Iterator[Document]:
        if not filepath.endswith(ENDINGS):
            return
        cleaned: Counter = Counter()
        with self._here(filepath) as path:
            texts = read_documents(path, text_column=self.text_key, document_start=None, cleaned=cleaned)
            for number in itertools.count():
                with self.track_time():
                    text = next(texts, None)
                if text is None:
                    break
                yield Document(text, f"{filepath}/{number}")
        for what, count in cleaned.items():
            self.stat_update(f"cleaned_{what}", value=count)

    @contextmanager
    def _here(self, filepath: str) -> Iterator[Path]:
        """The file on this machine: one at an address is copied for as long as it is read."""
        if self.data_folder.is_local():
            yield Path(cast(str, self.data_folder.resolve_paths(filepath)))
            return
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / Path(filepath).name
            self.data_folder.get_file(filepath, str(path))
            yield path


def read(dataset: str, text_column: str) -> PipelineStep:
    """The reader of --dataset, whose files are shared out to the tasks."""
    if dataset == "demo":
        return DemoReader()
    input_files(dataset)  # refuses what holds none
    return Reader(dataset, text_key=text_column)


class Stored(JsonlReader):
    """What an earlier stage wrote. Raises ValueError where that is nothing."""

    def run(self, data: object = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        if not Path(self.data_folder.path).is_dir():
            raise ValueError(
                "no document is left: --dataset holds no text, or --filters, --scripts, --languages and --held_out "
                "take it all."
            )
        yield from super().run(data, rank, world_size)


def stored(folder: Path) -> Stored:
    """The documents that an earlier stage wrote."""
    return Stored(str(folder))


def write(folder: Path, *, compression: str = "zstd") -> JsonlWriter:
    """Write the text of documents, a file a task."""
    return JsonlWriter(str(folder), compression=compression, adapter=_text_alone)


def _text_alone(_: JsonlWriter, document: Document) -> dict[str, str]:
    return {"text": document.text, "id": document.id}


class Count(PipelineStep):
    """Count documents and bytes that come by; with `kinds` also their main script, and language where it is known."""

    type = "COUNT"

    def __init__(self, name: str, *, kinds: bool = False) -> None:
        self.name, self.kinds = name, kinds
        super().__init__()

    def run(self, data: Iterable[Document], rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        for document in data:
            self.stat_update("documents")
            self.stat_update("bytes", value=len(document.text.encode("utf-8", "surrogatepass")))
            if self.kinds:
                self.stat_update(f"script_{main_script(document.text)}")
                if language := document.metadata.get("language"):
                    self.stat_update(f"language_{language}")
            yield document


class Words(WhitespaceTokenizer):
    """What datatrove's filters and MinHash take for words, by one regular expression; a Chinese character is one.

    datatrove's own are spaCy's English rules, which take most of the time of a corpus. The filters agree on 98 %
    of documents of novels, whose dialogues are at a limit of Gopher's: a fifth of the words without a letter.
    """

    def word_tokenize(self, text: str) -> list[str]:
        return WORD.findall(text)


WORDS = cast(Any, Words())  # one for all steps, which share the words of a document


class ScriptFilter(BaseFilter):
    """Keep documents most of whose letters are of one of these Unicode scripts: Latin, Han, Cyrillic."""

    name = "script"

    def __init__(self, scripts: Sequence[str]) -> None:
        super().__init__()
        self.scripts = set(scripts)

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        script = main_script(doc.text)
        return script in self.scripts or (False, f"script_{script or 'none'}")


def filter_names(asked: Sequence[str], dataset: str) -> list[str]:
    """The filters of --filters. Without one gopher and fineweb, but for the demo: they drop its documentation."""
    prose = [] if dataset == "demo" else ["gopher", "fineweb"]
    return [name for name in asked or prose if name != "none"]


def quality_filter(name: str) -> BaseFilter:
    """datatrove's filter of that name. Raises ValueError for another."""
    known = {
        "gopher": GopherQualityFilter,
        "gopher_repetition": GopherRepetitionFilter,
        "fineweb": FineWebQualityFilter,
    }
    if name not in known:
        raise ValueError(f"--filters {name}: there are {', '.join(known)}.{did_you_mean(name, known)}")
    return known[name](language=WORDS)


def signatures(folder: Path) -> MinhashDedupSignature:
    """datatrove's MinHash of the 5-grams of words of each document, 14 buckets of 8."""
    return MinhashDedupSignature(str(folder), language=WORDS)


def language_filter(languages: Sequence[str], model: str) -> LanguageFilter:
    """datatrove's language filter with the fastText model in a file; without languages it labels and keeps all.

    Raises FileNotFoundError where there is no such file: nothing is downloaded.
    """
    if not Path(model).is_file():
        raise FileNotFoundError(
            f"--language_model: there is no file {model!r}: give a fastText model such as lid.176.bin or GlotLID's."
        )
    step = LanguageFilter(list(languages) or None, label_only=not languages)
    cast(Any, step.model).MODEL_URL = str(Path(model).resolve())
    return step


class HoldOut(PipelineStep):
    """Write a share of the documents as validation, as many as test, and pass the others on.

    The hash of a text decides. Documents that differ little were reduced to one before, so a held-out document has no
    near copy in train. Of a large corpus the share is less: each task that removes leakage keeps the runs of both
    splits in memory, so a split takes HELD_OUT of the bytes that the files of `texts`, all filtered text, have.
    """

    name, type = "held out", "HOLD OUT"

    def __init__(self, folder: Path, share: float, texts: Path) -> None:
        super().__init__()
        if not 0 < share < 0.5:
            raise ValueError(f"--held_out {share}: give a share above 0 and below 0.5, taken twice.")
        self.folder, self.share, self.texts = folder, share, texts

    def run(self, data: Iterable[Document], rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        share = min(self.share, HELD_OUT / max(1, sum(file.stat().st_size for file in self.texts.glob("*"))))
        with (
            write(self.folder / "validation", compression="gzip") as first,
            write(self.folder / "test", compression="gzip") as second,
        ):
            for document in data:
                place = int.from_bytes(hash_text(document.text), "big") / 2**128
                if place >= 2 * share:
                    yield document
                    continue
                split, writer = ("validation", first) if place < share else ("test", second)
                self.stat_update(f"{split}_documents")
                self.stat_update(f"{split}_bytes", value=len(document.text.encode("utf-8", "surrogatepass")))
                writer.write(document, rank)


class SaveTokenizer(PipelineStep):
    """Save the tokenizer that is named, or train one on documents spread over all files. One task."""

    name, type = "tokenizer", "TOKENIZER"

    def __init__(self, texts: Path, folder: Path, name: str, vocab_size: int) -> None:
        super().__init__()
        self.texts, self.folder, self.tokenizer, self.vocab_size = texts, folder, name, vocab_size

    def run(self, data: object = None, rank: int = 0, world_size: int = 1) -> None:
        if self.tokenizer != "bpe":
            load_tokenizer(self.tokenizer).save_pretrained(self.folder)
            return
        files = sorted(self.texts.glob("*.jsonl*"))
        if not files:
            raise ValueError("no document passed the filters, so there is nothing to tokenize: see --filters.")
        read = JsonlReader(str(self.texts)).read_file
        of_files = ((document.text for document in read(file.name)) for file in files)
        texts = itertools.chain.from_iterable(beginning(text, TRAINED_ON // len(files)) for text in of_files)
        train_bpe(texts, vocab_size=self.vocab_size, max_bytes=TRAINED_ON).save_pretrained(self.folder)


def evaluation_files(names: Sequence[str]) -> list[Path]:
    """The files of --evaluation, each name a path or a glob. Raises FileNotFoundError for one that leads nowhere."""
    files: list[Path] = []
    for name in names:
        try:
            found = find_files(name)
        except FileNotFoundError:
            found = None
        if not found:
            raise FileNotFoundError(f"--evaluation: there is no file or folder {name} that can be read.")
        files += found
    return files


class LeakageFilter(BaseFilter):
    """Drop documents that hold a run of `run` tokens of held-out text: what the proof `leakage` of a run looks for.

    `held_out` are folders that `HoldOut` writes, `evaluation` paths or globs of other documents. Runs are hashed as
    hf_lm.evaluation.leakage does, so that the proof finds nothing in what is left. Memory is 8 bytes a held-out token.
    Raises FileNotFoundError where one of `evaluation` is not there.
    """

    name = "leakage"

    def __init__(self, held_out: Sequence[Path], evaluation: Sequence[str], tokenizer: Path, *, run: int) -> None:
        super().__init__(batch_size=BATCH)
        files = evaluation_files(evaluation)
        self.held_out = (*map(str, held_out), *(str(path.resolve()) for path in files))
        self.tokenizer, self.run_length = str(tokenizer), run

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        return self.filter_batch([doc])[0]

    def filter_batch(self, batch: list[Document]) -> list[bool | tuple[bool, str]]:
        tokenizer, wanted = _held_out_runs(self.held_out, self.tokenizer, self.run_length)
        encoded = encode_documents(tokenizer, [document.text for document in batch])
        leaked = holding_runs(encoded, wanted, run=self.run_length)
        return [(False, "held_out_text") if found else True for found in leaked]


@lru_cache(1)  # of a process, whose tasks need the same
def _held_out_runs(held_out: tuple[str, ...], tokenizer_folder: str, run: int) -> tuple[Any, np.ndarray]:
    tokenizer = load_tokenizer(tokenizer_folder)
    hashes = bytearray()  # grows in place, where a list of arrays would be copied whole
    for source in filter(os.path.exists, held_out):  # a small corpus may have no document in test
        for path in find_files(source) or []:
            texts = read_documents(path, text_column="", document_start=None, cleaned=Counter())
            while batch := list(itertools.islice(texts, BATCH)):
                for ids in encode_documents(tokenizer, batch):
                    hashes += np.unique(hash_runs(np.array(ids), run)).tobytes()
    wanted = np.frombuffer(hashes, np.uint64)
    wanted.sort()
    return tokenizer, wanted


@lru_cache(1)  # of a process: what each of its tasks loads anew is never given back
def _tokenizer(folder: str) -> Any:
    """The tokenizer of a folder, which puts our markers around each text."""
    ours = load_tokenizer(folder)
    begin, end = markers(ours)
    tokenizer = cast(Any, ours).backend_tokenizer
    tokenizer.post_processor = TemplateProcessing(
        single="$A <END>" if begin == end else "<BEGIN> $A <END>",
        special_tokens=[("<BEGIN>", begin), ("<END>", end)],
    )
    tokenizer.encode_special_tokens = True
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


class Tokenize(DocumentTokenizer):
    """datatrove's tokenizer with our markers; a text that spells a special token is encoded as text.

    Batches of BATCH documents: the encodings of 500 take 130 MB, those of datatrove's 10,000 far more.
    """

    def __init__(self, output_folder: Path, tokenizer: Path, **options: Any) -> None:
        super().__init__(str(output_folder), str(tokenizer / "tokenizer.json"), batch_size=BATCH, **options)
        self.folder = tokenizer

    @property
    def tokenizer(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]
        return _tokenizer(str(self.folder))
