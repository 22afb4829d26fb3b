"""The trainings by share and seed: labels alone, after pretraining on the text, students of teachers."""

import contextlib
import copy
import json
import math
from collections import Counter
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from accelerate import PartialState
from transformers import EncoderDecoderModel, PreTrainedModel, set_seed
from transformers.trainer_callback import PrinterCallback

from hf_lm import dry_run
from hf_lm.arguments import TrainingArguments
from hf_lm.data.tables import Row
from hf_lm.evaluation.intervals import Estimate
from hf_lm.files import write_whole
from hf_lm.models.configuration import family
from hf_lm.output_folder import prepare_output
from hf_lm.parsing.ranges import Amount, Count, Share, Size
from hf_lm.self_training.pseudo_labels import PseudoLabels, pseudo_label, select_confident
from hf_lm.self_training.rows import draw_labelled, leave_out_known
from hf_lm.self_training.setups import Setup
from hf_lm.tasks.domain import DenoisedText, DomainText
from hf_lm.tasks.proofs import prove
from hf_lm.tasks.supervised import Supervised
from hf_lm.tasks.task import TrainingData
from hf_lm.tasks.text_to_text import TextToText
from hf_lm.training.processes import keep_rows_per_step
from hf_lm.training.trainer import Trainer, supervised_trainer

LABELS, PSEUDO, PRETRAINED = "labels alone", "pseudo-labels", "pretraining on the text"
METHODS = {"pseudo_labels": (PSEUDO,), "pretraining": (PRETRAINED,), "both": (PRETRAINED, PSEUDO)}


@dataclass
class Trained:
    """One training: its rows, and its metrics on the held-out splits. The weights are not kept."""

    method: str
    share: float
    seed: int
    rows: list[Row]  # with pseudo-labels among them
    labelled: int
    estimates: dict[str, Estimate]
    epochs: float
    rounds: dict[str, Any] = field(default_factory=dict)  # of pseudo-labels: each, and the number of the best student

    @property
    def validation_score(self) -> float:
        """The main metric on validation, negated where lower is better."""
        estimate = self.estimates["validation"]
        return estimate.value if estimate.higher_is_better else -estimate.value


def epochs_for_steps(training_args: TrainingArguments, rows: int, min_steps: int) -> float:
    """Epochs for at least `min_steps` optimizer steps: a handful of rows would else be over after a few."""
    args = training_args
    at_once = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    return max(args.num_train_epochs, math.ceil(min_steps / max(1, math.ceil(rows / at_once))))


def train_model(model: PreTrainedModel, task: TrainingData, training_args: TrainingArguments, *, seed: int) -> Trainer:
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


def load_backbone(model: PreTrainedModel, pretrained: PreTrainedModel) -> None:
    """Load the weights of a model with another head: all into one of the same class, its body into any other.

    An encoder becomes both sides of an encoder-decoder.
    """
    if type(model) is type(pretrained):
        model.load_state_dict(pretrained.state_dict())
        return
    body = getattr(pretrained, pretrained.base_model_prefix).state_dict()
    if isinstance(model, EncoderDecoderModel):
        decoder: Any = model.decoder
        parts = [model.encoder, getattr(decoder, decoder.base_model_prefix)]
    else:
        parts = [getattr(model, model.base_model_prefix)]
    for part in parts:
        kept = part.state_dict().keys() & body.keys()
        if not kept:
            raise ValueError(f"nothing that {type(pretrained).__name__} has learned fits into {type(part).__name__}.")
        part.load_state_dict({name: body[name] for name in kept}, strict=False)


@dataclass(kw_only=True)
class Settings:
    """How much is trained, on what, and by which methods: the options of the recipe, declared here alone."""

    shares: list[Share] = field(default_factory=lambda: [0.01, 0.1, 1.0])  # of the labels
    seeds: Size = 3  # trainings of each kind
    method: Literal["pseudo_labels", "pretraining", "both"] = "both"  # how the text is used
    threshold: Share = 0.0  # calibrated confidence from which a teacher's answer is taken; 0 is the task's own
    rounds: Size = 3  # of teacher and student, at most
    min_steps: Size = 100  # optimizer steps of a training, at least: a handful of rows is read more often
    pretraining_epochs: Amount = 3.0  # on the text without labels
    max_unlabelled: Count = 0  # texts that are read, drawn by seed; 0 is all

    def settings(self) -> dict[str, Any]:
        """These, as arguments of SelfTraining."""
        return {each.name: getattr(self, each.name) for each in fields(Settings)}


@dataclass
class SelfTraining(Settings, Setup):
    """A model with few labels and much text, by several methods.

    `task` holds the labelled rows by split, `unlabelled` the texts without. What a task has beside what `fit` asks is
    in hf_lm.tasks.task.SelfTrainingTask.
    """

    training_args: TrainingArguments

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"--method {self.method}: there are {', '.join(METHODS)}.")
        if math.isfinite(self.training_args.budget):
            raise ValueError("--max_hours and --max_cost do not stop the trainings of the curve: leave them out.")
        self.methods = METHODS[self.method]
        if self.task.confidence_threshold is None:  # text is its own label
            if self.method == "pseudo_labels":
                raise ValueError("--method pseudo_labels: text is its own label here; give --method pretraining.")
            self.methods = METHODS["pretraining"]
        self.threshold = self.threshold or self.task.confidence_threshold or 0.0
        self.shares = sorted(set(self.shares))
        self.train = self.task.table.rows["train"]
        self.strata = self.task.strata(self.train)
        for share in self.shares:  # raises now where a share cannot be drawn
            draw_labelled(self.strata, share, seed=0)
        self.readable = leave_out_known(self.unlabelled, self.task)
        count, source = len(self.unlabelled.questions or self.unlabelled.texts), self.unlabelled.source
        if count:
            kind = "questions without answers" if self.unlabelled.questions else "texts without labels"
            self.task.table.notes.append(f"{source} gives {count:,} {kind}, none of which is held out")
        self.lock = contextlib.ExitStack()  # of the output folder, until `fit` takes it
        self.trained: list[Trained] = []
        self.pretrained: PreTrainedModel | None = None  # on the text
        self.pretraining: dict[str, Any] = {}

    def say(self, sentence: str) -> None:
        PartialState().print(sentence)

    def run(self) -> list[Trained]:
        """Every training. The output folder is made, or refused, before the first, and nothing is written into it."""
        if dry_run.active():  # a model is built for it alone
            each = 1 + (PRETRAINED in self.methods) + (PSEUDO in self.methods) * self.rounds
            most = len(self.shares) * self.seeds * each + (PRETRAINED in self.methods) + 1
            said = f"one training, on all labelled rows, of up to {most} that the curve and its best take"
            model = self.initial_model(LABELS, self.training_args.seed)
            dry_run.reached(model, self.task, self.training_args, assumed=[said])
        if PartialState().is_main_process:
            prepare_output(
                Path(self.training_args.output_dir),
                resume=bool(self.training_args.resume_from_checkpoint),
                overwrite=self.training_args.overwrite_output_dir,
                lock=self.lock,
            )
        if message := keep_rows_per_step(self.training_args, None):
            self.say(message)
        PartialState().wait_for_everyone()
        self.prove_data()
        if PRETRAINED in self.methods:
            self.pretrain_on_text()
            self.say(
                f"pretrained on {self.pretraining['texts']:,} texts without labels, "
                f"loss {self.pretraining['loss']:.2f} nats per predicted token"
            )
        for share in self.shares:
            for seed in self.seed_values:
                pseudo_labels = self.learn_labels(share, seed, LABELS)
                if PRETRAINED in self.methods:
                    self.learn_labels(share, seed, PRETRAINED)
                if pseudo_labels is not None:
                    self.learn_pseudo_labels(share, seed, pseudo_labels)
                runs = [run for run in self.trained if (run.share, run.seed) == (share, seed)]
                numbers = ", ".join(f"{run.method} {run.estimates[self.split].value:.2f}" for run in runs)
                n = runs[0].labelled
                counted = "labels" if self.task.confidence_threshold else "documents"
                self.say(f"{n:,} {counted} ({share:.0%}), seed {seed}: {self.split} {self.task.main_metric} {numbers}")
        return self.trained

    def prove_data(self) -> None:
        """The proofs of data and tokenizer that `fit` repeats, before the first training rather than after the last.

        `fit` has the rows of one training, whichever is best, and a proof reads the first of them: each drawing is
        proved. Raises ValueError where a proof fails.
        """
        model, skip = self.new_model(), self.training_args.skip_proofs
        prove(self.task.data_proofs(model), skip=skip, say=self.say)
        for share in self.shares:
            for seed in self.seed_values if share < 1 else ():
                drawn = draw_labelled(self.strata, share, seed=seed)
                task = self.task.with_rows("train", [self.train[i] for i in drawn])
                prove(task.data_proofs(model), skip=skip, say=lambda _: None)

    @property
    def seed_values(self) -> list[int]:
        return [self.training_args.seed + i for i in range(self.seeds)]

    @property
    def split(self) -> str:
        """The split that the curve is about."""
        return self.task.splits[-1]

    @property
    def best(self) -> Trained:
        return max(self.trained, key=lambda run: run.validation_score)

    # Training

    def pretrain_on_text(self) -> None:
        """Language modelling on every text that may be read, once, for all shares and seeds."""
        texts = [self.task.text_of(row) for row in self.readable] + self.unlabelled.texts
        texts = self.some(texts, self.training_args.seed)
        set_seed(self.training_args.seed)
        model = self.new_lm()
        kind = {"encoder": "masked", "decoder": "causal", "encoder-decoder": "denoising"}[family(model.config)]
        if kind == "denoising":
            task = DenoisedText(texts, cast(TextToText, self.task), max_length=self.max_length)
        else:
            task = DomainText(texts, self.task.tokenizer, masked=kind == "masked", max_length=self.max_length)
        args = copy.copy(self.training_args)
        args.num_train_epochs = self.pretraining_epochs
        trainer = train_model(model, task, args, seed=self.training_args.seed)
        self.pretrained = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False).cpu()
        loss = next(entry["train_loss"] for entry in reversed(trainer.state.log_history) if "train_loss" in entry)
        self.pretraining = {"kind": kind, "texts": len(texts), "epochs": args.num_train_epochs, "loss": float(loss)}
        if getattr(model, "at_random", ()):
            self.unlabelled.notes.append(
                f"the checkpoint brings no head for {kind} language modelling: pretraining began with one at random, "
                "and its first gradients are noise"
            )

    def initial_model(self, method: str, seed: int) -> PreTrainedModel:
        """The model that a training begins with: a head by the seed, and for PRETRAINED the pretrained body."""
        set_seed(seed)
        model = self.new_model()
        if method == PRETRAINED:
            assert self.pretrained is not None
            load_backbone(model, self.pretrained)
        return model

    def learn(self, method: str, share: float, seed: int, rows: list[Row], labelled: int) -> tuple[Trained, Any, Any]:
        """Train on rows and measure; returns the training, its task and its Trainer, which still has the model."""
        task = self.task.with_rows("train", rows)
        args = copy.copy(self.training_args)
        args.num_train_epochs = epochs_for_steps(args, len(task.train_dataset), self.min_steps)
        trainer = train_model(self.initial_model(method, seed), task, args, seed=seed)
        measured = {split: task.measure(trainer.model, split, trainer.accelerator) for split in task.splits[1:]}
        estimates = {split: scores.metrics()[task.main_metric] for split, scores in measured.items()}
        return Trained(method, share, seed, rows, labelled, estimates, args.num_train_epochs), task, trainer

    def learn_labels(self, share: float, seed: int, method: str) -> PseudoLabels | None:
        """Train on the labels alone; returns this teacher's pseudo-labels where a student learns from them."""
        drawn = draw_labelled(self.strata, share, seed=seed)
        trained, task, trainer = self.learn(method, share, seed, [self.train[i] for i in drawn], len(drawn))
        self.trained.append(trained)
        if method != LABELS or PSEUDO not in self.methods:
            return None
        kept = {id(self.train[i]) for i in drawn}
        rest = [(row, True) for row in self.readable if id(row) not in kept]
        asked = self.unlabelled.questions or [self.task.row_of(text) for text in self.unlabelled.texts]
        self.pool = self.some(rest + [(row, False) for row in asked], seed)
        return self.pseudo_label(task, trainer) if self.pool else None

    def some(self, items: list[Any], seed: int) -> list[Any]:
        if not self.max_unlabelled or len(items) <= self.max_unlabelled:
            return items
        chosen = np.random.default_rng([seed, 2]).choice(len(items), self.max_unlabelled, replace=False)
        return [items[i] for i in sorted(chosen.tolist())]

    def pseudo_label(self, task: Supervised, trainer: Trainer) -> PseudoLabels:
        rows, known = [row for row, _ in self.pool], np.array([known for _, known in self.pool], bool)
        return pseudo_label(task, trainer.model, rows, known, split=self.split, accelerator=trainer.accelerator)

    def learn_pseudo_labels(self, share: float, seed: int, pseudo_labels: PseudoLabels) -> None:
        """Rounds of teacher and student until validation no longer gains by more than chance; the best student stays.

        Where no answer of a teacher is confident there is no student, and the method's result is the teacher.
        """
        same = (LABELS, share, seed)
        teacher = next(run for run in reversed(self.trained) if (run.method, run.share, run.seed) == same)
        labelled, students, rounds = teacher.rows, [], []
        shares = {kind: count / len(labelled) for kind, count in Counter(self.task.strata(labelled)).items()}
        for number in range(1, self.rounds + 1):
            taken = select_confident(
                self.task.strata(pseudo_labels.rows), pseudo_labels.confidence, shares, threshold=self.threshold
            )
            rounds.append(
                {
                    "round": number,
                    "temperature": pseudo_labels.temperature,
                    "nats_per_label": pseudo_labels.nats,
                    "nats_per_label_calibrated": pseudo_labels.nats_calibrated,
                    "surest": float(pseudo_labels.confidence.max(initial=0.0)),
                    "pseudo_labels": len(taken),
                    "of": len(self.pool),
                    **pseudo_labels.quality_of(taken),
                }
            )
            if not len(taken):
                break
            given = [pseudo_labels.rows[i] for i in taken]
            student, task, trainer = self.learn(PSEUDO, share, seed, labelled + given, len(labelled))
            rounds[-1]["validation"] = student.estimates["validation"].value
            students.append(student)
            if number == self.rounds or not student.estimates["validation"].beats(teacher.estimates["validation"]):
                break
            teacher, pseudo_labels = student, self.pseudo_label(task, trainer)
        result = max(students, key=lambda run: run.validation_score) if students else teacher
        number = students.index(result) + 1 if students else 0
        self.trained.append(replace(result, method=PSEUDO, rounds={"rounds": rounds, "student": number}))

    # The result

    def begin_best(self, curve: dict[str, Any]) -> tuple[PreTrainedModel, Any, TrainingArguments]:
        """The best training, for `fit` to repeat: its initial model, its task and its arguments.

        What the curve says is printed, and the curve written, first: `fit` may fail.
        """
        for sentence in curve["said"]:
            self.say(sentence)
        folder, best, args = Path(self.training_args.output_dir), self.best, self.training_args
        if PartialState().is_main_process:
            text = json.dumps(curve, indent=2, ensure_ascii=False) + "\n"
            write_whole(folder / "learning_curve.json", text)
        args.seed, args.num_train_epochs = best.seed, best.epochs
        notes = [f"trained on {best.labelled:,} labelled rows and {len(best.rows) - best.labelled:,} pseudo-labels"]
        task = self.task.with_rows("train", best.rows)
        if isinstance(task, Supervised):
            task.overlap = task.overlap_of_splits()
        task.table.notes = [*task.table.notes, *notes, *curve["said"]]
        self.lock.close()
        # a result that is the teacher itself began as training on labels alone does
        return self.initial_model(best.method, best.seed), task, args
