"""No test reaches a network or the user's caches; tiny tokenizers and models are built once."""

import gc
import os
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="hf_lm-tests-")
os.environ["TOKENIZERS_PARALLELISM"] = "true"

import pytest
import torch
from hypothesis import settings

settings.register_profile("shared", deadline=None)  # a busy machine, or a first import, is no failure
settings.load_profile("shared")

if "PYTEST_XDIST_WORKER" in os.environ:  # as many workers as cores: a thread each
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    """Files that run whole recipes take longest: a worker that got one last would keep the others waiting."""
    items.sort(key=lambda item: "recipes" not in item.path.name)


@pytest.fixture(scope="module", autouse=True)
def _libraries_are_not_searched_for_garbage():
    """accelerate collects garbage before each training: half a second where all is imported, a third of a test."""
    gc.collect()
    gc.freeze()


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
    from hf_lm.tokenization.tokenizer import train_bpe

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


@pytest.fixture
def scripted(tokenizer):
    """A maker of models that write a given text after the marker of an empty prompt, and then end it."""
    import torch
    import transformers

    from hf_lm.models.gpt2 import new_gpt2
    from hf_lm.tokenization.tokenizer import encode_documents

    def make(text: str):
        ids = [*encode_documents(tokenizer, [text])[0], tokenizer.eos_token_id]
        size = 128  # positions; more than any script here
        config = new_gpt2(tokenizer, n_layer=1, n_head=1, n_embd=size, block_size=size).config
        config.tie_word_embeddings = False
        model = transformers.GPT2LMHeadModel(config).eval()
        with torch.no_grad():  # the layer adds nothing, a position is a unit vector, and the head reads it off
            for parameter in model.transformer.h.parameters():
                parameter.zero_()
            model.transformer.wte.weight.zero_()
            model.transformer.wpe.weight.copy_(torch.eye(size))
            model.lm_head.weight.zero_()
            for place, i in enumerate(ids):
                model.lm_head.weight[i, place] = 100.0
        return model

    return make
