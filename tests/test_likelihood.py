"""Log-probabilities of given tokens: at most so many logits at once, no more computed than asked, no trace left."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import BertForMaskedLM, EncoderDecoderConfig, EncoderDecoderModel, set_seed

from hf_lm.data.batches import pad_batch
from hf_lm.evaluation import calibration
from hf_lm.evaluation.calibration import label_log_probs
from hf_lm.evaluation.classifiers import class_probabilities
from hf_lm.evaluation.likelihood import evaluating, labelled, sentence_log_probs, token_log_probs, unwrapped
from hf_lm.models.bert import new_bert
from hf_lm.tasks.losses import label_loss, next_token_loss
from hf_lm.tokenization.tokenizer import encode_documents, new_tokenizer

FEATURES = [labelled([5, 6, 7], range(8, 8 + n)) for n in (3, 9, 1, 5, 0)]


@pytest.fixture(scope="module")
def masked(texts):
    set_seed(0)
    tokenizer = new_tokenizer(texts, vocab_size=320)
    tokenizer.add_special_tokens({"mask_token": "<|mask|>"})
    return new_bert(tokenizer, model_class=BertForMaskedLM, n_embd=16, n_head=2, block_size=64).eval(), tokenizer


@pytest.fixture
def seen(monkeypatch):
    """Of each forward of a model that is watched: (rows, width of the input, positions with logits)."""
    forwards = []

    def watch(model):
        def note(_module, _args, kwargs, output):
            forwards.append((*kwargs["input_ids"].shape, output.logits.shape[1]))

        model.register_forward_hook(note, with_kwargs=True)
        return forwards

    return watch


def test_a_model_is_measured_without_dropout_and_trains_on_afterwards(model):
    model.train()
    with pytest.raises(ZeroDivisionError), evaluating(model):
        1 / model.training  # False
    assert model.training
    token_log_probs(model, FEATURES)
    assert model.training
    model.eval()
    token_log_probs(model, FEATURES)
    assert not model.training


def test_the_model_inside_a_wrapper_is_asked_for_its_configuration(model):
    wrapped = torch.nn.parallel.DataParallel(model)
    assert unwrapped(wrapped) is model
    assert unwrapped(model) is model
    for one, other in zip(token_log_probs(wrapped, FEATURES), token_log_probs(model, FEATURES), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_no_more_logits_exist_at_once_than_are_allowed_and_none_before_the_first_label(model, seen):
    forwards, vocab = seen(model), model.config.vocab_size
    found = token_log_probs(model, FEATURES, max_logits=30 * vocab)
    assert [len(row) for row in found] == [3, 9, 1, 5, 0]
    assert all(rows * width <= 30 for rows, width, _ in forwards)
    assert forwards[0] == (2, 12, 10)  # 3 tokens of the prompt; the last of them predicts the first label
    forwards.clear()
    token_log_probs(model, FEATURES, max_logits=1)
    assert [rows for rows, *_ in forwards] == [1] * 5
    forwards.clear()
    token_log_probs(model, FEATURES, max_rows=3)
    assert [rows for rows, *_ in forwards] == [3, 2]


def test_an_encoder_decoder_begins_with_the_start_token_of_its_generation_or_else_its_configuration(masked):
    bert, _ = masked
    config = EncoderDecoderConfig.from_encoder_decoder_configs(*copy.deepcopy([bert.config, bert.config]))
    set_seed(0)
    model = EncoderDecoderModel(config).double().eval()
    features = [labelled([5, 6], [7, 8, 9], causal=False), labelled([5], [4], causal=False)]
    assert features[0] == {"input_ids": [5, 6], "labels": [7, 8, 9]}
    for given, configured, start in ((11, 12, 11), (None, 12, 12)):
        model.generation_config.decoder_start_token_id = given
        model.config.decoder_start_token_id = configured
        for feature, found in zip(features, token_log_probs(model, features), strict=True):
            labels = feature["labels"]
            with torch.no_grad():
                outputs = model(
                    input_ids=torch.tensor([feature["input_ids"]]),
                    decoder_input_ids=torch.tensor([[start, *labels[:-1]]]),
                )
            log_probs = outputs.logits[0].log_softmax(-1)
            assert found.tolist() == pytest.approx([log_probs[i, label].item() for i, label in enumerate(labels)])


def test_a_masked_model_computes_logits_for_the_masked_token_alone_and_keeps_no_hook(masked, seen):
    model, tokenizer = masked
    forwards, vocab = seen(model), model.config.vocab_size
    ids = encode_documents(tokenizer, ["春眠不觉晓", "The fox jumps over the lazy dog."])
    every = sentence_log_probs(model, tokenizer, ids, max_logits=4 * vocab)
    assert [len(row) for row in every] == [len(row) for row in ids]
    assert {positions for *_, positions in forwards} == {1}
    assert max(rows for rows, *_ in forwards) == 4
    some = sentence_log_probs(model, tokenizer, ids, places=[[1], [0, 2]])
    np.testing.assert_allclose(np.concatenate(some), [every[0][1], every[1][0], every[1][2]], atol=1e-6)
    assert sentence_log_probs(model, tokenizer, []) == []
    head = model.get_output_embeddings()
    assert not head._forward_pre_hooks
    with pytest.raises(IndexError):
        sentence_log_probs(model, tokenizer, [[1, 2]], places=[[5]])
    assert not head._forward_pre_hooks


def test_a_causal_model_gives_the_tokens_at_the_places_that_are_asked_for(model, tokenizer):
    ids = encode_documents(tokenizer, ["春眠不觉晓", "The fox"])
    every = sentence_log_probs(model, tokenizer, ids)
    some = sentence_log_probs(model, tokenizer, ids, places=[[1], []])
    assert some[0].tolist() == pytest.approx([every[0][1]])
    assert some[1].tolist() == []
    assert len(every[1]) == len(ids[1])


def test_labels_of_classes_are_scored_in_batches_of_bounded_size(texts, monkeypatch, seen):
    set_seed(0)
    tokenizer = new_tokenizer(texts, vocab_size=320)
    model = new_bert(tokenizer, labels=("a", "b", "c"), n_embd=16, n_head=2, block_size=64).eval()
    task = SimpleNamespace(
        loss=label_loss, shifts_labels=False, collate=lambda features: pad_batch(features, pad_id=0)
    )
    features = [{"input_ids": list(range(4, 4 + n)), "labels": n % 3} for n in (2, 9, 4, 7, 5)]
    with torch.no_grad():
        logits = [model(input_ids=torch.tensor([f["input_ids"]])).logits[0].double() for f in features]
    rows = []
    model.register_forward_pre_hook(lambda _m, _a, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True)
    monkeypatch.setattr(calibration, "MAX_LOGITS", 2 * model.config.vocab_size)
    sums, counts = label_log_probs(model, task, features, temperatures=(1.0, 3.0))
    assert rows == [2, 2, 1]
    assert counts.tolist() == [1] * 5
    for i, (feature, row) in enumerate(zip(features, logits, strict=True)):
        expected = [(row / t).log_softmax(-1)[feature["labels"]].item() for t in (1.0, 3.0)]
        assert sums[i].tolist() == pytest.approx(expected, abs=1e-5)
    none = label_log_probs(model, task, [])
    assert none[0].shape[0] == 0
    with pytest.raises(ValueError, match="needs a task with a loss"):
        label_log_probs(model, SimpleNamespace(loss=None), features)


def test_labels_of_a_causal_model_count_but_for_the_first_and_what_is_no_label(model):
    model.eval()
    task = SimpleNamespace(
        loss=next_token_loss, shifts_labels=True, collate=lambda features: pad_batch(features, pad_id=0)
    )
    features = [{"input_ids": [5, 6, 7, 8], "labels": [5, -100, 7, 8]}, {"input_ids": [9, 4], "labels": [-100, 4]}]
    sums, counts = label_log_probs(model, task, features)
    assert counts.tolist() == [2, 1]
    with torch.no_grad():
        first, other = (model(torch.tensor([f["input_ids"]])).logits[0].log_softmax(-1) for f in features)
    assert sums[:, 0].tolist() == pytest.approx([(first[1, 7] + first[2, 8]).item(), other[0, 4].item()], abs=1e-4)


def test_a_classifier_gives_an_empty_text_probabilities_and_no_text_none(texts):
    set_seed(0)
    tokenizer = new_tokenizer(texts, vocab_size=320)
    model = new_bert(tokenizer, labels=("a", "b"), n_embd=16, n_head=2, block_size=64).eval()
    found = class_probabilities(model, tokenizer, ["The fox", "", *texts[:6]])
    assert found.shape == (8, 2)
    assert found.sum(1) == pytest.approx(np.ones(8))
    assert class_probabilities(model, tokenizer, []).shape == (0, 2)
