"""The pictures of a run, drawn from its report, in one style."""

import sys
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_lm.reporting.report import SHOWN

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, BLUE, ORANGE, GREY = "#222222", "#2f6db3", "#d9792b", "#9aa0a6"
STYLE = {
    "font.size": 10,
    "text.color": INK,
    "text.parse_math": False,  # a dollar sign in a name begins no formula
    "axes.labelcolor": INK,
    "axes.edgecolor": GREY,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.titlesize": "medium",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.8,
    "legend.frameon": False,
}
HAN_FONTS = ("Noto Sans CJK", "WenQuanYi", "Source Han Sans", "Droid Sans Fallback")
HAN_FONTS += ("PingFang", "Microsoft YaHei", "SimHei")

# What TRL's trainers log while they train, by file: key, title, axis.
TUNING = {
    "reward": ("reward", "Reward of sampled answers", "mean"),
    "reward_margin": ("rewards/margins", "Reward margin, training pairs", "nats times beta"),
    "kl": ("kl", "Divergence from the reference", "nats per token"),
    "entropy": ("entropy", "Entropy", "nats per token"),
    "completion_length": ("completions/mean_length", "Length of sampled answers", "tokens"),
}


@contextmanager
def figure(
    path: Path,
    *,
    rows: int = 1,
    columns: int = 1,
    size: tuple[float, float] = (8, 3.6),  # inches
    grid: str = "y",
    **options: Any,
) -> Generator[list["Axes"]]:
    """The axes of a picture that is saved as a PNG at the end of the block; `options` go to `Figure.subplots`."""
    import matplotlib
    from matplotlib.figure import Figure

    path.parent.mkdir(parents=True, exist_ok=True)
    style: Any = STYLE | {"axes.grid.axis": grid, "font.sans-serif": ["DejaVu Sans", *han_fonts()]}  # Any: a Literal
    with matplotlib.rc_context(style):
        drawing = Figure(figsize=size, dpi=150)
        panels = list(drawing.subplots(rows, columns, squeeze=False, **options).flat)
        yield panels
        for axes in panels:
            if axes.get_legend_handles_labels()[0]:
                axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
        with warnings.catch_warnings(record=True) as said:  # four lines for each character, with a path of ours
            warnings.filterwarnings("always", "Glyph .* missing from font")
            drawing.tight_layout()
            drawing.savefig(path)
        if any("missing from font" in str(each.message) for each in said):
            print(f"{path}: no font here has some of its characters, which are boxes in the picture", file=sys.stderr)


def han_fonts() -> list[str]:
    """Fonts of this machine that have Chinese characters."""
    from matplotlib import font_manager

    return sorted({font.name for font in font_manager.fontManager.ttflist if font.name.startswith(HAN_FONTS)})


def draw_interval(axes: "Axes", metric: dict[str, Any], place: float, colour: str, label: str | None = None) -> None:
    """A number as a point at the height `place`, and its interval, where there is one, as a line through it."""
    if "low" in metric and "high" in metric:
        axes.plot([metric["low"], metric["high"]], [place, place], color=colour, linewidth=1.5)
    axes.plot(metric["value"], place, "o", color=colour, markersize=4.5, label=label)


def draw_plots(report: dict[str, Any], folder: str | Path) -> list[Path]:
    """Draw plots/*.png of what the report's history holds; returns their paths."""
    history, metric = report.get("history", []), report.get("main_metric", "")
    shown, form = SHOWN.get(metric, (metric, ""))
    curves = {  # as TUNING
        "loss": ("loss", "Loss", _unit_of_loss(report)),
        "learning_rate": ("learning_rate", "Learning rate", "of the first parameter group"),
        "throughput": ("tokens_per_second", "Throughput", "tokens per second"),
        **TUNING,
        "metric": (f"eval_{metric}", "Validation", shown + " (%)" * form.endswith("%")),
    }
    drawn = []
    for name, (key, title, label) in curves.items():
        if not (series := _series(history, key)):
            continue
        drawn.append(Path(folder) / "plots" / f"{name}.png")
        with figure(drawn[-1]) as [axes]:
            if name == "metric":
                _metric(axes, metric, report)
            else:
                training = "training" if name == "loss" else None
                alone = "o" if len(series) == 1 else None  # a line through one point is not seen
                axes.plot(*zip(*series, strict=True), color=BLUE, linewidth=1.5, marker=alone, label=training)
            if name == "loss" and (validation := _series(history, "eval_loss")):
                axes.plot(*zip(*validation, strict=True), "o-", color=ORANGE, markersize=4, label="validation")
            axes.set(title=title, xlabel="optimizer step", ylabel=label, xlim=(0, None))
            axes.set_ylim(bottom=0 if name == "throughput" else None)
            axes.locator_params("x", integer=True)
    if curve := report.get("learning_curve"):
        drawn.append(Path(folder) / "plots" / "learning_curve.png")
        with figure(drawn[-1]) as [axes]:
            _curve(axes, curve)
    return drawn


def _unit_of_loss(report: dict[str, Any]) -> str:
    """What the loss of a run is: a mean over tokens or classes, or of TRL's objective for pairs or answers."""
    if report.get("recipe") in ("preference", "reinforce"):
        return "mean of the objective"
    return "nats per token" if report.get("model", {}).get("auto_class", "").endswith("LM") else "nats per label"


def _curve(axes: "Axes", curve: dict[str, Any]) -> None:
    name, number = SHOWN[curve["metric"]]
    percent = ", %" if "%" in number else ""
    axes.set(title="Few labels", xlabel="labelled rows", ylabel=f"{name} on {curve['split']}{percent}")
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
    import numpy as np

    high = max(max(values) for kinds in lengths.values() for values in kinds.values())
    middle = np.median([value for values in lengths["train"].values() for value in values])
    logarithmic = high > 12 * max(1, middle)  # the longest are far from the rest
    edges = np.geomspace(1, high + 1, 40) if logarithmic else np.linspace(0, high + 1, min(high + 2, 40))
    path = Path(folder) / "lengths.png"
    with figure(path) as [axes]:
        for line, kind in zip(("-", "--"), lengths["train"], strict=False):
            for split, color in zip(lengths, (BLUE, ORANGE, GREY), strict=False):
                values = lengths[split][kind]
                weights = np.full(len(values), 100 / len(values))
                style = {"histtype": "step", "color": color, "linestyle": line, "linewidth": 1.4}
                axes.hist(values, edges.tolist(), weights=weights, label=f"{split}, {kind} ({len(values):,})", **style)
        axes.set(title="Lengths", xlabel="tokens", ylabel="% of the rows")
        if logarithmic:
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter("{x:,.0f}")
            axes.minorticks_off()
        else:
            axes.set_xlim(left=0)
    return path


def _series(history: list[dict[str, Any]], key: str) -> list[tuple[int, float]]:
    return [(entry["step"], entry[key]) for entry in history if key in entry]


def _metric(axes: "Axes", metric: str, report: dict[str, Any]) -> None:
    history = report["history"]
    values = _series(history, f"eval_{metric}")
    low, high = (_series(history, f"eval_{metric}_{end}") for end in ("low", "high"))
    axes.plot(*zip(*values, strict=True), "o-", color=ORANGE, markersize=4, label="model, with 95 % interval")
    if len(low) == len(high) == len(values):
        steps, lows, highs = [step for step, _ in values], [v for _, v in low], [v for _, v in high]
        if len(values) > 1:
            axes.fill_between(steps, lows, highs, color=ORANGE, alpha=0.18, linewidth=0)
        else:  # a band of one point has no width
            axes.vlines(steps, lows, highs, color=ORANGE, linewidth=1.5)
    baseline = report.get("metrics", {}).get("validation", {}).get(metric, {}).get("baseline")
    if baseline and "value" in baseline:
        axes.axhline(baseline["value"], color=GREY, linestyle="--", linewidth=1, label=baseline["name"])
    if "lzma" in report.get("yardsticks", {}):
        axes.axhline(report["yardsticks"]["lzma"], color=GREY, linestyle=":", linewidth=1.2, label="lzma, on test")


def draw_scores(result: dict[str, Any], path: Path) -> Path:
    """Draw what scores.json holds: a panel for each metric, a point with its interval for each model."""
    models = list(result["models"])
    names = list(next(iter(result["models"].values()))["metrics"])
    size = (2.2 + 2.6 * len(names), 1.3 + 0.42 * len(models))
    with figure(path, columns=len(names), size=size, grid="x", sharey=True) as panels:
        for axes, name in zip(panels, names, strict=True):
            for row, model in enumerate(models):
                if "value" in (metric := result["models"][model]["metrics"][name]):
                    draw_interval(axes, metric, row, BLUE)
            note = "\n(not comparable)" if name in result["not_compared"] else ""
            axes.set_title(SHOWN.get(name, (name,))[0].strip() + note)
            axes.spines["left"].set_visible(False)
            axes.tick_params(left=False)
            axes.locator_params(axis="x", nbins=4)
        panels[0].set_yticks(range(len(models)), models)
        panels[0].set_ylim(len(models) - 0.5, -0.5)
    return path
