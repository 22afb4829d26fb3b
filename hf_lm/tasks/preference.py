"""Preference: of two answers to a prompt the better one is made likelier, beside a reference that stays as it was."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_lm.data.batches import Feature, Processes, pad_batch
from hf_lm.data.conversations import as_text
from hf_lm.data.tables import Row, Table
from hf_lm.evaluation.completions import log_probs
from hf_lm.evaluation.intervals import PERCENT, Estimate, mean, units_of
from hf_lm.evaluation.likelihood import labelled
from hf_lm.evaluation.rewards import Scorer
from hf_lm.models.configuration import context_length
from hf_lm.tasks import proofs
from hf_lm.tasks.answers import BesideReference
from hf_lm.tasks.proofs import Proof, ProvenTrainer
from hf_lm.tasks.rendering import Part, token_pieces
from hf_lm.tasks.rows import Encoded, Scores
from hf_lm.tokenization.chat_template import encode_chats, ends_of

SIDES = ("chosen", "rejected")
LossType = Literal[
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
    "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm",
]  # fmt: skip

SMOOTHED = ("exo_pair", "robust", "aot", "aot_unpaired")  # losses that TRL computes with label_smoothing


class _Trainer(ProvenTrainer, Protocol):
    """What the proofs ask of TRL's DPOTrainer beside."""

    @property
    def accelerator(self) -> Accelerator: ...

    @property
    def ref_model(self) -> PreTrainedModel: ...

    def compute_ref_log_probs(
        self, model: PreTrainedModel, inputs: dict[str, Any], /
    ) -> tuple[torch.Tensor, torch.Tensor]: ...


class Preference(BesideReference):
    """Rows are {"messages", "chosen", "rejected"}, learned by DPO or a relative (Rafailov et al., arXiv 2305.18290).

    `max_length`: tokens of a prompt with its answer; pairs whose prompt alone is longer are left out. On `answers`
    held-out prompts model and reference write at temperature 1, up to `max_new_tokens`: that gives the divergence from
    the reference, log p(y) - log p_ref(y) over answers y of the model, how much longer answers became, and, with a
    `scorer`, how often it likes the model's answer better.
    """

    kind = "model that answers in a conversation, tuned to preferences"
    recipe, main_metric = "preference", "reward_accuracy"
    unit = "pairs, or prompts answered"

    def __init__(
        self,
        table: Table,
        tokenizer: PreTrainedTokenizerBase,
        model: PreTrainedModel,
        *,
        max_length: int,
        max_new_tokens: int = 64,
        beta: float = 0.1,
        loss_type: str = "sigmoid",
        label_smoothing: float = 0.0,
        answers: int = 64,
        scorer: Scorer | None = None,
        drop_overlap: bool = False,
    ) -> None:
        _check_smoothing(loss_type, label_smoothing)
        self.max_length = min(max_length, context_length(model.config) or max_length)
        self.max_new_tokens = min(max_new_tokens, self.max_length // 2)
        self.beta, self.loss_type, self.label_smoothing = beta, loss_type, label_smoothing
        self.answers, self.scorer = answers, scorer
        self.ends = ends_of(tokenizer, model.generation_config)
        self.before: dict[str, dict[str, Any]] = {}  # what the reference said of a split
        for split, rows in table.rows.items():
            table.rows[split] = self._encoded_rows(rows, tokenizer, table)
            if len(table.rows[split]) < 2:
                raise ValueError(
                    f"{split} keeps {len(table.rows[split])} pairs: the prompts are longer than {self.max_length} "
                    "tokens, or the answers equal. Raise --max_length, or take a model with more positions."
                )
        super().__init__(table, tokenizer, drop_overlap=drop_overlap)
        self.set_generation(model, tokenizer)

    def _encoded_rows(self, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, table: Table) -> list[Row]:
        prompts = encode_chats(tokenizer, [row["messages"] for row in rows], prompt=True)
        whole = {
            side: encode_chats(
                tokenizer, [[*row["messages"], {"role": "assistant", "content": row[side]}] for row in rows]
            )
            for side in SIDES
        }
        kept = []
        for row, (prompt, _), chosen, rejected in zip(rows, prompts, whole["chosen"], whole["rejected"], strict=True):
            feature, lost = {"prompt_ids": prompt}, 0
            for side, (ids, learned) in zip(SIDES, (chosen, rejected), strict=True):
                if ids[: len(prompt)] != prompt:
                    raise ValueError(
                        "the chat template writes a prompt otherwise when an answer follows it: what is learned would "
                        "not be what is asked. Give another with --chat_template."
                    )
                end = len(learned) - learned[::-1].index(True)
                feature[f"{side}_ids"] = ids[len(prompt) : min(end, self.max_length)]
                lost += max(0, end - self.max_length)
            if len(prompt) >= self.max_length:
                table.left_out["prompts_longer_than_the_context"] += 1
            elif feature["chosen_ids"] == feature["rejected_ids"]:
                table.left_out["pairs_that_differ_only_beyond_the_context"] += 1
            else:
                kept.append(row | {"feature": feature, "lost": lost})
        return kept

    def text_of(self, row: Row) -> str:
        return as_text([*row["messages"], {"content": row["chosen"]}])

    def encode(self, rows: Sequence[Row]) -> Encoded:
        encoded = Encoded()
        for row in rows:
            encoded.features.append(row["feature"])
            encoded.tokens += sum(map(len, row["feature"].values())) + row["lost"]
            encoded.tokens_cut += row["lost"]
            encoded.cut += row["lost"] > 0
        return encoded

    def collate(self, features: Sequence[Feature]) -> dict[str, torch.Tensor]:
        """(2 pairs, time): the chosen answers, each after its prompt, then the rejected ones."""
        rows = [
            {
                "input_ids": feature["prompt_ids"] + feature[f"{side}_ids"],
                "completion_mask": [0] * len(feature["prompt_ids"]) + [1] * len(feature[f"{side}_ids"]),
            }
            for side in SIDES
            for feature in features
        ]
        return pad_batch(rows, pad_id=self.tokenizer.pad_token_id)

    def _pair_scores(self, model: PreTrainedModel, split: str, processes: Processes | None) -> np.ndarray:
        """(pairs, 2): the log-probability of the chosen and of the rejected answer."""
        features = [
            labelled(feature["prompt_ids"], feature[f"{side}_ids"])
            for side in SIDES
            for feature in self.encoded[split].features
        ]
        found = log_probs(model, features, processes=processes)
        return np.array([value for value, _ in found]).reshape(2, -1).T

    def _asked(self, split: str) -> list[list[int]]:
        """The prompts that are answered: each once, with room for an answer."""
        room = (context_length(self.reference.config) or self.max_length + self.max_new_tokens) - self.max_new_tokens
        prompts = {tuple(feature["prompt_ids"]): None for feature in self.encoded[split].features}
        return [list(prompt) for prompt in prompts if len(prompt) <= room][: self.answers]

    def _write(self, model: PreTrainedModel, split: str, processes: Processes | None) -> list[list[int]]:
        return self.write(model, self._asked(split), temperature=1.0, processes=processes)

    def predict(
        self, model: PreTrainedModel, split: str, accelerator: Processes | None
    ) -> tuple[np.ndarray, list[list[int]], np.ndarray]:
        """The scores of the pairs, what the model writes, and how likely that is to it and to the reference."""
        if split not in self.before:  # once, in the precision in which the model is measured beside it
            scores = self._pair_scores(self.reference, split, accelerator)
            self.before[split] = {"scores": scores, "answers": self._write(self.reference, split, accelerator)}
        written = self._write(model, split, accelerator)
        features = [labelled(prompt, ids) for prompt, ids in zip(self._asked(split), written, strict=True)]
        values = [
            [value for value, _ in log_probs(judge, features, processes=accelerator)]
            for judge in (model, self.reference)
        ]
        return self._pair_scores(model, split, accelerator), written, np.array(values)

    def score(self, split: str, answers: tuple[np.ndarray, list[list[int]], np.ndarray]) -> Scores:
        scores, written, values = answers
        before = self.before[split]
        ratios = scores - before["scores"]
        margins = self.beta * (ratios[:, 0] - ratios[:, 1])
        estimates = self._of_pairs(split, 100.0 * (margins > 0) + 50.0 * (margins == 0), margins)
        examples = [
            {
                "input": as_text(row["messages"]),
                "chosen": row["chosen"],
                "rejected": row["rejected"],
                "score": float(margin),
            }
            for row, margin in zip(self.table.rows[split], margins, strict=True)
        ]
        if written:
            lengths = np.array([[*map(len, pair)] for pair in zip(written, before["answers"], strict=True)], float)
            estimates["kl"] = mean(values[0] - values[1], higher_is_better=False)
            estimates["length_change"] = mean(lengths[:, 0] - lengths[:, 1])
            texts = {
                "answer": self.tokenizer.batch_decode(written, skip_special_tokens=True),
                "reference_answer": self.tokenizer.batch_decode(before["answers"], skip_special_tokens=True),
            }
            if self.scorer is not None:
                ours, theirs = (np.array(self.scorer(some)) for some in texts.values())
                estimates["win_rate"] = mean(100.0 * (ours > theirs) + 50.0 * (ours == theirs), bounds=PERCENT)
            prompts = self.tokenizer.batch_decode(self._asked(split), skip_special_tokens=True)
            examples += [
                {"input": prompt, "answer": answer, "reference_answer": other}
                for prompt, answer, other in zip(prompts, *texts.values(), strict=True)
            ]
        loss = float(np.logaddexp(0, -margins).mean()) if self.loss_type == "sigmoid" else None
        return Scores(estimates, examples, loss)

    def _of_pairs(self, split: str, right: np.ndarray, margins: np.ndarray) -> dict[str, Estimate]:
        """Of each pair whether it is right, in percent, and its margin; the pairs of one prompt count as one unit."""
        units = units_of([tuple(feature["prompt_ids"]) for feature in self.encoded[split].features])
        found = {"reward_accuracy": mean(right, bounds=PERCENT), "reward_margin": mean(margins)}
        return {name: replace(estimate, units=units) for name, estimate in found.items()}

    def baseline(self, split: str) -> tuple[str, Scores]:
        """The reference: it prefers neither answer, and wins against itself half of the time."""
        pairs, asked = len(self.before[split]["scores"]), len(self.before[split]["answers"])
        estimates = self._of_pairs(split, np.full(pairs, 50.0), np.zeros(pairs))
        return "the reference", Scores(estimates | {"win_rate": mean(np.full(asked, 50.0))}, [])

    def length_bias(self) -> dict[str, float]:
        """How far length alone tells the chosen answers of train: tokens, and the share in which the longer one is."""
        lengths = np.array(
            [[len(feature[f"{side}_ids"]) for side in SIDES] for feature in self.encoded["train"].features], float
        )
        longer = 100 * ((lengths[:, 0] > lengths[:, 1]) + 0.5 * (lengths[:, 0] == lengths[:, 1])).mean()
        return {"chosen": lengths[:, 0].mean(), "rejected": lengths[:, 1].mean(), "longer_is_chosen": longer}

    # Proofs

    def label_proof(self) -> Proof:
        """What is compared in the first batch must decode to exactly the two answers and their end, no prompt."""
        features, rows = self.train_dataset[:8], self.table.rows["train"][:8]
        batch, ended = self.collate(features), 0
        expected = [row[side] for side in SIDES for row in rows]
        for ids, mask, text in zip(batch["input_ids"], batch["completion_mask"], expected, strict=True):
            said = ids[mask.bool()].tolist()
            whole = said[-1] in self.ends
            ended += whole
            said = said[:-1] if whole else said
            spoken = str(self.tokenizer.decode(said, clean_up_tokenization_spaces=False)).strip()
            if (text not in spoken) if whole else not text.startswith(spoken.rstrip("\ufffd")):
                return Proof(False, f"an answer is compared as {spoken[:60]!r}, and was {text[:60]!r}")
        if not ended:
            return Proof(False, "no answer ends with its end token: the model would not stop")
        return Proof(
            True, f"{len(expected)} answers are compared as they stand, {ended} with their end, no prompt in them"
        )

    def log_prob_proof(self, trainer: _Trainer) -> Proof:
        """TRL's summed log-probabilities of a padded batch must be those of each answer alone, before training."""
        features = self.train_dataset[:4]
        batch = trainer._prepare_inputs(self.collate(features))
        together = torch.cat(trainer.compute_ref_log_probs(trainer.ref_model, batch)).double().cpu().numpy()
        alone = [
            log_probs(self.reference, [labelled(feature["prompt_ids"], feature[f"{side}_ids"])])[0][0]
            for side in SIDES
            for feature in features
        ]
        worst = float(np.abs((together - alone) / np.array(alone)).max())
        tolerance = 2e-2 if trainer.args.bf16 or trainer.args.fp16 else 1e-4
        said = (
            f"the log-probabilities of {len(alone)} answers in one padded batch are those of each alone "
            f"(largest relative difference {worst:.1e})"
        )
        return Proof(worst < tolerance, said, worst)

    def start_proof(self, trainer: _Trainer) -> Proof:
        """Before training model and reference agree: no margin, and the loss of DPO is ln 2.

        Both in the precision of the run, which the reference has already and the model gets when training begins.
        """
        with torch.no_grad(), proofs.untouched(trainer.model), trainer.accelerator.autocast():
            loss = float(
                trainer.compute_loss(trainer.model, trainer._prepare_inputs(self.collate(self.train_dataset[:4])))
            )
        difference = abs(loss - np.log(2))
        return Proof(
            difference < 1e-3, f"before training the loss is {loss:.6f}, ln 2: nothing is preferred", difference
        )

    def proofs_before(self, trainer: _Trainer) -> dict[str, Callable[[], Proof]]:
        found = super().proofs_before(trainer)
        found["sequence_log_probs"] = lambda: self.log_prob_proof(trainer)
        if trainer.args.bf16 or trainer.args.fp16:  # the reference computes in it: padding changes the last digits
            found["loss_invariance"] = lambda: proofs.loss_invariance(trainer, self.train_dataset[:4], tolerance=3e-2)
        if self.loss_type == "sigmoid":
            found["starts_at_reference"] = lambda: self.start_proof(trainer)
        if self.loss_type in ("aot", "aot_unpaired", "sft"):  # by definition over the whole batch
            del found["loss_invariance"]
        return found

    def probe(self) -> dict[str, torch.Tensor]:
        batch = self.collate(self.train_dataset[:2])
        return {key: value for key, value in batch.items() if key != "completion_mask"}

    def render(self, feature: Feature) -> list[Part]:
        batch = {key: value.tolist() for key, value in self.collate([feature]).items()}
        pairs = zip(SIDES, batch["input_ids"], batch["completion_mask"], strict=True)
        return [Part(side, token_pieces(self.tokenizer, ids, [bool(i) for i in mask])) for side, ids, mask in pairs]

    def report(self, measured: Mapping[str, Scores]) -> dict[str, Any]:
        bias = self.length_bias()
        self.table.notes.append(
            f"chosen answers have {bias['chosen']:.1f} tokens on average and rejected ones {bias['rejected']:.1f}; "
            f"to prefer the longer one is right in {bias['longer_is_chosen']:.0f} % of the training pairs"
        )
        return super().report(measured) | {"length_bias": bias}


def _check_smoothing(loss_type: str, label_smoothing: float) -> None:
    """Raise ValueError for a share of swapped pairs that a loss ignores, cannot do without or does not survive."""
    said = f"--loss_type {loss_type} with --label_smoothing {label_smoothing:g}"
    if label_smoothing and loss_type not in SMOOTHED:
        raise ValueError(f"{said}: only {', '.join(SMOOTHED)} use it (robust is DPO with it); leave it out.")
    if loss_type == "exo_pair" and not label_smoothing:
        raise ValueError(f"{said}: this loss is infinite at 0; its paper takes --label_smoothing 0.001.")
    if label_smoothing >= 0.5 and loss_type in SMOOTHED:
        raise ValueError(f"{said}: with half of the pairs swapped nothing is preferred; give less than 0.5.")
