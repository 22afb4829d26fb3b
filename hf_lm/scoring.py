"""`hf-lm score`: any number of models on the same examples, each measured as its own run measured it.

What a model said is kept by its content, the data and this code, so that adding a model costs that model only.
"""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
import yaml
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.logging import disable_progress_bar

from hf_lm.cache import default_cache
from hf_lm.data.packing import cache_folder, tokenize_documents
from hf_lm.data.sources import Corpus, load_corpus
from hf_lm.data.tables import Table, load_table
from hf_lm.evaluation.perplexity import score_documents
from hf_lm.evaluation.predictions import GROUPS, METRICS, UNITS, Example, estimates_of, read_predictions
from hf_lm.models.adapters import merged
from hf_lm.models.checkpoints import (
    context_length,
    family,
    load_causal_lm,
    load_config,
    load_text_to_text,
    load_with_head,
)
from hf_lm.remote import ask, messages_of, read_answers
from hf_lm.report import versions
from hf_lm.scoreboard import check_metrics, compare_models
from hf_lm.tasks.question_answering import QuestionAnswering, QuestionAnsweringAsText, read_question_answering
from hf_lm.tasks.sentiment import Sentiment, SentimentAsText, read_sentiment
from hf_lm.tasks.summarization import Summarization, read_summarization
from hf_lm.tasks.translation import Translation, read_translation
from hf_lm.tokenizer import encode_documents, load_tokenizer, set_pad

COLUMNS = {  # that may be named, by task
    "pretrain": ("text_column", "document_start"),
    "sentiment": ("text_column", "label_column"),
    "question_answering": ("question", "context", "answers"),
    "translation": ("source", "target"),
    "summarization": ("source", "target"),
}
SETTINGS: dict[str, dict[str, int]] = {  # by task: what a model that no recipe trained is measured with
    "pretrain": {"block_size": 0, "eval_stride": 0},
    "sentiment": {"max_length": 256},
    "question_answering": {"max_length": 384, "stride": 128, "max_target_length": 32},
    "translation": {"max_source_length": 128, "max_target_length": 128, "num_beams": 1},
    "summarization": {"max_source_length": 256, "max_target_length": 64, "num_beams": 1},
}
HEADS = {"sentiment": AutoModelForSequenceClassification, "question_answering": AutoModelForQuestionAnswering}
CODE = ("data/*.py", "evaluation/*.py", "models/*.py", "tasks/*.py", "losses.py", "scoring.py", "tokenizer.py")


@dataclass
class Data:
    """The examples that all models are scored on: rows of a table or, for perplexity, documents of a corpus."""

    task: str
    split: str
    content: Table | Corpus
    columns: dict[str, str]
    labels: list[str] = field(default_factory=list)  # of sentiment
    limit: int = 0

    @property
    def rows(self) -> list[dict[str, Any]]:
        return self.content.rows[self.split]

    @property
    def identity(self) -> str:
        columns = " ".join(f"{name}={value}" for name, value in sorted(self.columns.items()))
        return f"{self.task} {self.content.fingerprint} {self.split} {self.limit} {columns}"


@dataclass(frozen=True)
class Checkpoint:
    """A folder or a name on the Hub; `path` is the whole model, the base where `adapter` is a folder of its own."""

    name: str
    path: str
    adapter: Path | None
    config: PreTrainedConfig
    run: dict[str, Any]  # of run.yaml; empty where no recipe trained it
    report: dict[str, Any]  # of report.json, likewise

    @property
    def recipe(self) -> str:
        return self.report.get("recipe", "")


@dataclass
class Scored:
    """What one model said. `how`: in words, how it was asked; `kept`: whether it was asked on an earlier day."""

    examples: list[Example]
    how: str
    fingerprint: str
    settings: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    comparable: bool = True  # whether its likelihood is that of the text, and not of what its tokenizer leaves of it
    kept: bool = False


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
    SETTINGS) that are not given are those of each model's own run. `limit`: the first examples only, 0 for all.
    `few_shot` examples of train stand in an API's prompt, under `instruction` ("" has one for each task). `again` asks
    anew what the cache holds. Raises ValueError or OSError in one line; what was scored until then is kept.
    """
    disable_progress_bar()  # transformers' bars for reading shards
    models = list(dict.fromkeys(models))
    opened = {name: open_checkpoint(name) for name in models if not name.startswith("api:")}
    task = check_task(task, metrics, list(opened.values()))
    metrics = check_metrics(task, metrics)
    given = {name: value for name, value in (settings or {}).items() if value}
    for name in given.keys() - SETTINGS[task].keys():
        raise ValueError(f"--{name} means nothing for {task}; there are --{' --'.join(SETTINGS[task])}.")
    for checkpoint in opened.values():
        check_recipe(checkpoint, task)
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
    unit, count = UNITS.get(task, "examples"), len(next(iter(scored.values())).examples)
    result = {
        "task": task,
        "data": {
            "source": data.content.source,
            "fingerprint": data.content.fingerprint,
            "split": split,
            "unit": unit,
            unit: count,
            "notes": data.content.notes + ([f"the first {count} {unit} only"] if limit else []),
        },
        "versions": versions(),
    }
    estimates = {name: estimates_of(task, one.examples, labels=data.labels) for name, one in scored.items()}
    about = {
        name: {key: value for key, value in asdict(one).items() if key not in ("examples", "comparable", "kept")}
        for name, one in scored.items()
    }
    lossy = [name for name, one in scored.items() if not one.comparable]
    return result | compare_models(estimates, metrics=metrics, unit=unit, about=about, apart=lossy)


# What is asked, and of what


def check_task(task: str, metrics: Sequence[str], opened: Sequence[Checkpoint]) -> str:
    """The task that is named, or follows from the metrics or the models. Raises ValueError where none does."""
    task = "pretrain" if task == "perplexity" else task
    if task and task not in METRICS:
        raise ValueError(f"there is no task {task!r}; there are perplexity, {', '.join(list(METRICS)[1:])}.")
    named = {one for metric in metrics for one in GROUPS.get(metric, (metric,))}
    having = [name for name, known in METRICS.items() if named and named <= set(known)]
    if task or having:
        return task or having[0]  # no two tasks share a metric
    recipes = {checkpoint.recipe for checkpoint in opened} & METRICS.keys()
    if len(recipes) != 1:
        raise ValueError(f"say what to measure with --task: perplexity, {', '.join(list(METRICS)[1:])}.")
    return recipes.pop()


def check_recipe(checkpoint: Checkpoint, task: str) -> None:
    """Raise ValueError for a model that was trained for another task; any causal model has a perplexity."""
    if checkpoint.recipe in METRICS and checkpoint.recipe not in ("pretrain", task) and task != "pretrain":
        raise ValueError(f"{checkpoint.name} was trained for {checkpoint.recipe}, not for {task}.")


def open_checkpoint(name: str) -> Checkpoint:
    """What is known of a model before its weights are read. Raises OSError or ValueError in one line."""
    folder, adapter, path = Path(name), None, name
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        adapter = folder
        path = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8")).get("base_model_name_or_path")
        if not path:
            raise ValueError(f"{name} is an adapter that does not name its base model: merge it first.")
    try:
        config = load_config(path)
    except (OSError, ValueError) as error:
        raise type(error)(f"{name} is an adapter, and its base: {error}" if adapter else str(error)) from error
    # An adapter kept beside its merged model, and a checkpoint, belong to the run of the folder above.
    inside = folder.name == "adapter" or folder.name.startswith("checkpoint-")
    run = next((p for p in (folder, folder.parent)[: 1 + inside] if (p / "report.json").is_file()), folder)
    return Checkpoint(name, path, adapter, config, _read(run / "run.yaml"), _read(run / "report.json"))


def _read(path: Path) -> dict[str, Any]:
    return (yaml.safe_load(path.read_text(encoding="utf-8")) or {}) if path.is_file() else {}


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
    data = Data(task, split, _load(task, dataset, named), named, limit=limit)
    if task == "sentiment":
        data.labels = read_sentiment(data.content, **named)
    elif task == "question_answering":
        read_question_answering(data.content, **named)
    elif task == "translation":
        read_translation(data.content, **named)
    elif task == "summarization":
        read_summarization(data.content, **named)
    if split not in data.content.splits:
        raise ValueError(f"--dataset {dataset} has no split {split!r}; it has {', '.join(data.content.splits)}.")
    if limit and task != "pretrain":
        data.content.rows[split] = data.rows[:limit]
    return data


def _same_place(one: Any, other: str) -> bool:
    return bool(one) and (one == other or Path(one).resolve() == Path(other).resolve())


def _load(task: str, dataset: str, named: dict[str, str]) -> Corpus | Table:
    if task == "pretrain":
        return load_corpus(dataset, **named)
    header = not any(value.isdigit() for value in named.values())
    return load_table(dataset, endings="labels" if task == "sentiment" else "columns", header=header)


# Checkpoints


def score_checkpoint(
    checkpoint: Checkpoint, data: Data, given: dict[str, int], *, again: bool = False, say: Callable[[str], None]
) -> Scored:
    """One checkpoint on the data, from the cache where it has been there with the same content and settings."""
    run = checkpoint.run if checkpoint.recipe in ("", data.task) else {}
    settings = {name: given.get(name) or run.get(name, default) for name, default in SETTINGS[data.task].items()}
    settings |= {"precision": next((name for name in ("bf16", "fp16") if run.get(name)), "float32")}
    if run.get("drop_overlap"):
        settings["drop_overlap"] = True
    print_of = fingerprint(checkpoint)
    path = _cache(data, f"{print_of} {sorted(settings.items())} {run.get('as_text')}")
    about = path.with_suffix(".json")
    if about.is_file() and not again:
        say(f"{checkpoint.name}: scored before")
        return Scored(read_predictions(path), **json.loads(about.read_text(encoding="utf-8")), kept=True)
    say(f"{checkpoint.name}: scoring")
    measure = _measure_likelihood if data.task == "pretrain" else _measure_task
    scored = Scored([], "", print_of, settings)
    with torch.no_grad():
        measure(checkpoint, data, scored)
    path.parent.mkdir(parents=True, exist_ok=True)
    _write_aside(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in scored.examples))
    kept = {key: value for key, value in asdict(scored).items() if key not in ("examples", "kept")}
    _write_aside(about, json.dumps(kept, ensure_ascii=False))  # last: it says that the examples are whole
    return scored


def fingerprint(checkpoint: Checkpoint) -> str:
    """What a checkpoint is: the hash of its weights, configuration and tokenizer, or its commit on the Hub."""
    digest = hashlib.blake2b(digest_size=16)
    for place in filter(None, (checkpoint.path, checkpoint.adapter)):
        if not Path(place).is_dir():
            digest.update(f"{place} {checkpoint.config._commit_hash}".encode())
            continue
        for path in sorted(Path(place).iterdir()):
            about_run = path.name in ("report.json", "scores.json", "trainer_state.json")
            if path.suffix in (".safetensors", ".json", ".txt", ".model", ".jinja") and not about_run:
                digest.update(path.name.encode())
                with path.open("rb") as file:
                    while part := file.read(2**22):
                        digest.update(part)
    return digest.hexdigest()


def _cache(data: Data, identity: str) -> Path:
    """Where the examples of a model on some data are kept; this code, and the libraries under it, are in the name."""
    digest = hashlib.blake2b(f"{data.identity} {identity} {_code()}".encode(), digest_size=16)
    return default_cache() / "scores" / f"{digest.hexdigest()}.jsonl"


def _code() -> str:
    found, root = hashlib.blake2b(digest_size=16), Path(__file__).parent
    for path in sorted(path for pattern in CODE for path in root.glob(pattern)):
        found.update(path.read_bytes())
    used = {name: version for name, version in versions().items() if name in ("torch", "transformers", "tokenizers")}
    return f"{found.hexdigest()} {sorted(used.items())}"


def _write_aside(path: Path, text: str) -> None:
    aside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, path)


def _measure_likelihood(checkpoint: Checkpoint, data: Data, scored: Scored) -> None:
    tokenizer = load_tokenizer(str(checkpoint.adapter or checkpoint.path))
    model = _ready(load_causal_lm(checkpoint.path, tokenizer=tokenizer), checkpoint)
    settings = scored.settings
    positions = context_length(model.config)
    settings["block_size"] = settings["block_size"] or min(1024, positions or 128)
    settings["eval_stride"] = settings["eval_stride"] or max(1, settings["block_size"] // 2)
    if 0 < positions < settings["block_size"]:
        raise ValueError(f"{checkpoint.name} has {positions} positions, fewer than --block_size.")
    documents, limit = data.content.documents(data.split), data.limit or None
    stream = tokenize_documents(
        islice(documents, limit),
        tokenizer=tokenizer,
        folder=cache_folder(f"{data.content.fingerprint}{limit or ''}", tokenizer, data.split),
        count_words=True,
        name=data.split,
    )
    with _precision(model, settings):
        likelihood = score_documents(model, stream, block_size=settings["block_size"], stride=settings["eval_stride"])
    scored.examples = likelihood.examples()
    scored.how = f"likelihood in windows of {settings['block_size']} tokens"
    first = list(islice(data.content.documents(data.split), min(limit or 200, 200)))
    lost = sum(not _comes_back(tokenizer, text[:10_000]) for text in first)
    if lost:
        scored.comparable = False
        scored.notes.append(f"its tokenizer gives {lost} of {len(first)} documents back as other text")


def _comes_back(tokenizer: PreTrainedTokenizerBase, text: str) -> bool:
    """Whether a text comes back from its ids, but for white space: with unknown words or small letters it does not."""
    ids = encode_documents(tokenizer, [text])[0]
    return "".join(tokenizer.decode(ids).split()) == "".join(text.split())


def _measure_task(checkpoint: Checkpoint, data: Data, scored: Scored) -> None:
    table, split = data.content, data.split
    table = Table(table.source, table.fingerprint, dict(table.rows))  # a task may drop rows of train
    model, task, scored.how = _build(checkpoint, data, table, scored.settings)
    model = _ready(model, checkpoint)
    with _precision(model, scored.settings):
        if getattr(task, "unanswerable", False) and split == "test":
            task.measure(model, "validation")  # which chooses from where on there is no answer
        if scored.how.startswith("prompted"):
            answers = [(text.split("\n")[0], *rest) for text, *rest in task.answer(model.eval(), split, None)]
            scored.examples = task.score(split, answers).examples
        else:
            scored.examples = task.measure(model, split).examples


def _ready(model: PreTrainedModel, checkpoint: Checkpoint) -> PreTrainedModel:
    """The model with its adapter's updates, on the device there is."""
    if checkpoint.adapter is not None:
        from peft import PeftModel

        model = merged(PeftModel.from_pretrained(model, str(checkpoint.adapter)))
    return model.eval().to(torch.accelerator.current_accelerator() or "cpu")


def _precision(model: PreTrainedModel, settings: dict[str, Any]) -> Any:
    """As the run had it when it measured."""
    if settings["precision"] == "float32":
        return nullcontext()
    dtype = torch.bfloat16 if settings["precision"] == "bf16" else torch.float16
    return torch.autocast(model.device.type, dtype=dtype)


def _build(
    checkpoint: Checkpoint, data: Data, table: Table, settings: dict[str, Any]
) -> tuple[PreTrainedModel, Any, str]:
    """Model and task as the recipe makes them, and in words how the model is asked."""
    config, name, path = checkpoint.config, data.task, checkpoint.path
    tokenizer = load_tokenizer(str(checkpoint.adapter or path))
    set_pad(tokenizer)
    kind, lengths = family(config), {k: v for k, v in settings.items() if k in SETTINGS[name]}
    dropped = {"drop_overlap": settings.get("drop_overlap", False)}
    if name in HEADS and _has_head(checkpoint, HEADS[name], kind):
        if name == "sentiment":
            labels = head_labels(checkpoint, data.labels)
            model = load_with_head(path, HEADS[name], tokenizer=tokenizer, labels=labels)
            length = min(lengths["max_length"], context_length(config) or lengths["max_length"])
            task: Any = Sentiment(table, tokenizer, labels=labels, max_length=length, **dropped)
            return model, task, f"a classification head for {', '.join(labels[:10])}"
        model = load_with_head(path, HEADS[name], tokenizer=tokenizer)
        length = min(lengths["max_length"], context_length(config) or lengths["max_length"])
        stride = min(lengths["stride"], length // 3)
        task = QuestionAnswering(
            table, tokenizer, causal=kind == "decoder", max_length=length, stride=stride, **dropped
        )
        return model, task, "a head that points to the answer"
    if kind == "encoder" and not (checkpoint.adapter and name not in HEADS):
        what = "has no head for this" if name in HEADS else "writes no text"
        raise ValueError(
            f"{checkpoint.name} was saved as {(config.architectures or [config.model_type])[0]} and {what}: fine-tune "
            f"it first with recipes/{name}.py --model {checkpoint.name}."
        )
    model = load_text_to_text(path, tokenizer=tokenizer)
    if name == "sentiment":
        task = SentimentAsText(
            table, tokenizer, model, labels=data.labels, max_length=lengths["max_length"], **dropped
        )
        return model, task, "the likelihood of each class's name"
    if name == "question_answering":
        task = QuestionAnsweringAsText(
            table,
            tokenizer,
            model,
            max_source_length=lengths["max_length"],
            max_target_length=lengths["max_target_length"],
            **dropped,
        )
    else:
        kinds = {"translation": Translation, "summarization": Summarization}
        remembered = (getattr(config, "task_specific_params", None) or {}).get(kinds[name].pipeline_tag, {})
        task = kinds[name](table, tokenizer, model, prefix=remembered.get("prefix", ""), **lengths, **dropped)
    taught = checkpoint.recipe == name or checkpoint.adapter or kind != "decoder"
    if taught or task.pipeline_tag in (getattr(config, "task_specific_params", None) or {}):
        return model, task, "text that it writes"
    return model, task, f"prompted with {task.cue.strip()!r}, never trained for it; the first line it writes counts"


def _has_head(checkpoint: Checkpoint, auto_class: Any, kind: str) -> bool:
    """Whether the checkpoint, or its adapter, brings a trained head."""
    config = checkpoint.config
    if checkpoint.adapter is not None:
        saved = json.loads((checkpoint.adapter / "adapter_config.json").read_text(encoding="utf-8"))
        return bool(saved.get("modules_to_save")) and kind != "encoder-decoder"
    known = type(config) in auto_class._model_mapping
    return known and auto_class._model_mapping[type(config)].__name__ in (config.architectures or [])


def head_labels(checkpoint: Checkpoint, labels: Sequence[str]) -> list[str]:
    """The classes of a head, in its order, by the names that the data gives them; others keep their own.

    Equal but for case, the beginning of one another (`pos`, `POSITIVE`), or numbered (`LABEL_1` is `1`). Raises
    ValueError where a class of the data is not among them.
    """
    own = [str(name) for _, name in sorted(checkpoint.config.id2label.items())]
    if checkpoint.adapter is not None:
        own = list(checkpoint.report.get("classes", labels))

    def same(one: str, other: str) -> bool:
        one, other = one.casefold(), other.casefold()
        short = min(len(one), len(other))
        return one == other or f"label_{other}" == one or (short > 2 and one[:short] == other[:short])

    found = {label: [name for name in own if same(name, label)] for label in labels}
    exact = {label: [label] if label in own else names for label, names in found.items()}
    chosen = {names[0]: label for label, names in exact.items() if len(names) == 1}
    if len(chosen) < len(labels):
        raise ValueError(
            f"{checkpoint.name} tells apart {', '.join(own[:10])}; the data has {', '.join(labels[:10])}: name its "
            "classes so in id2label of its config.json."
        )
    return [chosen.get(name, name) for name in own]


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
    """A model behind an OpenAI-compatible address: each answer is kept as it comes, so that nothing is paid twice.

    `options` are those of hf_lm.remote.ask. Answers that are none of the classes are wrong, and counted.
    """
    model, rows = name.removeprefix("api:"), data.rows
    asked = messages_of(
        data.task, rows, data.content.rows["train"], labels=data.labels, columns=data.columns, few_shot=few_shot,
        instruction=instruction,
    )  # fmt: skip
    where = urlsplit(base_url).hostname or "api.openai.com"
    identity = hashlib.blake2b(json.dumps(asked.messages).encode(), digest_size=16).hexdigest()
    path = _cache(data, f"{model} {base_url} {identity}")
    path.parent.mkdir(parents=True, exist_ok=True)
    if again:
        path.unlink(missing_ok=True)
    done = {row["row"]: row["answer"] for row in (read_predictions(path) if path.is_file() else [])}
    rest = [i for i in range(len(rows)) if i not in done]
    say(f"{name}: scored before" if not rest else f"{name}: asking {where}" + (f", {len(done)} kept" if done else ""))
    if rest:
        ask(model, asked, rest, base_url=base_url, path=path, **options)
        done = {row["row"]: row["answer"] for row in read_predictions(path)}
    scored = Scored([], f"asked through {where} with {few_shot} examples of train", identity, {"few_shot": few_shot})
    scored.settings["instruction"] = asked.instruction
    scored.examples, invalid = read_answers(data.task, rows, [done[i] for i in range(len(rows))], data.labels)
    scored.kept = not rest
    if invalid:
        scored.notes.append(f"{invalid} of {len(rows)} answers are none of the classes, and wrong")
    return scored
