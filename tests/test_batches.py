"""Rows of different lengths become batches that hold each of them once and waste little."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_lm.data.batches import GroupedByLength, by_length, map_by_length, pad_batch

LONG = "one two three four five six seven eight nine ten eleven twelve"


def test_padding_follows_the_longest_row_and_labels_are_ignored_there():
    features = [{"input_ids": [5, 6, 7], "labels": [1, 2]}, {"input_ids": [8], "labels": [3]}]
    batch = pad_batch(features, pad_id=9)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[1, 2], [3, -100]]
    left = pad_batch([{"input_ids": [5, 6]}, {"input_ids": [8]}], pad_id=9, left=True)
    assert left["input_ids"].tolist() == [[5, 6], [9, 8]]
    assert left["attention_mask"].tolist() == [[1, 1], [0, 1]]
    assert torch.equal(pad_batch([{"input_ids": [1], "labels": 0}] * 2, pad_id=0)["labels"], torch.tensor([0, 0]))


@given(st.lists(st.integers(1, 50), max_size=60), st.integers(1, 3))
def test_batches_by_length_hold_every_row_once_and_each_share_is_within_its_budget(lengths, processes):
    seen = []
    for batch in by_length(lengths, max_tokens=100, processes=processes):
        for process in range(processes):
            rows = batch[process::processes]
            assert len(rows) * max((lengths[i] for i in rows), default=0) <= 100
        seen += batch
    assert sorted(seen) == list(range(len(lengths)))
    doubled = map_by_length(lambda rows: [2 * lengths[i] for i in rows], lengths, description="", max_tokens=100)
    assert doubled == [2 * length for length in lengths]


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("count", [7, 6, 2, 1])
def test_processes_share_the_rows_and_ask_the_model_equally_often(count, whole, monkeypatch):
    lengths, calls, pieces = [5, 9, 3, 7, 4, 8, 6][:count], [], []

    def gather(own):
        pieces.extend(own)
        return pieces if len(calls) == 3 else [(list(range(count)), [None] * count)]

    def work(rows):
        calls[-1].append(rows)
        return [10 * lengths[i] for i in rows]

    monkeypatch.setattr("accelerate.utils.gather_object", gather)
    for process in range(3):
        accelerator = SimpleNamespace(process_index=process, num_processes=3, is_main_process=False)
        calls.append([])
        found = map_by_length(work, lengths, accelerator=accelerator, description="", max_rows=2, whole=whole)
    assert len({len(of_process) for of_process in calls}) == 1
    assert all(rows for of_process in calls for rows in of_process)
    assert found == [10 * length for length in lengths]
    assert sorted(i for rows, _ in pieces for i in rows) == list(range(count))


@given(st.lists(st.integers(1, 60), min_size=1, max_size=200), st.integers(1, 8), st.integers(0, 3))
def test_grouped_batches_hold_every_row_once_alike_in_length_and_in_no_order_of_length(lengths, size, epoch):
    sampler = GroupedByLength(lengths, size, seed=5)
    sampler.set_epoch(epoch)
    order = list(sampler)
    assert sorted(order) == list(range(len(lengths)))
    assert order == list(sampler)
    if len(lengths) <= 50 * size:  # one pool: no row lies between the shortest and the longest of another batch
        spans = [[lengths[i] for i in order[n : n + size]] for n in range(0, len(order), size)]
        spans = sorted((min(span), max(span)) for span in spans)
        assert all(a[1] <= b[0] or a[0] == b[0] for a, b in itertools.pairwise(spans))


def test_grouped_batches_come_in_another_order_each_epoch_and_not_by_length():
    lengths = [i // 4 for i in range(400)]
    sampler = GroupedByLength(lengths, 4, seed=0)
    firsts = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        firsts.append([lengths[i] for i in list(sampler)[::4]])
    assert firsts[0] != firsts[1]
    assert all(abs(np.corrcoef(np.arange(len(some)), some)[0, 1]) < 0.3 for some in firsts)
