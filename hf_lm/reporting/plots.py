"""The pictures of a run, drawn from its report."""

from pathlib import Path
from typing import Any

from hf_lm.reporting.report import SHOWN

INK, BLUE, ORANGE, GREY = "#222222", "#2f6db3", "#d9792b", "#9aa0a6"

# What TRL's trainers log while they train, by file: key, title, axis.
TUNING = {
    "reward": ("reward", "Reward of sampled answers", "mean"),
    "reward_margin": ("rewards/margins", "Reward margin, training pairs", "nats times beta"),
    "kl": ("kl", "Divergence from the reference", "nats per token"),
    "entropy": ("entropy", "Entropy", "nats per token"),
    "completion_length": ("completions/mean_length", "Length of sampled answers", "tokens"),
}


def draw_plots(report: dict[str, Any], folder: str | Path) -> list[Path]:
    """Draw plots/*.png of what the report's history holds; returns their paths."""
    import matplotlib

    matplotlib.use("Agg")

    folder = Path(folder) / "plots"
    folder.mkdir(parents=True, exist_ok=True)
    history = report.get("history", [])
    train = {key: _series(history, key) for key in ("loss", "learning_rate", "tokens_per_second")}
    drawn = []
    if train["loss"]:
        drawn.append(_draw(folder / "loss.png", "Loss", "nats per token", lambda axes: _loss(axes, history, train)))
    if train["learning_rate"]:
        drawn.append(
            _draw(folder / "learning_rate.png", "Learning rate", "", lambda axes: _line(axes, train["learning_rate"]))
        )
    if train["tokens_per_second"]:
        speed = train["tokens_per_second"]
        drawn.append(
            _draw(folder / "throughput.png", "Throughput", "tokens per second", lambda axes: _line(axes, speed, 0))
        )
    for name, (key, title, label) in TUNING.items():
        if series := _series(history, key):
            drawn.append(_draw(folder / f"{name}.png", title, label, lambda axes, s=series: _line(axes, s)))
    metric = report.get("main_metric", "")
    if _series(history, f"eval_{metric}"):
        shown = SHOWN.get(metric, (metric,))[0]
        drawn.append(_draw(folder / "metric.png", "Validation", shown, lambda axes: _metric(axes, metric, report)))
    if curve := report.get("learning_curve"):
        name, number = SHOWN[curve["metric"]]
        shown = f"{name} on {curve['split']}" + (", %" if "%" in number else "")
        path = folder / "learning_curve.png"
        drawn.append(_draw(path, "Few labels", shown, lambda axes: _curve(axes, curve), below="labelled rows"))
    return drawn


def _curve(axes: Any, curve: dict[str, Any]) -> None:
    axes.set_xscale("log")
    ticks = sorted({point["labels"] for point in curve["points"]})
    axes.set_xticks(ticks, [f"{labels:,}" for labels in ticks])
    axes.minorticks_off()
    methods = dict.fromkeys(point["method"] for point in curve["points"])
    for i, (method, color) in enumerate(zip(methods, (GREY, ORANGE, BLUE), strict=False)):
        points = [point for point in curve["points"] if point["method"] == method]
        labels = [point["labels"] * 1.03 ** (i - 1) for point in points]  # beside each other, so that all are seen
        values = [point["value"] for point in points]
        ends = [[abs(point.get(end, point["value"]) - point["value"]) for point in points] for end in ("low", "high")]
        axes.errorbar(
            labels, values, ends, fmt="o-", color=color, markersize=4, capsize=3, linewidth=1.4, label=method
        )
    if len(ticks) == 1:
        axes.set_xlim(ticks[0] / 1.3, ticks[0] * 1.3)


def draw_lengths(lengths: dict[str, dict[str, list[int]]], folder: str | Path) -> Path:
    """Draw lengths.png: how long the rows of each split are, {split: {kind: tokens of each row}}; returns its path."""
    import matplotlib

    matplotlib.use("Agg")
    import numpy as np

    Path(folder).mkdir(parents=True, exist_ok=True)
    high = max(max(values) for kinds in lengths.values() for values in kinds.values())
    middle = np.median([value for values in lengths["train"].values() for value in values])
    spread = high > 12 * max(1, middle)  # the longest are far from the rest
    edges = np.geomspace(1, high + 1, 40) if spread else np.linspace(0, high + 1, min(high + 2, 40))

    def draw(axes: Any) -> None:
        styles = zip(("-", "--"), lengths["train"], strict=False)
        for line, kind in styles:
            for split, color in zip(lengths, (BLUE, ORANGE, GREY), strict=False):
                values = lengths[split][kind]
                weights = np.full(len(values), 100 / len(values))
                axes.hist(values, edges, weights=weights, histtype="step", color=color, linestyle=line, linewidth=1.4,
                          label=f"{split}, {kind} ({len(values):,})")  # fmt: skip
        if spread:
            axes.set_xscale("log")

    return _draw(Path(folder) / "lengths.png", "Lengths", "% of the rows", draw, below="tokens")


def _series(history: list[dict[str, Any]], key: str) -> list[tuple[int, float]]:
    return [(entry["step"], entry[key]) for entry in history if key in entry]


def _draw(path: Path, title: str, label: str, draw: Any, *, below: str = "optimizer step") -> Path:
    from matplotlib import pyplot

    with pyplot.rc_context({"font.size": 10, "text.color": INK, "axes.edgecolor": GREY, "axes.labelcolor": INK}):
        figure, axes = pyplot.subplots(figsize=(8, 3.6), dpi=150)
        draw(axes)
        axes.set_title(title, loc="left", fontweight="bold")
        axes.set_xlabel(below)
        if axes.get_xscale() == "linear":
            axes.set_xlim(left=0)
        axes.set_ylabel(label)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
        axes.set_axisbelow(True)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
        figure.tight_layout()
        figure.savefig(path)
        pyplot.close(figure)
    return path


def _line(axes: Any, series: list[tuple[int, float]], bottom: float | None = None) -> None:
    axes.plot(*zip(*series, strict=True), color=BLUE, linewidth=1.6)
    if bottom is not None:
        axes.set_ylim(bottom=bottom)


def _loss(axes: Any, history: list[dict[str, Any]], train: dict[str, list]) -> None:
    axes.plot(*zip(*train["loss"], strict=True), color=BLUE, linewidth=1.4, label="training")
    if validation := _series(history, "eval_loss"):
        axes.plot(*zip(*validation, strict=True), "o-", color=ORANGE, markersize=4, linewidth=1.2, label="validation")


def _metric(axes: Any, metric: str, report: dict[str, Any]) -> None:
    history = report["history"]
    values = _series(history, f"eval_{metric}")
    low, high = (_series(history, f"eval_{metric}_{end}") for end in ("low", "high"))
    axes.plot(*zip(*values, strict=True), "o-", color=ORANGE, markersize=4, label="model, with 95 % interval")
    if len(low) == len(high) == len(values):
        steps = [step for step, _ in values]
        axes.fill_between(steps, [v for _, v in low], [v for _, v in high], color=ORANGE, alpha=0.18, linewidth=0)
    baseline = report.get("metrics", {}).get("validation", {}).get(metric, {}).get("baseline")
    if baseline and "value" in baseline:
        axes.axhline(baseline["value"], color=GREY, linestyle="--", linewidth=1, label=baseline["name"])
    if "lzma" in report.get("yardsticks", {}):
        axes.axhline(report["yardsticks"]["lzma"], color=GREY, linestyle=":", linewidth=1.2, label="lzma, on test")


def draw_scores(result: dict[str, Any], path: Path) -> Path:
    """Draw what scores.json holds: a panel for each metric, a point with its interval for each model."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    models = list(result["models"])
    names = list(next(iter(result["models"].values()))["metrics"])
    with pyplot.rc_context({"font.size": 10, "text.color": INK, "axes.edgecolor": GREY, "axes.labelcolor": INK}):
        size = (2.2 + 2.6 * len(names), 1.3 + 0.42 * len(models))
        figure, panels = pyplot.subplots(1, len(names), figsize=size, dpi=150, sharey=True, squeeze=False)
        for axes, name in zip(panels[0], names, strict=True):
            for row, model in enumerate(models):
                found = result["models"][model]["metrics"][name]
                if "value" not in found:
                    continue
                if "low" in found and "high" in found:
                    axes.plot([found["low"], found["high"]], [row, row], color=BLUE, linewidth=1.6)
                axes.plot(found["value"], row, "o", color=BLUE, markersize=5)
            note = "\n(not comparable)" if name in result["not_compared"] else ""
            axes.set_title(SHOWN.get(name, (name,))[0].strip() + note, loc="left", fontsize=10)
            axes.spines[["top", "right", "left"]].set_visible(False)
            axes.tick_params(left=False)
            axes.grid(axis="x", color="#e6e6e6", linewidth=0.8)
            axes.locator_params(axis="x", nbins=4)
            axes.set_axisbelow(True)
        panels[0][0].set_yticks(range(len(models)), [_as_text(model) for model in models])
        panels[0][0].set_ylim(len(models) - 0.5, -0.5)
        figure.tight_layout()
        figure.savefig(path)
        pyplot.close(figure)
    return path


def _as_text(name: str) -> str:
    """A name that matplotlib reads as text: a dollar sign would begin a formula."""
    return name.replace("$", r"\$")
