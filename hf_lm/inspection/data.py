"""What is known of all of a task's data: its origin, lengths, balance, copies, scripts, and how the tokenizer fits."""

import itertools
import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from hf_lm.data.overlap import normal_words
from hf_lm.data.scripts import script_shares
from hf_lm.evaluation.leakage import leaked_share
from hf_lm.files import hash_text
from hf_lm.models.target_tokenizer import has_target_tokenizer, target_tokenizer
from hf_lm.tasks.language_modelling import LanguageModelling
from hf_lm.tasks.supervised import Supervised
from hf_lm.tokenization.tokenizer import encode_with_offsets, measure_tokenizer

DOCUMENTS = 100_000  # of a corpus that are compared and counted
UNSPACED = ("Han", "Hiragana", "Katakana", "Thai", "Lao", "Khmer", "Myanmar")  # no spaces between words


def inspect_rows(task: Supervised) -> dict[str, Any]:
    """What is known of labelled rows."""
    table, train = task.table, task.table.rows["train"]
    report = {split: encoded.report() for split, encoded in task.encoded.items()}
    parts: dict[str, list[str]] = defaultdict(list)
    for row in train:
        for name, value in row.items():
            if name not in ("id", "label", "tags") and (texts := list(_strings(value))):
                parts[name] += texts
    overlap = {
        split: matches.report([task.text_of(row) for row in table.rows[split]])
        for split, matches in task.overlap.items()
    }
    return {
        "data": {
            "source": table.source,
            "format": table.format,
            "columns": table.columns,
            "fingerprint": table.fingerprint,
            "notes": table.notes,
            "left_out": {name: count for name, count in table.left_out.items() if count},
            "splits": {split: report[split] | {"from": table.origins.get(split, "")} for split in table.splits},
        },
        "lengths": {split: task.lengths(split) for split in task.encoded},
        "labels": task.label_counts(),
        "duplicates": _duplicates(task, train),
        "overlap": overlap,
        "scripts": {name: script_shares(texts) for name, texts in parts.items()},
        "tokenizer": _tokenizer(task.tokenizer, parts),
    }


def _strings(value: object) -> Iterator[str]:
    """The texts of a row's value: one, a list of them, or messages."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, inner in value.items():
            if name != "role":
                yield from _strings(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _strings(inner)


def _duplicates(task: Supervised, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Rows with the text of an earlier one, but for case, punctuation and spacing; texts with different answers."""
    seen: dict[int, set[str]] = {}
    copies, examples = 0, []
    for row in rows:
        text = task.text_of(row)
        key = hash(" ".join(normal_words(text)))
        answer = json.dumps({name: value for name, value in row.items() if name != "id"} | {"text": ""}, default=str)
        if key in seen:
            copies += 1
            examples += [text[:200]] if len(examples) < 3 else []
        seen.setdefault(key, set()).add(answer if "source" not in row else json.dumps(row.get("targets")))
    differing = sum(len(answers) > 1 for answers in seen.values())
    return {"rows": copies, "share": copies / max(1, len(rows)), "differing": differing, "examples": examples}


def inspect_documents(task: LanguageModelling) -> dict[str, Any]:
    """What is known of a corpus and its blocks."""
    corpus, block, streams = task.corpus, task.block_size, task.streams
    texts: list[str] = []
    hashes: Counter = Counter()
    size = 0
    for text in itertools.islice(corpus.documents("train"), DOCUMENTS):
        hashes[hash_text(text)] += 1
        if size < 2**24:
            texts.append(text)
            size += len(text)
    splits, lengths = {}, {}
    for split, stream in streams.items():
        lengths[split] = {"document": stream.lengths.tolist()}
        last = stream.starts + np.maximum(stream.lengths - 1, 0)  # tokens of documents
        across = stream.starts // block != last // block
        splits[split] = {
            "documents": len(stream),
            "tokens": int(stream.total),
            "from": corpus.origins.get(split, ""),
            "across": float(across.mean()),
        }
    cleaned: Counter = Counter()
    for counts in {source: c for stream in streams.values() for source, c in stream.cleaned.items()}.values():
        cleaned.update(counts)
    copies = sum(hashes.values()) - len(hashes)
    leaked = {split: leaked_share(streams["train"], streams[split]) for split in streams if split != "train"}
    return {
        "data": {
            "source": corpus.source,
            "format": corpus.format,
            "columns": {os.path.basename(where): column for where, column in corpus.columns.items()},
            "fingerprint": corpus.fingerprint,
            "notes": corpus.notes,
            "left_out": {name: count for name, count in cleaned.items() if count},
            "splits": splits,
        },
        "blocks": {
            "count": len(task.train_dataset),
            "size": block,
            "documents": splits["train"]["documents"] / len(task.train_dataset),
            "tail": int(streams["train"].total % block),
        },
        "lengths": lengths,
        "labels": {},
        "duplicates": {"rows": copies, "share": copies / max(1, sum(hashes.values()))},
        "leaked": leaked,
        "scripts": {"text": script_shares(texts)},
        "tokenizer": _tokenizer(task.tokenizer, {"text": texts}),
    }


def _tokenizer(tokenizer: PreTrainedTokenizerBase, parts: dict[str, list[str]]) -> dict[str, Any]:
    """measure_tokenizer, and unknown pieces of text; no tokens per word in scripts without spaces.

    Targets are measured with the target tokenizer, whose entries are then under "written".
    """
    if has_target_tokenizer(tokenizer) and "targets" in parts:
        target = _tokenizer(target_tokenizer(tokenizer), {"targets": parts["targets"]})
        fit = _tokenizer(tokenizer, {name: texts for name, texts in parts.items() if name != "targets"})
        return fit | {"text": fit["text"] | target.pop("text"), "written": target}
    fit = measure_tokenizer(tokenizer, dict(parts))
    for name, fits in fit["text"].items():
        if fits.get("unknown"):
            unknown: Counter = Counter()
            some, unk = parts[name][:2000], tokenizer.unk_token_id
            for text, (ids, offsets) in zip(some, encode_with_offsets(tokenizer, some), strict=True):
                unknown.update(text[a:b] for i, (a, b) in zip(ids, offsets, strict=True) if i == unk)
            fits["unknown_pieces"] = [piece for piece, _ in unknown.most_common(8)]
        shares = script_shares(parts[name])
        if sum(shares.get(script, 0) for script in UNSPACED) >= 0.05:
            del fits["tokens_per_word"]
    return fit
