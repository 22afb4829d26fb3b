"""No test reaches a network or the user's caches; tiny tokenizers and models are built once."""

import os
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="hf_lm-tests-")
os.environ["TOKENIZERS_PARALLELISM"] = "true"
if "PYTEST_XDIST_WORKER" in os.environ:  # as many workers as cores: a thread each
    os.environ["OMP_NUM_THREADS"] = "1"

import pytest


def pytest_collection_modifyitems(items):
    """Files that run whole recipes take longest: a worker that got one last would keep the others waiting."""
    items.sort(key=lambda item: "recipes" not in item.path.name)


SENTENCES = [
    "The quick brown fox jumps over the lazy dog.",
    "A model assigns a probability to every continuation of a text.",
    "Documents are joined into blocks, and no block lets one document see another.",
    "春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。",
    "def add(a, b):\n    return a + b\n",
]


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return [f"{sentence} {i}. {SENTENCES[(i + 1) % 5]}" for i, sentence in enumerate(SENTENCES * 12)]


@pytest.fixture(scope="session")
def tokenizer(texts):
    from hf_lm.tokenizer import train_bpe

    return train_bpe(texts, vocab_size=320)


@pytest.fixture
def model(tokenizer):
    import transformers

    from hf_lm.models.gpt2 import new_gpt2

    transformers.set_seed(0)
    return new_gpt2(tokenizer, n_layer=2, n_head=2, n_embd=16, block_size=32)


@pytest.fixture
def stream(tokenizer, texts, tmp_path):
    from hf_lm.data.packing import tokenize_documents

    return tokenize_documents(texts, tokenizer=tokenizer, folder=tmp_path / "stream", count_words=True)
