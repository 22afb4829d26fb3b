"""An inspection as a terminal shows it."""

import itertools
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from hf_lm.hub.credentials import printable
from hf_lm.reporting.terminal import bar
from hf_lm.tasks.rendering import Part

HEAD, TAIL = 48, 16  # pieces shown of a long run
BETWEEN = "│"  # two tokens


def in_colour() -> bool:
    """Whether to write ANSI colours: to a terminal, unless NO_COLOR or a dumb one says otherwise."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def show_inspection(inspection: dict[str, Any], *, colour: bool = False, width: int = 100) -> str:
    """An inspection as a terminal shows it. Without `colour` what is learned is in ⟦ ⟧."""
    bold = lambda text: f"\033[1m{text}\033[0m" if colour else text  # noqa: E731
    lines: list[str] = []

    def section(title: str, body: Iterable[str]) -> None:
        if body := list(body):
            lines.extend(["", bold(title), *(f"  {line}" for line in body)])

    recipe = inspection["recipe"].replace("_", " ").capitalize()
    section(f"{recipe} on {printable(inspection['data']['source'])}", _say_data(inspection))
    learned = {"question_answering": "the answer"}.get(inspection["recipe"], "learned")
    legend = f"\033[1;32m{learned}\033[0m, \033[2mread only\033[0m, " if colour else f"⟦{learned}⟧, read only, "
    section("What the model sees", [f"{legend}{BETWEEN} between tokens, ₂ a character of 2 tokens, ⏎ a line end"])
    for number, example in enumerate(inspection["examples"], 1):
        what = f": {example['what']}" if example["what"] else ""
        lines += ["", f"  {number}  {'block' if 'blocks' in inspection else 'row'} {example['row']:,} of train{what}"]
        for part in example["parts"]:
            lines += [f"     {line}" for line in _say_part(part, colour, width - 5)]
    section("Lengths in tokens, as the model gets them", _say_lengths(inspection, width))
    section("Batches", _say_batches(inspection))
    section("Balance", _say_labels(inspection))
    section("Repeated text", _say_repeated(inspection))
    section("Text and tokenizer", _say_text(inspection))
    return "\n".join(lines[1:])


def _say_data(inspection: dict[str, Any]) -> Iterator[str]:
    data = inspection["data"]
    yield f"read as      {data['format']}"
    if data["columns"]:
        yield "columns      " + ", ".join(
            f"{name} from {printable(column)!r}" for name, column in itertools.islice(data["columns"].items(), 6)
        )
    for split, part in data["splits"].items():
        rows = f"{part.get('rows', part.get('documents')):,} {'documents' if 'documents' in part else 'rows'}"
        windows = f" in {part['windows']:,} windows" if "windows" in part else ""
        origin = f"  ({printable(part['from'])})" if part["from"] else ""
        yield f"{split:<12} {rows}{windows}, {part['tokens']:,} tokens{origin}"
    for note in data["notes"]:
        yield f"note         {printable(note)}"
    for name, count in data["left_out"].items():
        yield f"dropped or repaired: {count:,} {name.replace('_', ' ')}"
    yield f"fingerprint  {data['fingerprint'][:16]}"
    base = inspection["model"]["base"]
    yield f"model        {inspection['model']['architecture']}, " + (
        f"from {base}" if base else "randomly initialised"
    )


def _say_part(part: Part, colour: bool, width: int) -> Iterator[str]:
    from rich.cells import cell_len

    if part.text:
        yield f"{part.name}: {printable(part.text)}"
        return
    count = sum(tokens for _, tokens, _ in part.pieces)
    learned = sum(tokens for _, tokens, learned in part.pieces if learned)
    yield f"{part.name} {count:,} tokens" + (f", {learned:,} of them marked" if 0 < learned < count else "") + ":"
    line, used = "  ", 2
    for text, style in _atoms(part.pieces, colour):
        size = cell_len(text)
        if used + size > width and used > 2 and text != BETWEEN:
            yield line
            line, used = "  ", 2
        line += f"\033[{style}m{text}\033[0m" if colour and style else text
        used += size
    yield line


def _atoms(pieces: Sequence[tuple[str, int, bool]], colour: bool) -> Iterator[tuple[str, str]]:
    """(text, style) of pieces as they are printed: long runs without their middle, learned ones marked."""
    at = 0
    for learned, group in itertools.groupby(pieces, key=lambda piece: piece[2]):
        run, style = list(group), "1;32" if learned else "2"
        if len(run) > HEAD + TAIL + 8:
            left = sum(tokens for _, tokens, _ in run[HEAD:-TAIL])
            shown = [*run[:HEAD], None, *run[-TAIL:]]
        else:
            left, shown = 0, run
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
        if at < len(pieces) and (colour or not learned):
            yield BETWEEN, "2"


def _one_line(text: str) -> str:
    return printable(text.replace("\r", "␍").replace("\n", "⏎").replace("\t", "⇥"))


def _say_lengths(inspection: dict[str, Any], width: int) -> Iterator[str]:
    for kind, values in inspection["lengths"]["train"].items():
        yield f"{kind}, train"
        yield from (f"  {line}" for line in histogram(values, width=width - 4))
    for split, kinds in inspection["lengths"].items():
        for kind, values in kinds.items():
            middle, high = np.percentile(values, [50, 95])
            summary = f"median {middle:,.0f}, 95 % up to {high:,.0f}, longest {max(values):,}"
            yield f"{split} {kind}: {summary}, {sum(values):,} in all"


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
    places = max(10, min(50, width - left - 12))
    return [
        f"{name:>{left}} {bar(count / counts.max(), places)} {count:,}"
        for name, count in zip(names, counts.tolist(), strict=True)
    ]


def _say_batches(inspection: dict[str, Any]) -> Iterator[str]:
    padding = inspection["padding"]
    padded = f"padding      {padding['share']:.1%} of {padding['batches']:,} batches of {padding['batch_size']}"
    if "to_maximum" in padding:
        padded += f"; {padding['to_maximum']:.1%} if each row were padded to {padding['maximum']:,} tokens"
    yield padded
    if "blocks" in inspection:
        blocks = inspection["blocks"]
        fill = blocks["documents"]
        each = f"{fill:.1f} documents begin in each" if fill >= 1 else f"a document fills {1 / fill:.1f} of them"
        yield f"blocks       {blocks['count']:,} of {blocks['size']:,} tokens; {each}"
        across = inspection["data"]["splits"]["train"]["across"]
        yield f"split        {across:.1%} of the documents continue in another block"
        yield f"left out     the last {blocks['tail']:,} tokens, which fill no block"
        return
    for split, part in inspection["data"]["splits"].items():
        if part.get("truncated"):
            lost = f"{part['tokens_lost']:.2%} of the tokens lost"
            yield f"truncated    {part['truncated']:.1%} of the rows of {split}, {lost}"
    if not any(part.get("truncated") for part in inspection["data"]["splits"].values()):
        yield "truncated    nothing"


def _say_labels(inspection: dict[str, Any]) -> Iterator[str]:
    for split, counts in inspection["labels"].items():
        total = max(1, sum(counts.values()))
        most = sorted(counts.items(), key=lambda item: -item[1])
        shown = ", ".join(f"{printable(label)} {count:,} ({count / total:.0%})" for label, count in most[:10])
        yield f"{split:<12} {shown}" + (f" and {len(most) - 10} more" if len(most) > 10 else "")


def _say_repeated(inspection: dict[str, Any]) -> Iterator[str]:
    copies = inspection["duplicates"]
    if "leaked" in inspection:
        yield f"train        {copies['rows']:,} documents ({copies['share']:.1%}) are copies of an earlier one"
        for split, share in inspection["leaked"].items():
            yield f"{split:<12} {share:.1%} of the tokens occur in train, in runs of 50 or more"
        return
    repeated = f"train        {copies['rows']:,} rows ({copies['share']:.1%}) have the text of an earlier one"
    yield repeated + (f"; {copies['differing']:,} texts have several answers" if copies["differing"] else "")
    yield from (f"             {_short(example)}" for example in copies["examples"])
    for split, overlap in inspection["overlap"].items():
        exact = f", {overlap['exact']:,} of them word for word" if overlap["rows"] else ""
        yield f"{split:<12} {overlap['rows']:,} rows ({overlap['share']:.1%}) also occur in train{exact}"
        yield from (f"             {_short(example)}" for example in overlap.get("examples", ()))


def _short(text: str, most: int = 70) -> str:
    from rich.text import Text

    shown = Text(_one_line(text))
    shown.truncate(most, overflow="ellipsis")
    return shown.plain


def _say_text(inspection: dict[str, Any]) -> Iterator[str]:
    for name, shares in inspection["scripts"].items():
        large = {script: share for script, share in shares.items() if share >= 0.001}
        scripts = ", ".join(f"{script} {share:.1%}" for script, share in list(large.items())[:5])
        yield f"{name:<12} letters are {scripts}" if scripts else f"{name:<12} no letters"
        if fits := inspection["tokenizer"]["text"].get(name):
            words = f"{fits['tokens_per_word']:.2f} tokens a word, " if "tokens_per_word" in fits else ""
            characters = f"{fits['characters_per_token']:.2f} characters"
            summary = f"{words}{characters} and {fits['bytes_per_token']:.2f} bytes a token"
            if "unknown" in fits:
                summary += f", {fits['unknown']:.2%} unknown"
            if "unknown_pieces" in fits:
                summary += ": " + " ".join(map(_one_line, fits["unknown_pieces"]))
            yield f"             {summary}"
    measured = inspection["tokenizer"]
    for name, fits in (("vocabulary", measured), ("target", measured.get("written"))):
        if fits:
            yield f"{name:<12} {fits['vocab_size']:,} entries, {fits['unused']:,} not in the first 2 MB of text"
