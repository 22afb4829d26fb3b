"""What translation and summarization share: a text is read and a text is written, by any family of model.

A decoder reads the source and a cue and goes on; its loss is over the target alone. An encoder-decoder reads the
source and writes the target. Both learn the end of the target, or they would never stop.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from accelerate import Accelerator
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from hf_lm.data.batches import MAX_LOGITS, Feature, map_by_length, pad_batch
from hf_lm.data.reading import clean
from hf_lm.data.tables import Row, Table, keep_filled_splits
from hf_lm.losses import label_loss, next_token_loss
from hf_lm.models.checkpoints import context_length, family
from hf_lm.proofs import Proof
from hf_lm.tasks.supervised import Encoded, Scores, Supervised
from hf_lm.tokenizer import encode_documents, frame_of, language_written


class TextToText(Supervised):
    """A text written for each text read. Rows are {"source": str, "targets": [str, ...]}; the first target is learned.

    `max_source_length` and `max_target_length` are in tokens, special ones included. `cue` stands between source and
    target of a decoder, `prefix` before the source; "" takes what the checkpoint was taught, if it says so.
    `num_beams`: 1 is greedy.
    """

    cue: ClassVar[str]
    sure_enough = 0.6  # of a token, on average

    def __init__(
        self,
        table: Table,
        tokenizer: PreTrainedTokenizerBase,
        model: PreTrainedModel,
        *,
        max_source_length: int,
        max_target_length: int,
        prefix: str = "",
        num_beams: int = 1,
        drop_overlap: bool = False,
    ) -> None:
        self.causal = family(model.config) == "decoder"
        self.auto_class = "AutoModelForCausalLM" if self.causal else "AutoModelForSeq2SeqLM"
        self.loss = next_token_loss if self.causal else label_loss
        self.shifts_labels = self.causal
        self.frame = frame_of(tokenizer, causal=self.causal)
        self.end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
        if self.end is None:
            raise ValueError("the tokenizer has no token that ends a text (eos or sep): the model could never stop.")
        self.start = model.generation_config.decoder_start_token_id
        if self.start is None and not self.causal:
            self.start = model.config.decoder_start_token_id
        self.opening: list[int] = []  # what labels begin with: BART's <s>, the language of NLLB
        if (opens := model.generation_config.forced_bos_token_id) is not None and not self.causal:
            self.opening = [opens]
        if language := language_written(tokenizer):
            self.start, self.opening = (self.start, [language[0]]) if language[1] else (language[0], [])
        prefix = prefix or self.own_prefix(getattr(model.config, "task_specific_params", None) or {})
        self.prefix_ids = encode_documents(tokenizer, [prefix])[0] if prefix else []
        self.cue_ids = encode_documents(tokenizer, [self.cue])[0]
        self.max_source_length, self.max_target_length = max_source_length, max_target_length
        if positions := context_length(model.config):
            self.max_target_length = min(max_target_length, positions // 2 if self.causal else positions)
            room = positions - self.max_target_length - len(self.cue_ids) if self.causal else positions
            self.max_source_length = min(max_source_length, room)
        self.num_beams = num_beams
        super().__init__(table, tokenizer, drop_overlap=drop_overlap)
        self.prefix = prefix
        self.longest = max(int((np.array(feature["labels"]) != -100).sum()) for feature in self.train_dataset)
        self.generation = self.tell(model)

    def tell(self, model: PreTrainedModel) -> GenerationConfig:
        """Write into a model's configuration how it is asked and when it stops; returns how it writes."""
        settings = dict(getattr(model.config, "task_specific_params", None) or {})
        settings[self.pipeline_tag] = (
            {"prefix": self.prefix} | ({"cue": self.cue} if self.causal else {}) | self.remembered()
        )
        model.config.task_specific_params = settings  # where `pipeline` looks for them
        model.generation_config.update(
            max_new_tokens=min(self.max_target_length, int(1.2 * self.longest) + 1),  # what the data asks for
            max_length=None,
            num_beams=self.num_beams,
            do_sample=False,
            use_cache=True,
            eos_token_id=self.end,
            pad_token_id=self.tokenizer.pad_token_id,
            decoder_start_token_id=self.start,
            forced_bos_token_id=self.opening[0] if self.opening else None,
        )
        return model.generation_config

    def text_of(self, row: Row) -> str:
        return row["source"]

    def row_of(self, text: str) -> Row:
        return {"source": text, "targets": [text]}

    def answered(self, row: Row, prediction: str) -> Row | None:
        return {"source": row["source"], "targets": [prediction]} if prediction else None

    def kinds(self, rows: Sequence[Row]) -> list[int]:
        """By the quarters of the training texts' lengths: a teacher is surest of the shortest."""
        lengths = [len(self.text_of(row)) for row in self.table.rows["train"]]
        quarters = np.quantile(lengths, [0.25, 0.5, 0.75])
        return np.searchsorted(quarters, [len(self.text_of(row)) for row in rows]).tolist()

    def target_of(self, row: Row) -> str:
        return row["targets"][0]

    def encode(self, rows: Sequence[Row]) -> Encoded:
        encoded, frame = Encoded(), self.frame
        sources = encode_documents(self.tokenizer, [self.text_of(row) for row in rows])
        targets = encode_documents(self.tokenizer, [self.target_of(row) for row in rows], as_targets=True)
        room = self.max_source_length - len(frame.before) - len(self.prefix_ids) - len(frame.after)
        for source, target in zip(sources, targets, strict=True):
            whole = len(source) + len(target)
            source, target = source[:room], target[: self.max_target_length - 1 - len(self.opening)]
            encoded.tokens += whole
            encoded.tokens_cut += whole - len(source) - len(target)
            encoded.cut += len(source) + len(target) < whole
            prompt = [*frame.before, *self.prefix_ids, *source]
            prompt += self.cue_ids if self.causal else frame.after
            encoded.features.append(self.feature(prompt, target))
        return encoded

    def feature(self, prompt: list[int], target: list[int]) -> Feature:
        """What is learned: a target and its end after a prompt."""
        target = [*self.opening, *target, self.end]
        if self.causal:
            return {"input_ids": prompt + target, "labels": [-100] * len(prompt) + target}
        return {"input_ids": prompt, "labels": target}

    def collate(self, features: Sequence[Feature]) -> dict[str, torch.Tensor]:
        batch = pad_batch(features, pad_id=self.tokenizer.pad_token_id)
        if not self.causal:
            labels = batch["labels"]
            shifted = labels.roll(1, dims=1)
            shifted[:, 0] = self.start
            batch["decoder_attention_mask"] = torch.cat([torch.ones_like(labels[:, :1]), (labels != -100)[:, :-1]], 1)
            batch["decoder_input_ids"] = shifted.masked_fill(shifted == -100, self.tokenizer.pad_token_id)
        return batch

    def prompt(self, feature: Feature) -> list[int]:
        """What the model reads before it writes."""
        ids = feature["input_ids"]
        return ids[: feature["labels"].count(-100)] if self.causal else ids

    def answer(self, model: PreTrainedModel, split: str, accelerator: Accelerator | None) -> Sequence[Any]:
        """(text written, summed loss of the reference in nats, its tokens) per row."""
        texts = self.write(model, split, accelerator)
        read = self.losses(model, self.encoded[split].features, accelerator, description=f"reading {split}")
        return [(text, *loss) for text, loss in zip(texts, read, strict=True)]

    def write(self, model: PreTrainedModel, split: str, accelerator: Accelerator | None) -> list[str]:
        """The text that the model writes for each row, in batches of like-sized prompts."""
        device = next(model.parameters()).device
        prompts = [self.prompt(feature) for feature in self.encoded[split].features]
        writer = model if accelerator is None else accelerator.unwrap_model(model)

        def work(rows: list[int]) -> list[str]:
            batch = pad_batch(
                [{"input_ids": prompts[i]} for i in rows], pad_id=self.tokenizer.pad_token_id, left=self.causal
            )
            batch = {key: value.to(device) for key, value in batch.items()}
            ids = writer.generate(**batch, generation_config=self.generation)
            ids = ids[:, batch["input_ids"].shape[1] :] if self.causal else ids
            return [text.strip() for text in self.tokenizer.batch_decode(ids, skip_special_tokens=True)]

        lengths = [len(prompt) for prompt in prompts]
        return map_by_length(work, lengths, accelerator=accelerator, description=f"writing {split}", max_rows=64)

    def losses(
        self, model: PreTrainedModel, features: Sequence[Feature], accelerator: Accelerator | None, description: str
    ) -> list[tuple[float, int]]:
        """(summed loss of the labels in nats, how many they are) per feature."""
        device = next(model.parameters()).device

        def work(rows: list[int]) -> list[tuple[float, int]]:
            batch = {key: value.to(device) for key, value in self.collate([features[i] for i in rows]).items()}
            labels = batch.pop("labels")
            outputs = model(**batch)
            found = []
            for i, row in enumerate(labels):
                one = type(outputs)(logits=outputs.logits[i : i + 1])
                found.append((float(self.loss(one, {"labels": row[None]})), int((row != -100).sum())))
            return found

        whole = [len(feature["input_ids"]) + len(feature["labels"]) for feature in features]
        widest = max(whole if self.causal else [len(feature["labels"]) for feature in features], default=1)
        rows = min(64, max(1, MAX_LOGITS // (widest * model.config.get_text_config().vocab_size)))
        return map_by_length(work, whole, accelerator=accelerator, description=description, max_rows=rows)

    def label_proof(self) -> Proof:
        """The labels of the first rows must decode to exactly the target, and end with the end token."""
        rows, features = self.table.rows["train"][:64], self.train_dataset[:64]
        labels = self.collate(features)["labels"]
        cut = 0
        targets = encode_documents(self.tokenizer, [self.target_of(row) for row in rows], as_targets=True)
        for row, target, ids in zip(rows, targets, labels.tolist(), strict=True):
            ids = [i for i in ids if i != -100]
            if ids[-1] != self.end:
                return Proof(False, "the labels of a row do not end with the end token: the model would not stop")
            ids = ids[len(self.opening) : -1]
            cut += len(ids) < len(target)
            if ids != target[: len(ids)]:
                said = self.tokenizer.decode(ids)
                return Proof(False, f"labels decode to {said[:60]!r}, the target is {self.target_of(row)[:60]!r}")
        return Proof(
            True,
            f"the labels of {len(rows)} rows decode to the target and its end, {cut} of them cut, no prompt in them",
        )

    def own_prefix(self, known: dict[str, Any]) -> str:
        """What a checkpoint was taught to read before a source, by task: T5's `summarize: `."""
        return known.get(self.pipeline_tag, {}).get("prefix") or ""

    def remembered(self) -> dict[str, Any]:
        """What `pipeline` must know beside prefix and cue."""
        return {}

    def score_texts(self, split: str, texts: Sequence[str]) -> tuple[dict[str, Any], list[float]]:
        """The estimates of texts written for a split, and a score for each."""
        raise NotImplementedError

    def score(self, split: str, answers: Sequence[Any]) -> Scores:
        rows, texts = self.table.rows[split], [answer[0] for answer in answers]
        estimates, scores = self.score_texts(split, texts)
        examples = [
            {"input": row["source"], "reference": row["targets"], "prediction": text, "score": score}
            for row, text, score in zip(rows, texts, scores, strict=True)
        ]
        return Scores(estimates, examples, mean_loss(answers))


def mean_loss(answers: Sequence[tuple[str, float, int]]) -> float | None:
    """Nats per token of the references; None for a baseline, which has no tokens."""
    tokens = sum(answer[2] for answer in answers)
    return sum(answer[1] for answer in answers) / tokens if tokens else None


def to_sources_and_targets(table: Table, source: str, target: str) -> None:
    """Reduce a table to rows of {"source", "targets"}; those without either are left out and counted."""
    for split, rows in table.rows.items():
        kept = []
        for row in rows:
            targets = row.get(target)
            targets = targets if isinstance(targets, list) else [targets]
            targets = [clean(str(one), table.left_out).strip() for one in targets if one is not None]
            read = row.get(source)
            read = " ".join(map(str, read)) if isinstance(read, list) else str(read or "")
            read, targets = clean(read, table.left_out).strip(), [one for one in targets if one]
            if read and targets:
                kept.append({"source": read, "targets": targets})
            else:
                table.left_out["rows_without_source_or_target"] += 1
        table.rows[split] = kept
    keep_filled_splits(table, f"with both {source!r} and {target!r}")
