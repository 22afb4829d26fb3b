"""Tokenizers: train one on a corpus, load one by name, and measure how well it fits."""

import itertools
import json
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from hf_lm.files import default_cache, fill_cache, hash_text
from hf_lm.models.configuration import find_adapter, is_path, load_config, special_ids, unreachable, why
from hf_lm.models.target_tokenizer import find_target, has_target_tokenizer, set_target, target_tokenizer

END_OF_TEXT, PAD, UNKNOWN, END_OF_LINE = "<|endoftext|>", "<|pad|>", "<unk>", "<eol>"
MARKERS: dict[str, Any] = {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT, "pad_token": PAD}
MARKERS |= {"clean_up_tokenization_spaces": False}
INCOMPLETE = "\ufffd"  # what a character decodes to while some of its bytes are missing

# The words that byte-level BPE does not merge across. As GPT-2's, with three differences: a number has at most three
# digits (GPT-4's), a line end is apart from the word after it, and a word has a longest length, so that a line of a
# million letters is not one word. Chinese has no spaces: a word is at most four characters.
WORDS = (
    r"'(?:[sdmt]|ll|ve|re)| ?\p{Han}{1,4}| ?[[\p{L}\p{M}]&&\P{Han}]{1,32}| ?\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{M}\p{N}]{1,16}|[^\S\r\n]{0,32}[\r\n]{1,8}|\s{1,32}(?!\S)|\s{1,32}"
)
PreTokenizer = Literal["words", "gpt2"]  # of byte-level BPE: WORDS, or GPT-2's own, which llama.cpp knows


def train_bpe(
    texts: Iterable[str],
    *,
    vocab_size: int,
    pre_tokenizer: PreTokenizer = "words",
    min_frequency: int = 2,
    max_bytes: int = 32_000_000,
    max_document_bytes: int = 2**20,
) -> PreTrainedTokenizerFast:
    """Train byte-level BPE; any Unicode text is restored exactly from its ids.

    `pre_tokenizer` cuts text into the words that no merge crosses. "gpt2" has no longest word: a line of a million
    letters is one, and takes long.

    `vocab_size` includes `<|endoftext|>` (begin and end) and `<|pad|>`; text with few repetitions gives a smaller one.
    It reads the first `max_document_bytes` of each text and the first `max_bytes` of all texts: memory is bounded.
    `encode` adds no special token. Raises ValueError if there is no text or `vocab_size` is too small for 256 bytes.
    """
    if vocab_size < 258:
        raise ValueError(f"--vocab_size is {vocab_size}; byte-level BPE needs 258: 256 bytes and two special tokens.")
    backend = Tokenizer(models.BPE())
    if pre_tokenizer == "gpt2":
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=[END_OF_TEXT, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=32,
        show_progress=False,
    )
    backend.train_from_iterator(_some(texts, max_bytes, max_document_bytes), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, **MARKERS)


def train_word_level(
    texts: Iterable[str], *, min_frequency: int = 1, lowercase: bool = False
) -> PreTrainedTokenizerFast:
    """Train a word-level tokenizer: a word that occurs `min_frequency` times has an id, any other is `<unk>`.

    With `lowercase`, text is normalised like torchtext's basic_english (lower case, punctuation separated from words,
    quotes and colons dropped). Without, text is split at white space, for text that is already tokenised, such as
    WikiText. A line end is the token `<eol>`. Decoding does not restore the text exactly.
    """
    steps = [normalizers.Replace(special, UNKNOWN) for special in (END_OF_TEXT, PAD)]  # text cannot forge them
    if lowercase:
        steps += [normalizers.Lowercase(), normalizers.Replace("<br />", " ")]
        steps += [normalizers.Replace(Regex('["]'), ""), normalizers.Replace(Regex("[;:]"), " ")]
        steps += [normalizers.Replace(mark, f" {mark} ") for mark in ("'", ".", ",", "(", ")", "!", "?")]
    steps.append(normalizers.Replace("\n", f" {END_OF_LINE} "))
    backend = Tokenizer(models.WordLevel(unk_token=UNKNOWN))
    backend.normalizer = normalizers.Sequence(steps)
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    # A space before every word but the first; NUL is a prefix that no word has.
    backend.decoder = decoders.Sequence(
        [decoders.WordPiece(prefix="\0", cleanup=False), decoders.Replace(Regex(f" ?{END_OF_LINE}"), "\n")]
    )
    trainer = trainers.WordLevelTrainer(vocab_size=2**31, min_frequency=min_frequency, show_progress=False)
    backend.train_from_iterator(_some(texts, 2**40, 2**20), trainer)
    # The trainer lists a special token twice where it is a word of the text (WikiText is full of <unk>).
    first = [UNKNOWN, END_OF_TEXT, PAD, END_OF_LINE]
    vocabulary = backend.get_vocab()
    words = first + [word for word in sorted(vocabulary, key=vocabulary.__getitem__) if word not in first]
    backend.model = models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=UNKNOWN)
    backend.add_special_tokens([UNKNOWN, END_OF_TEXT, PAD])
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token=UNKNOWN, **MARKERS)


def _some(texts: Iterable[str], max_bytes: int, max_document_bytes: int) -> Iterator[str]:
    total = 0
    for text in texts:
        part = text[:max_document_bytes]
        total += len(part.encode())
        yield part
        if total >= max_bytes:
            return
    if not total:
        raise ValueError("there is no text to train a tokenizer on.")


class TrainingText(Protocol):
    """What a tokenizer is trained on: hf_lm.data.sources.Corpus, or anything with these."""

    source: str  # its name, printed
    fingerprint: str  # of its content: the key of the cache
    size: int  # bytes, about
    tokenizer: str  # folder of the one that wrote its tokens, where it is tokenized already; "" otherwise

    def documents(self, split: str) -> Iterator[str]: ...


def prepare_tokenizer(
    name: str,
    corpus: TrainingText,
    *,
    vocab_size: int,
    min_frequency: int,
    max_bytes: int,
    pre_tokenizer: PreTokenizer = "words",  # of bpe
    model: str = "",
) -> PreTrainedTokenizerBase:
    """The tokenizer that `--tokenizer` names: `bpe`, `word`, `basic_english` (trained) or a checkpoint's.

    A `model` that is trained further keeps its own in place of `bpe`, the default.

    A trained one is cached by the corpus' content: one process trains it, and a second run reuses it. Of a corpus
    larger than `max_bytes` it reads documents spread evenly over the corpus. A corpus that is tokenized already keeps
    its tokenizer.
    """
    name = model if model and name == "bpe" else name
    if name not in ("bpe", "word", "basic_english"):
        return load_tokenizer(name)
    if corpus.tokenizer:
        return load_tokenizer(corpus.tokenizer)
    words = WORDS if pre_tokenizer == "words" else pre_tokenizer
    settings = (
        f"{name} {vocab_size} {min_frequency} {max_bytes} {words}" if name == "bpe" else f"{name} {min_frequency}"
    )
    folder = default_cache() / "tokenizers" / hash_text(f"{corpus.fingerprint} {settings}").hex()

    def write(aside: Path) -> None:
        print(f"training a tokenizer on {corpus.source}")
        texts = corpus.documents("train")
        if name == "bpe":
            texts = _spread(texts, max_bytes / max(1, corpus.size))
            sizes = {"vocab_size": vocab_size, "min_frequency": min_frequency, "max_bytes": max_bytes}
            tokenizer = train_bpe(texts, pre_tokenizer=pre_tokenizer, **sizes)
        else:
            tokenizer = train_word_level(texts, min_frequency=min_frequency, lowercase=name == "basic_english")
        tokenizer.save_pretrained(aside)

    fill_cache(folder, write)
    return load_tokenizer(str(folder))


def _spread(texts: Iterable[str], share: float) -> Iterator[str]:
    due = 0.0
    for text in texts:
        due += share
        if due >= 1 or share >= 1:
            due -= 1
            yield text


def load_tokenizer(name_or_path: str, *, decoder: str = "", **options: Any) -> PreTrainedTokenizerBase:
    """A tokenizer from a folder or the Hub; of an adapter without one, its base's.

    It carries the tokenizer of `decoder`, or the folder's own target tokenizer (hf_lm.models.target_tokenizer).
    `options` are those of AutoTokenizer.from_pretrained.
    Raises ValueError or OSError in one line if it cannot be used.
    """
    if decoder:
        tokenizer = load_tokenizer(name_or_path)
        set_target(tokenizer, load_tokenizer(decoder))
        return tokenizer
    if is_path(name_or_path) and not os.path.isdir(name_or_path):
        raise FileNotFoundError(f"there is no folder {name_or_path}.")
    if os.path.isdir(name_or_path) and not any(
        (Path(name_or_path) / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt")
    ):
        if (adapter := find_adapter(name_or_path)) is not None:
            load_config(name_or_path)  # reports in one line that the base is missing
            return load_tokenizer(adapter["base_model_name_or_path"])
        raise FileNotFoundError(f"{name_or_path} has no tokenizer files; give a folder that has them, or a Hub id.")
    try:
        tokenizer = AutoTokenizer.from_pretrained(name_or_path, trust_remote_code=False, **options)
        find_target(tokenizer, name_or_path)
    except ImportError as error:
        missing = "sentencepiece" if "sentencepiece" in str(error).lower() else str(error).strip().splitlines()[0]
        raise ImportError(
            f"the tokenizer of {name_or_path} needs {missing}: pip install 'hf-lm[sentencepiece]'."
        ) from None
    except Exception as error:  # broken files raise errors of several libraries
        problem = unreachable(name_or_path, error) or f"cannot read the tokenizer of {name_or_path}: {why(error)}"
        raise OSError(problem) from error
    if not tokenizer.encode("a b", add_special_tokens=False):
        raise ValueError(f"the tokenizer in {name_or_path} is empty: it gives no ids for text. Its files are missing.")
    if tokenizer.eos_token_id is None and tokenizer.bos_token_id is None and tokenizer.sep_token_id is None:
        raise ValueError(f"the tokenizer {name_or_path} has no token to separate documents (eos, bos or sep).")
    return tokenizer


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of what a tokenizer does with text, and of its markers: equal tokenizers give equal ids.

    Truncation, padding and what is put around a text are left out: `encode_documents` uses none of them. Raises
    ValueError for a tokenizer without a fast form.
    """
    if not tokenizer.is_fast:
        raise ValueError(f"{type(tokenizer).__name__} has no tokenizer.json, by which token files are recognised.")
    state = json.loads(cast(PreTrainedTokenizerFast, tokenizer).backend_tokenizer.to_str())
    used = {key: state.get(key) for key in ("added_tokens", "normalizer", "pre_tokenizer", "model")}
    special = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.sep_token_id]
    return hash_text(json.dumps([used, special], sort_keys=True)).hex()


def encode_documents(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], *, as_targets: bool = False
) -> list[list[int]]:
    """Token ids of texts, without any special token: a literal `<|endoftext|>` in a text is encoded as text.

    `as_targets`: with the target tokenizer, and as Marian splits targets, which is not how it splits sources.
    """
    tokenizer = target_tokenizer(tokenizer) if as_targets else tokenizer
    if not tokenizer.is_fast:  # Marian and M2M100, through sentencepiece
        options: dict[str, Any] = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
        return [tokenizer(**{"text_target" if as_targets else "text": text}, **options).input_ids for text in texts]
    with _special_tokens_as_text(tokenizer) as backend:
        return [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]


def encode_with_offsets(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], *, align_to_words: bool = False
) -> list[tuple[list[int], np.ndarray]]:
    """Token ids of texts, without any special token, and the first and last character + 1 of each token, (tokens, 2).

    With `align_to_words` those of the word that a token is part of, as the tokenizer splits text into words. Raises
    ValueError for a tokenizer without a fast form, which has no offsets.
    """
    if not tokenizer.is_fast:
        raise ValueError(
            f"{type(tokenizer).__name__} gives no character offsets, which extracting an answer needs: take a "
            "checkpoint whose tokenizer has a tokenizer.json."
        )
    with _special_tokens_as_text(tokenizer) as backend:
        encodings = backend.encode_batch(texts, add_special_tokens=False)
    encoded = []
    for encoding in encodings:
        offsets = np.array(encoding.offsets, np.int32).reshape(-1, 2)
        if align_to_words:
            words = np.array([-1 if word is None else word for word in encoding.word_ids])  # in ascending order
            first, last = np.searchsorted(words, words), np.searchsorted(words, words, side="right") - 1
            offsets = np.stack([offsets[first, 0], offsets[last, 1]], axis=1)
        encoded.append((encoding.ids, offsets))
    return encoded


_ENCODING = threading.Lock()  # threads share the tokenizer's setting


@contextmanager
def _special_tokens_as_text(tokenizer: PreTrainedTokenizerBase) -> Iterator[Tokenizer]:
    with _ENCODING:
        backend = cast(PreTrainedTokenizerFast, tokenizer).backend_tokenizer
        before = backend.encode_special_tokens
        backend.encode_special_tokens = True
        backend.no_truncation()
        backend.no_padding()
        try:
            yield backend
        finally:
            backend.encode_special_tokens = before


@dataclass(frozen=True)
class SpecialTokens:
    """The ids of the special tokens before and after a text, and between two texts."""

    before: list[int]
    between: list[int]
    after: list[int]


def special_tokens_around(tokenizer: PreTrainedTokenizerBase, *, causal: bool) -> SpecialTokens:
    """The special tokens that a tokenizer adds. For a causal model: its begin token if it has one, and none after."""
    mark = encode_documents(tokenizer, ["a"])[0]
    single, pair = tokenizer("a").input_ids, tokenizer("a", "a").input_ids
    begin = position_of(single, mark, 0)
    end = begin + len(mark)
    before, after, between = single[:begin], single[end:], pair[end : position_of(pair, mark, end)]
    if causal:
        begin_id = special_ids(tokenizer)["bos_token_id"]
        if not before and begin_id is not None:
            before = [begin_id]
        between = between or encode_documents(tokenizer, ["\n"])[0]
        after = []
    return SpecialTokens(before, between, after)


def position_of(ids: list[int], part: list[int], start: int) -> int:
    """Where a run of ids begins in others, at or after `start`."""
    return next(i for i in range(start, len(ids)) if ids[i : i + len(part)] == part)


def new_tokenizer(texts: Iterable[str], *, vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE for a demo's new model, with special tokens around texts as encoders have them."""
    return add_frame(train_bpe(texts, vocab_size=vocab_size))


def set_pad(tokenizer: PreTrainedTokenizerBase) -> None:
    """Give a tokenizer without a padding token one. Any will do: the loss ignores padding by its position."""
    if tokenizer.pad_token_id is None:
        token = tokenizer.eos_token or tokenizer.unk_token or tokenizer.bos_token
        if token is None:
            raise ValueError(f"the tokenizer {tokenizer.name_or_path} has no special token to pad with.")
        tokenizer.pad_token = token
    if has_target_tokenizer(tokenizer):
        set_pad(target_tokenizer(tokenizer))


def add_frame(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """Let a trained tokenizer add `<|endoftext|>` before, between and after texts, as encoders need."""
    end = tokenizer.eos_token
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{end} $A {end}", pair=f"{end} $A {end} $B:1 {end}:1", special_tokens=[(end, tokenizer.eos_token_id)]
    )
    tokenizer.cls_token = tokenizer.sep_token = end
    return tokenizer


def comes_back(tokenizer: PreTrainedTokenizerBase, text: str, ids: list[int]) -> bool:
    """Whether a text comes back from its ids, but for white space: with unknown words or small letters it does not."""
    return "".join(str(tokenizer.decode(ids)).split()) == "".join(text.split())


def measure_tokenizer(
    tokenizer: PreTrainedTokenizerBase, groups: dict[str, Iterable[str]], *, max_bytes: int = 2_000_000
) -> dict[str, Any]:
    """How well a tokenizer fits named groups of texts (splits, languages, files), at most `max_bytes` of each.

    Per group: bytes and characters per token, tokens per white-space word, and where there is an unknown token its
    share, and that of texts that do not come back from their ids. For all: the number of entries that never occur.
    """
    unknown_id = cast(int, tokenizer.unk_token_id)  # None where there is none
    counts = np.zeros(max(tokenizer.get_vocab().values()) + 1, np.int64)
    measured = {}
    for name, texts in groups.items():
        tokens = characters = words = size = unknown = lost = rows = 0
        texts = iter(texts)
        while size < max_bytes and (batch := list(itertools.islice(texts, 64))):
            for text, ids in zip(batch, encode_documents(tokenizer, batch), strict=True):
                counts += np.bincount(ids, minlength=len(counts))
                tokens, characters, words = tokens + len(ids), characters + len(text), words + len(text.split())
                size += len(text.encode())
                unknown += ids.count(unknown_id)
                lost += tokenizer.unk_token_id is not None and not comes_back(tokenizer, text, ids)
                rows += 1
        if tokens:
            measured[name] = {
                "bytes_per_token": size / tokens,
                "characters_per_token": characters / tokens,
                "tokens_per_word": tokens / max(1, words),
            } | ({} if unknown_id is None else {"unknown": unknown / tokens, "lost": lost / rows})
    special = set(tokenizer.all_special_ids)
    unused = [i for i in tokenizer.get_vocab().values() if counts[i] == 0 and i not in special]
    return {"vocab_size": len(tokenizer), "unused": len(unused), "text": measured}
