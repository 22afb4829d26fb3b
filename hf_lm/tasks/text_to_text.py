"""What translation and summarization share: a text is read and a text is written, by any family of model.

A decoder reads the source and a cue and continues; its loss is over the target alone. An encoder-decoder reads the
source and writes the target. Both learn the end of the target, or they would never stop.
"""

import copy
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np
import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from hf_lm.data.batches import Feature, Processes, TokenId, pad_batch
from hf_lm.data.reading import clean, plain_text
from hf_lm.data.tables import Row, Table, drop_empty_splits
from hf_lm.evaluation.calibration import label_log_probs
from hf_lm.evaluation.completions import generate_ids
from hf_lm.evaluation.likelihood import labelled
from hf_lm.models.configuration import context_length, family
from hf_lm.models.target_tokenizer import decode_targets, has_target_tokenizer, target_tokenizer
from hf_lm.tasks.losses import label_loss, next_token_loss
from hf_lm.tasks.proofs import Proof
from hf_lm.tasks.rendering import Part, render_causal, token_pieces
from hf_lm.tasks.rows import Encoded, Scores, room_beside
from hf_lm.tasks.start import Start
from hf_lm.tasks.supervised import Supervised
from hf_lm.tokenization.languages import language_written
from hf_lm.tokenization.tokenizer import INCOMPLETE, encode_documents, special_tokens_around

# Settings of a checkpoint's generation that hold for any data: they are about its tokens.
OF_TOKENS = ("bos_token_id", "forced_eos_token_id", "bad_words_ids", "suppress_tokens", "begin_suppress_tokens")
UNSPACED_END = r"[\u3000-\u30ff\u3400-\u9fff\uff01-\uff65]"  # what a text without spaces ends with: marks, kana, Han
SAMPLED = 2000  # training rows whose targets are encoded and decoded again
NEGLIGIBLE = 0.01  # share of them that may come back changed before it is said


class TextToText(Supervised):
    """A text written for each text read. Rows are {"source": str, "targets": [str, ...]}; the first target is learned.

    `max_source_length` and `max_target_length` are in tokens, special ones included. `cue` stands between source and
    target of a decoder, `prefix` before the source; "" takes what the checkpoint was taught, if it says so.
    `num_beams`: 1 is greedy.
    """

    cue: ClassVar[str]
    score_of_a_text: ClassVar[str]  # the metric that orders examples, the worst first
    writes = True  # its answers are texts that the model generates
    read_from = "source"
    columns = ("source", "target")
    settings: ClassVar = {"max_source_length": 128, "max_target_length": 128, "num_beams": 1}
    confidence_threshold = 0.6  # of a token, on average

    @classmethod
    def from_start(cls, table: Table, start: Start, *, drop_overlap: bool = False, **settings: Any) -> Self:
        return cls(table, start.tokenizer, start.model, drop_overlap=drop_overlap, **settings)

    @classmethod
    def as_answer(cls, row: Row) -> str:
        return row["targets"][0]

    @classmethod
    def examples_of(
        cls, rows: Sequence[Row], answers: Sequence[str], labels: Sequence[str]
    ) -> tuple[list[dict[str, Any]], int]:
        return [
            {"input": row["source"], "reference": row["targets"], "prediction": answer}
            for row, answer in zip(rows, answers, strict=True)
        ], 0

    @classmethod
    def prediction_of(cls, given: object, output: Mapping[str, str]) -> dict[str, Any]:
        return {"prediction": next(iter(output.values()))}

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
        self.frame = special_tokens_around(tokenizer, causal=self.causal)
        target = target_tokenizer(tokenizer)
        self.end: TokenId = target.eos_token_id if target.eos_token_id is not None else target.sep_token_id
        if self.end is None:
            raise ValueError("the tokenizer has no token that ends a text (eos or sep): the model could never stop.")
        self.start: TokenId = model.generation_config.decoder_start_token_id
        if self.start is None and not self.causal:
            self.start = model.config.decoder_start_token_id
        self.opening: list[TokenId] = []  # what labels begin with: BART's <s>, the language of NLLB
        if (opens := model.generation_config.forced_bos_token_id) is not None and not self.causal:
            self.opening = [opens]
        if language := language_written(tokenizer):
            self.start, self.opening = (self.start, [language[0]]) if language[1] else (language[0], [])
        prefix = prefix or self.own_prefix(getattr(model.config, "task_specific_params", None) or {})
        self.prefix_ids = encode_documents(tokenizer, [prefix])[0] if prefix else []
        self.cue_ids = encode_documents(tokenizer, [self.cue])[0]
        self.max_source_length, self.max_target_length = max_source_length, max_target_length
        if positions := context_length(model.config, written=True):
            self.max_target_length = min(max_target_length, positions // 2 if self.causal else positions)
        if positions := context_length(model.config):
            room = positions - self.max_target_length - len(self.cue_ids) if self.causal else positions
            self.max_source_length = min(max_source_length, room)
        self.max_length = self.max_source_length + self.max_target_length + len(self.cue_ids) * self.causal
        self.num_beams = num_beams
        super().__init__(table, tokenizer, drop_overlap=drop_overlap)
        if lost := self._say_what_is_lost(halves=model.config.model_type == "encoder-decoder"):
            self.warnings = [*self.warnings, lost]
            table.notes.append(lost)
        self.prefix = prefix
        self.longest = max(int((np.array(feature["labels"]) != -100).sum()) for feature in self.train_dataset)
        self.generation = self.configure_generation(model)

    def configure_generation(self, model: PreTrainedModel) -> GenerationConfig:
        """Write into a model's configuration how it is asked and when it stops; returns how it writes.

        Of the checkpoint's own settings those that name tokens stay. The others were chosen for another data set: a
        `min_length` would keep the model from stopping, and settings of sampling or beams may not fit ours.
        """
        self.configure_inference(model)
        own = {name: getattr(model.generation_config, name, None) for name in OF_TOKENS}
        model.generation_config = GenerationConfig(
            **own,
            max_new_tokens=min(self.max_target_length, int(1.2 * self.longest) + 1),  # what the data asks for
            num_beams=self.num_beams,
            do_sample=False,
            use_cache=True,
            eos_token_id=self.end,
            pad_token_id=target_tokenizer(self.tokenizer).pad_token_id,
            decoder_start_token_id=self.start,
            forced_bos_token_id=self.opening[0] if self.opening else None,
        )
        return model.generation_config

    def _say_what_is_lost(self, *, halves: bool) -> str:
        """That the tokenizer cannot write the targets as they are, with an example and a remedy; "" where it can."""
        texts = [self.target_of(row) for row in self.table.rows["train"][:SAMPLED]]
        changed = changed_targets(self.tokenizer, texts)
        if len(changed) < NEGLIGIBLE * len(texts):
            return ""
        what = sorted({kind for _, _, kinds in changed for kind in kinds})
        text, back, _ = changed[0]
        apart = has_target_tokenizer(self.tokenizer)
        keeps = "whose tokenizer keeps it (cased, multilingual)"
        remedy = f"take a --{'decoder' if apart else 'model'} {keeps}"
        those = f"first {SAMPLED:,} " if len(self.table.rows["train"]) > SAMPLED else ""
        return (
            f"{len(changed) / len(texts):.1%} of the {those}target texts come back changed from the tokenizer that "
            f"writes ({', '.join(what)}): {text!r} as {back!r}; what it loses the model cannot write, so {remedy}"
            + (", or give a --decoder that does" if halves and not apart else "")
        )

    def row_of(self, text: str) -> Row:
        return {"source": text, "targets": [text]}

    def with_label(self, row: Row, prediction: str) -> Row | None:
        return {"source": row["source"], "targets": [prediction]} if prediction else None

    def strata(self, rows: Sequence[Row]) -> list[int]:
        """By the quarters of the training texts' lengths: a teacher is most confident of the shortest."""
        lengths = [len(self.text_of(row)) for row in self.table.rows["train"]]
        quarters = np.quantile(lengths, [0.25, 0.5, 0.75])
        return np.searchsorted(quarters, [len(self.text_of(row)) for row in rows]).tolist()

    def target_of(self, row: Row) -> str:
        return row["targets"][0]

    def encode(self, rows: Sequence[Row]) -> Encoded:
        encoded, frame = Encoded(), self.frame
        sources = encode_documents(self.tokenizer, [self.text_of(row) for row in rows])
        targets = encode_documents(self.tokenizer, [self.target_of(row) for row in rows], as_targets=True)
        around = len(frame.before) + len(self.prefix_ids) + len(frame.after)
        room = room_beside(around, self.max_source_length, "--max_source_length")
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
        return labelled(prompt, target, causal=self.causal)

    def collate(self, features: Sequence[Feature]) -> dict[str, torch.Tensor]:
        batch = pad_batch(features, pad_id=self.tokenizer.pad_token_id)
        if not self.causal:
            labels = batch["labels"]
            shifted = labels.roll(1, dims=1)
            shifted[:, 0] = self.start
            batch["decoder_attention_mask"] = torch.cat([torch.ones_like(labels[:, :1]), (labels != -100)[:, :-1]], 1)
            pad: TokenId = target_tokenizer(self.tokenizer).pad_token_id
            batch["decoder_input_ids"] = shifted.masked_fill(shifted == -100, pad)
        return batch

    def prompt(self, feature: Feature) -> list[int]:
        """What the model reads before it writes."""
        ids = feature["input_ids"]
        return ids[: feature["labels"].count(-100)] if self.causal else ids

    def predict(self, model: PreTrainedModel, split: str, accelerator: Processes | None) -> Sequence[Any]:
        """(text written, summed loss of the reference in nats, its tokens) per row."""
        texts = self.write(model, split, accelerator)
        read = self.losses(model, self.encoded[split].features, accelerator, description=f"reading {split}")
        return [(text, *loss) for text, loss in zip(texts, read, strict=True)]

    def write(self, model: PreTrainedModel, split: str, accelerator: Processes | None) -> list[str]:
        """The text that the model writes for each row, in batches of like-sized prompts."""
        sequences = generate_ids(
            model,
            [self.prompt(feature) for feature in self.encoded[split].features],
            pad_id=self.tokenizer.pad_token_id,
            options=lambda rows, inputs: {"generation_config": self.generation},
            processes=accelerator,
            description=f"writing {split}",
        )
        return [text.strip() for text in decode_targets(self.tokenizer, [ids for (ids,) in sequences])]

    def losses(
        self, model: PreTrainedModel, features: Sequence[Feature], accelerator: Processes | None, description: str
    ) -> list[tuple[float, int]]:
        """(summed loss of the labels in nats, how many they are) per feature."""
        sums, counts = label_log_probs(model, self, features, accelerator=accelerator, description=description)
        return list(zip((-sums[:, 0]).tolist(), counts.tolist(), strict=True))

    def label_proof(self) -> Proof:
        """The labels of the first rows must be exactly the target's tokens and the end token.

        What they decode to is the target as well, or the proof says of how many rows it is another text: a tokenizer
        that loses case, accents or characters is a limit of the checkpoint, not an error of the run.
        """
        rows, features = self.table.rows["train"][:64], self.train_dataset[:64]
        labels, target = self.collate(features)["labels"], target_tokenizer(self.tokenizer)
        cut = other = 0
        texts = [self.target_of(row) for row in rows]
        encoded = encode_documents(self.tokenizer, texts, as_targets=True)
        for text, expected, ids in zip(texts, encoded, labels.tolist(), strict=True):
            ids = [i for i in ids if i != -100]
            if ids[-1] != self.end:
                return Proof(False, "the labels of a row do not end with the end token: the model would not stop")
            ids = ids[len(self.opening) : -1]
            back = str(target.decode(ids))
            if ids != expected[: len(ids)]:
                return Proof(False, f"labels decode to {back[:60]!r}, the target is {text[:60]!r}")
            if len(ids) < len(expected):
                cut += 1
                other += not without_spaces(text).startswith(without_spaces(back).rstrip(INCOMPLETE))
            else:
                other += without_spaces(back) != without_spaces(text)
        said = f"{cut} of them cut, no prompt in them"
        if other:
            said = f"are the tokens of the target and its end, {said}; {other} of them decode to another text"
        else:
            said = f"decode to the target and its end, {said}"
        return Proof(True, f"the labels of {len(rows)} rows {said}")

    def lengths(self, split: str) -> dict[str, list[int]]:
        features = self.encoded[split].features
        written = [sum(label != -100 for label in feature["labels"]) for feature in features]
        read = [len(feature["input_ids"]) for feature in features]
        return {"read": [n - m * self.causal for n, m in zip(read, written, strict=True)], "written": written}

    def train_lengths(self) -> list[int]:
        return [len(row["input_ids"]) + len(row["labels"]) * (not self.causal) for row in self.train_dataset]

    def excerpt(self, split: str) -> Self:
        task = self._every(split, 64)
        # Random weights never end a text; trained ones write about as much as is asked.
        task.generation = copy.deepcopy(self.generation)
        longest = max(len(feature["labels"]) for feature in task.encoded[split].features)
        task.generation.max_new_tokens = min(longest, self.generation.max_new_tokens)
        return task

    def render_row(self, row: dict[str, Any]) -> list[Part]:
        if self.causal:
            return render_causal(self.tokenizer, row)
        labels = row["labels"]
        return [
            Part("reads", token_pieces(self.tokenizer, row["input_ids"])),
            Part("writes", token_pieces(target_tokenizer(self.tokenizer), labels, [True] * len(labels))),
        ]

    def own_prefix(self, known: dict[str, Any]) -> str:
        """What a checkpoint was taught to read before a source, by task: T5's `summarize: `."""
        return known.get(self.pipeline_tag, {}).get("prefix") or ""

    def inference_settings(self) -> dict[str, Any]:
        settings = {"prefix": self.prefix, "max_source_length": self.max_source_length}
        return settings | ({"cue": self.cue} if self.causal else {})

    def score(self, split: str, answers: Sequence[Any]) -> Scores:
        rows, texts = self.table.rows[split], [answer[0] for answer in answers]
        self.measured_by = self.metric()
        estimates = self.measured_by.estimates(texts, [row["targets"] for row in rows])
        shown = estimates[self.score_of_a_text]
        scores = shown.value_of(shown.statistics).tolist()
        examples = [
            {"input": row["source"], "reference": row["targets"], "prediction": text, "score": score}
            for row, text, score in zip(rows, texts, scores, strict=True)
        ]
        return Scores(estimates, examples, mean_loss(answers))


def changed_targets(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]
) -> list[tuple[str, str, tuple[str, ...]]]:
    """The texts that the tokenizer of what is written does not give back: (text, as it comes back, what is lost).

    White space does not count. Of long texts the part around the first difference is given.
    """
    target, found = target_tokenizer(tokenizer), []
    for text, ids in zip(texts, encode_documents(tokenizer, list(texts), as_targets=True), strict=True):
        back = str(target.decode(ids))
        one, other = without_spaces(text), without_spaces(back)
        if one == other:
            continue
        kinds = ("unknown characters",) if target.unk_token_id in ids else ()
        apart = (unicodedata.normalize("NFD", each) for each in (one, other))
        plain = ["".join(c for c in each if not unicodedata.combining(c)) for each in apart]  # without accents
        if plain[0].casefold() == plain[1].casefold():
            kinds += ("case",) * (plain[0] != plain[1])
            kinds += ("accents",) * (one.casefold() != other.casefold())
        place = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), len(other))
        found.append((_around(text, place), _around(back, place), kinds or ("characters",)))
    return found


def without_spaces(text: str) -> str:
    return "".join(text.split())


def _around(text: str, place: int, before: int = 20, after: int = 40) -> str:
    """The part of a text around its character number `place`, white space not counted."""
    places = [i for i, c in enumerate(text) if not c.isspace()]
    at = places[place] if place < len(places) else len(text)
    start = 0 if at <= before + after // 2 else at - before
    return "…" * (start > 0) + text[start : at + after] + "…" * (at + after < len(text))


def mean_loss(answers: Sequence[tuple[str, float, int]]) -> float | None:
    """Nats per token of the references; None for a baseline, which has no tokens."""
    tokens = sum(answer[2] for answer in answers)
    return sum(answer[1] for answer in answers) / tokens if tokens else None


def join_sentences(sentences: Sequence[str]) -> str:
    """One text, with a space after each sentence that does not end in Chinese or Japanese, in letter or mark."""
    return "".join(one if re.search(f"{UNSPACED_END}$", one) else f"{one} " for one in sentences)


def to_sources_and_targets(table: Table, source: str, target: str) -> None:
    """Reduce a table to rows of {"source", "targets"}; those without either are left out and counted.

    Raises ValueError where both are one column.
    """
    if source == target:
        raise ValueError(f"the column {source!r} is read and learned: give another --source or --target.")
    for split, rows in table.rows.items():
        kept = []
        for number, row in enumerate(rows, 1):
            where = f"--dataset {table.source}, {split} row {number}"
            targets, read = ([one] if not isinstance(one, list) else one for one in (row.get(target), row.get(source)))
            targets = [clean(plain_text(one, f"{where}: {target!r}"), table.left_out).strip() for one in targets]
            read = join_sentences([plain_text(one, f"{where}: {source!r}") for one in read])
            read, targets = clean(read, table.left_out).strip(), [one for one in targets if one]
            if read and targets:
                kept.append({"source": read, "targets": targets})
            else:
                table.left_out["rows_without_source_or_target"] += 1
        table.rows[split] = kept
    drop_empty_splits(table, f"with both {source!r} and {target!r}")
