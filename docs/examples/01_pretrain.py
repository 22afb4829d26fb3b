"""Pretrain a language model on a file of your own: tokenizer, model, task, fit."""

import json
from pathlib import Path

from hf_lm.arguments import TrainingArguments
from hf_lm.data.sources import load_corpus
from hf_lm.models.gpt2 import new_gpt2
from hf_lm.tasks.language_modelling import LanguageModelling
from hf_lm.tokenization.tokenizer import prepare_tokenizer
from hf_lm.training.fit import fit

texts = [f"Box {i} holds {i % 7} {colour} stones." for i in range(200) for colour in ("red", "blue")]
Path("stones.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
corpus = load_corpus("stones.jsonl")
tokenizer = prepare_tokenizer("bpe", corpus, vocab_size=300, min_frequency=2, max_bytes=10**6)
model = new_gpt2(tokenizer, n_layer=1, n_head=2, n_embd=32, block_size=32)
task = LanguageModelling(corpus, tokenizer, block_size=32)
report = fit(model, task, TrainingArguments("out/stones", max_steps=30, learning_rate=1e-2, report_to="none"))
print(report["metrics"]["test"]["bits_per_byte"])
