"""Chat: conversations in which what the assistant says is learned, and the end of it."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_lm.data.batches import Feature, Processes, pad_batch
from hf_lm.data.conversations import as_text
from hf_lm.data.packing import fill_blocks
from hf_lm.data.tables import Row, Table
from hf_lm.evaluation.completions import log_probs
from hf_lm.evaluation.intervals import POSITIVE, ratio
from hf_lm.models.configuration import context_length
from hf_lm.tasks import proofs
from hf_lm.tasks.answers import Answers
from hf_lm.tasks.losses import next_token_loss
from hf_lm.tasks.proofs import Proof, ProvenTrainer
from hf_lm.tasks.rendering import Part, render_causal
from hf_lm.tasks.rows import Encoded, Scores
from hf_lm.tokenization.chat_template import encode_chats, ends_of


class Chat(Answers):
    """Rows are {"messages"}; the loss is over what the assistant says and the token that ends it.

    `max_length`: tokens of a conversation; longer ones are cut at the end, and one whose question alone is longer is
    left out. `packing` fills blocks of that length with whole conversations that do not see each other. Held-out
    answers are scored, and the model as it comes, before training, is the baseline; for a fresh one
    (`fresh`), which knows nothing, the baseline is the frequency of each token.
    """

    kind = "model that answers in a conversation"
    recipe, main_metric = "chat", "answer_perplexity"
    greater_is_better = False
    unit = "conversations"
    loss = staticmethod(next_token_loss)
    shifts_labels = True

    def __init__(
        self,
        table: Table,
        tokenizer: PreTrainedTokenizerBase,
        model: PreTrainedModel,
        *,
        max_length: int,
        packing: bool = True,
        fresh: bool = False,
        drop_overlap: bool = False,
    ) -> None:
        self.max_length = min(max_length, context_length(model.config) or max_length)
        self.packing, self.fresh = packing, fresh
        self.ends = ends_of(tokenizer, model.generation_config)
        self.before: dict[str, Scores] = {}  # what the model said before training
        encoded = {
            split: encode_chats(tokenizer, [row["messages"] for row in rows]) for split, rows in table.rows.items()
        }
        for split, rows in table.rows.items():
            kept = [
                row | {"ids": ids, "learned": learned}
                for row, (ids, learned) in zip(rows, encoded[split], strict=True)
                if any(learned[: self.max_length])
            ]
            table.left_out["conversations_whose_question_fills_the_context"] += len(rows) - len(kept)
            if not kept:
                raise ValueError(
                    f"every question of {split} is longer than {self.max_length} tokens: raise --max_length, up to "
                    f"the model's {context_length(model.config) or 'any'} positions."
                )
            table.rows[split] = kept
        super().__init__(table, tokenizer, drop_overlap=drop_overlap)
        features = self.train_dataset
        self.blocks = [[i] for i in range(len(features))]
        if packing:
            self.blocks = fill_blocks([len(feature["input_ids"]) for feature in features], self.max_length)
            self.train_dataset = [self.packed([features[i] for i in block]) for block in self.blocks]
            self.context = self.max_length
        longest = max(sum(label != -100 for label in feature["labels"]) for feature in features)
        self.max_new_tokens = min(context_length(model.config) // 2 or longest, int(1.2 * longest) + 1)
        self.set_generation(model, tokenizer)

    def encode(self, rows: Sequence[Row]) -> Encoded:
        encoded = Encoded()
        for row in rows:
            ids = encoded.truncated(row["ids"], self.max_length)
            labels = [i if learned else -100 for i, learned in zip(ids, row["learned"], strict=False)]
            encoded.features.append({"input_ids": ids, "labels": labels})
        return encoded

    @staticmethod
    def packed(features: Sequence[Feature]) -> Feature:
        """Conversations one after the other; positions that restart keep them apart."""
        return {
            "input_ids": [i for feature in features for i in feature["input_ids"]],
            "labels": [i for feature in features for i in feature["labels"]],
            "position_ids": [i for feature in features for i in range(len(feature["input_ids"]))],
        }

    def collate(self, features: Sequence[Feature]) -> dict[str, torch.Tensor]:
        """Without an attention mask where conversations are packed: with one, they would see each other."""
        if "position_ids" not in features[0]:
            return pad_batch(features, pad_id=self.tokenizer.pad_token_id)
        keys = ("input_ids", "labels", "position_ids")
        rows = [{key: feature[key] for key in keys} for feature in features]
        # Not the padding token: at one without a mask the models of transformers warn.
        batch = pad_batch(rows, pad_id=int(self.tokenizer.pad_token_id == 0))
        return {key: batch[key] for key in keys}

    def snapshot_reference(self, model: PreTrainedModel) -> None:
        """Score the held-out answers with a model that is still untrained: the baseline. Once."""
        if not self.before and not self.fresh:
            self.before = {split: self.measure(model, split, PartialState()) for split in self.splits[1:]}

    def predict(self, model: PreTrainedModel, split: str, accelerator: Processes | None) -> Sequence[Any]:
        features = self.encoded[split].features
        return log_probs(model, features, processes=accelerator)

    def score(self, split: str, answers: Sequence[Any]) -> Scores:
        rows = self.table.rows[split]
        nll, tokens = -np.array([one for one, _ in answers]), np.array([count for _, count in answers], np.float64)
        whole = [row["learned"].count(True) for row in rows]
        turns = [[each["content"] for each in row["messages"] if each["role"] == "assistant"] for row in rows]
        said = np.array([len("".join(each).encode()) for each in turns], np.float64)
        size = said * tokens / whole  # of answers that were cut, the part that was scored
        estimates = {
            "answer_perplexity": ratio(nll, tokens, transform=np.exp, higher_is_better=False, bounds=POSITIVE),
            "bits_per_byte": ratio(nll, size * math.log(2), higher_is_better=False, bounds=POSITIVE),
        }
        examples = [
            {
                "input": as_text(row["messages"][:-1]),
                "reference": row["messages"][-1]["content"],
                "score": -float(loss / count),
            }
            for row, loss, count in zip(rows, nll, tokens, strict=True)
        ]
        return Scores(estimates, examples, float(nll.sum() / tokens.sum()))

    def baseline(self, split: str) -> tuple[str, Scores]:
        if not self.fresh:
            return "before training", self.before[split]
        counts = np.ones(len(self.tokenizer))
        for feature in self.encoded["train"].features:
            np.add.at(counts, [i for i in feature["labels"] if i != -100], 1)
        frequency = np.log(counts / counts.sum())
        labels = [[i for i in feature["labels"] if i != -100] for feature in self.encoded[split].features]
        return "token frequency", self.score(split, [(float(frequency[ids].sum()), len(ids)) for ids in labels])

    def label_proof(self) -> Proof:
        """The labels of the first batch must decode to the assistants' turns with their end, in order, and no more.

        Only where a conversation was cut may the last one lack its end.
        """
        features, blocks = self.train_dataset[:4], self.blocks[:4]
        expected, said = [], []
        for block in blocks:
            for i in block:
                row, length = self.table.rows["train"][i], len(self.encoded["train"].features[i]["input_ids"])
                whole = length == len(row["ids"])
                turns = [message["content"] for message in row["messages"] if message["role"] == "assistant"]
                runs = _runs(self.encoded["train"].features[i]["labels"])
                if whole and len(runs) != len(turns):
                    return Proof(False, f"{len(runs)} of {len(turns)} turns of a conversation are learned")
                expected += [(turn, whole or n + 1 < len(runs)) for n, turn in enumerate(turns[: len(runs)])]
        for labels in self.collate(features)["labels"].tolist():
            said += _runs(labels)
        if len(said) != len(expected):
            return Proof(False, f"{len(said)} turns are learned where {len(expected)} were said")
        ends = 0
        for ids, (turn, must_end) in zip(said, expected, strict=True):
            ended = ids[-1] in self.ends
            ends += ended
            text = str(self.tokenizer.decode(ids[:-1] if ended else ids, clean_up_tokenization_spaces=False)).strip()
            if must_end and not ended:
                return Proof(False, f"a turn is learned as {text[-30:]!r}, without its end: the model would not stop")
            if (turn not in text) if ended else not turn.startswith(text.rstrip("\ufffd")):
                return Proof(False, f"a turn is learned as {text[:60]!r}, and was {turn[:60]!r}")
        return Proof(
            True, f"the labels of the first batch decode to its {len(said)} answers and no more, {ends} with their end"
        )

    def proofs_before(self, trainer: ProvenTrainer) -> dict[str, Callable[[], Proof]]:
        found = super().proofs_before(trainer)
        if self.packing:
            features = self.encoded["train"].features
            one, two = (max(features[n::2], key=lambda f: len(f["input_ids"])) for n in (0, 1))
            half = self.max_length // 2
            pair = [{key: values[:half] for key, values in feature.items()} for feature in (one, two)]
            feature = self.packed(pair) | {"starts": [len(pair[0]["input_ids"])]}
            found["packing_isolation"] = lambda: proofs.packing_isolation(
                trainer.model, self.collate, feature, isolate=True
            )
        return found

    def probe(self) -> dict[str, torch.Tensor]:
        batch = pad_batch(self.encoded["train"].features[:2], pad_id=self.tokenizer.pad_token_id)
        return {key: value for key, value in batch.items() if key != "labels"}

    def render_row(self, row: dict[str, Any]) -> list[Part]:
        return render_causal(self.tokenizer, row)

    def question(self, row: Row) -> list[dict[str, str]]:
        """A conversation up to the first answer to the user; a greeting of the assistant before that is none."""
        roles = [message["role"] for message in row["messages"]]
        asked = roles.index("user") if "user" in roles else 0
        return row["messages"][: max(1, roles.index("assistant", asked))]

    def report(self, measured: Mapping[str, Scores]) -> dict[str, Any]:
        found = super().report(measured)
        if self.packing:
            found["data"]["notes"].append(
                f"train is packed into {len(self.blocks):,} blocks of {self.max_length} tokens"
            )
        found["chat_template"] = self.tokenizer.chat_template
        return found


def _runs(labels: Sequence[int]) -> list[list[int]]:
    """The uninterrupted runs of labels."""
    groups = itertools.groupby(labels, key=lambda label: label != -100)
    return [list(run) for learned, run in groups if learned]
