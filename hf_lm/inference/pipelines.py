"""`pipeline`: a drop-in for those that transformers 5 removed, with the calls and outputs they had in transformers 4.

    from hf_lm import pipeline                                     # instead of: from transformers import pipeline
    pipeline("question-answering", model="out/question_answering")(question="...", context="...")

Any other task goes through to `transformers.pipeline`; nothing of transformers is patched.
"""

import math
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from hf_lm.data.batches import map_by_length, pad_batch
from hf_lm.models.adapters import load_merged
from hf_lm.models.configuration import check_checkpoint, context_length, family, find_adapter, load_config
from hf_lm.models.loading import load_weights, load_with_head
from hf_lm.models.target_tokenizer import decode_targets, find_target, writes_apart
from hf_lm.tasks.question_answering import windows_of
from hf_lm.tasks.spans import top_spans
from hf_lm.tokenization.tokenizer import encode_documents, frame_of, load_tokenizer, set_pad

CLASSIFIERS = ("text-classification", "sentiment-analysis")
LOADING = ("dtype", "torch_dtype", "device_map", "revision", "token")  # options that are for the model's weights
AT_ONCE = 256  # inputs of a stream that are read ahead, to put like-sized ones into a batch
KEYS = {"summarization": "summary_text", "translation": "translation_text", "text2text-generation": "generated_text"}


def pipeline(
    task: str | None = None,
    model: str | PreTrainedModel | None = None,
    tokenizer: str | PreTrainedTokenizerBase | None = None,
    *,
    device: Any = None,
    **options: Any,
) -> Any:
    """A callable for a task. See the classes below for the four that live here, transformers for all others.

    `model`: a folder, a Hub id or a model; its tokenizer is loaded from the same place unless given. Raises ValueError
    where a task here is asked for without a model.
    """
    kind = "translation" if task and task.startswith("translation_") else task
    if kind not in KEYS and kind != "question-answering":
        import transformers

        if isinstance(model, str) and (kind in CLASSIFIERS or find_adapter(model)):
            if tokenizer is None or isinstance(tokenizer, str):
                tokenizer = load_tokenizer(tokenizer or model)
            if kind in CLASSIFIERS:  # transformers would answer with a head that was never trained
                loading = {key: options.pop(key) for key in LOADING if key in options}
                loading = {"dtype": "auto"} | loading | options.pop("model_kwargs", {})
                head = AutoModelForSequenceClassification
                model = load_with_head(model, head, tokenizer=tokenizer, trained=True, **loading).eval()
            else:  # transformers would not know what adapted_config.json says
                model = load_merged(model, tokenizer=tokenizer)
        elif isinstance(model, str):
            check_checkpoint(model)
            options["model_kwargs"] = {"use_safetensors": True} | options.get("model_kwargs", {})
        given = {"task": task, "model": model, "tokenizer": tokenizer, "device": device}
        return transformers.pipeline(**{k: v for k, v in given.items() if v is not None}, **options)
    if model is None:
        raise ValueError(f"pipeline({task!r}) needs model=..., a folder or a Hub id.")
    options.pop("framework", None)  # there is one
    made = QuestionAnsweringPipeline if kind == "question-answering" else TextToTextPipeline
    return made(kind, model, tokenizer, device=device, named=task, **options)


class _Pipeline:
    """What both share: loading, devices, and inputs that are one thing, a list of them or a stream."""

    auto_classes: dict[str, Any]

    def __init__(
        self,
        task: str,
        model: str | PreTrainedModel,
        tokenizer: str | PreTrainedTokenizerBase | None = None,
        *,
        device: Any = None,
        named: str = "",  # the task with its languages, translation_en_to_de
        batch_size: int = 32,
        dtype: Any = "auto",
        torch_dtype: Any = None,  # its name before transformers 5
        **options: Any,
    ) -> None:
        if isinstance(model, str):
            name, config = model, load_config(model)
            tokenizer = tokenizer or name
            model = load_weights(self.auto_classes[family(config)], name, config, dtype=torch_dtype or dtype)
        if tokenizer is None:
            raise ValueError("pipeline: a model that is no name needs tokenizer=...")
        if isinstance(tokenizer, str):
            tokenizer = load_tokenizer(tokenizer)
        if not writes_apart(tokenizer) and tokenizer.name_or_path:
            find_target(tokenizer, tokenizer.name_or_path)
        set_pad(tokenizer)
        self.task, self.model, self.tokenizer, self.options = task, model.eval(), tokenizer, options
        self.named = named
        self.batch_size = batch_size
        self.causal = family(model.config) == "decoder"
        self.frame = frame_of(tokenizer, causal=self.causal)
        if isinstance(device, int):
            device = "cpu" if device < 0 else f"{torch.accelerator.current_accelerator() or 'cpu'}"
        self.device = torch.device(device) if device is not None else model.device
        self.model.to(self.device)

    def _answer(self, inputs: Any, options: dict[str, Any]) -> Any:
        """One input gives one answer, a list a list, anything else that can be walked through a stream of answers."""
        options = self.options | options
        if isinstance(inputs, (str, dict)):
            return self._together([inputs], **options)[0]
        if isinstance(inputs, (list, tuple)):
            return self._together(list(inputs), **options)
        return self._stream(iter(inputs), options)

    def _stream(self, inputs: Iterator[Any], options: dict[str, Any]) -> Iterator[Any]:
        while some := list(islice(inputs, AT_ONCE)):
            yield from self._together(some, **options)

    def _together(self, inputs: list[Any], **options: Any) -> list[Any]:
        raise NotImplementedError


class TextToTextPipeline(_Pipeline):
    """`summarization`, `translation`, `translation_xx_to_yy` and `text2text-generation`: a text for a text.

    Called with a text, a list or an iterable of them, and anything that `generate` takes. Returns, per input, a list
    with a dict that holds `summary_text`, `translation_text` or `generated_text`, as transformers 4 did.
    """

    auto_classes = {  # noqa: RUF012
        "decoder": AutoModelForCausalLM,
        "encoder-decoder": AutoModelForSeq2SeqLM,
        "encoder": AutoModelForSeq2SeqLM,
    }

    def __call__(self, inputs: str | Iterable[str], **options: Any) -> Any:
        if isinstance(inputs, str):
            return self._together([inputs], **self.options | options)
        return self._answer(inputs, options)

    def room(self) -> int:
        """Tokens of a text that are read."""
        positions = context_length(self.model.config) or 10**6
        room = positions - len(self.frame.before) - sum(map(len, self._around())) - len(self.frame.after)
        return room - (self.model.generation_config.max_new_tokens or positions // 2) if self.causal else room

    def _around(self) -> tuple[list[int], list[int]]:
        """What stands before a text, and between it and the answer."""
        known = getattr(self.model.config, "task_specific_params", None) or {}
        settings = known.get(self.named) or known.get(self.task, {})
        before = encode_documents(self.tokenizer, [settings.get("prefix", "")])[0]
        return before, encode_documents(self.tokenizer, [settings.get("cue", "")])[0] if self.causal else []

    @torch.no_grad()
    def _together(
        self,
        inputs: list[str],
        *,
        batch_size: int | None = None,
        clean_up_tokenization_spaces: bool = False,
        truncation: Any = True,
        return_text: bool = True,
        **generation: Any,
    ) -> list[Any]:
        before, cue = self._around()
        room = self.room()
        prompts = [
            [*self.frame.before, *before, *ids[:room], *cue, *self.frame.after]
            for ids in encode_documents(self.tokenizer, inputs)
        ]

        def write(rows: list[int]) -> list[str]:
            features = [{"input_ids": prompts[i]} for i in rows]
            batch = pad_batch(features, pad_id=self.tokenizer.pad_token_id, left=self.causal).items()
            ids = self.model.generate(**{key: value.to(self.device) for key, value in batch}, **generation)
            ids = ids[:, len(prompts[rows[0]]) :] if self.causal else ids  # the first row is the longest
            return decode_targets(self.tokenizer, ids)

        lengths = [len(prompt) for prompt in prompts]
        texts = map_by_length(write, lengths, description=self.task, max_rows=batch_size or self.batch_size)
        return [{KEYS[self.task]: text.strip()} for text in texts]


class QuestionAnsweringPipeline(_Pipeline):
    """`question-answering`: a span of a context of any length, read in windows that overlap.

    Called with `question` and `context` (strings, or lists of them), a dict of both, or a list or iterable of dicts.
    Returns {"score", "start", "end", "answer"}; a list of them where `top_k` is above 1. `score` is the probability of
    the first token times that of the last, in the window that gives the most; with `handle_impossible_answer` the
    answer may be empty.
    """

    auto_classes = {  # noqa: RUF012
        "decoder": AutoModelForQuestionAnswering,
        "encoder": AutoModelForQuestionAnswering,
        "encoder-decoder": AutoModelForQuestionAnswering,
    }

    def __call__(self, inputs: Any = None, *, question: Any = None, context: Any = None, **options: Any) -> Any:
        if question is not None:
            if isinstance(question, str):
                inputs = {"question": question, "context": context}
            else:
                contexts = [context] * len(question) if isinstance(context, str) else context
                inputs = [{"question": q, "context": c} for q, c in zip(question, contexts, strict=True)]
        return self._answer(inputs, options)

    @torch.no_grad()
    def _together(
        self,
        inputs: list[dict[str, str]],
        *,
        top_k: int = 1,
        doc_stride: int = 128,
        max_answer_len: int = 15,
        max_seq_len: int = 384,
        max_question_len: int = 64,
        handle_impossible_answer: bool = False,
        batch_size: int | None = None,
        **ignored: Any,
    ) -> list[Any]:
        for row in inputs:
            if not row["question"] or not row["context"]:
                raise ValueError("question-answering: the question or the context is empty.")
        length = min(max_seq_len, context_length(self.model.config) or max_seq_len)
        encoded = windows_of(
            self.tokenizer, inputs, frame=self.frame, max_length=length, stride=min(doc_stride, length // 3),
            max_question=min(max_question_len, length // 3),
        )  # fmt: skip

        def spans(rows: list[int]) -> list[Any]:
            features = [encoded.features[i] for i in rows]
            batch = {k: v.to(self.device) for k, v in pad_batch(features, pad_id=self.tokenizer.pad_token_id).items()}
            outputs = self.model(**batch)
            first = torch.tensor([encoded.windows[i].first for i in rows], device=self.device)
            size = torch.tensor([len(encoded.windows[i].offsets) for i in rows], device=self.device)
            places = torch.arange(outputs.start_logits.shape[1], device=self.device)
            shown = (places >= first[:, None]) & (places < (first + size)[:, None]) | (places == 0)
            start, end = (
                logits.float().masked_fill(~shown, -1e30).log_softmax(-1)
                for logits in (outputs.start_logits, outputs.end_logits)
            )
            return top_spans(start, end, first=first, length=size, longest=max_answer_len, count=max(top_k, 20))

        lengths = [len(feature["input_ids"]) for feature in encoded.features]
        found = map_by_length(spans, lengths, description=self.task, max_rows=batch_size or self.batch_size)
        candidates: list[dict[tuple[int, int], float]] = [{} for _ in inputs]
        for window, (scores, starts, ends, null) in zip(encoded.windows, found, strict=True):
            of_row, context = candidates[window.row], inputs[window.row]["context"]
            for score, start, end in zip(scores, starts, ends, strict=True):
                begin, stop = window.offsets[start - window.first, 0], window.offsets[end - window.first, 1]
                text = context[begin:stop]
                place = int(begin) + len(text) - len(text.lstrip()), int(stop) - len(text) + len(text.rstrip())
                of_row[place] = max(score, of_row.get(place, -1e30))
            if handle_impossible_answer:  # none, if no window holds an answer
                of_row[0, 0] = min(null, of_row.get((0, 0), 0.0))
        return [self._best(of_row, row["context"], top_k) for of_row, row in zip(candidates, inputs, strict=True)]

    def _best(self, candidates: dict[tuple[int, int], float], context: str, top_k: int) -> Any:
        ranked = sorted(candidates.items(), key=lambda item: -item[1])[:top_k]
        answers = [
            {"score": math.exp(score), "start": begin, "end": stop, "answer": context[begin:stop]}
            for (begin, stop), score in ranked
        ]
        return answers[0] if top_k == 1 else answers
