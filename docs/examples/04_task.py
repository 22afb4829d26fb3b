"""A task of your own: tickets whose subject and body are read together, and their urgency."""

import json
from pathlib import Path

from hf_lm.arguments import TrainingArguments
from hf_lm.data.tables import load_table
from hf_lm.tasks.sentiment import Sentiment
from hf_lm.training.fit import fit


class Urgency(Sentiment):
    kind = "ticket classifier"

    @classmethod
    def load(cls, dataset):
        table = load_table(dataset)
        for split, rows in table.rows.items():
            table.rows[split] = [row | {"text": f"{row['subject']}: {row['body']}"} for row in rows]
        cls.read(table, label_column="urgency")
        return table


causes = {"The site is down": "urgent", "I cannot pay": "urgent", "A word is misspelt": "later", "A wish": "later"}
places = ["in the shop", "on my phone", "since Monday", "for all of us", "in Spain", "at night", "after the update"]
rows = [{"subject": b, "body": f"{a}, {c}.", "urgency": causes[a]} for a in causes for b in places for c in places]
Path("tickets.jsonl").write_text("\n".join(map(json.dumps, rows)))
table = Urgency.load("tickets.jsonl")
start = Urgency.prepare_model(table, "", block_size=32, sizes={"n_embd": 32, "n_layer": 1, "n_head": 2})
task = Urgency.from_start(table, start, max_length=32)
report = fit(start.model, task, TrainingArguments("out/tickets", max_steps=60, learning_rate=3e-3, report_to="none"))
print(report["metrics"]["test"]["accuracy"])
