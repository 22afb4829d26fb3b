"""lm-evaluation-harness on a checkpoint: its own tasks and numbers, beside ours and in the run's card."""

import contextlib
import io
import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_lm.hub.records import read_report
from hf_lm.models.devices import device_named
from hf_lm.reporting.card import write_card
from hf_lm.reporting.report import save_report


def check_harness(models: Sequence[str], *, card: bool = False) -> None:
    """Raise ImportError without the harness, and ValueError for models that it cannot be run on, before any is."""
    try:
        import lm_eval  # noqa: F401  # pyright: ignore[reportMissingImports]  (an extra)
    except ImportError:
        raise ImportError("--harness needs lm-evaluation-harness: pip install 'hf-lm[harness]'.") from None
    for model in models:
        if model.startswith("api:"):
            raise ValueError(f"--harness runs on checkpoints, and {model} is behind an API.")
        if card and not (Path(model) / "report.json").is_file():
            raise ValueError(f"--card: {model} has no report.json: it is no output folder of a run.")


def run_harness(model: str, tasks: Sequence[str]) -> dict[str, Any]:
    """The harness' numbers of a causal checkpoint or adapter.

    {"version", "tasks": {task: {metric: {"value", "stderr"}}}, "datasets": {task: {"path", "name", "shots"}}}.
    `tasks` are its names, or YAML files of tasks, which may read local files and then need no network. Raises
    ValueError in one line where there is no such task or it fails.
    """
    from lm_eval import __version__, simple_evaluate  # pyright: ignore[reportMissingImports]
    from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]

    files = [Path(task) for task in tasks if task.endswith((".yaml", ".yml"))]
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"--harness: there is no file {file}.")
    names = [_task_of(Path(task)) if Path(task) in files else task for task in tasks]
    for name in ("lm_eval", "lm-eval"):
        logging.getLogger(name).setLevel(logging.ERROR)
    folders = [str(folder) for folder in dict.fromkeys(file.parent for file in files)]
    own = len(files) < len(tasks)  # indexing the harness' thousands of tasks takes longer than most evaluations
    manager = TaskManager(include_path=folders or None, include_defaults=own)
    if unknown := [name for name in names if not manager.match_tasks([name])]:
        raise ValueError(f"the harness has no task {unknown[0]!r}; `lm-eval ls tasks` lists them.")
    adapter = Path(model) / "adapter_config.json"
    model_args = {"pretrained": model, "dtype": "float32", "trust_remote_code": False}
    if adapter.is_file() and not (Path(model) / "config.json").is_file():
        base = json.loads(adapter.read_text(encoding="utf-8"))["base_model_name_or_path"]
        model_args |= {"pretrained": base, "peft": model, "tokenizer": model}
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            results = simple_evaluate(
                model="hf",
                model_args=model_args,
                tasks=names,
                task_manager=manager,
                device=str(device_named()),
                batch_size=8,
            )
    except Exception as error:  # the harness raises errors of several libraries
        message = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"the harness on {model}: {message}") from error
    shots = results.get("n-shot", {})
    datasets = {
        task: {"path": path, "name": about.get("dataset_name"), "shots": shots.get(task, 0)}
        for task, about in results.get("configs", {}).items()
        if (path := about.get("dataset_path"))
    }
    numbers = {task: _numbers(values) for task, values in results["results"].items()}
    return {"version": __version__, "tasks": numbers, "datasets": datasets}


def _task_of(file: Path) -> str:
    named = re.search(r"^(?:task|group):\s*[\"']?([\w.-]+)", file.read_text(encoding="utf-8"), re.MULTILINE)
    if named is None:
        raise ValueError(f"--harness: {file} names no task (a line `task: NAME`).")
    return named[1]


def _numbers(values: dict[str, Any]) -> dict[str, dict[str, float]]:
    """`acc,none` and `acc_stderr,none` as {"acc": {"value", "stderr"}}; a filter other than `none` is kept in it."""
    numbers: dict[str, dict[str, float]] = {}
    for key, value in values.items():
        metric, _, kind = key.partition(",")
        if not isinstance(value, int | float) or not kind:
            continue
        of = metric.removesuffix("_stderr")
        name = of if kind == "none" else f"{of} ({kind})"
        numbers.setdefault(name, {})["stderr" if metric.endswith("_stderr") else "value"] = float(value)
    return numbers


def add_to_card(folder: str, harness: dict[str, Any]) -> None:
    """Put the harness' numbers into a run's report.json and card; those of other tasks stay."""
    report = read_report(folder) or {}
    before = report.get("harness", {})
    report["harness"] = harness | {
        key: before.get(key, {}) | harness[key] for key in ("tasks", "datasets") if key in harness
    }
    write_card(save_report(report, folder), folder)
