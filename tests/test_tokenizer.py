"""Any text comes back from its ids, special tokens cannot be forged, and what is saved is what is loaded."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from hf_lm.data.sources import Corpus
from hf_lm.reporting.report import warnings
from hf_lm.tokenization.tokenizer import (
    encode_documents,
    load_tokenizer,
    measure_tokenizer,
    prepare_tokenizer,
    train_bpe,
    train_word_level,
)

ANY_TEXT = st.text(alphabet=st.characters(exclude_categories=("Cs",)), max_size=60) | st.sampled_from(
    [
        "<|endoftext|>",
        "a<|pad|>b",
        "  x\n\n\t y ",
        "１２３٣४",
        "👩‍👩‍👧",
        "é",
        "\x00\x1b[0m",
        "春眠不觉晓" * 20,
        "a" * 500,
    ]
)


@pytest.fixture(scope="module")
def reloaded(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


@settings(max_examples=300)
@given(text=ANY_TEXT)
def test_any_unicode_comes_back_and_a_reloaded_tokenizer_gives_the_same_ids(tokenizer, reloaded, text):
    (ids,) = encode_documents(tokenizer, [text])
    assert tokenizer.decode(ids) == text
    assert reloaded.decode(ids) == text
    assert encode_documents(reloaded, [text])[0] == ids
    assert not {tokenizer.eos_token_id, tokenizer.pad_token_id} & set(ids)


def test_the_special_tokens_are_its_own_and_encode_adds_none(tokenizer, reloaded):
    for one in (tokenizer, reloaded):
        assert one.eos_token == one.bos_token == "<|endoftext|>"
        assert one.pad_token == "<|pad|>"
        assert one.pad_token_id != one.eos_token_id
        assert one.eos_token_id not in one.encode("text")
        assert one.encode("<|endoftext|>") == [one.eos_token_id]  # a user's own prompt may name it


def test_words_never_merge_across_their_bounds_and_are_never_longer_than_allowed(tokenizer):
    split = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str
    assert [piece for piece, _ in split("x1234567\n y")] == ["x", "123", "456", "7", "Ċ", "Ġy"]
    assert [end - start for _, (start, end) in split("a" * 99)] == [32, 32, 32, 3]
    assert [end - start for _, (start, end) in split("春眠不觉晓")] == [4, 1]


def test_training_reads_no_more_than_it_may():
    read = []

    def texts():
        for i in range(1000):
            read.append(i)
            yield "some words to learn from " * 40

    train_bpe(texts(), vocab_size=300, max_bytes=10_000)
    assert len(read) == 10
    with pytest.raises(ValueError, match="258"):
        train_bpe(["x"], vocab_size=200)
    with pytest.raises(ValueError, match="no text"):
        train_bpe([], vocab_size=300)


def test_word_level_counts_ends_of_line_and_knows_its_unknowns():
    text = "The cat sat .\nThe <unk> sat .\n"
    words = train_word_level([text] * 2 + ["rare"], min_frequency=2)
    (ids,) = encode_documents(words, [text])
    assert len(ids) == 10  # eight words and two ends of line
    assert ids.count(words.unk_token_id) == 1
    assert words.decode(ids) == "The cat sat .\n The <unk> sat .\n"
    assert encode_documents(words, ["rare <|endoftext|> <|pad|>"])[0] == [words.unk_token_id] * 3
    assert "rare" not in words.get_vocab()
    assert words.decode(ids, skip_special_tokens=True).count("\n") == 2  # a line end is a word


def test_word_level_ids_have_no_gap_even_where_the_text_holds_the_special_tokens():
    words = train_word_level(["a <unk> b <pad> <eol> <|endoftext|> c\n"])
    assert sorted(words.get_vocab().values()) == list(range(len(words)))
    assert encode_documents(words, ["<unk> a"])[0][0] == words.unk_token_id


def test_a_tokenizer_of_small_letters_loses_text_without_an_unknown_word():
    texts = {"a": ["The cat .", "the cat ."]}
    small, exact = (train_word_level(texts["a"], lowercase=lowercase) for lowercase in (True, False))
    measured = measure_tokenizer(small, texts)["text"]["a"]
    assert (measured["unknown"], measured["lost"]) == (0, 0.5)
    assert measure_tokenizer(exact, texts)["text"]["a"]["lost"] == 0
    assert warnings({"tokenizer": {"text": {"train": measured}}}) == []
    [sentence] = warnings({"tokenizer": {"text": {"test": measured}}})
    assert "gives 50.0% of the documents of test back as other text" in sentence


def test_basic_english_lowers_and_parts_punctuation():
    words = train_word_level(["Don't stop; it's (really) \"fine\", no? Yes!"], min_frequency=1, lowercase=True)
    (ids,) = encode_documents(words, ["Don't STOP: it's (fine)!"])
    assert words.convert_ids_to_tokens(ids) == ["don", "'", "t", "stop", "it", "'", "s", "(", "fine", ")", "!"]


def test_a_tokenizer_is_trained_once_per_corpus_and_settings(texts):
    passes = []

    def read():
        passes.append(1)
        return iter(texts)

    corpus = Corpus("here", "fingerprint-of-this-test", 1000, {"train": read})
    wanted = {"vocab_size": 300, "min_frequency": 2, "max_bytes": 10**6}
    first = prepare_tokenizer("bpe", corpus, **wanted)
    again = prepare_tokenizer("bpe", corpus, **wanted)
    assert len(passes) == 1
    assert first.get_vocab() == again.get_vocab()
    prepare_tokenizer("bpe", corpus, **wanted | {"vocab_size": 290})
    assert len(passes) == 2


def test_a_model_that_is_trained_further_keeps_its_tokenizer_unless_another_is_named(texts, tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "model")
    corpus = Corpus("here", "further", 1000, {"train": lambda: iter(texts)})
    wanted = {"vocab_size": 290, "min_frequency": 2, "max_bytes": 10**6, "model": str(tmp_path / "model")}
    assert prepare_tokenizer("bpe", corpus, **wanted).get_vocab() == tokenizer.get_vocab()
    assert prepare_tokenizer("word", corpus, **wanted).get_vocab() != tokenizer.get_vocab()


def test_a_large_corpus_is_read_evenly_rather_than_from_its_front():
    seen = []
    documents = [f"{i} " * 50 for i in range(100)]
    corpus = Corpus(
        "here", "evenly", sum(map(len, documents)), {"train": lambda: (seen.append(d) or d for d in documents)}
    )
    tokenizer = prepare_tokenizer("bpe", corpus, vocab_size=300, min_frequency=2, max_bytes=corpus.size // 4)
    assert len(seen) == 100
    assert len(tokenizer) >= 258


def test_a_folder_without_tokenizer_files_is_refused_instead_of_giving_no_ids(model, tmp_path):
    model.save_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="no tokenizer files"):
        load_tokenizer(str(tmp_path))
    with pytest.raises(OSError, match=r"someone/nothing is neither a folder here .* HF_HUB_OFFLINE"):
        load_tokenizer("someone/nothing")


def test_the_report_measures_each_group_and_unused_entries(tokenizer):
    text = "春眠不觉晓，处处闻啼鸟。"
    measured = measure_tokenizer(tokenizer, {"zh": [text], "en": ["The quick brown fox"] * 3})
    (ids,) = encode_documents(tokenizer, [text])
    assert measured["text"]["zh"]["bytes_per_token"] == pytest.approx(len(text.encode()) / len(ids))
    (ids,) = encode_documents(tokenizer, ["The quick brown fox"])
    assert measured["text"]["en"]["tokens_per_word"] == pytest.approx(len(ids) / 4)
    assert 0 < measured["unused"] < len(tokenizer)
