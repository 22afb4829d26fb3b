"""report.json: everything measured. The card, the plots and the summary in the terminal are made from it."""

import contextlib
import json
import math
import os
import platform
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from hf_lm.files import sync, write_whole
from hf_lm.hub.credentials import printable

try:
    import resource
except ImportError:  # Windows
    resource = None

PACKAGES = ("torch", "transformers", "datasets", "tokenizers", "accelerate", "peft")

# Metrics as they are shown: name, unit, and the digits that mean something. A z leaves the sign of -0.00 out.
SHOWN = {
    "bits_per_byte": ("bits per byte", "{:z.3f}"),
    "perplexity": ("token perplexity", "{:z.2f}"),
    "word_perplexity": ("word perplexity", "{:z.1f}"),
    "answer_perplexity": ("answer perplexity", "{:z.2f}"),
    "reward_accuracy": ("reward accuracy", "{:z.1f} %"),
    "reward_margin": ("reward margin", "{:z.3f}"),
    "reward": ("reward", "{:z.3f}"),
    "win_rate": ("win rate", "{:z.1f} %"),
    "kl": ("KL from reference", "{:z.2f} nats"),
    "length_change": ("longer answers by", "{:z.1f} tokens"),
    "accuracy": ("accuracy", "{:z.1f} %"),
    "macro_f1": ("macro F1", "{:z.1f} %"),
    "mcc": ("MCC", "{:z.3f}"),
    "calibration_error": ("calibration error", "{:z.1f} %"),
    "bleu": ("BLEU", "{:z.1f}"),
    "chrf": ("chrF", "{:z.1f}"),
    "ter": ("TER", "{:z.1f}"),
    "rouge1": ("ROUGE-1", "{:z.1f}"),
    "rouge2": ("ROUGE-2", "{:z.1f}"),
    "rougeL": ("ROUGE-L", "{:z.1f}"),
    "rougeLsum": ("ROUGE-Lsum", "{:z.1f}"),
    "exact_match": ("exact match", "{:z.1f} %"),
    "f1": ("F1", "{:z.1f} %"),
    "precision": ("precision", "{:z.1f} %"),
    "recall": ("recall", "{:z.1f} %"),
    "has_answer_exact_match": ("  with answer, EM", "{:z.1f} %"),
    "has_answer_f1": ("  with answer, F1", "{:z.1f} %"),
    "no_answer_exact_match": ("  without, EM", "{:z.1f} %"),
    "no_answer_f1": ("  without, F1", "{:z.1f} %"),
}


def save_report(report: dict[str, Any], folder: str | Path) -> dict[str, Any]:
    """Write report.json; returns its content: JSON values, without those that are not finite."""
    report = plain(report)
    text = json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False)
    write_whole(Path(folder) / "report.json", text + "\n")
    return report


def save_predictions(rows: Iterable[dict[str, Any]], folder: str | Path) -> None:
    """Write predictions.jsonl, to a temporary file and then renamed; no file where there are no rows."""
    path, aside = Path(folder) / "predictions.jsonl", Path(folder) / ".predictions.jsonl.0.tmp"
    try:
        with aside.open("w", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps(plain(row), ensure_ascii=False) + "\n")
        sync(aside)
        if aside.stat().st_size:
            os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def plain(value: Any) -> Any:
    """A value as JSON: numpy's numbers as Python's, with eight digits; what is not finite is dropped."""
    if isinstance(value, dict):
        items = {str(key): plain(item) for key, item in value.items()}
        return {key: item for key, item in items.items() if item is not None or value.get("passed", 0) is None}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float):
        return float(f"{value:.8g}") if math.isfinite(value) else None
    return value


def versions() -> dict[str, str]:
    """The versions of hf_lm, Python and the libraries that decide a result."""
    from hf_lm.version import __version__

    numbers = {"hf_lm": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            numbers[name] = version(name)
    return numbers


def peak_memory_bytes() -> int:
    """Peak resident memory of this process in bytes; with a GPU, the peak that its tensors took."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    if resource is None:
        import psutil

        return psutil.Process().memory_info().peak_wset  # pyright: ignore[reportAttributeAccessIssue]  (Windows)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def in_hours(seconds: float) -> str:
    """A duration in seconds, minutes or hours."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"


def time_in_words(report: dict[str, Any]) -> str:
    """How long a run took, with its data, model and proofs; of a resumed one only its last part is known."""
    seconds = report.get("seconds", 0.0)
    shown = f"{seconds:,.0f} s" if seconds < 600 else f"{seconds / 60:,.1f} minutes"
    return shown + (f" since {report['resumed']} was resumed" if "resumed" in report else " in all")


def plan_in_words(report: dict[str, Any]) -> str:
    """Planned and measured time and memory of a run; "" where there was no plan."""
    plan, memory = report.get("plan"), report.get("speed", {}).get("peak_memory_bytes")
    if not plan or not memory:
        return ""
    return (
        f"Planned {in_hours(plan['seconds'])} and {plan['peak_memory_bytes'] / 2**20:,.0f} MiB, "
        f"measured {in_hours(plan.get('took', report['seconds']))} and {memory / 2**20:,.0f} MiB"
    )


def in_words(name: str, metric: dict[str, Any]) -> str:
    """A metric with its interval, as the terminal and the card show it; one without a value was not finite."""
    number = SHOWN.get(name, (name, "{:.3f}"))[1]
    if not math.isfinite(metric.get("value", math.inf)):
        return "not finite"
    if metric["value"] >= 1e6:
        number = "{:.2e}"
    text = number.format(metric["value"])
    if "low" in metric and "high" in metric:
        text += f" ({number.format(metric['low'])} to {number.format(metric['high'])})"
    return text


def gain_in_words(name: str, gain: dict[str, Any]) -> str:
    """A difference between two values of a metric, with its interval."""
    number = SHOWN.get(name, (name, "{:.3f}"))[1].split("}")[0].replace("{:", "{:+") + "}"
    text = number.format(gain["value"])
    return text + (f" ({number.format(gain['low'])} to {number.format(gain['high'])})" if "low" in gain else "")


def beside(name: str, metric: dict[str, Any]) -> str:
    """The baseline of a metric in words, and whether the model beats it; "" where there is none."""
    baseline = metric.get("baseline")
    if baseline is None:
        return ""
    return f"{baseline['name']} {in_words(name, baseline)}" + ("" if baseline["beaten"] else ", NOT BEATEN")


def warnings(report: dict[str, Any]) -> list[str]:
    """What a reader of the numbers must know, in sentences: overlap with the training data, truncation, a sample."""
    sentences, data = [], report.get("data", {})
    for split, overlap in data.get("overlap", {}).items():
        if overlap["rows"]:
            text = f"{overlap['rows']:,} rows of {split} ({overlap['share']:.1%}) also occur in train"
            if (name := report["main_metric"]) in overlap.get("metrics_without", {}):
                number = in_words(name, {"value": overlap["metrics_without"][name]})
                text += f"; without them {SHOWN[name][0]} is {number} (--drop_overlap removes them from train)"
            sentences.append(text + ".")
    for split in ("train", "validation", "test"):
        if data.get(split, {}).get("truncated"):
            share, lost = data[split]["truncated"], data[split]["tokens_lost"]
            sentences.append(f"{share:.1%} of the rows of {split} were truncated, {lost:.1%} of their tokens lost.")
        if scored := data.get(split, {}).get("scored"):
            text = f"{scored:,} of {data[split]['documents']:,} documents of {split} were scored"
            sentences.append(f"{text}, drawn at random: training was short. hf-lm score reads all.")
    for name, part in report.get("tokenizer", {}).get("text", {}).items():
        if name != "train" and (share := part.get("lost", 0)):
            sentences.append(
                f"The tokenizer gives {share:.1%} of the documents of {name} back as other text (unknown words, small "
                "letters): the numbers are of that text, and bits per byte are not comparable, with lzma neither."
            )
    if left_out := [f"{n:,} {key.replace('_', ' ')}" for key, n in data.get("left_out", {}).items() if n]:
        sentences.append(f"Dropped or repaired: {', '.join(left_out)}.")
    return sentences


def show_report(report: dict[str, Any], folder: str | Path) -> None:
    """Print the summary of a finished run."""
    lines = [""]
    for split, metrics in report.get("metrics", {}).items():
        lines.append(f"{split}, 95 % interval over {report.get('unit', 'examples')}".capitalize())
        for name, metric in metrics.items():
            lines.append(f"  {SHOWN.get(name, (name,))[0]:<18}{in_words(name, metric):<34}{beside(name, metric)}")
    yardsticks = report.get("yardsticks", {})
    if yardsticks:
        lines.append(
            f"  Bits per byte of lzma: {yardsticks['lzma']:.3f} alone, {yardsticks['lzma_with_train']:.3f} when it "
            "has read the training text"
        )
    lines += [f"  {sentence}" for sentence in warnings(report)]
    for sample in report.get("samples", []):
        lines += ["", f"Sample: [{sample['prompt']}]{sample['continuation'].rstrip()}"]
    passed = [name for name, proof in report.get("proofs", {}).items() if proof["passed"]]
    skipped = [name for name, proof in report.get("proofs", {}).items() if proof["passed"] is None]
    speed = report.get("speed", {})
    lines.append("")
    if "tokens_per_second" in speed:
        lines.append(
            f"{speed['tokens_per_second']:,.0f} tokens/s, {speed['utilisation']:.0%} of this device's matrix speed, "
            f"peak memory {speed['peak_memory_bytes'] / 2**20:,.0f} MiB, {time_in_words(report)}"
        )
    if planned := plan_in_words(report):
        lines.append(planned)
    lines.append(
        f"Proofs passed: {', '.join(passed) or 'none'}" + (f"; skipped: {', '.join(skipped)}" if skipped else "")
    )
    predictions = ", predictions.jsonl" if (Path(folder) / "predictions.jsonl").is_file() else ""
    loads = report.get("model", {}).get("auto_class", "AutoModel")
    lines.append(f"In {folder}: the model ({loads}), README.md, report.json, plots/" + predictions)
    print(printable("\n".join(lines)))
