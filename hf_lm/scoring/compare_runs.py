"""`hf-lm compare`: finished runs on the same examples, from their predictions alone; no model is loaded."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_lm.hub.records import read_report
from hf_lm.scoring.predictions import METRICS, Example, estimates_of, example_key, labels_of, read_predictions, unit_of
from hf_lm.scoring.scoreboard import check_metrics, compare_models


def compare_runs(folders: Sequence[str], *, metrics: Sequence[str] = (), split: str = "") -> dict[str, Any]:
    """Compare output folders in pairs under every metric, measured again from predictions.jsonl.

    Returns what scores.json holds. `split` "" is test where all have it, else validation. Raises OSError where a
    folder holds no predictions, and ValueError where the runs are of different tasks or the examples do not match.
    """
    folders = list(dict.fromkeys(folders))
    if len(folders) < 2:
        raise ValueError("give two different folders or more: there is nothing to compare.")
    runs = {folder: _read_run(Path(folder)) for folder in folders}
    tasks = {folder: report["recipe"] for folder, (report, _) in runs.items()}
    if len(set(tasks.values())) > 1:
        raise ValueError("these runs are of different tasks: " + ", ".join(f"{f} of {t}" for f, t in tasks.items()))
    first, task = folders[0], tasks[folders[0]]
    if task not in METRICS:
        raise ValueError(f"{first} is a run of {task}; those of {', '.join(METRICS)} can be compared.")
    wanted = check_metrics(task, metrics)
    splits = [{row["split"] for row in rows} for _, rows in runs.values()]
    shared = set.intersection(*splits)
    split = split or next((name for name in ("test", "validation") if name in shared), "")
    if split not in shared:
        having = zip(folders, splits, strict=True)
        listed = "; ".join(f"{folder} has {', '.join(sorted(names))}" for folder, names in having)
        raise ValueError(f"the runs were not all measured on {split or 'one split'}: {listed}.")
    by_run = {folder: [row for row in rows if row["split"] == split] for folder, (_, rows) in runs.items()}
    examples = {folder: _in_order(first, by_run[first], folder, rows, task) for folder, rows in by_run.items()}
    labels = labels_of(task, [row for rows in examples.values() for row in rows])
    estimates = {folder: estimates_of(task, rows, labels=labels) for folder, rows in examples.items()}
    unit = unit_of(task)
    about = {folder: {"versions": report.get("versions", {})} for folder, (report, _) in runs.items()}
    data = runs[first][0].get("data", {})
    tokenizers = {folder: report.get("tokenizer", {}) for folder, (report, _) in runs.items()}
    lossy = {  # where a text does not come back, as of unknown words, the likelihood is that of another one
        folder: json.dumps(about)
        for folder, about in tokenizers.items()
        if any(text.get("lost", text.get("unknown", 0)) > 0 for text in about.get("text", {}).values())
    }
    return {
        "task": task,
        "data": {
            "source": data.get("source", ""),
            "fingerprint": data.get("fingerprint", ""),
            "split": split,
            "unit": unit,
            unit: len(examples[first]),
        },
        **compare_models(estimates, metrics=wanted, unit=unit, about=about, lossy_tokenizers=lossy),
    }


def _read_run(folder: Path) -> tuple[dict[str, Any], list[Example]]:
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}.")
    for name in ("report.json", "predictions.jsonl"):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder} has no {name}: give the output folder of a finished run, or measure the models themselves "
                "with hf-lm score."
            )
    report = read_report(folder)
    if report is None or "recipe" not in report:
        raise ValueError(f"{folder}/report.json is not what a run writes.")
    rows = read_predictions(folder / "predictions.jsonl")
    needed = {"split"}
    if report["recipe"] in METRICS:
        pretrain = report["recipe"] == "pretrain"
        needed |= {"nll", "tokens", "bytes", "words"} if pretrain else {"input", "reference", "prediction"}
    if not rows or not all(isinstance(row, dict) and needed <= row.keys() and row["split"] for row in rows):
        raise ValueError(f"{folder}/predictions.jsonl does not hold the predictions of a {report['recipe']} run.")
    return report, rows


def _in_order(
    first: str, wanted: Sequence[Example], folder: str, rows: Sequence[Example], task: str
) -> Sequence[Example]:
    """The rows of a run in the order of the first run's. Raises ValueError where they are not the same examples."""
    if task == "pretrain":  # documents have no text here: their sizes tell them, in their order
        if [example_key(row) for row in rows] == [example_key(row) for row in wanted]:
            return rows
        raise ValueError(
            f"{folder} and {first} were measured on different documents ({len(rows)} and {len(wanted)}): measure both "
            "on one data set with hf-lm score."
        )
    places: dict[str, list[Example]] = {}
    for row in rows:
        places.setdefault(example_key(row), []).append(row)
    matched, missing = [], []
    for row in wanted:
        same = places.get(example_key(row))
        if same:
            matched.append(same.pop(0))
        else:
            missing.append(row)
    if missing or len(rows) != len(wanted):
        shown = missing[0] if missing else rows[-1]
        raise ValueError(
            f"the examples do not match: {len(matched)} of the {len(wanted)} of {first} are among the {len(rows)} of "
            f"{folder} (not {str(shown['input'])[:60]!r}): measure both on one data set with hf-lm score."
        )
    return matched
