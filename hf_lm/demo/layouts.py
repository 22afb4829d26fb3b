"""The tabs of the page, in Gradio: the report of a model, and for each kind of view how it is tried."""

import html
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from hf_lm.demo.views import OFFERED, bars_html, report_html, said_html
from hf_lm.inference.writing import Draft
from hf_lm.models.configuration import context_length
from hf_lm.reporting.terminal import percent

KEPT = 86_400  # seconds that a draft or a conversation is kept after its last change
PRIVATE = {"api_visibility": "private"}
STREAM = {**PRIVATE, "concurrency_limit": 4, "show_progress": "hidden"}  # people who are written for at once
ONCE = {**PRIVATE, "concurrency_limit": 1, "show_progress": "minimal"}


def lay_out(views: Sequence[Any]) -> Any:
    """A gradio.Blocks with a tab per view."""
    with gr.Blocks(title="hf-lm", analytics_enabled=False) as page, gr.Tabs():
        for view in views:  # long titles would not all fit: the model is named where two have the same
            twins = sum(other.title == view.title for other in views) > 1
            with gr.Tab(f"{view.title} · {_short(view)}" if twins else view.title):
                gr.HTML(f'<p class="model" dir="auto">{html.escape(view.name)}</p>')
                if not view.report:
                    LAYOUTS[type(view).__name__](view)
                    continue
                with gr.Tabs():
                    with gr.Tab("Try it"):
                        LAYOUTS[type(view).__name__](view)
                    with gr.Tab("Report of its training"):
                        gr.HTML(report_html(view.report, view.name))
    return page


def _writing(view: Any) -> None:
    draft, seed = gr.State(Draft, time_to_live=KEPT), gr.State(0)
    offers = gr.State(None, time_to_live=KEPT)
    text = gr.Textbox(label="Text", lines=9, max_lines=22, placeholder="Write, then let the model go on ...")
    with gr.Row():
        go_on = gr.Button("Continue", variant="primary", min_width=90)
        three = gr.Button("Alternatives", min_width=90)
        stop = gr.Button("Stop", min_width=60)
        undo = gr.Button("Undo", min_width=60)
        redo = gr.Button("Redo", min_width=60)
    note = _note_box()
    with gr.Row(visible=False) as shown:
        boxes, buttons = [], []
        for i in range(OFFERED):
            with gr.Column(min_width=200):
                boxes.append(gr.Textbox(lines=4, max_lines=10, interactive=False, label=f"{i + 1}"))
                buttons.append(gr.Button(f"Take {i + 1}", size="sm"))
    with gr.Accordion("Settings", open=False), gr.Row():
        longest = _longest(view.model)
        tokens = gr.Slider(1, longest, min(32, longest), step=1, label="Tokens written at most")
        temperature = gr.Slider(0, 1.5, 0.8, step=0.1, label="Temperature (0 takes the likeliest)")

    def shown_offers(found: list[Any]) -> list[Any]:
        cells = [gr.update(value=one.text, label=f"{percent(one.per_token)} a token", visible=True) for one in found]
        cells += [gr.update(visible=False)] * (OFFERED - len(cells))
        return [gr.update(visible=bool(found)), *cells, *(gr.update(visible=i < len(found)) for i in range(OFFERED))]

    offered = [shown, *boxes, *buttons]

    def write(draft, text, seed, tokens, temperature):
        settings = {"max_new_tokens": int(tokens), "temperature": temperature, "seed": seed}
        yield [text, draft, seed + 1, None, _said(""), *shown_offers([])]
        with _Refusals() as refused:
            pieces = view.go_on(draft, text, **settings)
            try:
                for so_far, said in pieces:
                    yield [so_far, draft, seed + 1, None, _said(said), *shown_offers([])]
            finally:
                pieces.close()
        if refused.said:
            yield [gr.skip(), draft, seed, None, _said(refused.said), *shown_offers([])]

    def offer(draft, text, seed, tokens, temperature):
        settings = {"max_new_tokens": int(tokens), "temperature": temperature, "seed": seed}
        with _Refusals() as refused:
            found, said = view.alternatives(draft, text, **settings)
            return [draft, seed + 1, found, _said(said), *shown_offers(found)]
        return [draft, seed, None, _said(refused.said), *shown_offers([])]

    def take(number: int) -> Callable:
        def run(draft, text, offers):
            with _Refusals() as refused:
                if not offers:
                    raise ValueError("nothing is offered any more: ask again.")
                text = view.take(draft, text, offers[number])
            return [text, draft, None, _said(refused.said), *shown_offers([])]

        return run

    def step(which: Callable) -> Callable:
        def run(draft, text):
            with _Refusals() as refused:
                text, said = which(draft, text)
                return [text, draft, None, _said(said), *shown_offers([])]
            return [gr.skip(), draft, None, _said(refused.said), *shown_offers([])]

        return run

    settings = [draft, text, seed, tokens, temperature]
    writing = go_on.click(write, settings, [text, draft, seed, offers, note, *offered], **STREAM)
    stop.click(None, None, None, cancels=[writing], **PRIVATE)
    three.click(offer, settings, [draft, seed, offers, note, *offered], **ONCE)
    for number, button in enumerate(buttons):
        button.click(take(number), [draft, text, offers], [text, draft, offers, note, *offered], **ONCE)
    for button, which in ((undo, view.undo), (redo, view.redo)):
        button.click(step(which), [draft, text], [text, draft, offers, note, *offered], **ONCE)


def _chat(view: Any) -> None:
    # a Conversation, from the first message on: it holds the model, which is not to be copied
    talk = gr.State(None, time_to_live=KEPT)
    with gr.Accordion("System prompt", open=False):
        system = gr.Textbox(show_label=False, container=False, lines=2, placeholder="What the model is told first")
    # not gr.Chatbot: it shows HTML of a message as HTML, even with render_markdown=False
    messages = gr.HTML(said_html([]), autoscroll=True)
    with gr.Row(equal_height=True):
        text = gr.Textbox(show_label=False, container=False, lines=1, max_lines=8, scale=5, placeholder="Message ...")
        send = gr.Button("Send", variant="primary", scale=1, min_width=80)
    with gr.Row():
        stop, again, undo, reset = (
            gr.Button(name, size="sm", min_width=60) for name in ("Stop", "Another answer", "Undo", "Reset")
        )
    note = _note_box()

    def answer(ask, talk, text, system):
        talk = talk or view.new()
        with _Refusals() as refused:
            if system != talk.system:
                talk.set_system(system)
            pieces, first = ask(talk), True
            try:
                for said, about in pieces:
                    yield [said_html(said), talk, "" if first else gr.skip(), _said(about)]
                    first = False
            finally:
                pieces.close()
        if refused.said:
            yield [said_html(talk.messages), talk, text, _said(refused.said)]

    def say(talk, text, system):
        yield from answer(lambda talk: view.say(talk, text), talk, text, system)

    def regenerate(talk, text, system):
        for said, changed, _, about in answer(view.regenerate, talk, text, system):
            yield [said, changed, gr.skip(), about]

    def back(talk):
        talk = talk or view.new()
        with _Refusals() as refused:
            text = talk.undo()
            return [said_html(talk.messages), talk, text, _said("")]
        return [said_html(talk.messages), talk, gr.skip(), _said(refused.said)]

    def forget(talk):
        if talk:
            talk.reset()
        return [said_html([]), talk, "", _said("")]

    given, shown = [talk, text, system], [messages, talk, text, note]
    running = [
        text.submit(say, given, shown, **STREAM),
        send.click(say, given, shown, **STREAM),
        again.click(regenerate, given, shown, **STREAM),
    ]
    stop.click(None, None, None, cancels=running, **PRIVATE)
    undo.click(back, [talk], shown, cancels=running, **ONCE)
    reset.click(forget, [talk], shown, cancels=running, **ONCE)


def _text(view: Any) -> None:
    with gr.Row(equal_height=True):
        text = gr.Textbox(label="Text", lines=10, max_lines=20)
        written = gr.Textbox(label=view.title, lines=10, max_lines=20, interactive=False, buttons=["copy"])
    _one_question(view.answer, [text], written, "Write")


def _classes(view: Any) -> None:
    with gr.Row():
        text = gr.Textbox(label="Text", lines=6, max_lines=20, scale=1)
        bars = gr.HTML()  # gr.Label draws gradients

    def ask(text: str) -> tuple[str, str]:
        found, said = view.answer(text)
        return bars_html(found), said

    _one_question(ask, [text], bars, "Classify")


def _answers(view: Any) -> None:
    context = gr.Textbox(label="Text", lines=7, max_lines=16)
    question = gr.Textbox(label="Question", lines=1)
    found = gr.HTML(render=False)
    _one_question(view.answer, [question, context], found, "Answer", enter=question)


def _one_question(ask: Callable, given: list[Any], shown: Any, verb: str, *, enter: Any = None) -> None:
    button, note = gr.Button(verb, variant="primary"), _note_box()
    if not shown.is_rendered:
        shown.render()

    def run(*texts):
        with _Refusals() as refused:
            answer, said = ask(*texts)
            return [answer, _said(said)]
        return [None, _said(refused.said)]

    for event in (button.click, *([enter.submit] if enter else [])):
        event(run, given, [shown, note], **ONCE)


LAYOUTS = {
    "WritingView": _writing,
    "ChatView": _chat,
    "TextView": _text,
    "ClassesView": _classes,
    "AnswersView": _answers,
}


def _short(view: Any) -> str:
    return Path(view.name).name


class _Refusals:
    """What a person is told instead of an error page."""

    def __enter__(self) -> "_Refusals":
        self.said = ""
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool:
        if not isinstance(error, ValueError):
            return False
        said = " ".join(str(error).split())
        self.said = said[:1].upper() + said[1:]
        return True


def _note_box() -> Any:
    return gr.HTML(_said(""), elem_classes=["note"])


def _said(text: str) -> str:
    return f"<p>{html.escape(text)}</p>"


def _longest(model: Any) -> int:
    return max(1, min(256, (context_length(model.config) or 512) // 2))
