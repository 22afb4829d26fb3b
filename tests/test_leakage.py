"""Leakage against a reference that compares strings of tokens one by one."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_lm.data.packing import TokenStream
from hf_lm.evaluation import leakage
from hf_lm.evaluation.leakage import hash_runs, holding_runs, leaked_share
from hf_lm.tasks.proofs import leakage as prove_leakage


def stream(documents: list[list[int]]) -> TokenStream:
    """Documents of ids above 0; 0 is the marker."""
    tokens, starts = [], []
    for document in documents:
        starts.append(len(tokens))
        tokens += [0, *document]
    nothing = np.zeros(len(starts), np.int64)
    return TokenStream(np.array([*tokens, 0], np.uint16), np.array(starts), nothing, nothing, begin=0, end=0)


def reference(train: TokenStream, held_out: TokenStream, run: int) -> float:
    tokens = train.tokens.tolist()
    known = {tuple(tokens[i : i + run]) for i in range(len(tokens) - run + 1)}
    leaked = total = 0
    for i in range(len(held_out)):
        ids = held_out.document(i)[1:-1].tolist()
        hit = [tuple(ids[j : j + run]) in known for j in range(len(ids) - run + 1)]
        leaked += sum(any(hit[max(0, k - run + 1) : k + 1]) for k in range(len(ids)))
        total += len(ids)
    return leaked / max(1, total)


documents = st.lists(st.lists(st.integers(1, 3), max_size=12), min_size=1, max_size=6)


@given(documents, documents, st.integers(1, 5))
def test_it_is_the_share_of_tokens_in_runs_that_train_has(train, held_out, run):
    train, held_out = stream(train), stream(held_out)
    assert leaked_share(train, held_out, run=run) == reference(train, held_out, run)


@given(documents, documents, st.integers(1, 5))
def test_a_document_holds_a_run_if_one_of_its_own_is_wanted(train, held_out, run):
    def runs(ids):
        return {tuple(ids[i : i + run]) for i in range(len(ids) - run + 1)}

    known = set().union(*map(runs, held_out))
    wanted = np.unique(np.concatenate([hash_runs(np.array(ids, np.int64), run) for ids in held_out]))
    expected = [bool(runs(ids) & known) for ids in train]
    assert holding_runs(train, wanted, run=run).tolist() == expected


@pytest.mark.parametrize("chunk", [7, 30])
def test_a_run_across_two_pieces_of_train_is_found(chunk, monkeypatch):
    monkeypatch.setattr(leakage, "CHUNK", chunk)
    ids = np.random.default_rng(0).integers(1, 1000, 200).tolist()
    held_out = stream([ids[40:60], [5000] * 20])
    assert leaked_share(stream([ids]), held_out, run=20) == 0.5
    assert leaked_share(replace(stream([ids]), tokens=np.array([1], np.uint16)), held_out, run=20) == 0


def test_a_run_of_fifty_tokens_is_a_repetition():
    ids = np.random.default_rng(0).integers(1, 1000, 200).tolist()
    assert leaked_share(stream([ids]), stream([ids[:10]])) == 0  # too short for one
    for shared in (49, 50, 51):
        held_out = stream([[*range(2000, 2049), *ids[:shared], *range(3000, 3100 - shared)]])
        assert leaked_share(stream([ids]), held_out) == (shared / 149 if shared >= 50 else 0)


@given(st.lists(st.integers(0, 3), max_size=30), st.integers(1, 6))
def test_runs_have_one_hash_where_they_are_equal_and_two_where_they_are_not(tokens, run):
    hashes = hash_runs(np.array(tokens, np.uint16), run)
    runs = [tuple(tokens[i : i + run]) for i in range(len(tokens) - run + 1)]
    assert len(hashes) == len(runs)
    assert len(set(zip(runs, hashes.tolist(), strict=True))) == len(set(runs)) == len(set(hashes.tolist()))


def test_the_proof_fails_when_more_than_a_tenth_of_a_split_is_in_train():
    assert prove_leakage({"validation": 0.1, "test": 0.0}).passed
    failed = prove_leakage({"validation": 0.0, "test": 0.101})
    assert not failed.passed
    assert "10.1% of test" in failed.said
    assert prove_leakage({}).passed
