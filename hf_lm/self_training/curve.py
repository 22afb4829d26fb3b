"""The trainings together: the score by share of the labels and method, and whether a method gains."""

from typing import Any

import numpy as np

from hf_lm.evaluation.intervals import OverRuns
from hf_lm.reporting.report import SHOWN, gain_in_words, in_words
from hf_lm.self_training.experiment import LABELS, SelfTraining, Trained


def learning_curve(learned: SelfTraining) -> dict[str, Any]:
    """The curve as report.json holds it: a point for each share and method, over seeds and examples."""
    split, points, sentences = learned.split, [], []
    for share in learned.shares:
        alone = OverRuns([run.estimates[split] for run in _runs(learned, LABELS, share)])
        for method in (LABELS, *learned.methods):
            runs = _runs(learned, method, share)
            if not runs:
                continue
            reached = OverRuns([run.estimates[split] for run in runs])
            point = {"method": method, "share": share, "labels": runs[0].labelled} | reached.interval().report()
            point["runs"] = [run.estimates[split].value for run in runs]
            if method != LABELS:
                gain = reached.minus(alone)
                better, worse = (gain.low or 0) > 0, (0 if gain.high is None else gain.high) < 0
                if not runs[0].estimates[split].higher_is_better:
                    better, worse = worse, better
                point["gain"] = gain.report() | {"beaten": better, "worse": worse}
                point["found"] = [run.rounds for run in runs if run.rounds]
                sentences.append(_in_words(point, learned))
            points.append(point)
    best = learned.best
    chosen = {"method": best.method, "share": best.share, "labels": best.labelled, "seed": best.seed}
    chosen["validation"] = best.estimates["validation"].value
    unlabelled, held_out = learned.unlabelled, len(learned.train) - len(learned.readable)
    return {
        "task": learned.task.recipe,
        "metric": learned.task.main_metric,
        "split": split,
        "seeds": learned.seed_values,
        "threshold": learned.threshold,
        "points": points,
        "pretraining": learned.pretraining,
        "unlabelled": {
            "source": unlabelled.source or "the training rows whose label a share leaves out",
            "rows": len(unlabelled.questions or unlabelled.texts),
            "left_out": {reason: count for reason, count in unlabelled.left_out.items() if count},
            "in_a_held-out_split": held_out,
        },
        "chosen": chosen,
        "said": [*unlabelled.notes, *_left_out(unlabelled.left_out, held_out), *sentences],
    }


def _runs(learned: SelfTraining, method: str, share: float) -> list[Trained]:
    return [run for run in learned.trained if (run.method, run.share) == (method, share)]


def _left_out(counts: dict[str, int], held_out: int) -> list[str]:
    counts = dict(counts) | {"training_rows_in_a_held-out_split": held_out}
    shown = ", ".join(f"{count:,} {reason.replace('_', ' ')}" for reason, count in counts.items() if count)
    return [f"left out of the text without labels: {shown}"] if shown else []


def _in_words(point: dict[str, Any], learned: SelfTraining) -> str:
    """Whether a method beats labels alone, and where it does not, a possible reason."""
    gain, seeds, metric = point["gain"], len(point["runs"]), learned.task.main_metric
    counted = "documents" if learned.task.confidence_threshold is None else "labels"
    text = f"with {point['labels']:,} {counted} ({point['share']:.0%}), {point['method']}: "
    text += f"{in_words(metric, {'value': point['value']})}, {gain_in_words(metric, gain)} against labels alone"
    over = f"the examples of {learned.split}"
    over = f"{seeds} seeds and {over}" if seeds > 1 else f"{over}, for this seed alone"
    if gain["beaten"]:
        return f"{text}: better by more than chance explains over {over}"
    text += ": worse by more than chance explains over " if gain["worse"] else ": no more than chance explains over "
    text += over
    first = [run["rounds"][0] for run in point["found"]]
    if none := [each for each in first if not each["pseudo_labels"]]:
        highest = max(each["surest"] for each in none)
        text += f"; for {len(none)} of {seeds} seeds a kind of row has no answer of confidence {learned.threshold:g} "
        text += f"(the highest of all: {highest:.2f})"
    if right := [each["right"] for each in first if "right" in each]:
        reached = in_words(metric, {"value": float(np.mean(right))})
        text += f"; the pseudo-labels of the first round have {SHOWN[metric][0]} {reached}"
        text += f" ({np.mean([each['pseudo_labels'] for each in first]):.0f} a seed)"
    return text
