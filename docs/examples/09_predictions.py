"""Predictions of a run: what the model answered to each held-out example, the least certain first. Needs 04."""

import json
from pathlib import Path

rows = [json.loads(line) for line in Path("out/tickets/predictions.jsonl").read_text().splitlines()]
for row in sorted((row for row in rows if row["split"] == "test"), key=lambda row: row["score"])[:3]:
    print(f"{row['score']:.2f} {row['input']!r}: {row['prediction']}, and it is {row['reference']}")
