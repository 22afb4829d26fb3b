"""LoRA: freeze a model, train an update of each matrix, and merge it into an ordinary folder. Needs 01."""

from hf_lm.arguments import TrainingArguments
from hf_lm.data.sources import load_corpus
from hf_lm.hub.check import check_folder
from hf_lm.models.adapters import add_lora, merge_adapter
from hf_lm.models.loading import load_causal_lm
from hf_lm.tasks.language_modelling import LanguageModelling
from hf_lm.tokenization.tokenizer import load_tokenizer
from hf_lm.training.fit import fit

tokenizer = load_tokenizer("out/stones")
model = add_lora(load_causal_lm("out/stones", tokenizer=tokenizer), rank=2)
task = LanguageModelling(load_corpus("stones.jsonl"), tokenizer, block_size=32)
fit(model, task, TrainingArguments("out/adapted", max_steps=5, report_to="none"), merge=False)
merged = merge_adapter("out/adapted", "out/merged")
print(check_folder(merged).wrong or "nothing is wrong with the merged folder")
