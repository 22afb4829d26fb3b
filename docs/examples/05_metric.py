"""A metric of your own beside those of the task, with an interval as they have."""

import numpy as np

from hf_lm.arguments import TrainingArguments
from hf_lm.evaluation.intervals import mean
from hf_lm.tasks.sentiment import Sentiment
from hf_lm.training.fit import fit


class Costly(Sentiment):
    def score(self, split, answers):
        """A complaint that is overlooked costs ten times a false alarm."""
        scores = super().score(split, answers)
        wrong = np.array([row["reference"] != row["prediction"] for row in scores.examples])
        price = np.array([10 if row["reference"] == "negative" else 1 for row in scores.examples])
        scores.estimates["cost"] = mean(wrong * price, higher_is_better=False)
        return scores


table = Costly.load("demo:opinions")
start = Costly.prepare_model(table, "", block_size=64, sizes={"n_embd": 64, "n_layer": 1, "n_head": 2})
task = Costly.from_start(table, start, max_length=64)
report = fit(start.model, task, TrainingArguments("out/costly", max_steps=100, learning_rate=3e-3, report_to="none"))
print("cost per opinion:", report["metrics"]["test"]["cost"])
