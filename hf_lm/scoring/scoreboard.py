"""The output of `hf-lm score` and `hf-lm compare`: a table, a sentence per pair, scores.json, a picture."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hf_lm.evaluation.compare import Comparison, compare
from hf_lm.evaluation.intervals import Estimate
from hf_lm.files import json_with, refuse_foreign, write_whole
from hf_lm.hub.credentials import printable
from hf_lm.parsing.suggestions import did_you_mean
from hf_lm.reporting.report import SHOWN, in_words, plain
from hf_lm.reporting.terminal import aligned
from hf_lm.scoring.predictions import GROUPS, METRICS

LIKELIHOODS = METRICS["pretrain"]


def check_metrics(task: str, metrics: Sequence[str]) -> list[str]:
    """The metrics asked for, in that order; all of the task's, the main one first, where none is asked for.

    `perplexity` and `rouge` name all of their kind. Raises ValueError with the closest name for one there is not.
    """
    known = METRICS[task]
    asked = [name for metric in metrics for name in GROUPS.get(metric, (metric,))]
    for name in asked:
        if name not in known:
            hint = did_you_mean(name, [*known, *GROUPS])
            raise ValueError(f"{task} has no metric {name!r}; it has {', '.join(known)}.{hint}")
    return list(dict.fromkeys(asked or known))


def compare_models(
    estimates: Mapping[str, Mapping[str, Estimate]],
    *,
    metrics: Sequence[str],
    unit: str,
    about: Mapping[str, dict[str, Any]],
    lossy_tokenizers: Mapping[str, str],
) -> dict[str, Any]:
    """The part of scores.json about models: each with its numbers and intervals, and every pair under every metric.

    `estimates`: by model and metric, of the same examples. `lossy_tokenizers` names the tokenizer of each model whose
    tokenizer loses text: its likelihood is of another text, and is compared only where all models have that tokenizer.
    Token perplexity is compared only where all count the same tokens. Holm's correction is over the pairs under one
    metric.
    """
    same = len(lossy_tokenizers) == len(estimates) and len(set(lossy_tokenizers.values())) == 1
    apart = [] if same else list(lossy_tokenizers)
    shown = [name for name in metrics if all(name in measured for measured in estimates.values())]
    if not shown:
        raise ValueError(f"there is no {' or '.join(metrics)} for these models on these examples.")
    models = {
        model: {**about.get(model, {}), "metrics": {name: measured[name].interval().report() for name in shown}}
        for model, measured in estimates.items()
    }
    comparisons, not_compared = [], {}
    for name in shown:
        together = {
            model: measured[name]
            for model, measured in estimates.items()
            if name not in LIKELIHOODS or model not in apart
        }
        if name in LIKELIHOODS and len(together) < len(estimates):
            not_compared[name] = f"not comparable for {' and '.join(apart)}, whose tokenizer loses text"
        tokens = [measured.statistics[:, 1] for measured in together.values()]
        if name == "perplexity" and not all(np.array_equal(tokens[0], other) for other in tokens[1:]):
            not_compared[name] = "not comparable: the models do not count the same tokens"
            continue
        comparisons += compare(together, name)
    return {
        "main_metric": shown[0],
        "models": models,
        "not_compared": not_compared,
        "comparisons": [_report(comparison, unit) for comparison in comparisons],
    }


def _report(comparison: Comparison, unit: str) -> dict[str, Any]:
    return vars(comparison) | {"difference": comparison.difference.report(), "said": sentence(comparison, unit)}


def sentence(comparison: Comparison, unit: str = "examples") -> str:
    """The result of a comparison in plain words."""
    a, b, metric, difference = comparison.model_a, comparison.model_b, comparison.metric, comparison.difference
    better = comparison.better or (a if (difference.value > 0) == comparison.higher_is_better else b)
    worse = b if better == a else a
    sign = 1 if (better == a) == comparison.higher_is_better else -1  # so that a gain of the better model is above 0
    label, number = SHOWN.get(metric, (metric, "{:.3f}"))
    if metric.endswith(("_match", "f1", "accuracy", "error")) or "perplexity" in metric:
        label = f"points of {label.strip()}"
    number = number.removesuffix(" %")
    if comparison.better and float(number.format(difference.value)) == 0:  # a real difference that is small
        number = "{:.2g}"
    gain = number.format(sign * difference.value + 0.0)  # no -0.0
    if difference.low is None or difference.high is None:
        few = f"too few {unit} to test it ({comparison.examples:,})"
        return f"{a} and {b} cannot be compared: {gain} {label} for {better}, and {few}."
    low, high = sorted((sign * difference.low, sign * difference.high))
    interval = f"95 % interval {number.format(low)} to {number.format(high)}"
    p = comparison.p_corrected
    evidence = f"{interval}, " + ("p < 0.001" if p < 0.001 else f"p = {p:.{3 if p < 0.1 else 2}f}")
    if comparison.comparisons > 1:
        evidence += f" after correction for {comparison.comparisons} comparisons"
    if comparison.better:
        return f"{better} is better than {worse} by {gain} {label}, {evidence}."
    return f"No difference beyond noise between {a} and {b}: {gain} {label} for {better}, {evidence}."


def check_output(path: str | Path) -> Path:
    """Raise FileExistsError or ValueError where scores, or the picture beside them, would replace another file."""
    path, ours = Path(path), json_with("task", "data", "main_metric", "models", "comparisons")
    refuse_foreign(path, ours=ours, option="--output")
    if path.suffix == ".png":
        raise ValueError(
            f"--output {path} is the name of the picture: give a file such as {path.with_suffix('.json')}."
        )
    refuse_foreign(path.with_suffix(".png"), ours=lambda picture: ours(path), option="--output")
    return path


def announce_output(path: str | Path) -> None:
    """Say on stderr that an earlier result will be replaced, while it can still be kept. Raises as `check_output`."""
    if check_output(path).is_file():
        print(f"{path} holds an earlier result, which this one replaces: --output names another file", file=sys.stderr)


def save_scores(result: dict[str, Any], path: str | Path) -> list[Path]:
    """Write scores.json, and beside it the picture of the same name; returns both paths. Raises as `check_output`."""
    from hf_lm.reporting.plots import draw_scores

    path = check_output(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(plain(result), indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    return [path, draw_scores(result, path.with_suffix(".png"))]


def show_scores(result: dict[str, Any]) -> None:
    """Print the table, what must be known of the numbers, and a sentence for each pair under the main metric."""
    data, models = result["data"], result["models"]
    unit = data["unit"]
    names = list(next(iter(models.values()))["metrics"])
    marks = {name: "*" * (i + 1) for i, name in enumerate(result["not_compared"])}
    rows = [["", *(SHOWN.get(name, (name,))[0].strip() + marks.get(name, "") for name in names)]]
    rows += [[model, *(in_words(name, entry["metrics"][name]) for name in names)] for model, entry in models.items()]
    lines = ["", f"{data['split']} of {data['source']}, {data[unit]:,} {unit}, 95 % intervals over {unit}", ""]
    lines += aligned(rows)
    notes = [f"{marks[name]} {reason}." for name, reason in result["not_compared"].items()]
    for model, entry in models.items():
        if "how" in entry:
            notes.append(f"{model}: {'; '.join([entry['how'], *entry.get('notes', [])])}.")
        for task, numbers in entry.get("harness", {}).get("tasks", {}).items():
            notes.append(f"{model}, {task} by the harness: {harness_in_words(numbers)}.")
    main = result["main_metric"]
    sentences = [comparison["said"] for comparison in result["comparisons"] if comparison["metric"] == main]
    for part in (notes, sentences):
        lines += ["", *part] if part else []
    print(printable("\n".join(lines)))


def harness_in_words(numbers: Mapping[str, dict[str, float]]) -> str:
    """Numbers of lm-evaluation-harness with their standard errors."""
    return ", ".join(
        f"{name} {metric['value']:.4g}" + (f" ± {metric['stderr']:.2g}" if "stderr" in metric else "")
        for name, metric in numbers.items()
    )
