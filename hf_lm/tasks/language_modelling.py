"""Causal language modelling: documents packed into blocks, every token predicted from those before it."""

import atexit
import contextlib
import copy
import lzma
import shutil
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Self, cast

import torch
from accelerate import Accelerator, PartialState
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from hf_lm import dry_run
from hf_lm.arguments import TrainingArguments
from hf_lm.data.batches import Feature, TokenId
from hf_lm.data.packing import Blocks, TokenStream, cache_folder, collate_blocks, tokenize_documents
from hf_lm.data.reading import until_exit
from hf_lm.data.scripts import languages_of, script_shares
from hf_lm.data.sources import Corpus
from hf_lm.evaluation.completions import write
from hf_lm.evaluation.leakage import leaked_share
from hf_lm.evaluation.perplexity import Likelihood, score_documents, unigram_likelihood, windows
from hf_lm.models.configuration import context_length
from hf_lm.models.parts import embedding_rows
from hf_lm.tasks import proofs
from hf_lm.tasks.length import choose_length
from hf_lm.tasks.losses import next_token_loss
from hf_lm.tasks.proofs import Proof, ProvenTrainer
from hf_lm.tasks.rendering import Part, render_causal
from hf_lm.tokenization.tokenizer import INCOMPLETE, encode_documents, measure_tokenizer

SEEN_BY_LZMA = 2**24  # bytes of training text that the compressor reads: more would take longer than it tells,
PER_TOKEN = 16  # and after a short run this many for each token that it trained on

LEAST = 2**15  # tokens of a split that are scored after the shortest run too, where it has as many
EXCERPT = 32  # documents


class LanguageModelling:
    """What `fit` needs to train and measure a causal model on a corpus.

    `block_size`: tokens in a block; 0 takes what a model of `config` can see, 1,024 at most. `packing`: "isolate"
    keeps the documents of a block from seeing each other, "concatenate" does not. `eval_stride`: tokens that an
    evaluation window moves by; 0 means half a block, or a whole one where half blocks read more tokens of the held-out
    splits than `training_tokens`, which training will read. Of a split that has more than half of these, and more than
    LEAST, a sample of its documents is scored. Tokenizing happens here, once per run and on the main process first; a
    second run finds the cache. Of a streamed corpus the first window is tokenized here, and each other one while the
    one before is trained on.
    """

    recipe, kind = "pretrain", "causal language model"
    main_metric, greater_is_better = "bits_per_byte", False
    auto_class, pipeline_tag = "AutoModelForCausalLM", "text-generation"
    unit = "documents"  # that the intervals are over
    loss = staticmethod(next_token_loss)
    shifts_labels = True
    warnings: Sequence[str] = ()
    max_length = 0  # blocks are not padded
    report_seconds = 8.0  # samples, and a general compressor over the text
    collate = staticmethod(collate_blocks)

    def __init__(
        self,
        corpus: Corpus,
        tokenizer: PreTrainedTokenizerBase,
        *,
        block_size: int = 0,
        config: PreTrainedConfig | None = None,
        packing: Literal["isolate", "concatenate"] = "isolate",
        eval_stride: int = 0,
        training_tokens: int = 0,  # 0: not known
    ) -> None:
        block_size = block_size or min(1024, (config and context_length(config)) or 128)
        self.corpus, self.tokenizer, self.block_size = corpus, tokenizer, block_size
        self.splits, self.fingerprint, self.context = corpus.splits, corpus.fingerprint, block_size
        self.isolate = packing == "isolate"
        self._stride = eval_stride
        next(windows(2, block_size=block_size, stride=eval_stride or 1))  # a wrong stride is said now, not hours later
        self.streams = {}
        for split in self.splits:
            if split == "train" and corpus.stream:
                self.streams[split] = corpus.stream(tokenizer)
                continue
            folder = cache_folder(corpus.fingerprint, tokenizer, split)
            documents, folder = dry_run.sampled(corpus.documents(split), folder, split=split, size=corpus.size)
            self.streams[split] = tokenize_documents(
                documents,
                tokenizer=tokenizer,
                folder=folder,
                count_words=split != "train",
                cleaned=corpus.cleaned,
                name=split,
            )
        self.warnings = self._large_shares()
        self._limit_evaluation(training_tokens)
        self.windows: list[dict[str, Any]] = []  # what was read of a streamed corpus since the last start
        self._reading: threading.Thread | None = None  # the next one
        waits = lambda: self._reading is not None and self._reading.is_alive()  # noqa: E731
        options: dict[str, Any] = {"window": self._window, "waits": waits} if corpus.window else {}
        self.train_dataset = Blocks(self.streams["train"], block_size=block_size, isolate=self.isolate, **options)

    def _large_shares(self) -> list[str]:
        """Of splits that were cut from train by document and are far larger than was asked for: documents are few."""
        streams = self.streams.values()
        total, documents = sum(stream.total for stream in streams), sum(map(len, streams))
        large = [
            f"{split} holds {stream.total / total:.0%} of the text, in {len(stream)} of {documents} documents"
            for split, stream in self.streams.items()
            if self.corpus.origins.get(split) == "cut from train" and stream.total > 0.15 * total
        ]
        advice = "give files called validation and test, or say with --document_start where documents begin"
        return [f"{sentence}: {advice}" for sentence in large]

    def _window(self, number: int) -> TokenStream:
        """The tokens of a window of the corpus, whose leakage is told. Meanwhile the next one is read.

        The cache keeps the first and the last three: the one before the newest is that of a checkpoint.
        """
        state = PartialState()
        if self._reading is not None:
            self._reading.join()
        stream = self._tokenize_window(number) if number else self.streams["train"]
        if number and state.is_main_process:
            leakage = self._leakage(stream)
            self.windows.append({"window": number, "tokens": int(stream.total), "leakage": leakage.largest_difference})
            if not leakage.passed:
                print(f"window {number}: {leakage.said}", file=sys.stderr)
        trained_on = (number + 1) * len(self.train_dataset) * self.block_size
        if state.is_local_main_process and trained_on < self.training_tokens:
            self._reading = threading.Thread(target=self._read_ahead, args=(number + 1,), daemon=True)
            self._reading.start()
            atexit.register(self._reading.join, 5)  # `until_exit` ends it, unless it waits for the network
        return stream

    def _tokenize_window(self, number: int) -> TokenStream:
        def folder(k: int) -> Path:
            return cache_folder(f"{self.fingerprint} {k}", self.tokenizer, "train")

        read = cast(Callable[[int], Iterator[str]], self.corpus.window)
        documents = until_exit(read(number))
        name = f"window {number}"
        stream = tokenize_documents(documents, tokenizer=self.tokenizer, folder=folder(number), name=name)
        if number > 3:
            shutil.rmtree(folder(number - 3), ignore_errors=True)
        return stream

    def _read_ahead(self, number: int) -> None:
        with contextlib.suppress(Exception):  # whoever needs the window meets it again
            self._tokenize_window(number)

    def configure_inference(self, model: PreTrainedModel) -> None:
        """A language model needs to know nothing more."""

    def _leakage(self, train: TokenStream) -> Proof:
        held_out = {split: other for split, other in self.streams.items() if split != "train"}
        return proofs.leakage({split: leaked_share(train, other) for split, other in held_out.items()})

    def choose_length(self, args: TrainingArguments, model: nn.Module, *, built_in: bool = False) -> None:
        """Choose the steps of a training that `args` leave open (hf_lm.tasks.length), and what is scored after it.

        A dry run, which may have read the beginning of the text, goes by all its bytes, or by the tokens it is for.
        """
        stream = self.streams["train"]
        tokens, planned = 0 if self.corpus.window else stream.total, dry_run.mode().tokens
        if planned:  # the built-in text stands for another
            tokens, built_in = planned, False
        elif dry_run.active() and (read := int(stream.bytes.sum())):
            tokens = int(tokens * max(1.0, self.corpus.size / read))
        length = {"tokens": tokens, "block_size": self.block_size, "built_in": built_in, "planned": dry_run.active()}
        self._limit_evaluation(choose_length(args, model, **length))

    def _limit_evaluation(self, training_tokens: int) -> None:
        self.training_tokens = training_tokens
        self.eval_stride = self._stride or max(1, self.block_size // 2)
        most = max(LEAST, training_tokens // 2) if training_tokens else sys.maxsize
        self.scored = {split: stream.sample(most) for split, stream in self.streams.items() if split != "train"}
        sampled = any(len(part) < len(self.streams[split]) for split, part in self.scored.items())
        self.eval_tokens = most if sampled else 0
        read = sum(map(self.tokens_measured, self.scored))
        if not self._stride and 0 < training_tokens < read:
            self.eval_stride = self.block_size

    def measure(self, model: PreTrainedModel, split: str, accelerator: Accelerator | None = None) -> Likelihood:
        return score_documents(
            model, self.scored[split], block_size=self.block_size, stride=self.eval_stride, accelerator=accelerator
        )

    def baseline(self, split: str) -> tuple[str, Likelihood]:
        """The name of the trivial model and its likelihood on a split."""
        stream = unigram_likelihood(self.streams["train"], self.scored[split], vocab_size=len(self.tokenizer))
        return "unigram", stream

    def texts(self, split: str, max_characters: int = 50_000) -> list[str]:
        """The first documents of a split, as far as `max_characters` reach."""
        texts, total = [], 0
        for text in self.corpus.documents(split):
            texts.append(text[: max_characters - total])
            total += len(texts[-1])
            if total >= max_characters:
                break
        return texts

    def proofs_before(self, trainer: ProvenTrainer) -> dict[str, Callable[[], Proof]]:
        stream, first = self.streams["train"], self._first_blocks()
        return {
            "leakage": lambda: self._leakage(stream),
            **self.data_proofs(trainer.model),
            "packing_isolation": lambda: proofs.packing_isolation(
                trainer.model, collate_blocks, self._block_of_two(), isolate=self.isolate
            ),
            "loss_invariance": lambda: proofs.loss_invariance(trainer, first),
            "learnable": lambda: proofs.learnable(trainer, first[:1]),
        }

    def data_proofs(self, model: PreTrainedModel) -> dict[str, Callable[[], Proof]]:
        stream = self.streams["train"]
        return {
            "tokenizer_round_trip": lambda: proofs.tokenizer_round_trip(
                self.tokenizer,
                self.texts("validation"),
                lambda texts: encode_documents(self.tokenizer, texts),
                rows=embedding_rows(model),
                lossless=self.tokenizer.unk_token_id is None,
            ),
            "label_coverage": lambda: proofs.label_coverage(
                collate_blocks, self._first_blocks(), stream.tokens, end=stream.end, pad=self.tokenizer.pad_token_id
            ),
        }

    def _first_blocks(self) -> list[dict[str, Any]]:
        return [self.train_dataset[i] for i in range(min(4, len(self.train_dataset)))]

    def probe(self) -> dict[str, torch.Tensor]:
        """Inputs of the model on which its logits are compared: the start of a document, (1, tokens)."""
        ids = self.streams["validation"].document(0)[: min(64, self.block_size)]
        return {"input_ids": torch.from_numpy(ids.astype("int64"))[None]}

    def proofs_after(self, model: PreTrainedModel, folder: Path, adapter: Path | None) -> dict[str, proofs.Begun]:
        texts = self.texts("validation", 2_000)
        encoded = encode_documents(self.tokenizer, texts)

        def load_back(saved: Path) -> Callable[[], Proof]:
            return proofs.load_back(saved, model, self.probe(), texts, encoded, auto_class=self.auto_class)

        found = {"load_back": lambda: load_back(folder)}
        return found | ({"adapter_load_back": lambda: load_back(adapter)} if adapter not in (None, folder) else {})

    def _block_of_two(self) -> dict[str, Any]:
        """A block of at most 512 tokens in which the second half of the room belongs to a second document."""
        stream, half = self.streams["train"], min(self.block_size, 512) // 2
        long = [stream.document(i)[:half] for i in islice(range(len(stream)), 200)]
        one, two = sorted(long, key=len)[-2:] if len(long) > 1 else (long[0], long[0])
        ids = torch.from_numpy(one.astype("int64")), torch.from_numpy(two.astype("int64"))
        positions = torch.cat([torch.arange(len(part)) for part in ids])
        feature = {"input_ids": torch.cat(ids), "starts": [len(one)]}
        return feature | ({"position_ids": positions} if self.isolate else {})

    def predictions(self, measured: Mapping[str, Likelihood]) -> Iterable[dict[str, Any]]:
        """The likelihood of each document of the last split, with which two runs are compared."""
        *_, (split, last) = measured.items()
        return ({"split": split, **row} for row in last.examples())

    # What planning and inspection ask

    def train_lengths(self) -> list[int]:
        return [self.block_size] * len(self.train_dataset)

    def tokens_measured(self, split: str) -> int:
        windows = self.block_size / self.eval_stride  # a token stands in that many windows of a long document
        stream = self.scored[split]
        long = float((stream.lengths > self.block_size).mean()) if len(stream) else 0.0
        return int(stream.total * (1 + (windows - 1) * long))

    def excerpt(self, split: str) -> Self:
        task, stream = copy.copy(self), self.scored[split]
        task.scored = self.scored | {split: stream.take(range(min(EXCERPT, len(stream))))}
        return task

    def render(self, feature: Feature) -> list[Part]:
        row = {key: value[0].tolist() for key, value in self.collate([feature]).items()}
        return render_causal(self.tokenizer, row, marker=self.streams["train"].begin)

    def report(self, measured: Mapping[str, Likelihood]) -> dict[str, Any]:
        """The report's parts about data, tokenizer and yardsticks."""
        data = self.corpus.report() | {"eval_stride": self.eval_stride}
        if self.eval_tokens:
            data["eval_tokens"] = self.eval_tokens
        data["scripts"] = script_shares(self.texts("train"))
        data["languages"] = self.corpus.languages or languages_of(data["scripts"])
        for split, stream in self.streams.items():
            about = {"documents": len(stream), "tokens": int(stream.total)}
            about |= {"bytes": size} if (size := int(stream.bytes.sum())) else {}  # not known of token files
            about |= {"scored": scored} if (scored := len(self.scored.get(split, stream))) < len(stream) else {}
            data[split] = about
        if self.windows:
            data["windows"] = self.windows
        cleaned = {source: counts for stream in self.streams.values() for source, counts in stream.cleaned.items()}
        data["cleaned"] = dict(sum(map(Counter, cleaned.values()), Counter()))
        readers = self.corpus.readers | self.corpus.groups
        measured = measure_tokenizer(self.tokenizer, {name: read() for name, read in readers.items()})
        return {"data": data, "tokenizer": measured, "yardsticks": self._yardsticks()}

    def _yardsticks(self) -> dict[str, float]:
        """Bits per byte of the test text under a general compressor, alone and after it has read training text.

        Where the second is far below the first, the test text repeats the training text, and a low number of the
        model's own is worth less.
        """
        test = "\n".join(self.texts("test" if "test" in self.streams else "validation", 2**20)).encode()
        trained_on = PER_TOKEN * self.training_tokens or SEEN_BY_LZMA
        train = "\n".join(self.texts("train", min(SEEN_BY_LZMA, max(2**20, trained_on)))).encode()
        with ThreadPoolExecutor() as pool:  # the compressor leaves Python to others
            both, before, alone = map(len, pool.map(lzma.compress, (train + test, train, test)))
        return {"lzma": 8 * alone / len(test), "lzma_with_train": 8 * (both - before) / len(test)}

    def samples(self, model: PreTrainedModel, *, count: int = 2, max_new_tokens: int = 80) -> list[dict[str, str]]:
        """Continuations of the first words of held-out documents, drawn at temperature 0.8 with a fixed seed."""
        stream = self.streams["test" if "test" in self.streams else "validation"]
        longest = min(13, self.block_size // 2)
        documents = [i * len(stream) // count for i in range(min(count, len(stream)))]
        pad: TokenId = stream.end if self.tokenizer.pad_token_id is None else self.tokenizer.pad_token_id
        room = min(max_new_tokens, self.block_size - longest)

        def text(ids: list[int]) -> str:
            """With <unk>, where there is one."""
            return str(self.tokenizer.decode([i for i in ids if i not in (stream.begin, stream.end, pad)]))

        def start(ids: list[int]) -> list[int]:
            """Without the last tokens where these are a part of a character."""
            ends = range(len(ids), 1, -1)
            return ids[: next((end for end in ends if not text(ids[:end]).endswith(INCOMPLETE)), None)]

        prompts = [start(stream.document(i)[:longest].tolist()) for i in documents]
        written = write(model, prompts, pad_id=pad, ends={stream.end}, max_new_tokens=room, temperature=0.8)
        return [
            {"prompt": text(prompt), "continuation": text(ids)} for prompt, ids in zip(prompts, written, strict=True)
        ]
