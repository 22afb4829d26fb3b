"""Reinforce: answers are sampled, a reward checks them, and what was better than its group becomes likelier (GRPO)."""

import json
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_lm.data.batches import Processes, pad_batch
from hf_lm.data.tables import Row, Table
from hf_lm.evaluation.completions import log_probs
from hf_lm.evaluation.intervals import ANY, mean
from hf_lm.evaluation.likelihood import labelled
from hf_lm.evaluation.rewards import Reward
from hf_lm.models.configuration import context_length
from hf_lm.tasks import proofs
from hf_lm.tasks.answers import BesideReference
from hf_lm.tasks.proofs import Proof, ProvenTrainer
from hf_lm.tasks.rows import Encoded, Scores
from hf_lm.tokenization.chat_template import encode_chats, ends_of


class _Trainer(ProvenTrainer, Protocol):
    """What the proofs ask of TRL's GRPOTrainer beside."""

    def _get_per_token_logps_and_entropies(
        self, model: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor, logits_to_keep: int, /
    ) -> tuple[torch.Tensor, ...]: ...


class Reinforce(BesideReference):
    """Rows are {"messages", "reference"}; `reward(prompts, answers, references)` gives each answer a number.

    Group relative policy optimization (Shao et al., arXiv 2402.03300): `num_generations` answers to a prompt, up to
    `max_new_tokens` long, are compared with each other; `beta` is the penalty on leaving the model as it came.
    Measured on `answers` held-out prompts, `draws` answers to each at the training's `temperature`: the reward beside
    that before training, the divergence, and how much longer answers became.
    `reward_bounds`: the least and the greatest number that the reward can give; its interval lies between them.
    `collapse_steps`: a run ends when for so many steps in a row nothing could be learned.
    """

    kind = "model that answers in a conversation, tuned by rewards"
    recipe, main_metric = "reinforce", "reward"
    unit = "prompts"
    draws = 4  # answers to a held-out prompt

    def __init__(
        self,
        table: Table,
        tokenizer: PreTrainedTokenizerBase,
        model: PreTrainedModel,
        *,
        reward: Reward,
        reward_bounds: tuple[float, float] = ANY,
        max_new_tokens: int,
        num_generations: int = 8,
        beta: float = 0.02,
        temperature: float = 1.0,
        answers: int = 64,
        collapse_steps: int = 10,
        drop_overlap: bool = False,
    ) -> None:
        self.reward, self.max_new_tokens, self.num_generations = reward, max_new_tokens, num_generations
        self.reward_bounds = reward_bounds
        self.beta, self.temperature, self.collapse_steps = beta, temperature, collapse_steps
        self.answers = answers
        self.ends = ends_of(tokenizer, model.generation_config)
        self.suppressed = model.generation_config.suppress_tokens
        self.before: dict[str, np.ndarray] = {}  # of the model as it came: (prompts, reward and length)
        room = (context_length(model.config) or 2**20) - max_new_tokens
        self.prompt_ids: dict[str, list[int]] = {}  # by `key_of`
        for split, rows in table.rows.items():
            encoded = encode_chats(tokenizer, [row["messages"] for row in rows], prompt=True)
            kept = []
            for row, (ids, _) in zip(rows, encoded, strict=True):
                if len(ids) <= room:
                    self.prompt_ids[self.key_of(row)] = ids
                    kept.append(row)
            table.left_out["prompts_longer_than_the_context"] += len(rows) - len(kept)
            if not kept:
                raise ValueError(
                    f"every prompt of {split} is longer than {room} tokens, what the model's positions leave beside "
                    f"an answer of {max_new_tokens}: lower --max_new_tokens, or take a model with more positions."
                )
            table.rows[split] = kept
        super().__init__(table, tokenizer, drop_overlap=drop_overlap)
        self.context += max_new_tokens
        self.set_generation(model, tokenizer)

    @staticmethod
    def key_of(row: Row) -> str:
        """The messages of a prompt as one string: prompts of other turns may have the same text."""
        return json.dumps(row["messages"])

    def encode(self, rows: Sequence[Row]) -> Encoded:
        """What TRL's trainer reads of a row: "prompt" finds the ids in `prompt_ids`; rewards are given "text"."""
        features = [
            {"prompt": self.key_of(row), "text": self.text_of(row), "reference": row["reference"]} for row in rows
        ]
        return Encoded(features, tokens=sum(len(self.prompt_ids[feature["prompt"]]) for feature in features))

    def predict(
        self, model: PreTrainedModel, split: str, accelerator: Processes | None
    ) -> tuple[list[list[int]], np.ndarray]:
        """`draws` answers to each prompt, and how likely each is to the model and to the reference, (2, answers)."""
        if split not in self.before:
            self.before[split] = self._rewarded(split, self._write(self.reference, split, accelerator))
        written = self._write(model, split, accelerator)
        features = [labelled(*pair) for pair in zip(self._asked(split), written, strict=True)]
        values = [log_probs(judge, features, processes=accelerator) for judge in (model, self.reference)]
        return written, np.array([[value for value, _ in some] for some in values])

    def _asked(self, split: str) -> list[list[int]]:
        """The held-out prompts that are answered, all of them `draws` times."""
        return [self.prompt_ids[row["prompt"]] for row in self.encoded[split].features[: self.answers]] * self.draws

    def _write(self, model: PreTrainedModel, split: str, processes: Processes | None) -> list[list[int]]:
        return self.write(model, self._asked(split), temperature=self.temperature, processes=processes)

    def _rewarded(self, split: str, written: list[list[int]]) -> np.ndarray:
        """(prompts, 2): the mean reward and the mean length in tokens of the answers to each prompt."""
        rows = self.encoded[split].features[: self.answers] * self.draws
        texts = self.tokenizer.batch_decode(written, skip_special_tokens=True)
        rewards = self.reward([row["text"] for row in rows], texts, [row["reference"] for row in rows])
        found = np.array([rewards, [len(ids) for ids in written]], float)
        return found.reshape(2, self.draws, -1).mean(axis=1).T

    def score(self, split: str, answers: tuple[list[list[int]], np.ndarray]) -> Scores:
        written, values = answers
        found, before = self._rewarded(split, written), self.before[split]
        divergence = (values[0] - values[1]).reshape(self.draws, -1).mean(axis=0)
        texts = self.tokenizer.batch_decode(written[: len(found)], skip_special_tokens=True)
        examples = [
            {"input": row["text"], "reference": row["reference"], "prediction": text, "score": float(reward)}
            for row, text, (reward, _) in zip(self.encoded[split].features, texts, found, strict=False)
        ]
        estimates = {
            "reward": mean(found[:, 0], bounds=self.reward_bounds),
            "length_change": mean(found[:, 1] - before[:, 1]),
        }
        if self.temperature == 1:  # only then are the answers the model's own distribution
            estimates["kl"] = mean(divergence, higher_is_better=False)
        return Scores(estimates, examples)

    def baseline(self, split: str) -> tuple[str, Scores]:
        return "before training", Scores({"reward": mean(self.before[split][:, 0], bounds=self.reward_bounds)}, [])

    # Proofs

    def reward_proof(self) -> Proof:
        """The reward must give finite numbers, and a reference no less than silence."""
        rows = self.table.rows["train"][:32]
        prompts, references = [self.text_of(row) for row in rows], [row["reference"] for row in rows]
        right = float(np.mean(self.reward(prompts, references, references)))
        silent = float(np.mean(self.reward(prompts, [""] * len(rows), references)))
        said = f"references as answers earn {right:.3f} on average, empty answers {silent:.3f}"
        return Proof(right >= silent or not any(references), said)

    def log_prob_proof(self, trainer: _Trainer) -> Proof:
        """TRL's log-probabilities of answers after prompts padded on the left must be those of each alone."""
        rows = sorted(self.train_dataset[:64], key=lambda row: len(self.prompt_ids[row["prompt"]]))
        prompts = [self.prompt_ids[row["prompt"]] for row in (rows[0], rows[len(rows) // 2], rows[-1])]
        answer = prompts[0][-4:]  # any tokens will do
        batch = pad_batch(
            [{"input_ids": [*prompt, *answer]} for prompt in prompts], pad_id=self.tokenizer.pad_token_id, left=True
        )
        batch = {key: value.to(trainer.args.device) for key, value in batch.items()}
        with torch.no_grad(), proofs.untouched(trainer.model):
            found = trainer._get_per_token_logps_and_entropies(
                trainer.model, batch["input_ids"], batch["attention_mask"], len(answer)
            )[0].double()
        together = found.sum(1).cpu().numpy()
        alone = [log_probs(self.reference, [labelled(p, answer)])[0][0] for p in prompts]
        worst = float(np.abs((together - alone) / np.array(alone)).max())
        low = trainer.args.bf16 or trainer.args.fp16
        said = (
            f"the log-probabilities of an answer after prompts padded on the left are those alone (within {worst:.1e})"
        )
        return Proof(worst < (2e-2 if low else 1e-4), said, worst)

    def proofs_before(self, trainer: _Trainer) -> dict[str, Callable[[], Proof]]:
        found = super().proofs_before(trainer)
        found = {"vocabulary": found["vocabulary"], "reward": self.reward_proof}
        if self.temperature == 1:  # TRL divides the logits by another
            found["sequence_log_probs"] = lambda: self.log_prob_proof(trainer)
        return found

    def probe(self) -> dict[str, torch.Tensor]:
        prompts = [self.prompt_ids[row["prompt"]] for row in self.train_dataset[:2]]
        return pad_batch([{"input_ids": ids} for ids in prompts], pad_id=self.tokenizer.pad_token_id)
