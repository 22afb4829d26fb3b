"""A proof of your own: a run does not start where it fails, and its report says that it held. Needs 04."""

from hf_lm.arguments import TrainingArguments
from hf_lm.tasks.proofs import Proof
from hf_lm.tasks.sentiment import Sentiment
from hf_lm.training.fit import fit


class Checked(Sentiment):
    def data_proofs(self, model):
        naming = [row for row in self.table.rows["train"] if row["label"] in row["text"].lower()]
        proof = Proof(not naming, f"{len(naming)} texts name their own class")
        return super().data_proofs(model) | {"class_not_in_text": lambda: proof}


table = Checked.load("tickets.jsonl", text_column="body", label_column="urgency")
start = Checked.prepare_model(table, "out/tickets", block_size=32)
task = Checked.from_start(table, start, max_length=32)
task.table.rows["train"][0]["text"] += " This is urgent and later."
try:
    fit(start.model, task, TrainingArguments("out/checked", max_steps=5, report_to="none"))
except ValueError as error:
    print(error)
