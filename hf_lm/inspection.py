"""What a model will really see of its data, without training: read, tokenized, cut and batched as training would."""

import copy
import itertools
import json
import os
import sys
import tempfile
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from hf_lm.data.overlap import normal_words
from hf_lm.data.scripts import script_shares
from hf_lm.data.sources import hash_text
from hf_lm.evaluation.leakage import leaked_share
from hf_lm.rehearsal import rehearse
from hf_lm.report import visible
from hf_lm.target_tokenizer import writes_apart, written_by
from hf_lm.tokenizer import encode_with_offsets, measure_tokenizer
from hf_lm.training.trainer import supervised_trainer

BATCHES = 1000  # of one epoch: the padding of more would tell nothing new
DOCUMENTS = 100_000  # of a corpus that are compared and counted
UNSPACED = ("Han", "Hiragana", "Katakana", "Thai", "Lao", "Khmer", "Myanmar")  # no spaces between words
HEAD, TAIL = 48, 16  # pieces shown of a long run
BETWEEN = "│"  # two tokens


@dataclass
class Part:
    """A text that the model reads or learns. `pieces` are (text, tokens, learned); `said` stands for them in words."""

    name: str
    pieces: list[tuple[str, int, bool]] = field(default_factory=list)
    said: str = ""


def inspect_recipe(recipe: str, arguments: Sequence[str] = (), *, examples: int = 5) -> dict[str, Any]:
    """What a recipe, called with these arguments, would train on: plain values, and under "examples" Parts.

    The recipe itself makes model, tokenizer and task (`rehearse`), and the Trainer its batches. Raises ValueError or
    OSError in one line, as the recipe does.
    """
    model, task, training_args, options = rehearse(recipe, arguments)
    return inspect_task(
        model, task, training_args, examples=examples, build_trainer=options.get("build_trainer", supervised_trainer)
    )


def inspect_task(
    model: Any,
    task: Any,
    training_args: Any,
    *,
    examples: int = 5,
    build_trainer: Callable[..., Any] = supervised_trainer,
) -> dict[str, Any]:
    """The same for what a recipe would hand to `fit`.

    Raises ValueError for a task whose texts are only written while it trains.
    """
    if not _length(task.train_dataset[0]):
        raise ValueError(f"{task.recipe} learns from what it writes while it trains: there is nothing to show before.")
    table = hasattr(task, "table")
    found = _rows(task) if table else _documents(task)
    shown = _spread([_length(feature) for feature in task.train_dataset] if table else len(task.train_dataset))
    return {
        "recipe": task.recipe,
        "model": {
            "architecture": type(model).__name__,
            "base": " and ".join(filter(None, (training_args.run.get(half) for half in ("model", "decoder")))),
        },
        "examples": [
            {"row": row, "what": what, "parts": see(task, task.train_dataset[row])} for row, what in shown[:examples]
        ],
        "padding": measure_padding(model, task, training_args, build_trainer=build_trainer),
        **found,
    }


# What one example is


def see(task: Any, feature: dict[str, Any]) -> list[Part]:
    """A feature as the task's collator hands it to the model, token by token."""
    batch = {key: value.tolist() for key, value in task.collate([feature]).items()}
    rows = len(batch["input_ids"])
    names = ("chosen", "rejected") if rows == 2 else ("reads",) * rows  # two answers that are compared
    return [part for i in range(rows) for part in _see_row(task, {k: v[i] for k, v in batch.items()}, names[i])]


def _see_row(task: Any, row: dict[str, Any], name: str) -> list[Part]:
    tokenizer, ids, labels = task.tokenizer, row["input_ids"], row.get("labels")
    if "completion_mask" in row:  # TRL's way to say what is learned
        return [Part(name, pieces(tokenizer, ids, [bool(learned) for learned in row["completion_mask"]]))]
    if not isinstance(labels, list):  # a class
        parts = [Part(name, pieces(tokenizer, ids))]
        if labels is not None:
            parts.append(Part("learns", said=f"{task.labels[labels]}  (class {labels} of {len(task.labels)})"))
        return parts
    if "decoder_input_ids" in row:
        return [
            Part(name, pieces(tokenizer, ids)),
            Part("writes", pieces(written_by(tokenizer), labels, [True] * len(labels))),
        ]
    if task.shifts_labels:
        # The first token of a row has nothing before it that could predict it.
        learned = [label != -100 and i > 0 for i, label in enumerate(labels)]
        if "position_ids" in row or hasattr(task, "streams"):
            return _by_document(task, row, learned)
        return [Part(name, pieces(tokenizer, ids, learned))]
    first, last = labels  # of a span
    said = f"token {first} and token {last}" if last else "token 0 twice: the answer is not in this window"
    return [
        Part(name, pieces(tokenizer, ids, [0 < first <= i <= last for i in range(len(ids))])),
        Part("learns to point to", said=said),
    ]


def _by_document(task: Any, row: dict[str, Any], learned: list[bool]) -> list[Part]:
    """A block cut where its documents begin: where positions restart or, if they do not, at each marker."""
    ids, positions = row["input_ids"], row.get("position_ids")
    if positions is not None:
        begins = [i for i, position in enumerate(positions) if position == 0]
    else:
        begins = [i for i, token in enumerate(ids) if token == task.streams["train"].begin]
    goes_on = hasattr(task, "streams") and ids[0] != task.streams["train"].begin
    edges = [0, *(i for i in begins if i > 0), len(ids)]
    parts = []
    for number, (start, stop) in enumerate(itertools.pairwise(edges), 1):
        name = f"document {number}" + (", which began in the block before" if number == 1 and goes_on else "")
        if number > 1 and positions is not None:
            name += ", which does not see those before"
        parts.append(Part(name, pieces(task.tokenizer, ids[start:stop], learned[start:stop])))
    return parts


def pieces(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], learned: Sequence[bool] = ()
) -> list[tuple[str, int, bool]]:
    """(text, tokens, learned) of each token, special ones by their name; tokens that only together are a character
    are one piece.
    """
    learned, found, at = learned or [False] * len(ids), [], 0
    special = set(tokenizer.all_special_ids)
    while at < len(ids):
        size = 1
        name = str(tokenizer.convert_ids_to_tokens(ids[at]))
        if ids[at] in special:
            text = name
        elif "▁" in name:
            text = name.replace("▁", " ")  # SentencePiece: decoding one token would drop its space
        else:
            text = tokenizer.decode([ids[at]])
            while "�" in text and size < 6 and at + size < len(ids) and ids[at + size] not in special:
                size += 1
                text = tokenizer.decode(list(ids[at : at + size]))
            if "�" in text:
                size, text = 1, "�"
        found.append((text, size, bool(learned[at])))
        at += size
    return found


def _length(feature: dict[str, Any]) -> int:
    """Tokens that a feature is read as; its positions and token types are none."""
    tokens = [key for key in feature if key.endswith("_ids") and not key.endswith(("position_ids", "type_ids"))]
    return sum(len(feature[key]) for key in tokens)


def _spread(lengths: Sequence[int] | int) -> list[tuple[int, str]]:
    """Five rows, from the shortest to the longest; evenly spread where all are as long."""
    words = ("the shortest", "a quarter are shorter", "of middle length", "a quarter are longer")
    if isinstance(lengths, int):
        return [(i * lengths // 5, "") for i in range(min(5, lengths))]
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    places = [round(share * (len(order) - 1)) for share in (0, 0.25, 0.5, 0.75, 1)]
    chosen = {order[place]: word for place, word in zip(places, (*words, "the longest"), strict=True)}
    return list(chosen.items())


# What all of them are


def measure_padding(
    model: Any, task: Any, training_args: Any, *, build_trainer: Callable[..., Any] = supervised_trainer
) -> dict[str, Any]:
    """The share of padding in the batches of the Trainer's first epoch, and what padding to the maximum would make."""
    args = copy.copy(training_args)
    rows = places = used = batches = 0
    with tempfile.TemporaryDirectory() as folder:  # the Trainer makes its output folder
        args.output_dir, args.report_to = folder, []
        trainer = build_trainer(model, args, task, lambda model: {})
        for batch in itertools.islice(trainer.get_train_dataloader(), BATCHES):
            batches += 1
            for key, ids in batch.items():
                if key.endswith("input_ids"):
                    mask = batch.get(key.removesuffix("input_ids") + "attention_mask")
                    places += ids.numel()
                    used += ids.numel() if mask is None else int(mask.sum())
            rows += len(ids)
    sides = (getattr(task, f"max_{side}_length", 0) for side in ("source", "target"))
    longest = getattr(task, "max_length", 0) or sum(sides)
    if getattr(task, "causal", False) and longest:
        longest += len(getattr(task, "cue_ids", ()))
    found = {"batches": batches, "batch_size": args.train_batch_size, "share": 1 - used / max(1, places)}
    return found | ({"maximum": longest, "to_maximum": 1 - used / (rows * longest)} if longest else {})


def _rows(task: Any) -> dict[str, Any]:
    """What is known of labelled rows."""
    table, train = task.table, task.table.rows["train"]
    report = {split: encoded.report() for split, encoded in task.encoded.items()}
    parts: dict[str, list[str]] = defaultdict(list)
    for row in train:
        for name, value in row.items():
            if name not in ("id", "label") and (texts := list(_strings(value))):
                parts[name] += texts
    lengths: dict[str, dict[str, list[int]]] = {}
    for split, encoded in task.encoded.items():
        lengths[split] = {"read": [_length(feature) for feature in encoded.features]}
        labels = [feature.get("labels") for feature in encoded.features]
        if hasattr(task, "target_of") and all(isinstance(one, list) for one in labels):
            lengths[split]["written"] = [sum(label != -100 for label in one) for one in labels]
            if task.shifts_labels:
                pairs = zip(lengths[split]["read"], lengths[split]["written"], strict=True)
                lengths[split]["read"] = [whole - written for whole, written in pairs]
    overlap = {
        split: found.report([task.text_of(row) for row in table.rows[split]]) for split, found in task.overlap.items()
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
        "lengths": lengths,
        "labels": _labels(task),
        "duplicates": _duplicates(task, train),
        "overlap": overlap,
        "scripts": {name: script_shares(texts) for name, texts in parts.items()},
        "tokenizer": _tokenizer(task.tokenizer, parts),
    }


def _strings(value: Any) -> Iterator[str]:
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


def _labels(task: Any) -> dict[str, dict[str, int]]:
    """How often each class, or an answer at all, occurs in each split."""
    rows = task.table.rows
    if labels := getattr(task, "labels", ()):
        counts = {split: Counter(row["label"] for row in rows[split]) for split in task.splits}
        return {split: {label: counts[split][label] for label in labels} for split in task.splits}
    if "answers" in rows["train"][0]:
        has = {split: sum(bool(row["answers"]) for row in rows[split]) for split in task.splits}
        return {split: {"answered": n, "no answer": len(rows[split]) - n} for split, n in has.items()}
    return {}


def _duplicates(task: Any, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Rows whose text, but for case, punctuation and spacing, an earlier one has, and texts with different answers."""
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


def _documents(task: Any) -> dict[str, Any]:
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
        starts = np.append(stream.starts, stream.total)
        sizes = np.diff(starts)
        lengths[split] = {"document": sizes.tolist()}
        across = starts[:-1] // block != np.maximum(starts[1:] - 1, starts[:-1]) // block
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
    """measure_tokenizer, and the pieces of text that it has no entry for; no tokens a word where none are parted.

    Targets are measured with the tokenizer of what is written, whose entries then stand under "written".
    """
    if writes_apart(tokenizer) and "targets" in parts:
        target = _tokenizer(written_by(tokenizer), {"targets": parts["targets"]})
        found = _tokenizer(tokenizer, {name: texts for name, texts in parts.items() if name != "targets"})
        return found | {"text": found["text"] | target.pop("text"), "written": target}
    found = measure_tokenizer(tokenizer, parts)
    for name, fits in found["text"].items():
        if fits.get("unknown"):
            unknown: Counter = Counter()
            some, unk = parts[name][:2000], tokenizer.unk_token_id
            for text, (ids, offsets) in zip(some, encode_with_offsets(tokenizer, some), strict=True):
                unknown.update(text[a:b] for i, (a, b) in zip(ids, offsets, strict=True) if i == unk)
            fits["unknown_pieces"] = [piece for piece, _ in unknown.most_common(8)]
        shares = script_shares(parts[name])
        if sum(shares.get(script, 0) for script in UNSPACED) >= 0.05:
            del fits["tokens_per_word"]
    return found


# How it is shown


def in_colour() -> bool:
    """Whether to write ANSI colours: to a terminal, unless NO_COLOR or a dumb one says otherwise."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def show_inspection(found: dict[str, Any], *, colour: bool = False, width: int = 100) -> str:
    """An inspection as a terminal shows it. Without `colour` what is learned stands in ⟦ ⟧."""
    bold = lambda text: f"\033[1m{text}\033[0m" if colour else text  # noqa: E731
    lines: list[str] = []

    def section(title: str, body: Iterable[str]) -> None:
        if body := list(body):
            lines.extend(["", bold(title), *(f"  {line}" for line in body)])

    recipe = found["recipe"].replace("_", " ").capitalize()
    section(f"{recipe} on {visible(found['data']['source'])}", _say_data(found))
    learned = {"question_answering": "the answer"}.get(found["recipe"], "learned")
    legend = f"\033[1;32m{learned}\033[0m, \033[2mread only\033[0m, " if colour else f"⟦{learned}⟧, read only, "
    section("What the model sees", [f"{legend}{BETWEEN} between tokens, ₂ a character of 2 tokens, ⏎ a line end"])
    for number, example in enumerate(found["examples"], 1):
        what = f": {example['what']}" if example["what"] else ""
        lines += ["", f"  {number}  {'block' if 'blocks' in found else 'row'} {example['row']:,} of train{what}"]
        for part in example["parts"]:
            lines += [f"     {line}" for line in _say_part(part, colour, width - 5)]
    section("Lengths in tokens, as the model gets them", _say_lengths(found, width))
    section("Batches", _say_batches(found))
    section("Balance", _say_labels(found))
    section("Repeated text", _say_repeated(found))
    section("Text and tokenizer", _say_text(found))
    return "\n".join(lines[1:])


def _say_data(found: dict[str, Any]) -> Iterator[str]:
    data = found["data"]
    yield f"read as      {data['format']}"
    if data["columns"]:
        yield "columns      " + ", ".join(
            f"{name} from {visible(column)!r}" for name, column in itertools.islice(data["columns"].items(), 6)
        )
    for split, part in data["splits"].items():
        rows = f"{part.get('rows', part.get('documents')):,} {'documents' if 'documents' in part else 'rows'}"
        windows = f" in {part['windows']:,} windows" if "windows" in part else ""
        origin = f"  ({visible(part['from'])})" if part["from"] else ""
        yield f"{split:<12} {rows}{windows}, {part['tokens']:,} tokens{origin}"
    for note in data["notes"]:
        yield f"note         {visible(note)}"
    for name, count in data["left_out"].items():
        yield f"left out or mended: {count:,} {name.replace('_', ' ')}"
    yield f"fingerprint  {data['fingerprint'][:16]}"
    base = found["model"]["base"]
    yield f"model        {found['model']['architecture']}, " + (f"from {base}" if base else "fresh")


def _say_part(part: Part, colour: bool, width: int) -> Iterator[str]:
    if part.said:
        yield f"{part.name}: {visible(part.said)}"
        return
    count = sum(tokens for _, tokens, _ in part.pieces)
    learned = sum(tokens for _, tokens, learned in part.pieces if learned)
    yield f"{part.name} {count:,} tokens" + (f", {learned:,} of them marked" if 0 < learned < count else "") + ":"
    line, used = "  ", 2
    for text, style in _atoms(part.pieces, colour):
        size = _columns(text)
        if used + size > width and used > 2 and text != BETWEEN:
            yield line
            line, used = "  ", 2
        line += f"\033[{style}m{text}\033[0m" if colour and style else text
        used += size
    yield line


def _atoms(found: Sequence[tuple[str, int, bool]], colour: bool) -> Iterator[tuple[str, str]]:
    """(text, style) of what is written for pieces: long runs without their middle, learned ones marked."""
    at = 0
    for learned, group in itertools.groupby(found, key=lambda piece: piece[2]):
        run, style = list(group), "1;32" if learned else "2"
        if len(run) > HEAD + TAIL + 8:
            left = sum(tokens for _, tokens, _ in run[HEAD:-TAIL])
            shown: list[tuple[str, int, bool] | None] = [*run[:HEAD], None, *run[-TAIL:]]
        else:
            left, shown = 0, list(run)
        for i, piece in enumerate(shown):
            text = f" … {left:,} tokens … " if piece is None else _one_line(piece[0])
            if piece is not None and piece[1] > 1:
                text += "".join("₀₁₂₃₄₅₆₇₈₉"[int(digit)] for digit in str(piece[1]))
            if learned and not colour:
                text = ("⟦" if i == 0 else "") + text + ("⟧" if i == len(shown) - 1 else "")
            yield text, style
            if i < len(shown) - 1:
                yield BETWEEN, "2"
        at += len(run)
        if at < len(found) and (colour or not learned):
            yield BETWEEN, "2"


def _one_line(text: str) -> str:
    return visible(text.replace("\r", "␍").replace("\n", "⏎").replace("\t", "⇥"))


def _columns(text: str) -> int:
    """Columns that a text takes in a terminal: two for a wide character, none for a combining one."""
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    return len(text) + wide - sum(unicodedata.combining(character) > 0 for character in text)


def _say_lengths(found: dict[str, Any], width: int) -> Iterator[str]:
    for kind, values in found["lengths"]["train"].items():
        yield f"{kind}, train"
        yield from (f"  {line}" for line in histogram(values, width=width - 4))
    for split, kinds in found["lengths"].items():
        for kind, values in kinds.items():
            middle, high = np.percentile(values, [50, 95])
            said = f"median {middle:,.0f}, 95 % up to {high:,.0f}, longest {max(values):,}"
            yield f"{split} {kind}: {said}, {sum(values):,} in all"


def histogram(values: Sequence[int], *, width: int = 80) -> list[str]:
    """Whole numbers as lines of bars: bins of equal width, or doubling ones where the longest is far from the rest."""
    high = max(values)
    edges = [0, 1]
    if high > 12 * max(1, np.median(values)):
        while edges[-1] <= high:
            edges.append(2 * edges[-1])
        while edges[1] <= min(values):
            edges.pop(0)
    else:
        low = min(values)
        steps = (number * 10**power for power in itertools.count() for number in (1, 2, 5))
        step = next(step for step in steps if (high - low) / step < 14)
        edges = list(range(low // step * step, high + step + 1, step))
        edges = edges[:-1] if edges[-2] > high else edges
    counts, _ = np.histogram(values, bins=edges)
    names = [f"{a:,}" if b - a == 1 else f"{a:,} to {b - 1:,}" for a, b in itertools.pairwise(edges)]
    left = max(map(len, names))
    room = max(10, min(50, width - left - 12))
    return [
        f"{name:>{left}} {_bar(count / counts.max(), room)} {count:,}"
        for name, count in zip(names, counts.tolist(), strict=True)
    ]


def _bar(share: float, room: int) -> str:
    eighths = round(share * room * 8)
    if share and not eighths:
        eighths = 1
    return "█" * (eighths // 8) + ("", *"▏▎▍▌▋▊▉")[eighths % 8]


def _say_batches(found: dict[str, Any]) -> Iterator[str]:
    padding = found["padding"]
    said = f"padding      {padding['share']:.1%} of {padding['batches']:,} batches of {padding['batch_size']}"
    if "to_maximum" in padding:
        said += f"; {padding['to_maximum']:.1%} if each row were padded to {padding['maximum']:,} tokens"
    yield said
    if "blocks" in found:
        blocks = found["blocks"]
        fill = blocks["documents"]
        each = f"{fill:.1f} documents begin in each" if fill >= 1 else f"a document fills {1 / fill:.1f} of them"
        yield f"blocks       {blocks['count']:,} of {blocks['size']:,} tokens; {each}"
        yield (
            f"cut          {found['data']['splits']['train']['across']:.1%} of the documents go on in another block; "
            f"{blocks['tail']:,} tokens at the end fill none"
        )
        return
    for split, part in found["data"]["splits"].items():
        if part.get("truncated"):
            lost = f"{part['tokens_lost']:.2%} of the tokens lost"
            yield f"cut          {part['truncated']:.1%} of the rows of {split}, {lost}"
    if not any(part.get("truncated") for part in found["data"]["splits"].values()):
        yield "cut          nothing"


def _say_labels(found: dict[str, Any]) -> Iterator[str]:
    for split, counts in found["labels"].items():
        total = max(1, sum(counts.values()))
        most = sorted(counts.items(), key=lambda item: -item[1])
        shown = ", ".join(f"{visible(label)} {count:,} ({count / total:.0%})" for label, count in most[:10])
        yield f"{split:<12} {shown}" + (f" and {len(most) - 10} more" if len(most) > 10 else "")


def _say_repeated(found: dict[str, Any]) -> Iterator[str]:
    copies = found["duplicates"]
    if "leaked" in found:
        yield f"train        {copies['rows']:,} documents ({copies['share']:.1%}) are copies of an earlier one"
        for split, share in found["leaked"].items():
            yield f"{split:<12} {share:.1%} of the tokens stand in train, in runs of 50 or more"
        return
    said = f"train        {copies['rows']:,} rows ({copies['share']:.1%}) have the text of an earlier one"
    yield said + (f"; {copies['differing']:,} texts have several answers" if copies["differing"] else "")
    yield from (f"             {_short(example)}" for example in copies["examples"])
    for split, overlap in found["overlap"].items():
        exact = f", {overlap['exact']:,} of them word for word" if overlap["rows"] else ""
        yield f"{split:<12} {overlap['rows']:,} rows ({overlap['share']:.1%}) also stand in train{exact}"
        yield from (f"             {_short(example)}" for example in overlap.get("examples", ()))


def _short(text: str, most: int = 70) -> str:
    text, shown = _one_line(text), ""
    for character in text:
        if _columns(shown + character) > most:
            return shown + "…"
        shown += character
    return shown


def _say_text(found: dict[str, Any]) -> Iterator[str]:
    for name, shares in found["scripts"].items():
        large = {script: share for script, share in shares.items() if share >= 0.001}
        scripts = ", ".join(f"{script} {share:.1%}" for script, share in list(large.items())[:5])
        yield f"{name:<12} letters are {scripts}" if scripts else f"{name:<12} no letters"
        if fits := found["tokenizer"]["text"].get(name):
            words = f"{fits['tokens_per_word']:.2f} tokens a word, " if "tokens_per_word" in fits else ""
            characters = f"{fits['characters_per_token']:.2f} characters"
            said = f"{words}{characters} and {fits['bytes_per_token']:.2f} bytes a token"
            if "unknown" in fits:
                said += f", {fits['unknown']:.2%} unknown"
            if "unknown_pieces" in fits:
                said += ": " + " ".join(map(_one_line, fits["unknown_pieces"]))
            yield f"             {said}"
    measured = found["tokenizer"]
    yield f"vocabulary   {measured['vocab_size']:,} entries, {measured['unused']:,} of which this text does not use"
    if written := measured.get("written"):
        yield f"to write     {written['vocab_size']:,} entries, {written['unused']:,} of which this text does not use"
