"""The pipeline question-answering: a span of a context of any length."""

import math
from collections.abc import Iterable
from functools import partial
from types import GeneratorType
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import AutoModelForQuestionAnswering

from hf_lm.data.batches import map_by_length, pad_batch
from hf_lm.inference.pipeline_base import BasePipeline
from hf_lm.models.configuration import context_length
from hf_lm.tasks.question_answering import EncodedWindows, windows_of
from hf_lm.tasks.spans import top_spans
from hf_lm.tokenization.tokenizer import special_tokens_around

Row = dict[str, str]
NEVER, SURE = (-math.inf, -math.inf), (math.inf, 0.0)  # what a span is ranked by, and the logarithm of its probability


class QuestionAnsweringPipeline(BasePipeline):
    """`question-answering`: a span of a context of any length, read in windows that overlap.

    Called with `question` and `context` (strings, or lists of them), both as positional arguments, a dict of both, a
    SquadExample, or a list or an iterable of these. Returns {"score", "start", "end", "answer"}, a list of them where
    `top_k` is above 1, and a list of answers for several questions. `score` is the probability of the first token
    times that of the last, in the window that gives the most; with `handle_impossible_answer` the answer may be empty.
    A model of the recipe answers as it was measured: its configuration has the lengths, and the margin by which no
    answer must be likelier; windows are then compared by their logits, others by `score`.
    """

    auto_classes = dict.fromkeys(("decoder", "encoder", "encoder-decoder"), AutoModelForQuestionAnswering)

    def __call__(
        self,
        *inputs: object,
        question: object = None,
        context: object = None,
        data: object = None,
        X: object = None,
        **options: Any,
    ) -> Any:
        options = self._options(options)
        if len(inputs) == 2 and all(isinstance(each, str) for each in inputs):
            inputs = ({"question": inputs[0], "context": inputs[1]},)
        elif not inputs and data is None and X is None:
            inputs = ({"question": question, "context": context},)
        asked = inputs[0] if len(inputs) == 1 else list(inputs) or (data if X is None else X)
        if isinstance(asked, (GeneratorType, Dataset)):
            return self._stream((row for each in iter(asked) for row in _questions(each)), options)
        answers = self._together(_questions(asked), **options)
        return answers[0] if len(answers) == 1 else answers  # also of a list of one, as in transformers 4

    @torch.no_grad()
    def _together(
        self,
        inputs: list[Row],
        *,
        top_k: int = 1,
        topk: int | None = None,  # its name of old
        doc_stride: int | None = None,  # tokens that two windows share; None is the model's own, or 128
        max_answer_len: int | None = None,  # tokens; or 15
        max_seq_len: int | None = None,  # tokens of a window, with the question; or 384
        max_question_len: int | None = None,  # or 64
        handle_impossible_answer: bool | None = None,  # or False
        align_to_words: bool = True,  # widens a span to the tokenizer's words, which may hurt Chinese and Japanese
        batch_size: int | None = None,
    ) -> list[Any]:
        top_k, own = top_k if topk is None else topk, self.settings.get
        longest = own("max_answer_len", 15) if max_answer_len is None else max_answer_len
        for name, value in (("top_k", top_k), ("max_answer_len", longest)):
            if value < 1:
                raise ValueError(f"question-answering: {name} is {value}; it must be at least 1.")
        length = max_seq_len or own("max_seq_len", 384)
        length = min(length, context_length(self.model.config) or 10**6, self.tokenizer.model_max_length)
        if doc_stride is not None and doc_stride >= length:
            raise ValueError(f"question-answering: doc_stride is {doc_stride}; a window has {length} tokens.")
        stride = own("doc_stride", 128) if doc_stride is None else doc_stride
        question = own("max_question_len", 64) if max_question_len is None else max_question_len
        may_be_none = own("handle_impossible_answer", False)
        may_be_none = may_be_none if handle_impossible_answer is None else handle_impossible_answer
        encoded = windows_of(
            self.tokenizer,
            inputs,
            frame=special_tokens_around(self.tokenizer, causal=self.causal),
            max_length=length,
            stride=min(stride, length // 3),
            max_question=min(question, length // 3),
            align_to_words=align_to_words,
        )
        work = partial(self._spans, encoded, longest, max(top_k, 20))
        lengths = [len(feature["input_ids"]) for feature in encoded.features]
        scored = map_by_length(work, lengths, description=self.task, max_rows=batch_size or self.batch_size)
        candidates: list[dict[tuple[int, int], tuple[float, float]]] = [{} for _ in inputs]
        for window, (scores, starts, ends, null, total) in zip(encoded.windows, scored, strict=True):
            of_row, context = candidates[window.row], inputs[window.row]["context"]
            for score, start, end in zip(scores, starts, ends, strict=True):
                begin, stop = window.offsets[start - window.first, 0], window.offsets[end - window.first, 1]
                text = context[begin:stop]
                place = int(begin) + len(text) - len(text.lstrip()), int(stop) - len(text) + len(text.rstrip())
                of_row[place] = max(self._ranked(score, total), of_row.get(place, NEVER))
            if may_be_none:  # no answer, if no window holds one
                of_row[0, 0] = min(self._ranked(null + own("no_answer_margin", 0.0), total), of_row.get((0, 0), SURE))
        return [_best(of_row, row["context"], top_k) for of_row, row in zip(candidates, inputs, strict=True)]

    def _ranked(self, score: float, total: float) -> tuple[float, float]:
        """What spans of several windows are compared by, and the logarithm of their probability in their window."""
        return (score if self.settings else score - total), score - total

    def _spans(self, encoded: EncodedWindows, longest: int, count: int, rows: list[int]) -> list[Any]:
        """The `count` likeliest spans of each window in `rows`, as `top_spans` gives them, and log sum exp of all."""
        features = [encoded.features[i] for i in rows]
        batch = {k: v.to(self.device) for k, v in pad_batch(features, pad_id=self.pad_id).items()}
        outputs = self.model(**batch)
        first = torch.tensor([encoded.windows[i].first for i in rows], device=self.device)
        size = torch.tensor([len(encoded.windows[i].offsets) for i in rows], device=self.device)
        places = torch.arange(outputs.start_logits.shape[1], device=self.device)
        shown = (places >= first[:, None]) & (places < (first + size)[:, None]) | (places == 0)
        start, end = (
            logits.float().masked_fill(~shown, -1e30) for logits in (outputs.start_logits, outputs.end_logits)
        )
        totals = (start.logsumexp(-1) + end.logsumexp(-1)).tolist()
        spans = top_spans(start, end, first=first, length=size, longest=longest, count=count)
        return [(*some, total) for some, total in zip(spans, totals, strict=True)]


def _questions(asked: Any) -> list[Row]:
    """Rows of {"question", "context"} of whatever form.

    Raises ValueError for a question or context that is empty or not a text, and KeyError for a dict without them.
    """
    if hasattr(asked, "question_text"):  # a SquadExample
        asked = {"question": asked.question_text, "context": asked.context_text}
    if isinstance(asked, Iterable) and not isinstance(asked, (str, dict)):
        return [row for each in asked for row in _questions(each)]
    if not isinstance(asked, dict):
        raise ValueError(f"question-answering: {asked!r:.40} is not a dict with the keys question and context.")
    if not {"question", "context"} <= asked.keys():
        raise KeyError(f"question-answering: a dict needs the keys question and context; it has {sorted(asked)}.")
    question, context = asked["question"], asked["context"]
    if isinstance(question, (list, tuple)):
        contexts = [context] * len(question) if isinstance(context, str) else list(context or [])
        if len(contexts) != len(question):
            raise ValueError(f"question-answering: there are {len(question)} questions and {len(contexts)} contexts.")
        return _questions([{"question": q, "context": c} for q, c in zip(question, contexts, strict=True)])
    for name, text in (("question", question), ("context", context)):
        if not isinstance(text, str) or not text:
            raise ValueError(f"question-answering: the {name} is {text!r:.40}; it must be a text that is not empty.")
    return [{"question": question, "context": context}]


def _best(candidates: dict[tuple[int, int], tuple[float, float]], context: str, top_k: int) -> Any:
    candidates = candidates or {(0, 0): NEVER}  # of a context of which the tokenizer leaves nothing
    ranked = sorted(candidates.items(), key=lambda item: -item[1][0])[:top_k]
    answers = [
        {"score": math.exp(score), "start": begin, "end": stop, "answer": context[begin:stop]}
        for (begin, stop), (_, score) in ranked
    ]
    return answers[0] if top_k == 1 else answers
