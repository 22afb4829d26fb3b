"""A metric of your own beside those of the task, with an interval as they have. Needs 04."""

import numpy as np
from transformers import AutoModelForSequenceClassification

from hf_lm.evaluation.intervals import mean
from hf_lm.models.loading import load_with_head
from hf_lm.tasks.sentiment import Sentiment
from hf_lm.tokenization.tokenizer import load_tokenizer


class Costly(Sentiment):
    def score(self, split, answers):
        """An urgent ticket that waits costs ten times a false alarm."""
        scores = super().score(split, answers)
        wrong = np.array([row["reference"] != row["prediction"] for row in scores.examples])
        price = np.array([10 if row["reference"] == "urgent" else 1 for row in scores.examples])
        scores.estimates["cost"] = mean(wrong * price, higher_is_better=False)
        return scores


tokenizer = load_tokenizer("out/tickets")
table = Costly.load("tickets.jsonl", text_column="body", label_column="urgency")
task = Costly(table, tokenizer, labels=table.labels, max_length=32)
model = load_with_head("out/tickets", AutoModelForSequenceClassification, tokenizer=tokenizer)
measured = task.measure(model, "test").metrics()
print("cost per ticket:", measured["cost"].interval(), "accuracy:", measured["accuracy"].interval())
