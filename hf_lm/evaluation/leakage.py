"""How much of held-out text occurs word for word in the training text."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

if TYPE_CHECKING:
    from hf_lm.data.packing import TokenStream

CHUNK = 2**20  # tokens hashed at a time
BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so that it has an inverse modulo 2^64


def leaked_share(train: "TokenStream", held_out: "TokenStream", *, run: int = 50) -> float:
    """The share of held-out tokens that lie in a run of `run` tokens which also occurs in train, from 0 to 1.

    50 is the length at which Lee et al. (arXiv 2107.06499) call a repetition a duplicate. Runs do not cross the bounds
    of held-out documents. Memory is that of the held-out hashes, some 8 bytes a token; train is read in pieces.
    """
    tokens = np.asarray(held_out.tokens)
    hashes = hash_runs(tokens, run)
    if not len(hashes):
        return 0.0
    marks = np.concatenate([[0], np.cumsum(np.isin(tokens, (held_out.begin, held_out.end)))])
    inside = marks[run:] == marks[:-run]  # the run holds no document marker
    wanted = np.unique(hashes[inside])
    seen = np.zeros(len(wanted) + 1, bool)
    chunks = range(0, len(train.tokens) if len(wanted) else 0, CHUNK)
    for start in tqdm(chunks, desc="looking for leaks", delay=2, leave=False, disable=None):
        found = hash_runs(np.asarray(train.tokens[start : start + CHUNK + run - 1]), run)
        places = np.searchsorted(wanted, found)
        seen[places[wanted[np.minimum(places, len(wanted) - 1)] == found]] = True
    leaked = np.flatnonzero(inside & np.isin(hashes, wanted[seen[:-1]]))
    covered = np.zeros(len(tokens) + 1, np.int64)  # +1 where a leaked run begins, -1 after its end
    covered[leaked] += 1
    covered[leaked + run] -= 1
    return float(np.count_nonzero(np.cumsum(covered)) / max(1, np.count_nonzero(np.diff(marks) == 0)))


def holding_runs(documents: Sequence[Sequence[int]], wanted: np.ndarray, *, run: int) -> np.ndarray:
    """Which documents hold one of the runs whose hashes are `wanted` (sorted), as booleans, (documents,)."""
    tokens = np.concatenate([np.zeros(0, np.int64), *(np.asarray(ids, np.int64) for ids in documents)])
    hashes = hash_runs(tokens, run)
    if not len(wanted) or not len(hashes):
        return np.zeros(len(documents), bool)
    places = np.minimum(np.searchsorted(wanted, hashes), len(wanted) - 1)
    hits = np.flatnonzero(wanted[places] == hashes)
    ends = np.cumsum([len(ids) for ids in documents])
    holders = np.searchsorted(ends, hits, "right")
    inside = hits + run <= ends[holders]  # a run that crosses into the next document is no text
    return np.isin(np.arange(len(documents)), holders[inside])


def hash_runs(tokens: np.ndarray, run: int) -> np.ndarray:
    """A 64-bit polynomial hash of every run of `run` tokens, (tokens - run + 1,), from prefix sums: no inner loop."""
    if len(tokens) < run:
        return np.zeros(0, np.uint64)
    mixed = tokens.astype(np.uint64) + np.uint64(1)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):  # splitmix64
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    powers, inverses = (
        np.cumprod(np.full(len(tokens), base)) for base in (BASE, np.uint64(pow(int(BASE), -1, 2**64)))
    )
    prefix = np.concatenate([np.zeros(1, np.uint64), np.cumsum(mixed * powers)])
    return (prefix[run:] - prefix[:-run]) * inverses[: len(tokens) - run + 1]
