"""Question answering from a text: the answer is a span of the context, or there is none.

Long contexts are read in windows that overlap; training, evaluation and prediction see the same windows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, cast

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_lm.data.batches import Processes
from hf_lm.data.overlap import normal_words
from hf_lm.data.tables import Row, Table
from hf_lm.evaluation.intervals import Estimate, units_of
from hf_lm.evaluation.metrics import QuestionAnswering as Metric
from hf_lm.evaluation.metrics import answer_score, lack_spaces, sentences
from hf_lm.tasks.losses import Batch, WithSpanLogits, span_logits, span_loss
from hf_lm.tasks.proofs import Proof
from hf_lm.tasks.questions import read_question_answering
from hf_lm.tasks.rendering import Part, token_pieces
from hf_lm.tasks.rows import Encoded, Scores, room_beside
from hf_lm.tasks.spans import LONGEST_ANSWER, best_spans, best_threshold
from hf_lm.tasks.start import Start
from hf_lm.tasks.supervised import Supervised
from hf_lm.tasks.text_to_text import TextToText, mean_loss
from hf_lm.tokenization.tokenizer import SpecialTokens, encode_documents, encode_with_offsets, special_tokens_around

NONE = "none"  # what an API is asked to say where a text holds no answer


@dataclass
class Window:
    """A feature that reads part of a row's context, from its token `first` on; token t stands at offsets[t]."""

    row: int
    first: int
    offsets: np.ndarray  # (tokens of the context in this window, 2)


@dataclass
class EncodedWindows(Encoded):
    """Features with the window that each of them is; `rows` counts questions."""

    windows: list[Window] = field(default_factory=list)

    def report(self) -> dict[str, Any]:
        rows = 1 + max((window.row for window in self.windows), default=-1)
        return super().report() | {"rows": rows, "windows": len(self.windows)}


class _Answers:
    """What is the same however an answer is found: rows of questions and contexts, texts that are scored."""

    recipe, pipeline_tag = "question_answering", "question-answering"
    kind = "model that answers questions from a text"
    metric_names = (
        *("f1", "exact_match", "has_answer_f1", "has_answer_exact_match", "no_answer_f1", "no_answer_exact_match"),
    )
    main_metric, metric, unit = metric_names[0], Metric, "questions"
    columns = ("question", "context", "answers")
    settings: ClassVar = {"max_length": 384, "stride": 128, "max_target_length": 32}
    inputs = ("question", "context")
    pipeline_options: ClassVar = {"align_to_words": False}  # answers by token
    read = staticmethod(read_question_answering)
    confidence_threshold = 0.8
    table: Table

    @classmethod
    def texts_of(cls, row: Row) -> list[str]:
        return [row["question"], row["context"]]

    @classmethod
    def instruction(
        cls, train: Sequence[Row], labels: Sequence[str], columns: Mapping[str, str], few_shot: int
    ) -> str:
        unanswerable = any(not row["answers"] for row in train)
        what = f" If the text does not hold the answer, say {NONE}." if unanswerable else ""
        return f"Answer the question with the fewest words of the text that answer it, copied as they stand.{what}"

    @classmethod
    def as_prompt(cls, row: Row) -> str:
        return f"{row['context']}\n\n{row['question']}"

    @classmethod
    def as_answer(cls, row: Row) -> str:
        return row["answers"][0] if row["answers"] else NONE

    @classmethod
    def examples_of(
        cls, rows: Sequence[Row], answers: Sequence[str], labels: Sequence[str]
    ) -> tuple[list[dict[str, Any]], int]:
        return answered(rows, ["" if " ".join(normal_words(answer)) == NONE else answer for answer in answers]), 0

    @classmethod
    def estimates_of(cls, examples: Sequence[dict[str, Any]], labels: Sequence[str]) -> dict[str, Estimate]:
        """The metrics of examples; questions about one context are right or wrong together, and count as one unit."""
        units = units_of([row.get("context", str(i)) for i, row in enumerate(examples)])
        found = Metric().estimates([row["prediction"] for row in examples], [row["reference"] for row in examples])
        return {name: replace(estimate, units=units) for name, estimate in found.items()}

    @classmethod
    def prediction_of(cls, given: object, output: Mapping[str, Any]) -> dict[str, Any]:
        return {"prediction": output["answer"], **{key: output[key] for key in ("score", "start", "end")}}

    def row_of(self, text: str) -> Row:
        raise ValueError(
            "a text alone asks nothing: questions without answers come as rows of a question and a context"
        )

    def with_label(self, row: Row, prediction: str) -> Row | None:
        """Nothing answered is an answer too; one that stands twice in its context is none, for where is not known."""
        if prediction and row["context"].count(prediction) != 1:
            return None
        answers = [prediction] if prediction else []
        return row | {"answers": answers, "starts": [row["context"].index(one) for one in answers]}

    def strata(self, rows: Sequence[Row]) -> list[bool]:
        return [bool(row["answers"]) for row in rows]

    def label_counts(self) -> dict[str, dict[str, int]]:
        has = {split: sum(bool(row["answers"]) for row in rows) for split, rows in self.table.rows.items()}
        return {split: {"answered": n, "no answer": len(self.table.rows[split]) - n} for split, n in has.items()}

    def scores(self, split: str, texts: Sequence[str], loss: float | None) -> Scores:
        examples = answered(self.table.rows[split], texts)
        return Scores(self.estimates_of(examples, []), examples, loss)

    def example(self) -> dict[str, str]:
        rows = self.table.rows[self.table.splits[-1]][:200]
        row = min(rows, key=lambda row: abs(len(row["context"]) - 300))
        return {"question": row["question"], "context": row["context"]}

    def baseline(self, split: str) -> tuple[str, Scores]:
        """The better of two constant answers: the first sentence and, as SQuAD v2 has it, none."""
        rows = self.table.rows[split]
        first = self.scores(split, [sentences(row["context"]).split("\n")[0] for row in rows], None)
        none = self.scores(split, [""] * len(rows), None)
        silent = none.estimates["f1"].value > first.estimates["f1"].value
        return ("never answer", none) if silent else ("first sentence", first)


def answered(rows: Sequence[Row], texts: Sequence[str]) -> list[dict[str, Any]]:
    """Rows and the answers to them as rows of predictions.jsonl."""
    by_character = lack_spaces([row["answers"] for row in rows])
    return [
        {
            "id": row["id"],
            "input": row["question"],
            "context": row["context"],
            "reference": row["answers"],
            "prediction": text,
            "score": answer_score(text, row["answers"], by_character=by_character)[1],
        }
        for row, text in zip(rows, texts, strict=True)
    ]


class QuestionAnswering(_Answers, Supervised):
    """Spans by a start and an end logit per token. A window without the answer points to its first token.

    `max_length`: tokens of a window, with the question; `stride`: tokens that two windows share.
    """

    auto_class, how = "AutoModelForQuestionAnswering", "a head that points to the answer"
    loss = staticmethod(span_loss)

    @classmethod
    def from_start(
        cls,
        table: Table,
        start: Start,
        *,
        max_length: int,
        stride: int,
        max_target_length: int,
        drop_overlap: bool = False,
    ) -> Supervised:
        if start.as_text:
            return QuestionAnsweringAsText(
                table,
                start.tokenizer,
                start.model,
                max_source_length=max_length,
                max_target_length=max_target_length,
                drop_overlap=drop_overlap,
            )
        max_length = start.at_most(max_length)
        windows = {"max_length": max_length, "stride": min(stride, max_length // 3)}
        causal = start.family == "decoder"
        return cls(table, start.tokenizer, causal=causal, **windows, drop_overlap=drop_overlap)

    def __init__(
        self,
        table: Table,
        tokenizer: PreTrainedTokenizerBase,
        *,
        causal: bool,
        max_length: int,
        stride: int,
        drop_overlap: bool = False,
    ) -> None:
        self.frame, self.max_length, self.stride = special_tokens_around(tokenizer, causal=causal), max_length, stride
        self.threshold = 0.0  # by how much no answer must be likelier than the best one; chosen on validation
        super().__init__(table, tokenizer, drop_overlap=drop_overlap)
        self.unanswerable = any(not row["answers"] for row in table.rows["train"])
        self.needs_validation = self.unanswerable

    def inference_settings(self) -> dict[str, Any]:
        """The windows, and whether and when there is no answer, as it was chosen on validation."""
        lengths = {"max_seq_len": self.max_length, "doc_stride": self.stride, "max_question_len": self.max_length // 3}
        when = {"handle_impossible_answer": self.unanswerable, "no_answer_margin": self.threshold}
        return lengths | {"max_answer_len": LONGEST_ANSWER} | when

    def text_of(self, row: Row) -> str:
        return row["question"] + "\n" + row["context"]

    def encode(self, rows: Sequence[Row]) -> EncodedWindows:
        encoded = windows_of(
            self.tokenizer,
            rows,
            frame=self.frame,
            max_length=self.max_length,
            stride=self.stride,
            max_question=self.max_length // 3,
        )
        for window, feature in zip(encoded.windows, encoded.features, strict=True):
            feature["labels"] = self._span(rows[window.row], window)
        return encoded

    def windows(self, split: str) -> list[Window]:
        return cast(EncodedWindows, self.encoded[split]).windows

    def rows_of_features(self, split: str) -> Sequence[int]:
        return [window.row for window in self.windows(split)]

    def _span(self, row: Row, window: Window) -> list[int]:
        """The first and the last token of the answer in a window; [0, 0] where it does not hold all of it."""
        if not row["answers"] or row["starts"][0] is None or not len(window.offsets):
            return [0, 0]
        begin = row["starts"][0]
        end = begin + len(row["answers"][0])
        if begin < window.offsets[0, 0] or end > window.offsets[-1, 1]:
            return [0, 0]
        first = int(np.searchsorted(window.offsets[:, 1], begin, side="right"))
        last = int(np.searchsorted(window.offsets[:, 0], end, side="left")) - 1
        return [window.first + first, window.first + last]

    def predict(self, model: PreTrainedModel, split: str, accelerator: Processes | None) -> Sequence[Any]:
        """(score, start, end, score of no answer, loss) per window; start and end are tokens of the window."""
        windows = self.windows(split)

        def spans(outputs: WithSpanLogits, batch: Batch, rows: list[int]) -> list[tuple]:
            logits = span_logits(outputs, batch)
            start, end = logits.unbind(1)
            losses = logits.log_softmax(-1).gather(2, batch["labels"][..., None]).flatten(1).sum(1)
            first = torch.tensor([windows[i].first for i in rows], device=logits.device)
            length = torch.tensor([len(windows[i].offsets) for i in rows], device=logits.device)
            best = best_spans(start, end, first=first, length=length)
            null = start[:, 0] + end[:, 0]
            return list(zip(*(part.tolist() for part in (*best, null, -losses)), strict=True))

        return self.map_batches(spans, model, split, accelerator)

    def score(self, split: str, answers: Sequence[Any]) -> Scores:
        rows = self.table.rows[split]
        texts, margins = self._texts(split, answers)
        loss = float(np.mean([answer[4] for answer in answers])) / 2
        if self.unanswerable and split == "validation":
            self.threshold = best_threshold(margins, texts, [row["answers"] for row in rows])
        if self.unanswerable:
            texts = [text if margin > self.threshold else "" for text, margin in zip(texts, margins, strict=True)]
        return self.scores(split, texts, loss)

    def _texts(self, split: str, answers: Sequence[Any]) -> tuple[list[str], np.ndarray]:
        """The best span of each row over its windows, and by how much it is likelier than no answer, (rows,)."""
        rows, windows = self.table.rows[split], self.windows(split)
        best, null = np.full(len(rows), -1e30), np.full(len(rows), np.inf)
        texts = [""] * len(rows)
        for window, (score, start, end, nothing, _) in zip(windows, answers, strict=True):
            null[window.row] = min(null[window.row], nothing)
            if score > best[window.row] and len(window.offsets):  # a tokenizer may leave nothing of a context
                best[window.row] = score
                begin, stop = window.offsets[start - window.first, 0], window.offsets[end - window.first, 1]
                texts[window.row] = rows[window.row]["context"][begin:stop].strip()
        return texts, best - null

    def label_proof(self) -> Proof:
        """The labelled spans of the first windows must give back the answers."""
        rows, encoded, found, wider = self.table.rows["train"], self.encoded["train"], set(), set()
        windows, wrong = self.windows("train")[:400], []
        by_character = lack_spaces([row["answers"] for row in rows])
        for window, feature in zip(windows, encoded.features, strict=False):
            first, last = feature["labels"]
            if last:
                begin, end = window.offsets[first - window.first, 0], window.offsets[last - window.first, 1]
                said, meant = rows[window.row]["context"][begin:end], rows[window.row]["answers"][0]
                found.add(window.row)
                exact = answer_score(said, rows[window.row]["answers"], by_character=by_character)[0]
                wider |= set() if exact else {window.row}
                if meant not in said or len(said) > len(meant) + 8:  # a token may hold more than the answer
                    wrong.append((said, meant))
        whole = {window.row for window in windows if window.row < windows[-1].row or len(windows) < 400}
        asked = {row for row in whole if rows[row]["answers"]}
        lost = len(asked - found)
        if wrong:
            return Proof(False, f"{len(wrong)} labels give another span: {wrong[0][0]!r} for {wrong[0][1]!r}")
        if lost:
            more = "--stride" if self.stride < self.max_length // 3 else "--max_length (windows share a third at most)"
            return Proof(False, f"{lost} of {len(asked)} answers do not fit completely into any window: raise {more}")
        said = f"the labels of {len(found)} questions give back their answers, each whole in a window"
        if wider:
            said += f"; {len(wider)} of them with characters beside that their tokens hold, so that no match is exact"
        return Proof(True, said)

    def render_row(self, row: dict[str, Any]) -> list[Part]:
        ids, (first, last) = row["input_ids"], row["labels"]
        text = f"token {first} and token {last}" if last else "token 0 twice: the answer is not in this window"
        learned = [0 < first <= i <= last for i in range(len(ids))]
        return [Part("reads", token_pieces(self.tokenizer, ids, learned)), Part("learns to point to", text=text)]


class QuestionAnsweringAsText(_Answers, TextToText):
    """Answers written after question and context; nothing is written where there is none. For encoder-decoders."""

    cue = "\nAnswer: "

    def text_of(self, row: Row) -> str:
        return f"question: {row['question']} context: {row['context']}"  # as T5 was taught

    def target_of(self, row: Row) -> str:
        return row["answers"][0] if row["answers"] else ""

    def score(self, split: str, answers: Sequence[Any]) -> Scores:
        return self.scores(split, [answer[0] for answer in answers], mean_loss(answers))


def windows_of(
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    *,
    frame: SpecialTokens,
    max_length: int,
    stride: int,
    max_question: int,
    align_to_words: bool = False,  # offsets are those of words, not of tokens
) -> EncodedWindows:
    """Questions and contexts as windows of at most `max_length` tokens, of which two share `stride`.

    The question stands first, cut to `max_question` tokens, so that a causal model has read it. Contexts that occur
    several times are tokenized once.
    """
    encoded, types = EncodedWindows(), "token_type_ids" in tokenizer.model_input_names
    questions = encode_documents(tokenizer, [row["question"] for row in rows])
    different = list(dict.fromkeys(row["context"] for row in rows))
    encoded_contexts = encode_with_offsets(tokenizer, different, align_to_words=align_to_words)
    contexts = dict(zip(different, encoded_contexts, strict=True))
    around = len(frame.before) + len(frame.between) + len(frame.after)
    for number, (row, question) in enumerate(zip(rows, questions, strict=True)):
        ids, offsets = contexts[row["context"]]
        encoded.tokens += len(ids)
        question = encoded.truncated(question, max_question)
        room = room_beside(around + len(question), max_length, "--max_length")
        before = [*frame.before, *question, *frame.between]
        for start in range(0, max(1, len(ids) - stride), max(1, room - stride)):
            part = ids[start : start + room]
            feature = {"input_ids": [*before, *part, *frame.after]}
            if types:
                feature["token_type_ids"] = [0] * len(before) + [1] * (len(part) + len(frame.after))
            encoded.features.append(feature)
            encoded.windows.append(Window(number, len(before), offsets[start : start + room]))
    return encoded
