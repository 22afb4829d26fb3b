"""The stages of a corpus on datatrove's executors, and the report that is made from what they counted."""

# datatrove comes with the extra `corpus`.
# pyright: reportMissingImports=false

import contextlib
import json
import os
import shlex
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from hf_lm.arguments import TrainingArguments
from hf_lm.corpus.steps import EXECUTORS, PipelineStep, evaluation_files  # pyright: ignore[reportAttributeAccessIssue]
from hf_lm.data.scripts import LANGUAGES
from hf_lm.data.token_files import PREFIX, RECORD, TOKENIZER, record_tokens
from hf_lm.files import hash_contents, write_whole
from hf_lm.hub.records import read_report, read_run
from hf_lm.output_folder import is_run, prepare_output, save_run
from hf_lm.reporting import markdown
from hf_lm.reporting.report import save_report, versions
from hf_lm.tokenization.tokenizer import load_tokenizer, tokenizer_fingerprint

STAGES = "stages"  # folder of what is not needed when the corpus is complete
INPUTS = "inputs.json"  # in it: what is read, by its option and name, and its bytes or hash


def read_beside(evaluation: Sequence[str], tokenizer: str, language_model: str) -> dict[str, str]:
    """What is read beside the files of --dataset, by its option and name, and a hash of it."""
    files = [("--evaluation", path) for path in evaluation_files(evaluation)]
    files += [("--language_model", Path(language_model))] if Path(language_model).is_file() else []
    found = {f"{option} {path}": hash_contents([("", path)]) for option, path in files}
    trained = tokenizer == "bpe"
    return found if trained else found | {f"--tokenizer {tokenizer}": tokenizer_fingerprint(load_tokenizer(tokenizer))}


class Stages:
    """Pipelines that run one after the other, each in tasks that are skipped when they were completed before.

    `training_args` give the output folder and what run.yaml holds; `executor` names datatrove's: "local", "slurm"
    (which needs `partition` and `time`) or "ray". `workers` are tasks at the same time, 0 as many as the cores here
    and as a cluster gives; `tasks` 0 are one for each of `inputs`, the files of --dataset and their bytes, 1000 at
    most. `beside` is what else is read, and its hash. A second start continues, with the same arguments, inputs and
    hashes only: others are refused. A start in the folder of a finished corpus is refused, or with
    --resume_from_checkpoint shows its report again, and so is one where another has not ended.
    """

    def __init__(
        self,
        training_args: TrainingArguments,
        *,
        executor: str,
        tasks: int,
        workers: int,
        inputs: Mapping[str, int],
        beside: Mapping[str, str] | None = None,
        partition: str = "",
        time: str = "",
    ) -> None:
        self.folder, self.kind = Path(training_args.output_dir).resolve(), executor
        self.inputs: dict[str, int | str] = {f"--dataset {name}": size for name, size in inputs.items()}
        self.inputs |= beside or {}
        self.tasks = tasks or min(1000, max(1, len(inputs)))
        self.report = self.folder / "report.json"
        self.workers = workers or (os.cpu_count() or 1 if executor == "local" else -1)
        self.slurm: dict[str, Any] = {"partition": partition, "time": time}
        if executor == "slurm" and not partition:
            raise ValueError("--executor slurm needs --partition, the name of the cluster's queue.")
        self.executors: dict[str, Any] = {}  # datatrove's, by the name of the stage
        self.arguments, self.overwrite = training_args.run, training_args.overwrite_output_dir
        asked = bool(training_args.resume_from_checkpoint)
        resume = asked and (read_report(self.folder) or {}).get("recipe") == "corpus"
        with contextlib.ExitStack() as lock:
            prepare_output(self.folder, resume=resume, overwrite=self.overwrite, lock=lock)
            if not self.overwrite:
                self._check_same()
            self.lock = lock.pop_all()  # until `run` ends

    def _check_same(self) -> None:
        free = ("executor", "workers", "partition", "time")  # how it runs, not what comes out
        asked = {key: value for key, value in self.arguments.items() if key not in free}
        if is_run(self.folder) and (self.at("").is_dir() or self.report.is_file()):
            begun = read_run(self.folder) or {}
            if changed := sorted(key for key, value in asked.items() if begun.get(key, value) != value):
                raise ValueError(
                    f"{self.folder} was begun with another --{changed[0]} ({begun[changed[0]]!r}, now "
                    f"{asked[changed[0]]!r}): give that one to continue, another --output_dir, "
                    "or --overwrite_output_dir."
                )
        if self.at(INPUTS).is_file() and not self.report.is_file():
            begun = json.loads(self.at(INPUTS).read_bytes())
            if changed := sorted(name for name, _ in begun.items() ^ self.inputs.items()):
                raise ValueError(
                    f"{self.folder} was begun with other files ({changed[0]} was changed, added or removed), and "
                    "tasks that are complete would not be those of these: give the files of before to continue, "
                    "another --output_dir, or --overwrite_output_dir."
                )

    def at(self, name: str) -> Path:
        """Where the files of a stage are."""
        return self.folder / STAGES / name

    def add(self, name: str, pipeline: list[PipelineStep], *, tasks: int = 0) -> None:
        """Append a stage, which begins when the one before it has ended. `tasks`: 0 takes as many as all have."""
        options: dict[str, Any] = {
            "pipeline": pipeline,
            "tasks": tasks or self.tasks,
            "workers": min(self.workers, tasks or self.tasks),  # -1: no limit
            "logging_dir": str(self.at("logs") / name),
        }
        if self.kind == "slurm":
            before = next(reversed(self.executors.values()), None)
            options |= self.slurm | {"depends": before, "job_name": f"corpus-{name}"}
        self.executors[name] = EXECUTORS[self.kind](**options)

    def _run_each(self) -> None:
        for name, executor in self.executors.items():
            executor.run()
            if failed := executor.get_incomplete_ranks(skip_completed=True):
                raise RuntimeError(
                    f"{len(failed)} of {executor.world_size} tasks of the stage {name} failed: their logs are in "
                    f"{self.at('logs') / name / 'logs'}. Start the same command again to continue."
                )

    def run(self) -> dict[str, Any]:
        """Run all stages; returns the report, {} where Slurm's jobs are queued and will write it.

        Raises RuntimeError at a stage whose tasks failed: datatrove's Ray executor would wait for them without end.
        """
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # tasks share the cores
        with self.lock:
            if self.overwrite and is_run(self.folder):  # only now: what is wrong with the stages was refused before
                remove_corpus(self.folder)
            save_run(self.arguments, self.folder)
            self.at("").mkdir(exist_ok=True)
            write_whole(self.at(INPUTS), json.dumps(self.inputs))
            if self.report.is_file():
                print(f"{self.folder} is finished.")
            elif self.kind == "slurm":
                [*_, last] = self.executors.values()
                last.run()  # and what it depends on
                print(f"The jobs are queued. The last one writes {self.report}; start again to continue what failed.")
                return {}
            else:
                self._run_each()
        report = json.loads(self.report.read_bytes())
        print("\n".join(summary(report)))
        dataset = shlex.quote(f"{PREFIX}{self.folder}")
        print(f"To train on it: accelerate launch recipes/pretrain.py --dataset {dataset}")
        return report


def remove_corpus(folder: Path) -> None:
    """Remove what this recipe writes, and nothing else."""
    for name in (STAGES, "validation", "test", TOKENIZER):
        shutil.rmtree(folder / name, ignore_errors=True)
    for path in (folder / RECORD, folder / "report.json", folder / "README.md", *folder.glob("*.ds*")):
        path.unlink(missing_ok=True)


class Report(PipelineStep):
    """Check and record the token files, and write report.json and README.md from what the stages counted. One task."""

    name, type = "report", "REPORT"

    def __init__(self, folder: Path, logs: Path, stages: Sequence[str], run: dict[str, Any]) -> None:
        super().__init__()
        self.folder, self.logs, self.stages, self.arguments = folder, logs, list(stages), run

    def run(self, data: object = None, rank: int = 0, world_size: int = 1) -> None:
        counts = {name: read_counts(self.logs / name) for name in self.stages}
        report = corpus_report(counts, self.arguments)
        if not report["validation"]["documents"]:
            raise ValueError("no document was held out for validation: raise --held_out, or give more text.")
        train = report["steps"][-1]
        record = record_tokens(self.folder, load_tokenizer(str(self.folder / TOKENIZER)), bytes=train["bytes"])
        if record["documents"] != train["documents"]:
            raise ValueError(
                f"{train['documents']:,} documents were tokenized, and the files hold {record['documents']:,}: remove "
                f"{self.folder / STAGES} and start again."
            )
        report["tokens"] = {key: record[key] for key in ("documents", "tokens", "dtype", "tokenizer")}
        report = save_report(report, self.folder)
        write_whole(self.folder / "README.md", "\n".join(page(report)) + "\n")


def read_counts(logs: Path) -> list[dict[str, Any]]:
    """What the steps of a stage counted, over its tasks: [{"name", "seconds", "counts"}] in the order of the steps."""
    steps: list[dict[str, Any]] = []
    for path in sorted((logs / "stats").glob("*.json")):
        for i, step in enumerate(json.loads(path.read_bytes())):
            if len(steps) <= i:
                steps.append({"name": step["name"].split(": ")[-1], "seconds": 0.0, "counts": Counter()})
            steps[i]["seconds"] += _total(step["time_stats"])
            steps[i]["counts"].update({key: _total(value) for key, value in step["stats"].items()})
    return steps


def _total(value: dict[str, float] | float) -> float:
    """The sum of a statistic, which datatrove writes as a number where nothing else is to say of it."""
    return value["total"] if isinstance(value, dict) else value


def corpus_report(stages: dict[str, list[dict[str, Any]]], run: dict[str, Any]) -> dict[str, Any]:
    """report.json without the tokens: documents and bytes after each step, reasons, duplicates, scripts, languages."""
    steps: list[dict[str, Any]] = []
    cleaned, dropped, kinds, held = Counter(), Counter(), Counter(), Counter()
    seconds = {name: round(sum(step["seconds"] for step in counted), 2) for name, counted in stages.items()}
    for step in (step for counted in stages.values() for step in counted):
        counts = step["counts"]
        if {"documents", "bytes"} <= counts.keys():
            steps.append({"step": step["name"], "documents": counts["documents"], "bytes": counts["bytes"]})
        cleaned.update({key.removeprefix("cleaned_"): n for key, n in counts.items() if key.startswith("cleaned_")})
        dropped.update({key.removeprefix("dropped_"): n for key, n in counts.items() if key.startswith("dropped_")})
        kinds.update({key: n for key, n in counts.items() if key.startswith(("script_", "language_"))})
        held.update({key: n for key, n in counts.items() if key.startswith(("validation_", "test_"))})
    duplicates = sum((step["counts"] for step in stages.get("clusters", [])), Counter())
    scripts = {key[7:]: n for key, n in kinds.most_common() if key.startswith("script_")}
    report = {
        "recipe": "corpus",
        "versions": versions(),
        "run": run,
        "steps": steps,
        "cleaned": dict(cleaned.most_common()),
        "dropped": dict(dropped.most_common()),
        "duplicates": {"in_groups": duplicates["duplicates"], "removed": duplicates["to_remove"]},
        "scripts": scripts,
        "languages": {key[9:]: n for key, n in kinds.most_common() if key.startswith("language_")}
        or {LANGUAGES[script]: n for script, n in scripts.items() if script in LANGUAGES},
        "seconds": seconds,
    }
    for split in ("validation", "test"):
        report[split] = {unit: held[f"{split}_{unit}"] for unit in ("documents", "bytes")}
    return report


def summary(report: dict[str, Any]) -> list[str]:
    """The report as lines of a terminal."""
    lines = [
        f"{step['step']:<22}{step['documents']:>14,} documents{step['bytes']:>18,} bytes" for step in report["steps"]
    ]
    lines += [f"dropped or repaired: {repaired}"] if (repaired := in_words(report.get("cleaned", {}))) else []
    return [*lines, f"{report['tokens']['tokens']:,} tokens as {report['tokens']['dtype']}"]


def in_words(cleaned: dict[str, int]) -> str:
    """What reading dropped or repaired, as the card of a model says it too."""
    return ", ".join(f"{count:,} {what.replace('_', ' ')}" for what, count in cleaned.items())


def page(report: dict[str, Any]) -> list[str]:
    """README.md."""
    rows = [
        (markdown.in_table(step["step"]), f"{step['documents']:,}", f"{step['bytes']:,}") for step in report["steps"]
    ]
    rows += [
        (split, f"{report[split]['documents']:,}", f"{report[split]['bytes']:,}") for split in ("validation", "test")
    ]
    lines = [
        "# A corpus for pretraining",
        "",
        f"From {markdown.in_code(str(report['run']['dataset']))}, with hf_lm and datatrove.",
    ]
    lines += ["", "## Documents and bytes after each step", "", *markdown.table(("step", "documents", "bytes"), rows)]
    lines += ["", f"{report['tokens']['tokens']:,} tokens ({report['tokens']['dtype']})."]
    lines += [f"Dropped or repaired: {repaired}."] if (repaired := in_words(report["cleaned"])) else []
    for title, key in (("Dropped, by reason", "dropped"), ("Scripts", "scripts"), ("Languages", "languages")):
        if report[key]:
            cells = [(markdown.in_table(name or "none"), f"{number:,}") for name, number in report[key].items()]
            lines += ["", f"## {title}", "", *markdown.table(("", "documents"), cells)]
    if report["duplicates"]["removed"]:
        lines += ["", f"{report['duplicates']['removed']:,} near copies were removed (MinHash)."]
    run = markdown.fenced(yaml.safe_dump(report["run"], sort_keys=False), "yaml")
    return [*lines, "", "## The run", "", run]
