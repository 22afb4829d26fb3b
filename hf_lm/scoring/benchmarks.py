"""Results of a benchmark as the Hub collects them: `.eval_results/TASK.yaml` in the folder of a run.

A dataset is a benchmark where its repository has an `eval.yaml`, which names its tasks; its page ranks the models
whose repositories hold such a file (https://huggingface.co/docs/hub/eval-results).
"""

import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from hf_lm.files import BENCHMARKS, write_whole

FORMATS = ("json", "csv", "parquet", "text", "arrow")  # of local files: no dataset of the Hub
SHARES = ("acc", "acc_norm", "exact_match", "em", "f1")  # of the harness, between 0 and 1; the Hub's are in percent


def write_benchmarks(folder: str | Path, harness: dict[str, Any]) -> list[str]:
    """Write a file for each task of `run_harness` whose dataset is a benchmark; returns a sentence about each task.

    Asks the Hub about the dataset; where it does not answer nothing is written, and the sentence says so.
    """
    said = []
    for task, about in harness.get("datasets", {}).items():
        if about["path"] in FORMATS:
            continue
        try:
            entry = _entry(task, about, harness["tasks"].get(task, {}), harness["version"])
        except Exception as error:  # of the Hub's client and what it calls, of YAML, or ours
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            said.append(f"{task}: no result for the Hub's leaderboard: {reason}")
            continue
        path = Path(folder) / BENCHMARKS / f"{task}.yaml"
        path.parent.mkdir(exist_ok=True)
        write_whole(path, yaml.safe_dump([entry], sort_keys=False))
        said.append(f"{task}: {entry['value']:.2f} for the leaderboard of {entry['dataset']['id']}, in {path}")
    return said


def _entry(task: str, about: dict[str, Any], numbers: dict[str, dict[str, float]], version: str) -> dict[str, Any]:
    """The row of a task. Raises OSError without the Hub, and ValueError where its dataset is no benchmark."""
    from huggingface_hub import EvalResultEntry, HfApi, eval_result_entries_to_yaml

    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
    found = api.dataset_info(about["path"])  # under its full name: gsm8k is openai/gsm8k
    if "eval.yaml" not in {file.rfilename for file in found.siblings or ()}:
        raise ValueError(f"the dataset {found.id} is no benchmark of the Hub: it has no eval.yaml.")
    file = api.hf_hub_download(found.id, "eval.yaml", repo_type="dataset", revision=found.sha)
    names = list(_tasks(yaml.safe_load(Path(file).read_text(encoding="utf-8"))))
    fitting = names if len(names) == 1 else [name for name in names if name in (task, about["name"])]
    if not fitting:
        raise ValueError(f"the benchmark {found.id} has the tasks {', '.join(names) or 'none'}, none of that name.")
    measured = [(name, number["value"]) for name, number in numbers.items() if "value" in number]
    if not measured:
        raise ValueError("the harness gave no number.")
    metric, number = measured[0]
    entry = EvalResultEntry(
        dataset_id=found.id,
        task_id=fitting[0],
        value=100 * number if metric.split(" ")[0] in SHARES else number,
        dataset_revision=found.sha,
        date=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        notes=f"{metric}, {about['shots']}-shot, lm-evaluation-harness {version}",
    )
    return eval_result_entries_to_yaml([entry])[0]


def _tasks(benchmark: object) -> Iterator[str]:
    """The ids of the tasks in an eval.yaml, whatever a stranger wrote there."""
    tasks = benchmark.get("tasks") if isinstance(benchmark, dict) else None
    for task in tasks if isinstance(tasks, list) else ():
        if isinstance(task, dict) and isinstance(task.get("id"), str):
            yield task["id"]
