"""Question answering from a text: the answer is a span of the context, or there is none.

Long contexts are read in windows that overlap; training, evaluation and prediction see the same windows.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_lm.data.batches import map_by_length
from hf_lm.data.reading import SURROGATE, plain_text
from hf_lm.data.tables import Row, Table, cell, drop_empty_splits, hold_out, pick_column
from hf_lm.evaluation.metrics import QuestionAnswering as Metric
from hf_lm.evaluation.metrics import answer_score, is_chinese, sentences
from hf_lm.tasks.losses import span_logits, span_loss
from hf_lm.tasks.proofs import Proof
from hf_lm.tasks.rendering import Part, token_pieces
from hf_lm.tasks.spans import best_spans, best_threshold
from hf_lm.tasks.supervised import Encoded, Scores, Supervised
from hf_lm.tasks.text_to_text import TextToText, mean_loss
from hf_lm.tokenization.tokenizer import SpecialTokens, encode_documents, encode_with_offsets, special_tokens_around

QUESTION, CONTEXT = ("question", "query", "0"), ("context", "passage", "document")  # columns, as they are often called


def read_question_answering(table: Table, *, question: str = "", context: str = "", answers: str = "") -> None:
    """Reduce a table to rows of {"id", "question", "context", "answers": [str], "starts": [int]}.

    Takes SQuAD's nested articles (v1 and v2) and flat rows. An offset at which the answer does not stand is repaired
    where the text occurs once in the context; otherwise the row is left out of train, and counted. Missing splits are
    cut by context.
    """
    where = f"--dataset {table.source}"
    if table.rows["train"] and "paragraphs" in table.rows["train"][0]:
        table.format += " that hold SQuAD's nested articles"
    for split, rows in table.rows.items():
        table.rows[split] = list(flat_rows(rows, f"{where}, {split}"))
    first = table.rows["train"]
    if not first:
        raise ValueError(f"{where} has no question in train.")
    names = {
        "question": pick_column(first, question, QUESTION, option="--question", where=where),
        "context": pick_column(first, context, CONTEXT, option="--context", where=where),
        "answers": pick_column(first, answers, ("answers", "answer"), option="--answers", where=where),
    }
    table.columns = names
    for split, rows in table.rows.items():
        found = [
            _row(row, number, names, table.left_out, f"{where}, {split} row {number + 1}")
            for number, row in enumerate(rows)
        ]
        unusable = [row for row in found if row is not None and None in row["starts"]]
        if split == "train":
            table.left_out["answers_not_in_their_context"] += len(unusable)
            found = [row for row in found if row is not None and None not in row["starts"]]
        table.rows[split] = [row for row in found if row is not None]
    drop_empty_splits(table, "with a question, a context and, if there is one, an answer that stands in it")
    hold_out(table, {"validation": 0.1, "test": 0.1}, group=lambda row: row["context"], unit="context")


def flat_rows(rows: Sequence[Row], where: str) -> Iterable[Row]:
    """SQuAD's articles as rows; rows as they are. Raises ValueError for an article of another form."""
    for number, row in enumerate(rows, 1):
        if "paragraphs" not in row:
            yield row
            continue
        try:
            yield from [{"context": part["context"], **asked} for part in row["paragraphs"] for asked in part["qas"]]
        except (TypeError, KeyError) as error:
            raise ValueError(
                f"{where}, article {number}: not of SQuAD's form, paragraphs of {{context, qas}} ({error})."
            ) from None


def _row(row: Row, number: int, names: dict[str, str], left_out: Counter, where: str) -> Row | None:
    question = cell(row, names["question"], where, left_out)
    context = plain_text(row.get(names["context"]), f"{where}: {names['context']!r}")
    context = SURROGATE.sub("\ufffd", context)  # of the same length: answers are found by their offsets
    if not question or not context.strip():
        left_out["rows_without_question_or_context"] += 1
        return None
    given = row.get(names["answers"])
    if given is None or given != given or row.get("is_impossible"):
        given = []
    if isinstance(given, dict):  # {"text": [...], "answer_start": [...]}
        texts, starts = given.get("text", []), given.get("answer_start", [])
        texts, starts = ([texts], [starts]) if isinstance(texts, str) else (texts, starts)
        if not (isinstance(texts, list) and isinstance(starts, list) and len(texts) == len(starts)):
            raise ValueError(f"{where}: the answers' text and answer_start must be lists of one length.")
        given = [{"text": text, "answer_start": start} for text, start in zip(texts, starts, strict=True)]
    given = [given] if isinstance(given, str) else given
    given = given if isinstance(given, list) else [given]
    given = [one if isinstance(one, dict) else {"text": one} for one in given]
    given = [one | {"text": plain_text(one.get("text"), f"{where}: an answer's text")} for one in given]
    given = [one for one in given if one["text"].strip()]
    answers = [one["text"] for one in given]
    starts = [_place(one, context, left_out, where) for one in given]
    key = str(row.get("id", number))
    return {"id": key, "question": question, "context": context, "answers": answers, "starts": starts}


def _place(answer: Row, context: str, left_out: Counter, where: str) -> int | None:
    """Where an answer stands in its context; None where that cannot be told."""
    text, start = answer["text"], answer.get("answer_start")
    start = -1 if start is None else start
    if isinstance(start, bool) or not isinstance(start, int):
        raise ValueError(f"{where}: answer_start is {start!r:.40}; it must be an integer, or left out.")
    if start >= 0 and context[start : start + len(text)] == text:
        return start
    if context.count(text) == 1:
        left_out["wrong_offsets_repaired"] += start >= 0
        return context.index(text)
    return None


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

    recipe, pipeline_tag, main_metric = "question_answering", "question-answering", "f1"
    unit = "questions"
    confidence_threshold = 0.8
    table: Table

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
        rows = self.table.rows[split]
        references = [row["answers"] for row in rows]
        estimates, chinese = Metric().estimates(texts, references), is_chinese(references)
        examples = [
            {
                "id": row["id"],
                "input": row["question"],
                "context": row["context"],
                "reference": row["answers"],
                "prediction": text,
                "score": answer_score(text, row["answers"], chinese=chinese)[1],
            }
            for row, text in zip(rows, texts, strict=True)
        ]
        return Scores(estimates, examples, loss)

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


class QuestionAnswering(_Answers, Supervised):
    """Spans by a start and an end logit per token. A window without the answer points to its first token.

    `max_length`: tokens of a window, with the question; `stride`: tokens that two windows share.
    """

    auto_class = "AutoModelForQuestionAnswering"
    loss = staticmethod(span_loss)

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

    def rows_of_features(self, split: str) -> Sequence[int]:
        return [window.row for window in self.encoded[split].windows]

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

    def predict(self, model: PreTrainedModel, split: str, accelerator: Accelerator | None) -> Sequence[Any]:
        """(score, start, end, score of no answer, loss) per window; start and end are tokens of the window."""
        encoded = self.encoded[split]
        windows, device = encoded.windows, next(model.parameters()).device

        def spans(rows: list[int]) -> list[tuple]:
            batch = {k: v.to(device) for k, v in self.collate([encoded.features[i] for i in rows]).items()}
            labels = batch.pop("labels")
            outputs = model(**batch)
            logits = span_logits(outputs, batch)
            start, end = logits.unbind(1)
            losses = logits.log_softmax(-1).gather(2, labels[..., None]).flatten(1).sum(1)
            first = torch.tensor([windows[i].first for i in rows], device=device)
            length = torch.tensor([len(windows[i].offsets) for i in rows], device=device)
            best = best_spans(start, end, first=first, length=length)
            null = start[:, 0] + end[:, 0]
            return list(zip(*(part.tolist() for part in (*best, null, -losses)), strict=True))

        lengths = [len(feature["input_ids"]) for feature in encoded.features]
        return map_by_length(spans, lengths, accelerator=accelerator, description=f"measuring {split}")

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
        rows, windows = self.table.rows[split], self.encoded[split].windows
        best, null = np.full(len(rows), -np.inf), np.full(len(rows), np.inf)
        texts = [""] * len(rows)
        for window, (score, start, end, nothing, _) in zip(windows, answers, strict=True):
            null[window.row] = min(null[window.row], nothing)
            if score > best[window.row]:
                best[window.row] = score
                begin, stop = window.offsets[start - window.first, 0], window.offsets[end - window.first, 1]
                texts[window.row] = rows[window.row]["context"][begin:stop].strip()
        return texts, best - null

    def label_proof(self) -> Proof:
        """The labelled spans of the first windows must give back the answers."""
        rows, encoded, found = self.table.rows["train"], self.encoded["train"], set()
        windows, wrong = encoded.windows[:400], []
        for window, feature in zip(windows, encoded.features, strict=False):
            first, last = feature["labels"]
            if last:
                begin, end = window.offsets[first - window.first, 0], window.offsets[last - window.first, 1]
                said, meant = rows[window.row]["context"][begin:end], rows[window.row]["answers"][0]
                found.add(window.row)
                if meant not in said or len(said) > len(meant) + 8:  # a token may hold more than the answer
                    wrong.append((said, meant))
        whole = {window.row for window in windows if window.row < windows[-1].row or len(windows) < 400}
        asked = {row for row in whole if rows[row]["answers"]}
        lost = len(asked - found)
        if wrong:
            return Proof(False, f"{len(wrong)} labels give another span: {wrong[0][0]!r} for {wrong[0][1]!r}")
        if lost:
            return Proof(False, f"{lost} of {len(asked)} answers stand whole in no window: raise --stride")
        return Proof(True, f"the labels of {len(found)} questions give back their answers, each whole in a window")

    def render_row(self, row: dict[str, Any]) -> list[Part]:
        ids, (first, last) = row["input_ids"], row["labels"]
        text = f"token {first} and token {last}" if last else "token 0 twice: the answer is not in this window"
        learned = [0 < first <= i <= last for i in range(len(ids))]
        return [Part("reads", token_pieces(self.tokenizer, ids, learned)), Part("learns to point to", text=text)]


class QuestionAnsweringAsText(_Answers, TextToText):
    """Answers written after question and context; nothing is written where there is none. For encoder-decoders."""

    cue = "\nAnswer: "

    def text_of(self, row: Row) -> str:
        return as_source(row["question"], row["context"])

    def target_of(self, row: Row) -> str:
        return row["answers"][0] if row["answers"] else ""

    def score(self, split: str, answers: Sequence[Any]) -> Scores:
        return self.scores(split, [answer[0] for answer in answers], mean_loss(answers))


def as_source(question: str, context: str) -> str:
    """Question and context as one text, as T5 was taught."""
    return f"question: {question} context: {context}"


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
        encoded.tokens += len(ids) + len(question)
        if len(question) > max_question:
            encoded.cut += 1
            encoded.tokens_cut += len(question) - max_question
            question = question[:max_question]
        room = max_length - around - len(question)
        before = [*frame.before, *question, *frame.between]
        for start in range(0, max(1, len(ids) - stride), max(1, room - stride)):
            part = ids[start : start + room]
            feature = {"input_ids": [*before, *part, *frame.after]}
            if types:
                feature["token_type_ids"] = [0] * len(before) + [1] * (len(part) + len(frame.after))
            encoded.features.append(feature)
            encoded.windows.append(Window(number, len(before), offsets[start : start + room]))
    return encoded
