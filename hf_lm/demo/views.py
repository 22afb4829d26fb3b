"""The contents of the page without the page: a class per kind of model, with methods of plain values.

view = load_view("out/question_answering")
html, note = view.answer("Who wrote it?", "It was written by Ada.")

Text of people, models and data is escaped wherever HTML is made.
"""

import base64
import html
import random
from collections.abc import Generator
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from hf_lm.data.reading import clean
from hf_lm.hub.records import read_report
from hf_lm.inference.chat import Conversation
from hf_lm.inference.generate import encode_prompt, load_writer
from hf_lm.inference.pipelines import pipeline
from hf_lm.inference.question_answering import QuestionAnsweringPipeline
from hf_lm.inference.text_to_text import TextToTextPipeline
from hf_lm.inference.writing import Draft, alternatives, continue_text
from hf_lm.models.configuration import context_length, family, load_config
from hf_lm.models.devices import device_named
from hf_lm.reporting.report import SHOWN as METRICS
from hf_lm.reporting.report import beside, in_words, warnings
from hf_lm.reporting.terminal import percent
from hf_lm.tokenization.chat_template import Message
from hf_lm.tokenization.tokenizer import encode_documents, load_tokenizer

LONGEST_INPUT = 100_000  # characters
OFFERED = 3  # alternatives
EMPTY = "there is no text yet."
SPANS = 5  # answers to a question
WRITTEN = {"translation": "Translation", "summarization": "Summary", "text2text-generation": "Text to text"}

Shown = tuple[str, str, list[tuple[str, str]]]  # text, note, (label, text) of each alternative


class View:
    """A model on the page. `title` names its kind; `report` is what its run measured, or {}."""

    title = ""

    def __init__(self, name: str, report: dict[str, Any] | None = None) -> None:
        self.name, self.report = name, report or {}


class LanguageModelView(View):
    """A model that generates text, and its tokenizer."""

    def __init__(
        self, name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, report: dict | None = None
    ) -> None:
        super().__init__(name, report)
        self.model, self.tokenizer = model, tokenizer


class WritingView(LanguageModelView):
    """The writing assistant.

    A draft belongs to one person. Each method takes the text in the box, with which it updates the draft first, and
    yields (the text to show, a note, the alternatives to offer as (label, text)).
    """

    title = "Writing"

    def write(self, draft: Draft, text: str, taken: str | None, decoding: dict[str, Any]) -> Generator[Shown]:
        """The text and its continuation, piece by piece; when it is closed early, what was written is kept."""
        text = _updated(draft, text)
        note = self._unread(text, decoding)
        pieces, written = continue_text(self.model, self.tokenizer, text, **decoding), ""
        try:
            for piece in pieces:
                written += piece
                yield text + written, note, []
        finally:
            pieces.close()
            draft.add(written)
        yield draft.text, note or ("" if written else "The model ends the text here."), []

    def alternatives(self, draft: Draft, text: str, taken: str | None, decoding: dict[str, Any]) -> Generator[Shown]:
        """Continuations of the text, each with the probability of its tokens."""
        text = _updated(draft, text)
        drawn = alternatives(self.model, self.tokenizer, text, count=OFFERED, **decoding)
        none = "" if drawn else "The model has no other continuation: try once more, or a higher temperature."
        offers = [(f"{each.text.strip()}  ({percent(each.per_token)} a token)", each.text) for each in drawn]
        yield text, self._unread(text, decoding) or none, offers

    def take(self, draft: Draft, text: str, taken: str | None, decoding: dict[str, Any]) -> Generator[Shown]:
        """The text and an alternative after it. Raises ValueError where the text was changed after it was offered."""
        if text != draft.text:
            _updated(draft, text)
            raise ValueError("the text has changed since these were offered: ask again.")
        draft.add(taken or "")
        yield draft.text, "", []

    def undo(self, draft: Draft, text: str, taken: str | None, decoding: dict[str, Any]) -> Generator[Shown]:
        _updated(draft, text)
        done = draft.undo()
        yield draft.text, "" if done else "There is nothing to undo.", []

    def redo(self, draft: Draft, text: str, taken: str | None, decoding: dict[str, Any]) -> Generator[Shown]:
        _updated(draft, text)
        done = draft.redo()
        yield draft.text, "" if done else "There is nothing to redo.", []

    def _unread(self, text: str, decoding: dict[str, Any]) -> str:
        longest = decoding.get("max_new_tokens", 0)
        _, unread = encode_prompt(self.model, self.tokenizer, text, max_new_tokens=longest)
        positions = context_length(self.model.config)
        note = f"The model's context is {positions:,} tokens: it did not read the first {unread:,} of this text."
        return note if unread else ""


class ChatView(LanguageModelView):
    """A chat. It holds no conversation: each message comes with those before it."""

    title = "Chat"

    def answer(self, text: str, history: list[Message], system: str = "") -> Generator[tuple[str, str]]:
        """(the answer so far, a note), piece by piece; each call samples another answer.

        A question in the history that has no answer is not shown to the model.
        """
        text = _read(text, EMPTY)
        following = [*history[1:], {"role": "user"}]
        answered = [
            m | {"content": clean(m["content"])}
            for m, after in zip(history, following, strict=False)
            if m["role"] != after["role"]
        ]
        seed = random.getrandbits(31)
        talk = Conversation(self.model, self.tokenizer, system=_read(system), messages=answered, seed=seed)
        with closing(talk.say(text.strip())) as pieces:
            note = (
                f"The context of {context_length(self.model.config):,} tokens is full: the model no longer sees the "
                f"oldest {talk.left_out} messages."
            )
            note = note if talk.left_out else ""
            for _ in pieces:
                yield talk.messages[-1]["content"], note
        answer = talk.messages[-1]["content"]
        yield answer, note or ("" if answer else "The answer is empty.")


class TextView(View):
    """A text for a text: translation, summarization, or whatever the model was trained for."""

    def __init__(self, name: str, made: TextToTextPipeline, task: str, report: dict | None = None) -> None:
        super().__init__(name, report)
        self.pipeline, self.task = made, task
        self.title = WRITTEN[task.split("_")[0]]  # of translation_en_to_de

    def answer(self, text: str) -> tuple[str, str]:
        """(the text written, a note)."""
        text = _read(text, EMPTY)
        [answer] = self.pipeline([text])
        return next(iter(answer.values())), _truncated(
            self.pipeline.tokenizer, text, self.pipeline.max_source_length()
        )


class ClassesView(View):
    """A text and the probability of each class."""

    title = "Classification"

    def __init__(self, name: str, made: Any, report: dict | None = None) -> None:
        super().__init__(name, report)
        self.pipeline = made
        self.title = "Sentiment" if self.report.get("recipe") == "sentiment" else self.title

    def answer(self, text: str) -> tuple[dict[str, float], str]:
        """(probability by class, a note)."""
        text = _read(text, EMPTY)
        tokenizer = self.pipeline.tokenizer  # which may not know how many positions the model has
        longest = min(context_length(self.pipeline.model.config) or 10**6, tokenizer.model_max_length)
        classes = self.pipeline(text, top_k=None, truncation=True, max_length=longest)
        budget = longest - tokenizer.num_special_tokens_to_add()
        return {each["label"]: each["score"] for each in classes}, _truncated(tokenizer, text, budget)


class AnswersView(View):
    """A question, a context, and the spans of it that answer best."""

    title = "Question answering"

    def __init__(self, name: str, made: QuestionAnsweringPipeline, report: dict | None = None) -> None:
        super().__init__(name, report)
        self.pipeline = made

    def answer(self, question: str, context: str) -> tuple[str, str]:
        """(HTML: the context with the answer marked, and the next best; a note)."""
        question, context = _read(question, "the question is empty."), _read(context, "the context is empty.")
        answers = self.pipeline(question=question, context=context, top_k=SPANS, align_to_words=False)
        best = answers[0]
        note = "" if best["answer"] else "The model finds no answer in this text."
        return marked(context, best["start"], best["end"]) + answers_table(answers), note


def load_view(name: str, *, device: str | torch.device | None = None) -> View:
    """The view that fits a model: a folder, an adapter's folder or a Hub id.

    It follows from the architecture, the report of the run and the chat template. Raises OSError or ValueError, in one
    line, where it is no model or one of a kind that the page does not show.
    """
    config, report = load_config(name), read_report(name) or {}
    kind, task = kind_of(config, report)
    if kind == "writer":
        model, tokenizer = load_writer(name, device=device)
        if not tokenizer.chat_template:
            return WritingView(name, model, tokenizer, report)
        Conversation(model, tokenizer)  # a template that cannot be used is an error before the page opens
        return ChatView(name, model, tokenizer, report)
    place = device_named(device)
    load_tokenizer(name)  # raises in one line where it cannot be used
    loaded = pipeline(task, model=name, device=place)
    if kind == "text":
        return TextView(name, loaded, task, report)
    return {"classes": ClassesView, "answers": AnswersView}[kind](name, loaded, report)


def kind_of(config: PreTrainedConfig, report: dict[str, Any]) -> tuple[str, str]:
    """(writer, text, classes or answers; the pipeline's task) of a model."""
    architecture = (config.architectures or [type(config).__name__])[0]
    if architecture.endswith("ForSequenceClassification"):
        return "classes", "text-classification"
    if architecture.endswith("ForQuestionAnswering"):
        return "answers", "question-answering"
    named = getattr(config, "task_specific_params", None) or {}
    known = [task for task in named if task.startswith(("summarization", "translation"))]
    of_run = [task for task in (report.get("recipe"),) if task in WRITTEN]
    if of_run or (known and family(config) == "encoder-decoder"):
        return "text", (of_run or known)[0]
    if family(config) == "encoder-decoder":
        return "text", "text2text-generation"
    if family(config) == "decoder" and ("CausalLM" in architecture or "LMHead" in architecture):
        return "writer", ""
    raise ValueError(
        f"{config.name_or_path or 'the model'} is a {architecture}, which the page does not show; it shows language "
        "models, chats, translation, summarization, classes of texts and question answering."
    )


def report_html(report: dict[str, Any], folder: str | Path) -> str:
    """A run's report as HTML: metrics with intervals and baselines, pictures, proofs and warnings."""
    parts = []
    for split, metrics in report.get("metrics", {}).items():
        rows = [
            (METRICS.get(name, (name,))[0].strip(), in_words(name, metric), beside(name, metric))
            for name, metric in metrics.items()
        ]
        title = f"{split.capitalize()}, 95 % interval over {report.get('unit', 'examples')}"
        parts.append(f"<h3>{html.escape(title)}</h3>" + _table(("metric", "value", "baseline"), rows))
    pictures = [_picture(path) for path in sorted(Path(folder).glob("plots/*.png"), key=_order)]
    if pictures:
        parts.append(f'<div class="plots">{"".join(pictures)}</div>')
    if proofs := report.get("proofs"):
        words = {True: "passed", None: "switched off", False: "FAILED"}
        rows = [
            (name.replace("_", " "), words[proof.get("passed")], proof.get("said", ""))
            for name, proof in proofs.items()
        ]
        parts.append("<h3>What was proved</h3>" + _table(("proof", "", "found"), rows))
    safety = report.get("safety", {}).get("findings", [])
    notes = [*(warnings(report) if "main_metric" in report else []), *safety]
    if notes:
        items = "".join(f"<li>{html.escape(str(note))}</li>" for note in notes)
        parts.append(f"<h3>What to know</h3><ul>{items}</ul>")
    return f'<div class="report">{"".join(parts)}</div>'


def marked(text: str, start: int, end: int) -> str:
    """A text as HTML with one part of it marked."""
    before, inside, after = (html.escape(part) for part in (text[:start], text[start:end], text[end:]))
    inside = f"<mark>{inside}</mark>" if inside else ""
    return f'<div class="context" dir="auto">{before}{inside}{after}</div>'


def bars_html(shares: dict[str, float]) -> str:
    """A bar for each class, the likeliest first."""
    bars = [
        f'<div class="class"><span dir="auto">{html.escape(label)}</span><span>{100 * share:.1f} %</span></div>'
        f'<div class="bar"><div style="width: {100 * share:.1f}%"></div></div>'
        for label, share in sorted(shares.items(), key=lambda item: -item[1])
    ]
    return f'<div class="bars">{"".join(bars)}</div>'


def answers_table(answers: list[dict[str, Any]]) -> str:
    rows = [(each["answer"] or "(no answer in this text)", f"{100 * each['score']:.1f} %") for each in answers]
    return _table(("answer", "probability"), rows)


def _updated(draft: Draft, text: str) -> str:
    """The text of the box, read, with which the draft was updated."""
    draft.change(text := _read(text))
    return text


def _read(text: str, empty: str = "") -> str:
    """What somebody gave the page, as the recipes read a text. Raises ValueError where it is too long, or empty."""
    if len(text) > LONGEST_INPUT:
        raise ValueError(
            f"the text has {len(text):,} characters, and this page takes {LONGEST_INPUT:,} at once: give a part of it."
        )
    text = clean(text)  # half of a surrogate pair cannot be encoded
    if empty and not text.strip():
        raise ValueError(empty)
    return text


def _truncated(tokenizer: PreTrainedTokenizerBase, text: str, budget: int) -> str:
    """A note where a text has more tokens than the model read; else ""."""
    size = len(encode_documents(tokenizer, [text])[0])
    return f"The text has {size:,} tokens, and the model read the first {budget:,}." if size > budget else ""


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [f"<tr>{''.join(f'<th>{html.escape(cell)}</th>' for cell in head)}</tr>"]
    lines += [f"<tr>{''.join(f'<td dir=auto>{html.escape(str(cell))}</td>' for cell in row)}</tr>" for row in rows]
    return f'<table class="figures">{"".join(lines)}</table>'


def _order(path: Path) -> tuple[int, str]:
    first = ("loss", "metric")
    return (first.index(path.stem) if path.stem in first else len(first), path.stem)


def _picture(path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="{html.escape(path.stem)}" src="data:image/png;base64,{data}">'
