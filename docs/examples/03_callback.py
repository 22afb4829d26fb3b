"""A callback of the Trainer: `build_trainer` makes the Trainer that `fit` uses, and you may add to it. Needs 01."""

from transformers import TrainerCallback

from hf_lm.arguments import TrainingArguments
from hf_lm.data.sources import load_corpus
from hf_lm.models.loading import load_causal_lm
from hf_lm.tasks.language_modelling import LanguageModelling
from hf_lm.tokenization.tokenizer import load_tokenizer
from hf_lm.training.fit import fit
from hf_lm.training.trainer import supervised_trainer


class LargestGradient(TrainerCallback):
    value = 0.0

    def on_log(self, args, state, control, logs, **_):
        self.value = max(self.value, logs.get("grad_norm", 0.0))


largest = LargestGradient()


def build_trainer(model, args, task, measure):
    trainer = supervised_trainer(model, args, task, measure)
    trainer.add_callback(largest)
    return trainer


tokenizer = load_tokenizer("out/stones")
model = load_causal_lm("out/stones", tokenizer=tokenizer)
task = LanguageModelling(load_corpus("stones.jsonl"), tokenizer, block_size=32)
arguments = TrainingArguments("out/watched", max_steps=5, logging_steps=1, report_to="none")
fit(model, task, arguments, build_trainer=build_trainer)
print("largest gradient norm:", largest.value)
