"""How a feature is shown to a person: as the tokens that the model reads, and which of them it learns."""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from hf_lm.data.batches import Feature


class Part(NamedTuple):
    """A text that the model reads or learns. `pieces` are (text, tokens, learned); `text` replaces them by words."""

    name: str
    pieces: Sequence[tuple[str, int, bool]] = ()
    text: str = ""


def render_causal(tokenizer: PreTrainedTokenizerBase, row: dict[str, Any], *, marker: int | None = None) -> list[Part]:
    """A row of next-token prediction, {"input_ids", "labels", ...} as lists, divided where its documents start.

    They start where positions restart or, without positions, at each `marker`; a row with neither is one part.
    """
    ids, positions = row["input_ids"], row.get("position_ids")
    # The first token of a row has nothing before it that could predict it.
    learned = [label != -100 and i > 0 for i, label in enumerate(row["labels"])]
    if positions is None and marker is None:
        return [Part("reads", token_pieces(tokenizer, ids, learned))]
    starts = [i for i, token in enumerate(ids) if token == marker]
    if positions is not None:
        starts = [i for i, position in enumerate(positions) if position == 0]
    edges, parts = [0, *(i for i in starts if i > 0), len(ids)], []
    for number, (start, stop) in enumerate(itertools.pairwise(edges), 1):
        name = f"document {number}"
        if number == 1 and marker is not None and ids[0] != marker:
            name += ", which began in the block before"
        elif number > 1 and positions is not None:
            name += ", which does not see those before"
        parts.append(Part(name, token_pieces(tokenizer, ids[start:stop], learned[start:stop])))
    return parts


def token_pieces(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], learned: Sequence[bool] = ()
) -> list[tuple[str, int, bool]]:
    """(text, tokens, learned) of each token, special ones by their name; tokens that only together are a character
    are one piece.
    """
    learned, pieces, at = learned or [False] * len(ids), [], 0
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
        pieces.append((text, size, bool(learned[at])))
        at += size
    return pieces


def count_tokens(feature: Feature) -> int:
    """Tokens of a feature's inputs; positions and token types are not tokens."""
    tokens = [key for key in feature if key.endswith("_ids") and not key.endswith(("position_ids", "type_ids"))]
    return sum(len(feature[key]) for key in tokens)
