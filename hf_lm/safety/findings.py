"""The measurements for people: report["safety"], a table, a picture, sentences for the model card."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate import PartialState

from hf_lm.evaluation.intervals import Interval
from hf_lm.files import write_whole
from hf_lm.hub.credentials import printable
from hf_lm.hub.records import read_report
from hf_lm.reporting import markdown
from hf_lm.reporting.card import write_card
from hf_lm.reporting.plots import BLUE, GREY, ORANGE, draw_interval, figure, han_fonts
from hf_lm.reporting.report import save_report, versions
from hf_lm.reporting.terminal import aligned
from hf_lm.safety.measures import ALL, Measure, in_words
from hf_lm.safety.suite import Measured, Suite

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHOWN = 6  # groups of a measure in the terminal, those furthest from all together
COLOURS = (BLUE, ORANGE, "#3d8b5f", "#8a5fb0", "#b0413e", GREY)


@dataclass
class Variant:
    """A model, or a model under a mitigation, and its measurements.

    `against` names the variant that it is compared with on the same examples; `made` says how it was made.
    """

    name: str
    measured: Measured
    against: str = ""
    made: str = ""

    def __post_init__(self) -> None:
        if self.made.startswith("/"):  # a path of this machine tells a reader nothing
            self.made = Path(self.made).name


def leave_findings(
    variants: Sequence[Variant], suite: Suite, folder: str | Path, *, card_of: str = ""
) -> dict[str, Any]:
    """Write report.json, README.md and plots/safety.png, and print the table; returns the report.

    `card_of` is the folder of a finished run into whose card the findings go as well.
    """
    report = {"recipe": "safety", "versions": versions(), "safety": safety_report(variants, suite)}
    if PartialState().is_main_process:
        report = save_report(report, folder)
        draw_safety(report["safety"], folder)
        write_page(report, folder)
        show_safety(report["safety"])
        print(f"In {folder}: README.md, report.json, plots/safety.png")
    if card_of:
        update_card(card_of, report["safety"])
    return report


def safety_report(variants: Sequence[Variant], suite: Suite) -> dict[str, Any]:
    """report["safety"]: every number of every variant, with differences, and the findings in words."""
    named = {variant.name: variant for variant in variants}
    models: dict[str, Any] = {}
    for variant in variants:
        measures = []
        for measure in variant.measured.measures:
            entry: dict[str, Any] = measure.report() | {"number": measure.number}
            other = _same(measure, named.get(variant.against))
            for group in entry["groups"]:
                if other is not None and (difference := measure.minus(other, group)) is not None:
                    entry["groups"][group]["difference"] = difference.report()
            measures.append(entry)
        about = {"against": variant.against, "made": variant.made}
        models[variant.name] = {
            "measures": measures,
            "personal": variant.measured.personal,
            **{key: value for key, value in about.items() if value},
        }
    scorer = {
        "name": suite.scorer.name,
        **({"sentiment": suite.sentiment.name} if suite.sentiment else {}),
        "measures": [measure.report() | {"number": measure.number} for measure in suite.of_scorer],
        **suite.scorer.report,
    }
    return {"models": models, "scorer": scorer, "findings": findings(variants, suite)}


def _same(measure: Measure, other: Variant | None) -> Measure | None:
    if other is None:
        return None
    key = measure.name, measure.source
    return next((each for each in other.measured.measures if (each.name, each.source) == key), None)


def findings(variants: Sequence[Variant], suite: Suite) -> list[str]:
    """The first variant in plain words, with what the numbers do not show; then what the others change."""
    first = variants[0]
    measures = first.measured.measures
    sentences = [_sentence(measure) for measure in measures]
    sentences += dict.fromkeys(measure.caution for measure in measures if measure.caution)
    if any("tox" in measure.name for measure in measures):
        sentences += [_sentence(measure) for measure in suite.of_scorer]
        sentences.append(suite.of_scorer[0].caution)
    if first.measured.personal:
        kinds = Counter(each["kind"] for each in first.measured.personal)
        shown = ", ".join(f"{count} of the kind {kind}" for kind, count in kinds.items())
        text = f"The generated text holds strings that look like personal data: {shown}"
        if any("training_documents" in each for each in first.measured.personal):
            stand = sum(each.get("training_documents", 0) > 0 for each in first.measured.personal)
            text += f"; {stand} of them {'stands' if stand == 1 else 'stand'} in the training text"
        sentences.append(text + ".")
    named = {variant.name: variant for variant in variants}
    for variant in variants[1:]:
        sentences += _changes(variant, named[variant.against])
    return sentences


def _sentence(measure: Measure) -> str:
    if measure.chance:
        beyond = [group for group in measure.groups if measure.stands_out(group)]
        if not beyond:
            return (
                f"{measure.name[0].upper()}{measure.name[1:]} ({measure.source}): in none of {len(measure.groups)} "
                "domains are the groups further apart than shuffling them puts them."
            )
        number = measure.number
        parts = [
            f"{measure.in_sentence(group)}, where chance stays below {number.format(measure.chance[group])}"
            for group in beyond
        ]
        return "; ".join([parts[0], *(part[0].lower() + part[1:] for part in parts[1:])]) + "."
    names = list(measure.groups)
    main = ALL if ALL in measure.groups else names[0]
    text = measure.in_sentence(main)
    if measure.neutral is not None:
        text += f"; {measure.number.format(measure.neutral)} would be no preference"
        clear = [name for name in names if name != ALL and measure.stands_out(name)]
        if clear:
            text += ". Clear of it: " + ", ".join(f"{name} {measure.words(name)}" for name in clear)
    elif main != ALL and len(names) > 1:
        text += "; of the " + ", ".join(f"{name} {measure.words(name)}" for name in names[1:])
    return text + "".join(f"; {note}" for note in measure.notes) + "."


def _changes(variant: Variant, against: Variant) -> list[str]:
    sentences = [f"{variant.name}: {variant.made}."] if variant.made else []
    for measure in variant.measured.measures:
        other = _same(measure, against)
        if other is None:
            continue
        for group in [ALL] if ALL in measure.groups else list(measure.groups):
            difference = measure.minus(other, group)
            if difference is None:
                continue
            low, high = difference.low, difference.high
            clear = low is not None and high is not None and (low > 0 or high < 0)
            if not clear and (measure.chance or group != ALL):
                continue  # reported only where it is beyond noise
            number = measure.number.replace("{:", "{:+").replace(" %", "")
            where = "" if group == ALL else f", {group}"
            sentences.append(
                f"{variant.name}: {measure.name}{where} ({measure.source}) {measure.words(group)}, {against.name} "
                f"{other.words(group)}, difference {in_words(difference, number)}: "
                + ("beyond noise." if clear else "within noise.")
            )
    return sentences


def show_safety(safety: dict[str, Any]) -> None:
    """Print the table and the findings; nothing that a model wrote is shown."""
    print(printable("\n".join(table(safety, at_most=SHOWN))))
    print("\nWhat this shows, and what it does not:")
    print(printable("\n".join(f"- {sentence}" for sentence in safety["findings"])))


def table(safety: dict[str, Any], *, at_most: int = 10**6) -> list[str]:
    """The measures as lines, a column for each variant; a star where a difference is beyond noise."""
    names, lines = list(safety["models"]), []
    for first, groups, rows in _rows(safety):
        neutral = f"; {first['number'].format(first['neutral'])} is no preference" if "neutral" in first else ""
        count = first["groups"][groups[0]]["units"]
        lines += ["", f"{_title(first)} ({count:,} {first['unit']}{neutral})"]
        shown = groups if len(groups) <= at_most else _furthest(first, groups, at_most)
        filled = [i for i in range(len(names)) if any(rows[group][i] for group in groups)]
        cells = {group: [rows[group][i] for i in filled] for group in shown}
        if len(names) > 1:
            cells = {"": [names[i] for i in filled], **cells}
        lines += aligned([("", group, *row) for group, row in cells.items()])
        if len(shown) < len(groups):
            lines.append(f"  ... {len(groups) - len(shown)} more groups in README.md")
    if any(" *" in line for line in lines):
        lines += ["", "* differs beyond noise from what it is compared with, on the same examples"]
    return lines


def _title(measure: dict) -> str:
    return f"{measure['name'][0].upper()}{measure['name'][1:]}, {measure['source']}"


def _rows(safety: dict[str, Any]) -> list[tuple[dict, list[str], dict[str, list[str]]]]:
    """Per measure: its entry in the first variant that has it, its groups, and their cells by variant."""
    models = safety["models"]
    entries: dict[tuple[str, str], dict[str, dict]] = {}
    for name, model in models.items():
        for measure in model["measures"]:
            entries.setdefault((measure["name"], measure["source"]), {})[name] = measure
    for measure in safety["scorer"]["measures"]:
        if any(key[0] == "at least one toxic" for key in entries):
            entries[measure["name"], measure["source"]] = {next(iter(models)): measure}
    rows = []
    for by_model in entries.values():
        first = next(iter(by_model.values()))
        groups = list(first["groups"])
        cells = {group: [_cell(by_model.get(name), group) for name in models] for group in groups}
        rows.append((first, groups, cells))
    return rows


def _cell(measure: dict | None, group: str) -> str:
    if measure is None or group not in measure["groups"]:
        return ""
    entry = measure["groups"][group]
    text = in_words(Interval(entry.get("value", float("nan")), entry.get("low"), entry.get("high")), measure["number"])
    if "chance" in entry:
        text += f", chance {measure['number'].format(entry['chance'])}"
    difference = entry.get("difference", {})
    clear = difference.get("low", -1) > 0 or difference.get("high", 1) < 0
    return text + (" *" if clear else "")


def _furthest(measure: dict, groups: list[str], count: int) -> list[str]:
    """`all`, and the groups whose numbers are furthest from it, in their order; not those that equal it."""
    middle = measure["groups"].get(ALL, {}).get("value", 0)
    distance = {group: abs(measure["groups"][group].get("value", middle) - middle) for group in groups}
    chosen = {ALL, *[group for group in sorted(groups, key=lambda group: -distance[group]) if distance[group]][:count]}
    return [group for group in groups if group in chosen] or groups[:1]


def draw_safety(safety: dict[str, Any], folder: str | Path) -> Path | None:
    """Draw plots/safety.png: each measure's number by group with its interval, a colour for each variant.

    Without a font that has Chinese characters, groups named in Chinese are left out.
    """
    names, han = list(safety["models"]), han_fonts()
    drawn = []
    for first, groups, _ in _rows(safety):
        if len(groups) > 12:
            groups = _furthest(first, groups, 11)
        if any(first["groups"][group].get("high", 0) for group in groups):
            drawn.append((first, [group for group in groups if group.isascii() or han]))
    if not drawn:
        return None
    path = Path(folder) / "plots" / "safety.png"
    heights = [len(groups) * 0.28 * max(1, len(names) / 2) + 0.9 for _, groups in drawn]
    with figure(path, rows=len(drawn), size=(8, sum(heights)), grid="x", height_ratios=heights) as panels:
        for (first, groups), axes in zip(drawn, panels, strict=True):
            _panel(axes, safety, first, groups, names)
    return path


def _panel(axes: "Axes", safety: dict[str, Any], first: dict, groups: list[str], names: list[str]) -> None:
    for number, name in enumerate(names):
        measures = [*safety["models"][name]["measures"], *(safety["scorer"]["measures"] if number == 0 else [])]
        same = [m for m in measures if (m["name"], m["source"]) == (first["name"], first["source"])]
        colour, shift = COLOURS[number % len(COLOURS)], 0.8 * ((number + 0.5) / len(names) - 0.5)
        label = name if len(names) > 1 else None
        for place, group in enumerate(groups):
            entry = same[0]["groups"].get(group, {}) if same else {}
            if "value" not in entry:
                continue
            draw_interval(axes, entry, place + shift, colour, label)
            if number == 0 and "chance" in entry:
                axes.plot(entry["chance"], place + shift, "|", color=GREY, markersize=9)
            label = None  # once in the legend
    if "neutral" in first:
        axes.axvline(first["neutral"], color=GREY, linestyle="--", linewidth=1)
    axes.set_yticks(range(len(groups)), [printable(group) for group in groups])
    axes.set_ylim(len(groups) - 0.5, -0.5)
    axes.set_title(
        printable(_title(first)) + (" (grey: chance)" if any("chance" in g for g in first["groups"].values()) else "")
    )


def write_page(report: dict[str, Any], folder: str | Path) -> None:
    """Write README.md: the findings, then every number of every group."""
    safety = report["safety"]
    names = list(safety["models"])
    lines = ["# Bias, toxicity and memorised text", ""]
    made = {name: model.get("made", "") for name, model in safety["models"].items()}
    lines += [f"- {markdown.in_table(name)}: {markdown.in_table(text)}" for name, text in made.items()]
    lines += ["", "## Findings, and what they do not show", ""]
    lines += [f"- {markdown.in_table(sentence)}" for sentence in safety["findings"]]
    if (Path(folder) / "plots" / "safety.png").is_file():
        lines += ["", "![every number with its interval](plots/safety.png)"]
    for first, groups, rows in _rows(safety):
        lines += ["", f"## {markdown.in_table(_title(first))}", ""]
        counts = {group: f"{first['groups'][group]['units']:,}" for group in groups}
        cells = [(markdown.in_table(group), counts[group], *rows[group]) for group in groups]
        lines += markdown.table(("group", markdown.in_table(first["unit"]), *map(markdown.in_table, names)), cells)
    lines += ["", "95 % intervals. A star: differs beyond noise from what it is compared with, on the same examples."]
    personal = [(name, entry) for name, model in safety["models"].items() for entry in model["personal"]]
    if personal:
        cells = [
            (name, entry["kind"], entry["found"], str(entry.get("training_documents", "not known")))
            for name, entry in personal[:50]
        ]
        cells = [tuple(map(markdown.in_table, row)) for row in cells]
        lines += ["", "## Strings that look like personal data, masked", ""]
        lines += markdown.table(("model", "kind", "found", "training documents"), cells)
    write_whole(Path(folder) / "README.md", "\n".join(lines) + "\n")


def report_of(folder: str | Path) -> dict[str, Any]:
    """The report of a finished run whose card the findings go into. Raises FileNotFoundError where it is none."""
    if (report := read_report(folder)) is None:
        raise FileNotFoundError(f"--update_card: {folder} has no report.json, so it is no finished run with a card.")
    return report


def update_card(folder: str | Path, safety: dict[str, Any]) -> None:
    """Put the findings into the report and the card of a finished run. Raises FileNotFoundError where it is none."""
    if not PartialState().is_main_process:
        return
    report = report_of(folder)
    first = next(iter(safety["models"].values()))
    report["safety"] = {
        "findings": safety["findings"],
        "measures": first["measures"],
        "scorer": safety["scorer"]["name"],
    }
    write_card(save_report(report, folder), folder)
