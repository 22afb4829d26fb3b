"""Learning with few labels and much text: pretraining on the domain and pseudo-labels, beside labels alone.

Both are measured against training on the same labelled rows with the same seeds, as shares of the labels grow. The
protocol and its warnings are those of Oliver et al., arXiv 1804.09170.
"""

import copy
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import PartialState
from transformers import PreTrainedModel, set_seed
from transformers.trainer_callback import PrinterCallback

from hf_lm.arguments import TrainingArguments
from hf_lm.data.overlap import find_overlap, normal_words
from hf_lm.data.reading import SUFFIXES, clean, read_lines, read_rows, suffix
from hf_lm.data.sources import find_files, load_hub
from hf_lm.data.tables import Row, Table, load_table, pick_column
from hf_lm.evaluation.calibration import fit_temperature, negative_log_likelihood, probabilities
from hf_lm.evaluation.intervals import Estimate, OverRuns
from hf_lm.models.checkpoints import family
from hf_lm.tasks.domain import DomainText
from hf_lm.tasks.sentiment import LABEL, TEXT, read_sentiment
from hf_lm.training.checkpoints import prepare_output
from hf_lm.training.trainer import supervised_trainer

LABELS, PSEUDO, PRETRAINED = "labels alone", "pseudo-labels", "pretraining on the text"
METHODS = {"pseudo_labels": (PSEUDO,), "pretraining": (PRETRAINED,), "both": (PRETRAINED, PSEUDO)}


# Data


@dataclass
class Unlabelled:
    """Texts without labels, none twice. `left_out` counts rows by reason, `notes` are sentences for the report."""

    source: str
    texts: list[str] = field(default_factory=list)
    left_out: Counter = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)


@contextmanager
def _option(name: str) -> Any:
    """What reads files speaks of --dataset; here it is called otherwise."""
    try:
        yield
    except (ValueError, OSError) as error:
        if "--dataset" not in str(error):
            raise
        kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
        raise kind(str(error).replace("--dataset", name)) from None


def read_labelled(dataset: str, *, text_column: str = "", label_column: str = "") -> tuple[Table, list[str]]:
    """The labelled rows by split and the names of the classes, read as the sentiment recipe reads them."""
    with _option("--labelled"):
        table = load_table(dataset, endings="labels", header=not (text_column.isdigit() or label_column.isdigit()))
        return table, read_sentiment(table, text_column=text_column, label_column=label_column)


def read_unlabelled(name: str, *, text_column: str = "") -> Unlabelled:
    """Texts from a .txt (a line each), a table or a Hub dataset (a row each); "" is none.

    A column called like labels is not read, and a note says so. Raises ValueError for a source without a text.
    """
    found = Unlabelled(name)
    if not name:
        return found
    with _option("--unlabelled"):
        files = find_files(name, any_ending=True)
        rows: list[Row] = []
        if files is None:
            rows = load_hub(name)[0]["train"].to_list()
        for path in files or ():
            if suffix(path) in SUFFIXES and suffix(path) != ".txt":
                rows += read_rows(path, header=not text_column.isdigit())
            else:
                found.texts += read_lines(path)
        if rows:
            where = f"--unlabelled {name}"
            column = pick_column(rows, text_column, TEXT, option="--unlabelled_column", where=where)
            ignored = [one for one in rows[0] if one in LABEL and not one.isdigit() and one != column]
            if ignored:
                found.notes.append(f"{where} has a column {ignored[0]!r}, which looks like labels: it was not read")
            found.texts += [str(row.get(column) or "") for row in rows]
    read = [clean(text, Counter()).strip() for text in found.texts]
    kept = dict.fromkeys(text for text in read if text)
    found.left_out["rows_without_text"] = sum(not text for text in read)
    found.left_out["repeated"] = len(read) - found.left_out["rows_without_text"] - len(kept)
    found.texts = list(kept)
    if not kept:
        raise ValueError(f"--unlabelled {name} has no text: it is empty, or only white space.")
    return found


def leave_out_known(unlabelled: Unlabelled, table: Table) -> list[Row]:
    """Leave texts out of `unlabelled` that are labelled in train or stand in a held-out split, and count them.

    Returns the training rows that may be read without their label: all but those that stand in a held-out split.
    Raises ValueError where no unlabelled text is left.
    """
    train, texts = table.rows["train"], unlabelled.texts
    held_out = [row["text"] for split in table.splits[1:] for row in table.rows[split]]
    stands = find_overlap([row["text"] for row in train] + texts, held_out).train
    labelled = {" ".join(normal_words(row["text"])) for row in train}
    known = np.array([" ".join(normal_words(text)) in labelled for text in texts], bool)
    there = stands[len(train) :]
    if texts:
        unlabelled.left_out["in_a_held-out_split"] = int(there.sum())
        unlabelled.left_out["labelled_in_train"] = int((known & ~there).sum())
        unlabelled.texts = [text for text, drop in zip(texts, there | known, strict=True) if not drop]
        if not unlabelled.texts:
            raise ValueError(
                f"--unlabelled {unlabelled.source}: each of its {len(texts):,} texts also stands in the labelled "
                "data, so it adds nothing. Leave the option out: train rows whose label a share leaves out are used."
            )
    return [row for row, drop in zip(train, stands, strict=False) if not drop]


def draw_labelled(rows: Sequence[Row], share: float, *, seed: int) -> list[int]:
    """Indices of the rows that keep their label: `share` of each class, at least one; a larger share holds a smaller.

    Raises ValueError where fewer rows are asked for than there are classes.
    """
    counts = Counter(row["label"] for row in rows)
    if not 0 < share <= 1 or round(share * len(rows)) < len(counts):
        raise ValueError(
            f"--shares {share:g} keeps {max(0, round(share * len(rows)))} of {len(rows):,} labelled rows, and there "
            f"are {len(counts)} classes; give a share from {math.ceil(1e4 * len(counts) / len(rows)) / 1e4:g} to 1."
        )
    left = {label: max(1, round(share * count)) for label, count in counts.items()}
    drawn = []
    for i in np.random.default_rng(seed).permutation(len(rows)).tolist():
        if left[rows[i]["label"]] > 0:
            left[rows[i]["label"]] -= 1
            drawn.append(i)
    return sorted(drawn)


def select_confident(chances: np.ndarray, shares: np.ndarray, *, threshold: float) -> np.ndarray:
    """Rows whose class is taken at its word: as many of each class as `shares` (classes,) says, the surest first.

    `chances` are (rows, classes). None is below `threshold`, and the class that has fewest above it, for its share,
    says how many there are of all: a teacher that prefers a class does not pass that on (class-balanced self-training,
    Zou et al., arXiv 1810.07911).
    """
    predicted, sure = chances.argmax(axis=1), chances.max(axis=1)
    above = [np.flatnonzero((predicted == label) & (sure >= threshold)) for label in range(len(shares))]
    at_most = min(len(rows) / share for rows, share in zip(above, shares, strict=True) if share > 0)
    taken = [
        rows[np.argsort(-sure[rows], kind="stable")[: int(at_most * share + 1e-9)]]
        for rows, share in zip(above, shares, strict=True)
    ]
    return np.sort(np.concatenate(taken))


# Trainings


@dataclass
class Trained:
    """One training: what it read, and what it reached on the held-out splits. The weights are gone."""

    method: str
    share: float
    seed: int
    rows: list[Row]  # with pseudo-labels among them
    labelled: int
    estimates: dict[str, Estimate]
    answers: dict[str, np.ndarray]  # logits by split
    epochs: float
    found: dict[str, Any] = field(default_factory=dict)


def enough_epochs(training_args: TrainingArguments, rows: int, min_steps: int) -> float:
    """Epochs for at least `min_steps` optimizer steps: a handful of rows would else be over after a few."""
    args = training_args
    at_once = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    return max(args.num_train_epochs, math.ceil(min_steps / max(1, math.ceil(rows / at_once))))


def train_model(model: PreTrainedModel, task: Any, training_args: TrainingArguments, *, seed: int) -> Any:
    """Train on a task's rows, as `fit` would with this seed, and write nothing. Returns the Trainer."""
    args = copy.copy(training_args)
    args.seed, args.report_to, args.disable_tqdm = seed, [], True
    args.eval_strategy = args.save_strategy = args.logging_strategy = "no"
    args.load_best_model_at_end, args.early_stopping_patience = False, 0
    trainer = supervised_trainer(model, args, task, lambda model: {})
    trainer.remove_callback(trainer.stop)  # it would save a checkpoint; here a signal ends the process, as always
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return trainer


def answers(task: Any, model: PreTrainedModel, split: str, trainer: Any) -> np.ndarray:
    """Logits of a split, (rows, classes)."""
    model.eval()
    with torch.no_grad():
        return np.asarray(task.answer(model, split, trainer.accelerator), np.float64)


@dataclass
class SelfTraining:
    """A classifier with few labels and much text, by several methods.

    `new_model(seed)` gives a model with a head to train, `new_lm()` one to pretrain on text, or is None where there is
    none; `task` holds the labelled rows by split, `unlabelled` the texts without. `shares` of the labels are tried
    with `seeds` trainings each, of at least `min_steps` steps. At most `max_unlabelled` texts are read (0: all). A
    teacher's answer is taken from calibrated confidence `threshold` on, in at most `rounds` rounds.
    """

    new_model: Callable[[int], PreTrainedModel]
    task: Any
    unlabelled: Unlabelled
    training_args: TrainingArguments
    new_lm: Callable[[], PreTrainedModel] | None = None
    shares: Sequence[float] = (0.01, 0.1, 1.0)
    seeds: int = 3
    method: Literal["pseudo_labels", "pretraining", "both"] = "both"
    threshold: float = 0.8
    rounds: int = 3
    min_steps: int = 100
    pretraining_epochs: float = 3.0
    max_unlabelled: int = 0
    max_length: int = 256

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"--method {self.method}: there are {', '.join(METHODS)}.")
        if self.seeds < 1 or self.rounds < 1 or not 0 < self.threshold < 1:
            raise ValueError("--seeds and --rounds must be 1 or more, and --threshold between 0 and 1.")
        if PRETRAINED in METHODS[self.method] and self.new_lm is None:
            raise ValueError(
                "--method pretraining is for encoders (masked) and decoders (causal), and this model is neither; "
                "give --method pseudo_labels."
            )
        self.shares = sorted(set(self.shares))
        self.train = self.task.table.rows["train"]
        for share in self.shares:  # what cannot be drawn is said now
            draw_labelled(self.train, share, seed=0)
        self.readable = leave_out_known(self.unlabelled, self.task.table)
        self.true = {
            split: np.array([self.task.index[row["label"]] for row in self.task.table.rows[split]])
            for split in self.task.splits[1:]
        }
        self.trained: list[Trained] = []
        self.body: dict[str, torch.Tensor] | None = None  # of the model that was pretrained on the text
        self.pretraining: dict[str, Any] = {}

    def run(self) -> "Best":
        """Every training; returns the best by its score on validation, ready for `fit`, and what was found."""
        folder, say = Path(self.training_args.output_dir), PartialState().print
        if PartialState().is_main_process:
            prepare_output(
                folder,
                resume=bool(self.training_args.resume_from_checkpoint),
                overwrite=self.training_args.overwrite_output_dir,
            )
        PartialState().wait_for_everyone()
        if PRETRAINED in METHODS[self.method]:
            self.pretrain_on_text()
            say(
                f"pretrained on {self.pretraining['texts']:,} texts without labels, "
                f"loss {self.pretraining['loss']:.2f} nats per token that is predicted"
            )
        for share in self.shares:
            for seed in self.seed_values:
                self.learn_labels(share, seed, LABELS)
                if PRETRAINED in METHODS[self.method]:
                    self.learn_labels(share, seed, PRETRAINED)
                if PSEUDO in METHODS[self.method]:
                    self.learn_pseudo_labels(share, seed)
                reached = {one.method: one for one in self.trained if (one.share, one.seed) == (share, seed)}
                numbers = ", ".join(f"{name} {one.estimates[self.split].value:.1f}" for name, one in reached.items())
                n = next(iter(reached.values())).labelled
                say(f"{n:,} labels ({share:.0%}), seed {seed}: {self.split} {self.task.main_metric} {numbers}")
        found = self.report()
        if PartialState().is_main_process:  # kept, should the last training fail
            aside = folder / "learning_curve.json.tmp"
            aside.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
            os.replace(aside, folder / "learning_curve.json")
        for sentence in found["said"]:
            say(sentence)
        return self.best(found)

    @property
    def seed_values(self) -> list[int]:
        return [self.training_args.seed + i for i in range(self.seeds)]

    @property
    def split(self) -> str:
        """The split that the curve is about."""
        return self.task.splits[-1]

    # What is trained

    def pretrain_on_text(self) -> None:
        """Masked or causal language modelling on every text that may be read, once, for all shares and seeds."""
        texts = [row["text"] for row in self.readable] + self.unlabelled.texts
        texts = self.some(texts, self.training_args.seed)
        set_seed(self.training_args.seed)
        model = self.new_lm()
        masked = family(model.config) == "encoder"
        task = DomainText(texts, self.task.tokenizer, masked=masked, max_length=self.max_length)
        args = copy.copy(self.training_args)
        args.num_train_epochs = self.pretraining_epochs
        trainer = train_model(model, task, args, seed=self.training_args.seed)
        body = getattr(trainer.accelerator.unwrap_model(trainer.model), model.base_model_prefix)
        self.body = {name: tensor.detach().cpu().clone() for name, tensor in body.state_dict().items()}
        kind = "masked" if masked else "causal"
        loss = next(entry["train_loss"] for entry in reversed(trainer.state.log_history) if "train_loss" in entry)
        self.pretraining = {"kind": kind, "texts": len(task.train_dataset), "epochs": args.num_train_epochs}
        self.pretraining["loss"] = float(loss)

    def initial_model(self, method: str, seed: int) -> PreTrainedModel:
        """What a training begins with: a head by the seed, and for PRETRAINED the body that has read the text."""
        set_seed(seed)
        model = self.new_model(seed)
        if method == PRETRAINED:
            getattr(model, model.base_model_prefix).load_state_dict(self.body, strict=False)
        return model

    def learn(self, method: str, share: float, seed: int, rows: list[Row], labelled: int) -> tuple[Trained, Any, Any]:
        """Train on rows and measure; returns the training, its task and its Trainer, which still has the model."""
        task = self.task.with_rows("train", rows)
        args = copy.copy(self.training_args)
        args.num_train_epochs = enough_epochs(args, len(rows), self.min_steps)
        trainer = train_model(self.initial_model(method, seed), task, args, seed=seed)
        said = {split: answers(task, trainer.model, split, trainer) for split in self.true}
        estimates = {split: task.score(split, said[split]).estimates[task.main_metric] for split in said}
        trained = Trained(method, share, seed, rows, labelled, estimates, said, args.num_train_epochs)
        return trained, task, trainer

    def learn_labels(self, share: float, seed: int, method: str) -> None:
        rows = [self.train[i] for i in draw_labelled(self.train, share, seed=seed)]
        trained, task, trainer = self.learn(method, share, seed, rows, len(rows))
        self.trained.append(trained)
        if method == LABELS and PSEUDO in METHODS[self.method]:
            self.pool = self.unlabelled_rows(share, seed)
            self.pool_answers = self.answer_pool(task, trainer)

    def unlabelled_rows(self, share: float, seed: int) -> list[Row]:
        """Rows of {"text"} that a student may get from a teacher; "gold" is the label of those that have one."""
        kept = {id(self.train[i]) for i in draw_labelled(self.train, share, seed=seed)}
        rest = [{"text": row["text"], "gold": row["label"]} for row in self.readable if id(row) not in kept]
        return self.some(rest + [{"text": text} for text in self.unlabelled.texts], seed)

    def some(self, items: list[Any], seed: int) -> list[Any]:
        if not self.max_unlabelled or len(items) <= self.max_unlabelled:
            return items
        chosen = np.random.default_rng([seed, 2]).choice(len(items), self.max_unlabelled, replace=False)
        return [items[i] for i in sorted(chosen.tolist())]

    def answer_pool(self, task: Any, trainer: Any) -> np.ndarray:
        if not self.pool:
            return np.zeros((0, len(task.labels)))
        unknown = [{"text": row["text"], "label": task.labels[0]} for row in self.pool]  # the label is not looked at
        return answers(task.with_rows("unlabelled", unknown), trainer.model, "unlabelled", trainer)

    def learn_pseudo_labels(self, share: float, seed: int) -> None:
        """Rounds of teacher and student until validation no longer gains by more than chance; the best student stays.

        Where a teacher is sure of nothing there is no student, and the method's result is the teacher.
        """
        teacher = next(
            one for one in reversed(self.trained) if (one.method, one.share, one.seed) == (LABELS, share, seed)
        )
        if not self.pool:
            return
        labels, labelled, students, rounds = self.task.labels, teacher.rows, [], []
        counts = Counter(row["label"] for row in labelled)
        shares = np.array([counts[label] / len(labelled) for label in labels])
        pool_answers = self.pool_answers
        for number in range(1, self.rounds + 1):
            temperature = fit_temperature(teacher.answers["validation"], self.true["validation"])
            chances = probabilities(pool_answers, temperature)
            taken = select_confident(chances, shares, threshold=self.threshold)
            before, after = (
                negative_log_likelihood(teacher.answers[self.split], self.true[self.split], one)
                for one in (1.0, temperature)
            )
            given = [{"text": self.pool[i]["text"], "label": labels[chances[i].argmax()]} for i in taken]
            rounds.append(
                {
                    "round": number,
                    "temperature": temperature,
                    "nats_per_row": before,  # on the split of the curve, which the temperature has not seen
                    "nats_per_row_calibrated": after,
                    "surest": float(chances.max()),
                    "pseudo_labels": len(taken),
                    "of": len(self.pool),
                    **_right(given, [self.pool[i] for i in taken]),
                }
            )
            if not len(taken):
                break
            student, task, trainer = self.learn(PSEUDO, share, seed, labelled + given, len(labelled))
            rounds[-1]["validation"] = student.estimates["validation"].value
            students.append(student)
            if number == self.rounds or not student.estimates["validation"].beats(teacher.estimates["validation"]):
                break
            teacher, pool_answers = student, self.answer_pool(task, trainer)
        result = max(students, key=lambda one: one.estimates["validation"].value) if students else teacher
        number = students.index(result) + 1 if students else 0
        self.trained.append(replace(result, method=PSEUDO, found={"rounds": rounds, "student": number}))

    # What was found

    def over_seeds(self, method: str, share: float) -> list[Trained]:
        return [one for one in self.trained if (one.method, one.share) == (method, share)]

    def report(self) -> dict[str, Any]:
        """The curve as report.json holds it: a point for each share and method, over seeds and examples."""
        points, said = [], []
        for share in self.shares:
            alone = OverRuns([one.estimates[self.split] for one in self.over_seeds(LABELS, share)])
            for method in (LABELS, *METHODS[self.method]):
                runs = self.over_seeds(method, share)
                if not runs:
                    continue
                reached = OverRuns([one.estimates[self.split] for one in runs])
                point = {"method": method, "share": share, "labels": runs[0].labelled} | reached.interval().report()
                point["runs"] = [one.estimates[self.split].value for one in runs]
                if method != LABELS:
                    gain = reached.minus(alone)
                    clear = gain.low is not None and gain.low > 0
                    point["gain"] = gain.report() | {"beaten": clear}
                    point["found"] = [one.found for one in runs if one.found]
                    said.append(self.in_words(point))
                points.append(point)
        best = max(self.trained, key=lambda one: one.estimates["validation"].value)
        chosen = {"method": best.method, "share": best.share, "labels": best.labelled, "seed": best.seed}
        chosen["validation"] = best.estimates["validation"].value
        left_out = {reason: count for reason, count in self.unlabelled.left_out.items() if count}
        return {
            "metric": self.task.main_metric,
            "split": self.split,
            "seeds": self.seed_values,
            "threshold": self.threshold,
            "points": points,
            "pretraining": self.pretraining,
            "unlabelled": {
                "source": self.unlabelled.source or "the training rows whose label a share leaves out",
                "rows": len(self.unlabelled.texts),
                "left_out": left_out,
                "in_a_held-out_split": len(self.train) - len(self.readable),
            },
            "chosen": chosen,
            "said": [*self.unlabelled.notes, *self.left_out_in_words(), *said],
        }

    def left_out_in_words(self) -> list[str]:
        counts = dict(self.unlabelled.left_out)
        counts["training_rows_in_a_held-out_split"] = len(self.train) - len(self.readable)
        shown = ", ".join(f"{count:,} {reason.replace('_', ' ')}" for reason, count in counts.items() if count)
        return [f"left out of the text without labels: {shown}"] if shown else []

    def in_words(self, point: dict[str, Any]) -> str:
        """Whether a method beats labels alone, and where it does not, what speaks for a reason."""
        gain, seeds = point["gain"], len(point["runs"])
        text = f"with {point['labels']:,} labels ({point['share']:.0%}), {point['method']}: {point['value']:.1f}, "
        text += f"{gain['value']:+.1f} points against labels alone"
        if "low" in gain:
            text += f" ({gain['low']:+.1f} to {gain['high']:+.1f})"
        if gain["beaten"]:
            return f"{text}: better by more than chance"
        if gain.get("high", 0) < 0:
            text += ": worse by more than chance"
        else:
            text += f": no more than chance explains over {seeds} seeds and the examples of {self.split}"
        first = [found["rounds"][0] for found in point["found"]]
        if none := [one for one in first if not one["pseudo_labels"]]:
            surest = max(one["surest"] for one in none)
            text += f"; for {len(none)} of {seeds} seeds a class has no answer of confidence {self.threshold:g} "
            text += f"(the surest of all: {surest:.2f})"
        if right := [one["right"] for one in first if "right" in one]:
            text += f"; {np.mean(right):.0f} % of the pseudo-labels of the first round are right"
            text += f" ({np.mean([one['pseudo_labels'] for one in first]):.0f} a seed)"
        return text

    def best(self, found: dict[str, Any]) -> "Best":
        best = max(self.trained, key=lambda one: one.estimates["validation"].value)
        args = self.training_args
        args.seed, args.num_train_epochs = best.seed, best.epochs
        notes = [f"trained on {best.labelled:,} labelled rows and {len(best.rows) - best.labelled:,} pseudo-labels"]
        task = self.task.with_rows("train", best.rows)
        task.table.notes = [*task.table.notes, *notes, *found["said"]]
        # a result that is the teacher itself began as labels alone do
        model = self.initial_model(best.method, best.seed)
        return Best(model, task, args, {"recipe": "self_training", "learning_curve": found})


@dataclass
class Best:
    """What `fit` takes to make the best training once more and leave it in the output folder."""

    model: PreTrainedModel
    task: Any
    training_args: TrainingArguments
    found: dict[str, Any]


def _right(given: list[Row], pool: list[Row]) -> dict[str, float]:
    """Percent of the pseudo-labels that are right, where it is known; empty where it is not."""
    known = [label["label"] == row["gold"] for label, row in zip(given, pool, strict=True) if "gold" in row]
    return {"right": 100 * float(np.mean(known)), "known": len(known)} if known else {}
