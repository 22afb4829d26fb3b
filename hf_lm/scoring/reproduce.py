"""`hf-lm reproduce`: a finished run, run again as its run.yaml says, and a verdict on each of its metrics."""

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from hf_lm.arguments import ONE_INVOCATION
from hf_lm.evaluation.intervals import Estimate
from hf_lm.files import fingerprints
from hf_lm.hub.credentials import names_secret, printable
from hf_lm.hub.records import read_report, read_run
from hf_lm.inference.pipeline_base import download
from hf_lm.launching import EXIT_OUT_OF_BUDGET, find_recipes
from hf_lm.output_folder import list_checkpoints
from hf_lm.reporting.report import in_hours, time_in_words, versions
from hf_lm.scoring.predictions import METRICS, Example, estimates_of, example_key, labels_of, read_predictions

RECORDS = ["run.yaml", "report.json", "predictions.jsonl", "README.md"]
IDENTICAL, AGREES, DIFFERS = "identical", "agrees", "differs"
PRECISION = 1e-6  # relative: report.json keeps eight digits
CHECKED = 1e-3  # relative, of weights measured again: another precision, another batch
# Where the run writes and publishes, what it may replace and what stopped it are not the run; nor is `hub_...`.
LEFT_OUT = (
    *("output_dir", "push_to_hub", "update_card", "seed", *ONE_INVOCATION),
    *("max_hours", "max_cost", "price_per_hour", "stop_after_steps"),
)


@dataclass(frozen=True)
class Verdict:
    """A published number and the same one here. `low` and `high`: the 95 % interval that decides where they differ."""

    what: str  # "test accuracy"
    published: float
    here: float
    verdict: str
    low: float | None = None
    high: float | None = None


@dataclass
class Published:
    """What a run left for others: its records, verified."""

    source: str
    folder: Path
    run: dict[str, Any]
    report: dict[str, Any]
    examples: list[Example]

    @property
    def metrics(self) -> dict[str, dict[str, dict[str, Any]]]:
        return self.report.get("metrics", {})


def fetch(source: str, *, weights: bool = False) -> Published:
    """The records of a run in a folder or on the Hub (`user/name`, `user/name@revision`), and its model if asked.

    Raises FileNotFoundError where it is no finished run, and ValueError where its metrics are not those of its
    predictions or a file is not the one that the run wrote.
    """
    folder = Path(source)
    if not folder.is_dir():
        if "/" not in source:
            raise FileNotFoundError(f"there is no folder {source} here, and a run on the Hub is called user/name.")
        from huggingface_hub import snapshot_download

        name, _, revision = source.partition("@")
        patterns = None if weights else RECORDS
        folder = Path(snapshot_download(name, revision=revision or None, allow_patterns=patterns))
    run, report = read_run(folder), read_report(folder)
    if run is None or report is None or report.get("recipe") not in find_recipes():
        raise FileNotFoundError(f"{source} is no finished run of a recipe: it needs run.yaml and report.json.")
    path = folder / "predictions.jsonl"
    published = Published(source, folder, run, report, read_predictions(path) if path.is_file() else [])
    with reading_records(source):
        for split, metric, value, estimate in recomputed(published):
            if not math.isclose(value, estimate.value, rel_tol=PRECISION, abs_tol=PRECISION):
                raise ValueError(
                    f"{source}: report.json says {split} {metric} {value:g}, and its predictions.jsonl gives "
                    f"{estimate.value:g}: one of the two was changed."
                )
    if weights:
        recorded = {name: about for name, about in report.get("files", {}).items() if not name.endswith(".yaml")}
        there = fingerprints(folder, [name for name in recorded if (folder / name).is_file()])
        changed = [name for name, about in recorded.items() if there.get(name) != about]
        if changed:
            raise ValueError(f"{source}: {', '.join(changed)} is not what the run wrote (its SHA-256 differs).")
    return published


@contextmanager
def reading_records(source: str) -> Iterator[None]:
    """Turn what the odd values of a stranger's records raise into one line that names the run."""
    try:
        yield
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        what = f"{type(error).__name__}: {error}"
        raise ValueError(f"{source}: report.json or predictions.jsonl is not what a run writes ({what}).") from None


def recomputed(published: Published) -> Iterator[tuple[str, str, float, Estimate]]:
    """Split, metric, the reported value and the estimate from the predictions, where the task has these."""
    task = published.report["recipe"]
    if task not in METRICS:
        return
    labels = labels_of(task, published.examples)
    for split, metrics in published.metrics.items():
        rows = [row for row in published.examples if row.get("split") == split]
        estimates = estimates_of(task, rows, labels=labels) if rows else {}
        for name, estimate in estimates.items():
            if name in metrics:
                yield split, name, metrics[name]["value"], estimate


def what_differs(published: Published) -> list[str]:
    """In what this machine is not the run's, as lines: versions, and how many processes on which device."""
    here, there = versions(), published.report.get("versions", {})
    lines = [
        f"{name} {there[name]} there, {here.get(name, 'absent')} here"
        for name in there
        if here.get(name) != there[name]
    ]
    if (processes := processes_of(published)) > 1:
        lines.append(f"{processes} processes there: the batch of each step is divided among them")
    return lines


def command(
    published: Published, output_dir: Path, config: Path, *, seed: int | None, steps: int, base: str = ""
) -> list[str]:
    """The command that runs it again; writes its configuration to `config`. `base` is read in place of the run's.

    run.yaml is a stranger's: it replaces no folder, resumes nothing, holds no token and reports to nobody.
    """
    left_out = lambda name: name in LEFT_OUT or name.startswith("hub_") or names_secret(name)  # noqa: E731
    run = {name: value for name, value in published.run.items() if not left_out(name)}
    if base:
        named = published.report["model"]["base"]
        run |= {name: base for name in ("model", "tokenizer") if run.get(name) == named}
    run |= {"output_dir": str(output_dir), "report_to": "none"}
    if seed is not None or "seed" in published.run:
        run["seed"] = published.run["seed"] if seed is None else seed
    if steps:
        run["stop_after_steps"] = steps
    commit = published.report.get("data", {}).get("commit")
    if commit and "@" not in run["dataset"]:
        run["dataset"] += f"@{commit}"  # of the Hub: as it was
    config.write_text(yaml.safe_dump(run, sort_keys=False, allow_unicode=True), encoding="utf-8")
    recipe, processes = published.report["recipe"], processes_of(published)
    if processes == 1:
        return [sys.executable, str(find_recipes()[recipe].path), "--config", str(config)]
    words = ["-m", "hf_lm.cli", "run", "--num_processes", str(processes), recipe, "--config", str(config)]
    return [sys.executable, *words, *["--use_cpu"] * bool(run.get("use_cpu"))]  # which the launcher must know too


def processes_of(published: Published) -> int:
    """Of how many processes a run was: a launcher starts as many. Raises TypeError where that is no number.

    Raises ValueError for more processes on CPUs than there are here; the launcher itself refuses more than the GPUs.
    """
    processes, cores = published.report.get("processes", 1), os.cpu_count() or 1
    if type(processes) is not int or processes < 1:
        raise TypeError(f"processes: {processes!r:.40}")
    if processes > cores and published.run.get("use_cpu"):
        raise ValueError(f"{published.source} was a run of {processes:,} processes; this machine has {cores} cores.")
    return processes


def base_at_its_commit(published: Published) -> str:
    """The folder of the checkpoint that the run started from, as it was then; "" where that was no Hub's.

    Raises OSError in one line where the Hub has it no longer, or cannot be reached and no copy is here.
    """
    name, commit = (published.report.get("model", {}).get(key, "") for key in ("base", "base_commit"))
    return download(name, commit, None) if name and commit else ""


def planned(recipe: str, config: Path) -> str:
    """What `hf-lm plan` says of the whole run on this machine, as a line."""
    target = config.with_name("plan.json")
    words = [sys.executable, "-m", "hf_lm.cli", "plan", recipe, "--config", str(config), "--json", str(target)]
    if subprocess.run(words, capture_output=True, check=False).returncode:
        return "planned here: nothing, hf-lm plan cannot plan this run"
    plan = json.loads(target.read_text(encoding="utf-8"))
    return f"planned here: {in_hours(plan['seconds'])} and {plan['needed'] / 2**20:,.0f} MiB for the whole run"


def reproduce(
    source: str,
    output_dir: str | Path,
    *,
    seed: int | None = None,  # None is the run's
    steps: int = 0,  # compare the loss of the first steps only; 0 runs all
) -> list[Verdict]:
    """Run a published run again into a new folder and compare. Raises OSError where the run itself fails."""
    published, out = fetch(source), Path(output_dir)
    with reading_records(source), tempfile.TemporaryDirectory() as place:
        for line in what_differs(published):
            print(printable(f"differs here: {line}"))
        base = base_at_its_commit(published)
        device = published.report.get("device", "its machine")
        print(printable(f"it took {time_in_words(published.report)}, on {device}"))
        config = Path(place) / "run.yaml"
        words = command(published, out, config, seed=seed, steps=steps, base=base)
        print(planned(published.report["recipe"], config))
        done = subprocess.run(words, check=False)
    if done.returncode not in (0, EXIT_OUT_OF_BUDGET if steps else 0):
        raise ChildProcessError(f"the run ended with exit code {done.returncode}: {source} was not reproduced.")
    with reading_records(source):
        if steps:
            return compare_losses(published, out, steps)
        again = fetch(str(out))
        for line in other_data(published, again):
            print(f"differs here: {line}")
        return compare_metrics(published, again)


def compare_losses(published: Published, out: Path, steps: int) -> list[Verdict]:
    """The training loss at each step that both logged, among the first `steps`."""
    states = [checkpoint / "trainer_state.json" for checkpoint in list_checkpoints(out)[-1:]]
    here = {
        entry["step"]: entry["loss"]
        for state in states
        for entry in json.loads(state.read_text(encoding="utf-8"))["log_history"]
        if "loss" in entry
    }
    there = {entry["step"]: entry["loss"] for entry in published.report["history"] if "loss" in entry}
    shared = [step for step in sorted(there) if step <= steps and step in here]
    if not shared:
        raise ValueError(f"the run logged no loss within {steps} steps: take more (it logs at {sorted(there)[:3]}).")
    return [_by_size(f"loss at step {step}", there[step], here[step]) for step in shared]


def _by_size(what: str, there: float, here: float, abs_tol: float = 0.0) -> Verdict:
    """The verdict on a number without an interval."""
    same = math.isclose(there, here, rel_tol=PRECISION)
    close = math.isclose(there, here, rel_tol=CHECKED, abs_tol=abs_tol)
    return Verdict(what, there, here, IDENTICAL if same else AGREES if close else DIFFERS)


def other_data(published: Published, again: Published) -> list[str]:
    """What the two runs read that was not the same, as lines."""
    sides = [each.report.get("data", {}).get("fingerprint") for each in (published, again)]
    return ["the data have another content"] if sides[0] != sides[1] else []


def compare_metrics(published: Published, again: Published) -> list[Verdict]:
    """Every published metric against the new run's: by the examples where both have the same, else by its interval."""
    task = published.report["recipe"]
    paired = {}
    if task in METRICS:
        labels = labels_of(task, published.examples + again.examples)
        for split in published.metrics:
            sides = [[row for row in each.examples if row.get("split") == split] for each in (published, again)]
            if sides[0] and list(map(example_key, sides[0])) == list(map(example_key, sides[1])):
                paired[split] = tuple(estimates_of(task, rows, labels=labels) for rows in sides), sides[0] == sides[1]
    verdicts = []
    for split, metrics in published.metrics.items():
        for name, about in metrics.items():
            there, here = about["value"], again.report["metrics"].get(split, {}).get(name, {}).get("value", math.nan)
            same = math.isclose(there, here, rel_tol=PRECISION)
            low, high = about.get("low"), about.get("high")
            if split in paired and name in paired[split][0][0]:
                (before, after), equal = paired[split]
                same &= equal
                difference = after[name].minus(before[name])
                low, high = difference.low, difference.high
                inside = low is not None and high is not None and low <= 0 <= high
            else:
                inside = low is not None and high is not None and low <= here <= high
            verdict = IDENTICAL if same else AGREES if inside else DIFFERS
            verdicts.append(Verdict(f"{split} {name}", there, here, verdict, low, high))
    return verdicts


def check_weights(source: str, *, say: Callable[[str], None] = print) -> list[Verdict]:
    """Measure the published weights on the published data, without training. Raises ValueError where it cannot be."""
    from hf_lm.scoring.score import score

    published = fetch(source, weights=True)
    task = published.report["recipe"]
    if task not in METRICS:
        raise ValueError(f"a run of {task} is checked by running it again: leave --check out.")
    with reading_records(source):
        split = "test" if "test" in published.metrics else "validation"
        there = {name: float(about["value"]) for name, about in published.metrics[split].items()}
    sampled = {"eval_tokens": published.report.get("data", {}).get("eval_tokens", 0)}  # of a short pretraining run
    folder, data = str(published.folder), str(published.run["dataset"])
    result = score([folder], dataset=data, task=task, split=split, settings=sampled, say=say)
    (measured,) = result["models"].values()
    return [
        _by_size(f"{split} {name}", value, measured["metrics"][name]["value"], abs_tol=CHECKED)
        for name, value in there.items()
        if name in measured["metrics"]
    ]


def as_report(source: str, verdicts: list[Verdict]) -> dict[str, Any]:
    """What reproduction.json holds."""
    return {"source": source, "verdict": overall(verdicts), "metrics": [asdict(each) for each in verdicts]}


def overall(verdicts: list[Verdict]) -> str:
    """The worst verdict of all."""
    order = (IDENTICAL, AGREES, DIFFERS)
    return max((each.verdict for each in verdicts), key=order.index, default=DIFFERS)
