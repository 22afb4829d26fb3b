"""A recipe run up to `fit`, for a plan: its own arguments, task and model, the model without weights and memory."""

import contextlib
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from accelerate import init_empty_weights
from torch import nn

from hf_lm.models.adapters import is_adapted
from hf_lm.rehearsal import rehearse
from hf_lm.training.forecast import lengths_of

SAMPLED = 32_000_000  # bytes of training text above which only the first documents are tokenized
SAMPLE = 8_000_000  # bytes of them


@dataclass
class Resolved:
    """What a recipe hands to `fit`, the model on the meta device. `scales`: see hf_lm.training.forecast.work_of."""

    recipe: str
    model: nn.Module
    task: Any
    args: Any
    arguments: dict[str, Any]  # as run.yaml has them
    bits: int = 0  # in which a frozen base is held; 0: in full
    scales: dict[str, float] = field(default_factory=dict)
    assumed: list[str] = field(default_factory=list)


def resolve(recipe: str, argv: Sequence[str], *, tokens: int = 0, bf16: bool | None = None) -> Resolved:
    """Run a recipe with its arguments up to `fit`, without weights.

    With `tokens` no data is read: text of the demo stands in for it, and so many tokens of it are trained on in an
    epoch. `bf16` says whether the device multiplies in bfloat16; None asks this machine. Raises what the recipe
    raises, and ValueError for one that cannot be planned.
    """
    data = _Data(tokens)
    seams = {
        "hf_lm.models.checkpoints": {"load_weights": _without_weights, "_is_causal": lambda model: True},
        "hf_lm.models.encoder_decoder": {"load_weights": _without_weights},
        **data.seams(),
    }
    if bf16 is not None:
        seams["hf_lm.arguments"] = {"bf16_is_fast": lambda: bf16}
    with _replaced(seams), init_empty_weights():
        model, task, args, _ = rehearse(recipe, argv, use_cpu=False)
    if not (hasattr(task, "loss") and hasattr(task, "train_dataset")):
        raise ValueError(f"the recipe {recipe} trains by another loss than one over labels: it cannot be planned.")
    plain = model.get_base_model() if is_adapted(model) else model
    plain.tie_weights()  # building without memory parts what is tied
    return Resolved(
        Path(recipe).stem, model, task, args, args.run, int(args.run.get("quantize") or 0), **data.about(task, args)
    )


@contextlib.contextmanager
def _replaced(seams: dict[str, dict[str, Any]]) -> Iterator[None]:
    """Modules with some of their names bound to other values; a recipe that is run meanwhile imports those."""
    before = {(module, name): getattr(import_module(module), name) for module in seams for name in seams[module]}
    try:
        for module, name in before:
            setattr(sys.modules[module], name, seams[module][name])
        yield
    finally:
        for (module, name), value in before.items():
            setattr(sys.modules[module], name, value)


def _without_weights(auto_class: type, name_or_path: str, config: Any, **_: Any) -> Any:
    model = auto_class.from_config(config)
    model.name_or_path, model.at_random = name_or_path, []
    return model


def _guess_column(rows: Any, asked: str, guesses: Sequence[str], **_: Any) -> str:
    return next(name for name in guesses if name in rows[0])


# Stand-in rows have the columns that tasks guess, not those of the data.
TASKS_GUESS = {
    f"hf_lm.tasks.{task}": {"pick_column": _guess_column}
    for task in ("sentiment", "question_answering", "translation", "summarization")
}


class _Data:
    """Where a plan takes its data from: as the run does, but of a large corpus only the first documents are tokenized.

    With `tokens` the demo's text stands in for the data.
    """

    def __init__(self, tokens: int) -> None:
        from hf_lm.data import sources, tables
        from hf_lm.tasks import language_modelling

        self.tokens, self.size = tokens, 0
        self.scales: dict[str, float] = {}  # split -> how many times larger it is than what was read of it
        self._corpus, self._table = sources.load_corpus, tables.load_table
        self._tokenize = language_modelling.tokenize_documents
        self._aside = tempfile.TemporaryDirectory()

    def seams(self) -> dict[str, dict[str, Any]]:
        return {
            "hf_lm.data.sources": {"load_corpus": self.corpus},
            "hf_lm.data.tables": {"load_table": self.table},
            "hf_lm.tasks.language_modelling": {"tokenize_documents": self.tokenize},
        } | (TASKS_GUESS if self.tokens else {})

    def corpus(self, dataset: str, **options: Any) -> Any:
        if self.tokens:
            return self._corpus("demo")
        with _ask_for_tokens():
            corpus = self._corpus(dataset, **options)
        self.size = corpus.size
        return corpus

    def table(self, dataset: str, **options: Any) -> Any:
        if self.tokens:
            return _stand_in()
        with _ask_for_tokens():
            return self._table(dataset, **options)

    def tokenize(self, documents: Any, *, folder: Path, name: str = "text", **options: Any) -> Any:
        if self.size <= SAMPLED or folder.is_dir():
            return self._tokenize(documents, folder=folder, name=name, **options)
        taken = [0]

        def some() -> Iterator[str]:
            for text in documents:
                taken[0] += len(text.encode())
                yield text
                if taken[0] >= SAMPLE:
                    return

        stream = self._tokenize(some(), folder=Path(self._aside.name) / name, name=name, **options)
        whole = self.size if name == "train" else 0.05 * self.size
        self.scales[name] = max(1.0, whole / taken[0]) if taken[0] >= SAMPLE else 1.0
        return stream

    def about(self, task: Any, args: Any) -> dict[str, Any]:
        if self.tokens and isinstance(rows := task.train_dataset, list):
            task.train_dataset = rows * -(-args.per_device_train_batch_size // len(rows))  # enough for a batch
        lengths = lengths_of(task)
        if self.tokens:
            said = (
                f"{self.tokens:,} tokens an epoch, as --tokens says: no data was read, rows are as long as they may be"
            )
            return {"scales": {"train": self.tokens / max(1, sum(lengths))}, "assumed": [said]}
        if self.scales:
            said = f"tokens of train from its {self.size / 1e6:,.0f} MB and the first {SAMPLE / 1e6:.0f} MB tokenized"
            return {"scales": self.scales, "assumed": [said]}
        return {}


@contextlib.contextmanager
def _ask_for_tokens() -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        if "was not loaded from the Hub" not in str(error):
            raise
        raise ValueError(
            f"{error} To plan without the data, say how many training tokens it has: --tokens N."
        ) from None


def _stand_in() -> Any:
    """Labelled rows for any task where the data is not read: text of the demo, longer than any task keeps."""
    from hf_lm.data.demos import documentation
    from hf_lm.data.tables import Table

    long = [row["text"] for row in documentation() if len(row["text"]) > 4000]
    rows = []
    for i, text in enumerate(long[:200]):
        text = (text * 2)[:6000]
        first = text.split()[0]
        row = dict.fromkeys(("text", "source", "target", "document", "summary", "context"), f"{i}. {text}")
        row |= {"question": text[:60], "answers": [{"text": first, "answer_start": row["context"].index(first)}]}
        rows.append(row | {"id": str(i), "label": str(i % 2)})
    return Table("stand-in", "", {"train": rows[20:], "validation": rows[:10], "test": rows[10:20]})
