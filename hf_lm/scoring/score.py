"""`hf-lm score`: any number of models on the same examples, each measured as its own run measured it.

Predictions are cached by the model's content, the data and this code: adding a model computes only that model.
"""

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from transformers import PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from hf_lm.data.packing import cache_folder, tokenize_documents
from hf_lm.data.sources import Corpus, load_corpus
from hf_lm.data.tables import Table
from hf_lm.evaluation.perplexity import score_documents
from hf_lm.files import default_cache, hash_contents, hash_text, write_whole
from hf_lm.hub.credentials import printable
from hf_lm.models.configuration import context_length, family, model_fingerprint
from hf_lm.models.devices import device_named
from hf_lm.models.loading import load_causal_lm
from hf_lm.reporting.report import versions
from hf_lm.scoring.api import answers_in, complete, messages_of
from hf_lm.scoring.predictions import GROUPS, METRICS, Example, estimates_of, read_predictions, unit_of
from hf_lm.scoring.restore import SETTINGS, Checkpoint, autocast_as, build_task, open_checkpoint
from hf_lm.scoring.scoreboard import check_metrics, compare_models
from hf_lm.tasks.by_name import TASKS
from hf_lm.tokenization.tokenizer import comes_back, encode_documents, load_tokenizer, tokenizer_fingerprint

COLUMNS = {  # that may be named, by task
    "pretrain": ("text_column", "document_start", "max_bytes"),
    **{name: task.columns for name, task in TASKS.items()},
}
CODE = tuple(f"{folder}/*.py" for folder in ("data", "evaluation", "models", "tasks", "tokenization"))
CODE += ("scoring/restore.py", "scoring/score.py")


@dataclass
class Data:
    """The examples that all models are scored on: rows of a table or, for perplexity, documents of a corpus."""

    task: str
    split: str
    content: Table | Corpus
    columns: dict[str, str]
    limit: int = 0

    @property
    def table(self) -> Table:
        assert isinstance(self.content, Table)
        return self.content

    @property
    def corpus(self) -> Corpus:
        assert isinstance(self.content, Corpus)
        return self.content

    @property
    def labels(self) -> list[str]:
        return self.content.labels if isinstance(self.content, Table) else []

    @property
    def rows(self) -> list[dict[str, Any]]:
        return self.table.rows[self.split]

    @property
    def identity(self) -> str:
        columns = " ".join(f"{name}={value}" for name, value in sorted(self.columns.items()))
        return f"{self.task} {self.content.fingerprint} {self.split} {self.limit} {columns}"


@dataclass
class Scored:
    """The predictions of one model. `how`: in words, how it was asked."""

    examples: list[Example]
    how: str
    fingerprint: str
    settings: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    lossy: str = ""  # the tokenizer, where it loses text: the likelihood is of what it leaves


def score(
    models: Sequence[str],
    *,
    dataset: str,
    task: str = "",
    metrics: Sequence[str] = (),
    split: str = "test",
    columns: dict[str, str] | None = None,
    settings: dict[str, int] | None = None,
    limit: int = 0,
    base_url: str = "",
    few_shot: int = 0,
    instruction: str = "",
    again: bool = False,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Measure models on one split and compare them in pairs; returns what scores.json holds.

    `models`: folders, names on the Hub, adapters, and `api:NAME` for a model behind an OpenAI-compatible `base_url`.
    `task` "" follows from `metrics`, else from the first folder's report. `columns` and `settings` (see COLUMNS,
    SETTINGS) that are not given are those of each model's own run. `limit`: so many examples, drawn at random,
    or the first documents; 0 for all.
    `few_shot` examples of train are in an API's prompt, after `instruction` ("" has one for each task). `again`
    ignores the cache. Raises ValueError or OSError in one line; what was scored until then is kept.
    """
    disable_progress_bar()  # transformers' bars for reading shards
    models = list(dict.fromkeys(models))
    opened = {name: open_checkpoint(name) for name in models if not name.startswith("api:")}
    task = check_task(task, metrics, list(opened.values()))
    metrics = check_metrics(task, metrics)
    given = {name: value for name, value in (settings or {}).items() if value}
    for name in given.keys() - SETTINGS[task].keys():
        raise ValueError(f"--{name} means nothing for {task}; there are --{' --'.join(SETTINGS[task])}.")
    for checkpoint in opened.values():  # any causal model has a perplexity
        if task != "pretrain" and checkpoint.recipe in METRICS and checkpoint.recipe not in ("pretrain", task):
            raise ValueError(f"{checkpoint.name} was trained for {checkpoint.recipe}, not for {task}.")
    if task == "pretrain" and len(opened) < len(models):
        raise ValueError("an API does not tell the likelihood of a text: perplexity needs the checkpoint itself.")
    data = read_data(task, dataset, split, columns or {}, list(opened.values()), limit)
    scored = {}
    for name in models:
        if name in opened:
            scored[name] = score_checkpoint(opened[name], data, given, again=again, say=say)
        else:
            scored[name] = score_api(
                name, data, base_url=base_url, few_shot=few_shot, instruction=instruction, again=again, say=say
            )
    return _result(data, scored, metrics)


def _result(data: Data, scored: dict[str, Scored], metrics: Sequence[str]) -> dict[str, Any]:
    unit, count = unit_of(data.task), len(next(iter(scored.values())).examples)
    which = f"the first {count} {unit} only" if data.task == "pretrain" else f"{count} {unit} drawn at random"
    notes = data.content.notes + ([which] if data.limit else [])
    estimates = {name: estimates_of(data.task, each.examples, labels=data.labels) for name, each in scored.items()}
    about = {
        name: {key: value for key, value in vars(each).items() if key not in ("examples", "lossy")}
        for name, each in scored.items()
    }
    lossy = {name: each.lossy for name, each in scored.items() if each.lossy}
    return {
        "task": data.task,
        "data": {
            "source": data.content.source,
            "fingerprint": data.content.fingerprint,
            "split": data.split,
            "unit": unit,
            unit: count,
            "notes": notes,
        },
        "versions": versions(),
        **compare_models(estimates, metrics=metrics, unit=unit, about=about, lossy_tokenizers=lossy),
    }


# The task and the data


def check_task(task: str, metrics: Sequence[str], opened: Sequence[Checkpoint]) -> str:
    """The task that is named, or follows from the metrics or the models. Raises ValueError where none does."""
    task = "pretrain" if task == "perplexity" else task
    if task and task not in METRICS:
        raise ValueError(f"there is no task {task!r}; there are perplexity, {', '.join(list(METRICS)[1:])}.")
    named = {name for metric in metrics for name in GROUPS.get(metric, (metric,))}
    having = {name for name, known in METRICS.items() if named and named <= set(known)}
    if task or len(having) == 1:
        return task or having.pop()
    recipes = {checkpoint.recipe for checkpoint in opened} & (having or METRICS.keys())
    if len(recipes) != 1:
        own = sorted({checkpoint.recipe for checkpoint in opened} - {"", *METRICS})
        hint = f" What {' and '.join(own)} measures is in the report of each run alone." if own else ""
        raise ValueError(f"say what to measure with --task: perplexity, {', '.join(list(METRICS)[1:])}.{hint}")
    return recipes.pop()


def read_data(
    task: str, dataset: str, split: str, columns: dict[str, str], opened: Sequence[Checkpoint], limit: int
) -> Data:
    """The split to score on. Columns that are not given are those of a model's run on the same data."""
    given = {name: value for name, value in columns.items() if value}
    for name in given.keys() - set(COLUMNS[task]):
        raise ValueError(f"--{name} means nothing for {task}; there are --{' --'.join(COLUMNS[task])}.")
    same = (c.run for c in opened if c.recipe == task and _same_place(c.run.get("dataset"), dataset))
    run = next(same, {})
    named = {name: str(given.get(name) or run.get(name, "")) for name in COLUMNS[task]}
    content = _load(task, dataset, named)
    data = Data(task, split, content, named, limit=limit)
    if split not in data.content.splits:
        raise ValueError(f"--dataset {dataset} has no split {split!r}; it has {', '.join(data.content.splits)}.")
    if limit and task != "pretrain":  # drawn: rows often stand in the order of their classes or contexts
        drawn = random.Random(0).sample(range(len(data.rows)), min(limit, len(data.rows)))
        data.table.rows[split] = [data.rows[i] for i in sorted(drawn)]
    return data


def _same_place(path: str | None, other: str) -> bool:
    return bool(path) and (path == other or Path(path).resolve() == Path(other).resolve())


def _load(task: str, dataset: str, named: dict[str, str]) -> Corpus | Table:
    if task == "pretrain":
        return load_corpus(
            dataset,
            text_column=named["text_column"],
            document_start=named["document_start"],
            max_bytes=int(named["max_bytes"] or 0),
        )
    return TASKS[task].load(dataset, **named)


# Checkpoints


def score_checkpoint(
    checkpoint: Checkpoint, data: Data, given: dict[str, int], *, again: bool = False, say: Callable[[str], None]
) -> Scored:
    """The predictions of a checkpoint on the data: from the cache where the content and the settings are the same."""
    run = checkpoint.run if checkpoint.recipe in ("", data.task) else {}
    settings = {name: given.get(name) or run.get(name, default) for name, default in SETTINGS[data.task].items()}
    settings |= {"precision": next((name for name in ("bf16", "fp16") if run.get(name)), "float32")}
    if run.get("drop_overlap"):
        settings["drop_overlap"] = True
    content = model_fingerprint(checkpoint.name)
    identity = f"{data.identity} {content} {sorted(settings.items())} {run.get('as_text')} {_code()}"
    path = default_cache() / "scores" / f"{hash_text(identity).hex()}.jsonl"  # named by the libraries and code too
    about = path.with_suffix(".json")
    if about.is_file() and not again:
        say(printable(f"{checkpoint.name}: scored before"))
        return Scored(read_predictions(path), **json.loads(about.read_text(encoding="utf-8")))
    say(printable(f"{checkpoint.name}: scoring"))
    measure = _measure_likelihood if data.task == "pretrain" else _measure_task
    scored = Scored([], "", content, settings)
    if settings["precision"] != "float32":
        scored.notes.append(f"measured in {settings['precision']}, in which it was trained")
    with torch.no_grad():
        measure(checkpoint, data, scored)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in scored.examples))
    described = {key: value for key, value in vars(scored).items() if key != "examples"}
    write_whole(about, json.dumps(described, ensure_ascii=False))  # last: where it exists the examples are complete
    return scored


def _code() -> str:
    root = Path(__file__).parent.parent
    code = hash_contents((path.name, path) for path in sorted(path for pattern in CODE for path in root.glob(pattern)))
    used = {name: version for name, version in versions().items() if name in ("torch", "transformers", "tokenizers")}
    return f"{code} {sorted(used.items())}"


def _measure_likelihood(checkpoint: Checkpoint, data: Data, scored: Scored) -> None:
    if (kind := family(checkpoint.config)) != "decoder":
        raise ValueError(f"{checkpoint.name} is an {kind}, which gives a text no likelihood: score a causal model.")
    tokenizer = load_tokenizer(checkpoint.tokenizer)
    model = _on_device(load_causal_lm(checkpoint.name, tokenizer=tokenizer))
    settings = scored.settings
    positions = context_length(model.config)
    settings["block_size"] = settings["block_size"] or min(1024, positions or 128)
    own = min(checkpoint.report.get("data", {}).get("eval_stride", 0), settings["block_size"])  # as its run chose it
    settings["eval_stride"] = settings["eval_stride"] or own or max(1, settings["block_size"] // 2)
    if 0 < positions < settings["block_size"]:
        raise ValueError(f"{checkpoint.name} has {positions} positions, fewer than --block_size.")
    documents, limit = data.corpus.documents(data.split), data.limit or None
    stream = tokenize_documents(
        islice(documents, limit),
        tokenizer=tokenizer,
        folder=cache_folder(f"{data.content.fingerprint}{limit or ''}", tokenizer, data.split),
        count_words=True,
        name=data.split,
    )
    stream = stream.sample(settings["eval_tokens"] or stream.total)
    with autocast_as(model, settings):
        likelihood = score_documents(model, stream, block_size=settings["block_size"], stride=settings["eval_stride"])
    scored.examples = likelihood.examples()
    scored.how = f"likelihood in windows of {settings['block_size']} tokens"
    first = [text[:10_000] for text in islice(data.corpus.documents(data.split), min(limit or 200, 200))]
    encoded = encode_documents(tokenizer, first)
    lost = sum(not comes_back(tokenizer, text, ids) for text, ids in zip(first, encoded, strict=True))
    if lost:
        scored.lossy = tokenizer_fingerprint(tokenizer)
        scored.notes.append(f"its tokenizer gives {lost} of {len(first)} documents back as other text")


def _on_device(model: PreTrainedModel) -> PreTrainedModel:
    return model.eval().to(device_named())  # pyright: ignore[reportArgumentType]  (decorated without its type)


def _measure_task(checkpoint: Checkpoint, data: Data, scored: Scored) -> None:
    table, split = data.table, data.split
    table = Table(table.source, table.fingerprint, dict(table.rows), labels=table.labels)  # a task may drop rows
    named = {"columns": data.columns, "settings": scored.settings}
    model, task, prompted = build_task(checkpoint, TASKS[data.task], table, **named)
    model, scored.how = _on_device(model), prompted or task.how
    with autocast_as(model, scored.settings):
        if task.needs_validation and split == "test":
            task.measure(model, "validation")  # which chooses from where on there is no answer
        if prompted:
            answers = [(text.split("\n")[0], *rest) for text, *rest in task.predict(model, split, None)]
            scored.examples = task.score(split, answers).examples
        else:
            scored.examples = task.measure(model, split).examples


# APIs


def score_api(
    name: str,
    data: Data,
    *,
    base_url: str,
    few_shot: int,
    instruction: str,
    again: bool = False,
    say: Callable[[str], None],
    **options: Any,
) -> Scored:
    """A model behind an OpenAI-compatible address: each answer is kept as it arrives, so that none is paid for twice.

    `options` are those of hf_lm.scoring.api.complete. Answers that are none of the classes are wrong, and counted.
    """
    model, rows, task = name.removeprefix("api:"), data.rows, TASKS[data.task]
    asked = messages_of(
        task,
        rows,
        data.table.rows["train"],
        labels=data.labels,
        columns=data.columns,
        few_shot=few_shot,
        instruction=instruction,
    )
    where = urlsplit(base_url).hostname or "api.openai.com"
    digest = hash_text(f"{model} {base_url}").hex()
    path = default_cache() / "answers" / f"{digest}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    done = answers_in(path) if not again else {}
    rest = [i for i in range(len(rows)) if asked.key(i) not in done]
    kept = len(rows) - len(rest)
    say(f"{name}: answered before" if not rest else f"{name}: asking {where}" + (f", {kept} kept" if kept else ""))
    if rest:
        complete(model, asked, rest, base_url=base_url, path=path, **options)
        done = answers_in(path)
    scored = Scored([], f"asked through {where} with {few_shot} examples of train", digest, {"few_shot": few_shot})
    scored.settings["instruction"] = asked.instruction
    answers = [done[asked.key(i)] for i in range(len(rows))]
    scored.examples, invalid = task.examples_of(rows, answers, data.labels)
    if invalid:
        scored.notes.append(f"{invalid} of {len(rows)} answers are none of the classes, and wrong")
    if empty := answers.count(""):
        scored.notes.append(
            f"{empty} of {len(rows)} answers are empty: it may write {asked.max_tokens} tokens, which a model that "
            "reasons first spends on that"
        )
    return scored
