"""What the page shows of a model, without the page: a class per kind of model, with methods of plain values.

view = load_view("out/question_answering")
html, note = view.answer("Who wrote it?", "It was written by Ada.")

Text that came from people, models and data is escaped wherever HTML is made.
"""

import base64
import html
import json
from collections.abc import Generator
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_lm.inference.chat import Conversation
from hf_lm.inference.generate import Continuation, encode_prompt, load_writer
from hf_lm.inference.pipelines import pipeline
from hf_lm.inference.writing import Draft, alternatives, continue_text
from hf_lm.models.configuration import context_length, family, load_config
from hf_lm.reporting.report import SHOWN as METRICS
from hf_lm.reporting.report import beside, in_words, warnings
from hf_lm.tokenization.tokenizer import encode_documents, load_tokenizer

LONGEST_INPUT = 100_000  # characters
OFFERED = 3  # alternatives side by side
WRITTEN = {"translation": "Translation", "summarization": "Summary", "text2text-generation": "Text to text"}


class View:
    """A model on the page. `title` names its kind; `report` is what its run measured, or {}."""

    title = ""

    def __init__(self, name: str, report: dict[str, Any] | None = None) -> None:
        self.name, self.report = name, report or {}


class WritingView(View):
    """The writing assistant. A draft belongs to the person; what stands in the box is brought into it first."""

    title = "Writing"

    def __init__(
        self, name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, report: dict | None = None
    ) -> None:
        super().__init__(name, report)
        self.model, self.tokenizer = model, tokenizer

    def go_on(self, draft: Draft, text: str, **decoding: Any) -> Generator[tuple[str, str]]:
        """(the text so far, a note), piece by piece; left early, what was written is kept as well."""
        _take(draft, text)
        note = self._left_out(text, decoding)
        pieces, written = continue_text(self.model, self.tokenizer, text, **decoding), ""
        try:
            for piece in pieces:
                written += piece
                yield text + written, note
        finally:
            pieces.close()
            draft.add(written)
        yield draft.text, note or ("" if written else "The model ends the text here.")

    def alternatives(self, draft: Draft, text: str, **decoding: Any) -> tuple[list[Continuation], str]:
        """Continuations of the text, and a note."""
        _take(draft, text)
        found = alternatives(self.model, self.tokenizer, text, count=OFFERED, **decoding)
        few = "" if found else "The model has nothing else to offer: try once more, or a higher temperature."
        return found, self._left_out(text, decoding) or few

    def take(self, draft: Draft, text: str, chosen: Continuation) -> str:
        """The text with an alternative after it. Raises ValueError where the text was changed meanwhile."""
        if text != draft.text:
            _take(draft, text)
            raise ValueError("the text has changed since these were offered: ask again.")
        draft.add(chosen.text)
        return draft.text

    def undo(self, draft: Draft, text: str) -> tuple[str, str]:
        _take(draft, text)
        done = draft.undo()
        return draft.text, "" if done else "There is nothing to undo."

    def redo(self, draft: Draft, text: str) -> tuple[str, str]:
        _take(draft, text)
        done = draft.redo()
        return draft.text, "" if done else "There is nothing to redo."

    def _left_out(self, text: str, decoding: dict[str, Any]) -> str:
        longest = decoding.get("max_new_tokens", 0)
        _, left_out = encode_prompt(self.model, self.tokenizer, text, max_new_tokens=longest)
        positions = context_length(self.model.config)
        said = f"The model's context is {positions:,} tokens: it did not read the first {left_out:,} of this text."
        return said if left_out else ""


class ChatView(View):
    """A chat. `new` begins one: each person has their own."""

    title = "Chat"

    def __init__(
        self, name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, report: dict | None = None
    ) -> None:
        super().__init__(name, report)
        self.model, self.tokenizer = model, tokenizer
        self.new()  # a template that cannot be filled is said before the page opens

    def new(self) -> Conversation:
        return Conversation(self.model, self.tokenizer)

    def say(self, talk: Conversation, text: str) -> Generator[tuple[list[dict[str, str]], str]]:
        """(the messages so far, a note), piece by piece."""
        _check_length(text)
        if not text.strip():
            raise ValueError("the message is empty.")
        yield from self._told(talk, talk.say(text.strip()))

    def regenerate(self, talk: Conversation) -> Generator[tuple[list[dict[str, str]], str]]:
        yield from self._told(talk, talk.regenerate())

    def _told(self, talk: Conversation, pieces: Generator[str]) -> Generator[tuple[list[dict[str, str]], str]]:
        left_out = (
            f"The context of {context_length(self.model.config):,} tokens is full: the model no longer sees the "
            f"oldest {talk.left_out} messages."
        )
        note = left_out if talk.left_out else ""
        try:
            yield said_in(talk), note
            for _ in pieces:
                yield said_in(talk), note
        finally:
            pieces.close()
        if not talk.messages[-1]["content"]:
            note = note or "The model said nothing."
        yield said_in(talk), note


def said_in(talk: Conversation) -> list[dict[str, str]]:
    """The messages of a conversation but the system prompt, as they are now."""
    return [dict(message) for message in talk.messages if message["role"] != "system"]


def said_html(messages: list[dict[str, str]]) -> str:
    """Messages as HTML in which all they hold is text."""
    said = "".join(
        f'<div class="said {one["role"]}" dir="auto">{html.escape(one["content"]) or "…"}</div>'
        for one in messages
        if one["role"] in ("user", "assistant")
    )
    return f'<div class="talk">{said}</div>'


class TextView(View):
    """A text for a text: translation, summarization, or whatever the model was trained for."""

    def __init__(self, name: str, made: Any, task: str, report: dict | None = None) -> None:
        super().__init__(name, report)
        self.pipeline, self.task = made, task
        self.title = WRITTEN[task]

    def answer(self, text: str) -> tuple[str, str]:
        """(the text written, a note)."""
        _check_text(text)
        [answer] = self.pipeline([text])
        return next(iter(answer.values())), _cut(self.pipeline, text, self.pipeline.max_source_length())


class ClassesView(View):
    """A text and the probability of each class."""

    title = "Classification"

    def __init__(self, name: str, made: Any, report: dict | None = None) -> None:
        super().__init__(name, report)
        self.pipeline = made
        self.title = "Sentiment" if self.report.get("recipe") == "sentiment" else self.title

    def answer(self, text: str) -> tuple[dict[str, float], str]:
        """(probability by class, a note)."""
        _check_text(text)
        tokenizer = self.pipeline.tokenizer  # which may not know how many positions the model has
        longest = min(context_length(self.pipeline.model.config) or 10**6, tokenizer.model_max_length)
        found = self.pipeline(text, top_k=None, truncation=True, max_length=longest)
        room = longest - tokenizer.num_special_tokens_to_add()
        return {one["label"]: one["score"] for one in found}, _cut(self.pipeline, text, room)


class AnswersView(View):
    """A question, a context, and the spans of it that answer best."""

    title = "Question answering"

    def __init__(self, name: str, made: Any, report: dict | None = None, *, count: int = 5) -> None:
        super().__init__(name, report)
        self.pipeline, self.count = made, count

    def answer(self, question: str, context: str) -> tuple[str, str]:
        """(HTML: the context with the answer marked, and the next best; a note)."""
        for name, text in (("question", question), ("context", context)):
            _check_length(text)
            if not text.strip():
                raise ValueError(f"the {name} is empty.")
        options = {"top_k": self.count, "handle_impossible_answer": True, "align_to_words": False}  # as measured
        found = self.pipeline(question=question, context=context, **options)
        best = found[0]
        note = "" if best["answer"] else "The model finds no answer in this text."
        return marked(context, best["start"], best["end"]) + answers_table(found), note


def load_view(name: str, *, device: Any = None) -> View:
    """The view that fits a model: a folder, an adapter's folder or a Hub id.

    Which one is read from its architecture, from what its run says of itself, and from its chat template. Raises
    OSError or ValueError, in one line, where it is no model or one of a kind that the page does not show.
    """
    import torch

    config, report = load_config(name), read_report(name)
    kind, task = kind_of(config, report)
    if kind == "writer":
        model, tokenizer = load_writer(name, device=device)
        return (ChatView if tokenizer.chat_template else WritingView)(name, model, tokenizer, report)
    if device is None:
        device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    load_tokenizer(name)  # says in one line what is wrong with it
    made = pipeline(task, model=name, device=device)
    if kind == "text":
        return TextView(name, made, task, report)
    return {"classes": ClassesView, "answers": AnswersView}[kind](name, made, report)


def kind_of(config: Any, report: dict[str, Any]) -> tuple[str, str]:
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


def read_report(name: str) -> dict[str, Any]:
    """report.json of a run's folder; {} where there is none. Raises ValueError where it cannot be read."""
    path = Path(name) / "report.json"
    if not path.is_file():
        return {}
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from None
    if not isinstance(report, dict):
        raise ValueError(f"{path} holds no report.")
    return report


def report_html(report: dict[str, Any], folder: str | Path) -> str:
    """A run's report: pictures, metrics with intervals and baselines, proofs, and what its checks found."""
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
            (name.replace("_", " "), words[one.get("passed")], one.get("said", "")) for name, one in proofs.items()
        ]
        parts.append("<h3>What was proved</h3>" + _table(("proof", "", "found"), rows))
    safety = report.get("safety", {}).get("findings", [])
    found = [*(warnings(report) if "main_metric" in report else []), *safety]
    if found:
        items = "".join(f"<li>{html.escape(str(one))}</li>" for one in found)
        parts.append(f"<h3>What to know</h3><ul>{items}</ul>")
    return f'<div class="report">{"".join(parts)}</div>'


def marked(text: str, start: int, end: int) -> str:
    """A text as HTML with one part of it marked."""
    before, inside, after = (html.escape(part) for part in (text[:start], text[start:end], text[end:]))
    inside = f"<mark>{inside}</mark>" if inside else ""
    return f'<div class="context" dir="auto">{before}{inside}{after}</div>'


def bars_html(found: dict[str, float]) -> str:
    """A bar for each class, the likeliest first."""
    bars = [
        f'<div class="class"><span dir="auto">{html.escape(label)}</span><span>{100 * share:.1f} %</span></div>'
        f'<div class="bar"><div style="width: {100 * share:.1f}%"></div></div>'
        for label, share in sorted(found.items(), key=lambda item: -item[1])
    ]
    return f'<div class="bars">{"".join(bars)}</div>'


def answers_table(found: list[dict[str, Any]]) -> str:
    rows = [(one["answer"] or "(no answer in this text)", f"{100 * one['score']:.1f} %") for one in found]
    return _table(("answer", "probability"), rows)


def _take(draft: Draft, text: str) -> None:
    _check_length(text)
    draft.change(text)


def _check_length(text: str) -> None:
    if len(text) > LONGEST_INPUT:
        raise ValueError(
            f"the text has {len(text):,} characters, and this page takes {LONGEST_INPUT:,} at once: give a part of it."
        )


def _check_text(text: str) -> None:
    _check_length(text)
    if not text.strip():
        raise ValueError("there is no text yet.")


def _cut(made: Any, text: str, room: int) -> str:
    size = len(encode_documents(made.tokenizer, [text])[0])
    return f"The text has {size:,} tokens, and the model read the first {room:,}." if size > room else ""


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
