"""The numbers equal a float64 reference, whatever the windows, and the intervals cover what they should."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_lm.data.packing import tokenize_documents
from hf_lm.evaluation.intervals import mean, ratio
from hf_lm.evaluation.perplexity import Likelihood, score_documents, unigram_likelihood, windows


@given(st.integers(2, 200), st.integers(1, 32), st.data())
def test_windows_score_every_prediction_once_with_enough_context(length, block_size, data):
    stride = data.draw(st.integers(1, block_size))
    scored = []
    for start, end, count in windows(length, block_size=block_size, stride=stride):
        assert 0 <= start < end <= length - 1
        assert end - start <= block_size
        scored += range(end - count + 1, end + 1)  # the ids predicted
        if start:
            assert end - count - start >= block_size - stride  # context of the first id scored
    assert scored == list(range(1, length))


def reference_nll(model, ids, *, block_size, stride):
    """Token by token in float64: each id from the ids of its window that precede it."""
    model = model.double()
    total = 0.0
    for position in range(1, len(ids)):
        for start, end, count in windows(len(ids), block_size=block_size, stride=stride):
            if end - count < position <= end:
                context = torch.tensor([ids[start:position].tolist()])
                with torch.no_grad():
                    logits = model(context).logits[0, -1]
                total -= torch.log_softmax(logits, -1)[int(ids[position])].item()
    return total


@pytest.mark.parametrize("stride", [8, 16, 32])
def test_likelihood_equals_a_float64_reference(model, stream, stride):
    likelihood = score_documents(model, stream, block_size=32, stride=stride)
    model.eval()
    for i in (0, 7, 33):
        expected = reference_nll(model, stream.document(i), block_size=32, stride=stride)
        assert likelihood.nll[i] == pytest.approx(expected, rel=1e-5)
        model.float()


def test_likelihood_does_not_depend_on_how_windows_are_batched(model, stream):
    one = score_documents(model, stream, block_size=32, stride=16, max_logits=1)
    many = score_documents(model, stream, block_size=32, stride=16)
    np.testing.assert_allclose(one.nll, many.nll, rtol=1e-5)


def test_no_more_logits_than_allowed_exist_at_once_and_the_longest_windows_come_first(
    model, tokenizer, texts, tmp_path
):
    short = [text[: 2 + 5 * (i % 7)] for i, text in enumerate(texts)]
    stream, shapes = tokenize_documents(short, tokenizer=tokenizer, folder=tmp_path / "short"), []
    model.register_forward_pre_hook(lambda _, __, given: shapes.append(given["input_ids"].shape), with_kwargs=True)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5  # not while it is measured
    model.train()
    measured = score_documents(model, stream, block_size=32, stride=16, max_logits=100 * 320)
    assert model.training
    assert max(rows * width for rows, width in shapes) <= 100
    widths = [width for _, width in shapes]
    assert widths == sorted(widths, reverse=True)
    assert widths[0] > widths[-1]
    assert all((rows + 1) * width > 100 for rows, width in shapes[:-1])  # as many as fit
    model.eval()
    np.testing.assert_array_equal(
        score_documents(model, stream, block_size=32, stride=16, max_logits=100 * 320).nll, measured.nll
    )
    assert not model.training


def test_tokens_that_are_only_context_get_no_logits(model, stream):
    shapes = []
    model.register_forward_hook(lambda _, __, output: shapes.append(output.logits.shape[:2]))
    score_documents(model, stream, block_size=32, stride=8, max_logits=8 * 32 * 320)
    cuts = [list(windows(len(stream.document(i)), block_size=32, stride=8)) for i in range(len(stream))]
    read = sum(end - start for some in cuts for start, end, _ in some)
    assert sum(rows * width for rows, width in shapes) < 0.6 * read  # without padding 0.3


def test_processes_share_the_windows_and_their_sums_are_the_whole(model, stream, monkeypatch):
    settings = {"block_size": 32, "stride": 16}
    count = sum(len(list(windows(len(stream.document(i)), **settings))) for i in range(len(stream)))
    monkeypatch.setattr("accelerate.utils.gather_object", lambda own: [(range(count), [0.0] * count), *own])
    parts = []
    for i in range(2):
        accelerator = SimpleNamespace(process_index=i, num_processes=2, is_main_process=i == 0)
        parts.append(score_documents(model, stream, **settings, accelerator=accelerator, max_logits=100 * 320).nll)
    whole = score_documents(model, stream, **settings).nll
    assert all(0.3 < part.sum() / whole.sum() < 0.7 for part in parts)
    np.testing.assert_allclose(sum(parts), whole, rtol=1e-5)


def test_metrics_are_the_likelihood_over_tokens_words_and_bytes(model, stream, texts):
    likelihood = score_documents(model, stream, block_size=32, stride=16)
    metrics = likelihood.metrics()
    nll = likelihood.nll.sum()
    assert metrics["perplexity"].value == pytest.approx(math.exp(nll / likelihood.tokens.sum()))
    assert metrics["word_perplexity"].value == pytest.approx(math.exp(nll / sum(len(t.split()) for t in texts)))
    assert metrics["bits_per_byte"].value == pytest.approx(nll / math.log(2) / sum(len(t.encode()) for t in texts))
    for interval in (metric.interval() for metric in metrics.values()):
        assert interval.low < interval.value < interval.high
    assert not any(metric.higher_is_better for metric in metrics.values())
    assert likelihood.examples()[7] == {
        "nll": likelihood.nll[7],
        "tokens": len(stream.document(7)) - 1,
        "bytes": len(texts[7].encode()),
        "words": len(texts[7].split()),
    }
    assert len(likelihood.examples()) == len(texts)
    assert likelihood.tokens.sum() == stream.total - 1  # every id of the stream but the very first is predicted


def test_text_without_spaces_has_no_word_perplexity():
    one = np.ones(3)
    assert "word_perplexity" in Likelihood(one, one, bytes=20 * one, words=one).metrics()
    assert "word_perplexity" not in Likelihood(one, one, bytes=21 * one, words=one).metrics()


def test_an_untrained_model_is_as_good_as_guessing(model, stream):
    likelihood = score_documents(model, stream, block_size=32, stride=32)
    assert likelihood.loss == pytest.approx(math.log(model.config.vocab_size), rel=0.05)


def test_unigram_baseline_is_the_entropy_of_the_tokens_plus_smoothing(stream, tokenizer):
    size = len(tokenizer) + 5  # with ids that occur nowhere
    likelihood = unigram_likelihood(stream, stream, vocab_size=size)
    counts = np.bincount(stream.tokens, minlength=size) + 1.0
    log_probs = np.log(counts / counts.sum())
    assert likelihood.nll.sum() == pytest.approx(-log_probs[np.asarray(stream.tokens[1:])].sum())
    assert likelihood.nll[3] == pytest.approx(-log_probs[stream.document(3)[1:]].sum())
    assert likelihood.tokens.tolist() == [len(stream.document(i)) - 1 for i in range(len(stream))]


def test_stride_must_fit_the_block(model, stream):
    for stride in (0, 33):
        with pytest.raises(ValueError, match="eval_stride"):
            score_documents(model, stream, block_size=32, stride=stride)


def test_the_interval_of_a_mean_agrees_with_the_normal_one():
    values = np.random.default_rng(1).normal(3.0, 1.0, size=2000)
    interval = mean(values).interval()
    half = 1.96 * values.std() / math.sqrt(2000)
    assert interval.value == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - half, abs=0.01)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.01)


def test_one_example_has_no_interval():
    assert ratio(np.ones(1), np.full(1, 2.0)).interval().report() == {"value": 0.5}


def test_a_paired_difference_is_sharper_than_two_intervals_and_knows_noise():
    rng = np.random.default_rng(0)
    shared = rng.normal(0, 5, size=300)  # examples differ far more than the two models do
    one, other = mean(shared + 0.5), mean(shared + rng.normal(0, 0.5, size=300))
    assert one.interval().low < other.interval().high  # apart, nothing could be said
    assert one.beats(other)
    assert not other.beats(one)
    assert not one.beats(one)
    assert one.minus(other).value == pytest.approx(one.value - other.value)
    with pytest.raises(ValueError, match="300 and 2 examples"):
        one.minus(mean(shared[:2]))
