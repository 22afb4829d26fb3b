"""The tabs of the page, in Gradio: the report of a model, and for each kind of view how it is tried."""

import html
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components import Component

from hf_lm.demo.views import (
    AnswersView,
    ChatView,
    ClassesView,
    Shown,
    TextView,
    View,
    WritingView,
    bars_html,
    report_html,
)
from hf_lm.inference.writing import Draft
from hf_lm.models.configuration import context_length

KEPT = 86_400  # seconds that a draft is kept after its last change
STREAMS = 4  # people who are written for at once


def lay_out(views: Sequence[View]) -> gr.Blocks:
    """A page with a tab per view."""
    with gr.Blocks(title="hf-lm", analytics_enabled=False) as page, gr.Tabs():
        for view in views:  # long titles would not all fit: the model is named only where two titles are equal
            twins = sum(other.title == view.title for other in views) > 1
            with gr.Tab(f"{view.title} · {Path(view.name).name}" if twins else view.title):
                gr.HTML(f'<p class="model" dir="auto">{html.escape(view.name)}</p>')
                if not view.report:
                    _try(view)
                    continue
                with gr.Tabs():
                    with gr.Tab("Try it"):
                        _try(view)
                    with gr.Tab("Report of its training"):
                        gr.HTML(report_html(view.report, view.name))
    return page


def _try(view: View) -> None:
    if isinstance(view, WritingView):
        _writing(view)
    elif isinstance(view, ChatView):
        _chat(view)
    elif isinstance(view, TextView):
        written = gr.Textbox(label=view.title, lines=10, max_lines=20, interactive=False, buttons=["copy"])
        _interface(view.answer, [gr.Textbox(label="Text", lines=10, max_lines=20)], written, "Write")
    elif isinstance(view, ClassesView):

        def classify(text: str) -> tuple[str, str]:
            shares, note = view.answer(text)
            return bars_html(shares), note

        # not gr.Label, which draws gradients
        _interface(classify, [gr.Textbox(label="Text", lines=6, max_lines=20)], gr.HTML(), "Classify")
    elif isinstance(view, AnswersView):
        given = [gr.Textbox(label="Question", lines=1), gr.Textbox(label="Text", lines=7, max_lines=16)]
        _interface(view.answer, given, gr.HTML(), "Answer")


def _interface(ask: Callable[..., tuple[Any, str]], given: Sequence[Component], shown: Component, verb: str) -> None:
    """Fields for `ask`, a button, and what it returns: a value to show and a note."""

    def run(*texts: str) -> tuple[Any, str]:
        try:
            answer, note = ask(*texts)
        except ValueError as error:
            return None, _refusal(error)
        return answer, _note(note)

    gr.Interface(
        run,
        given,
        [shown, _note_box()],
        submit_btn=verb,
        clear_btn=None,
        flagging_mode="never",
        analytics_enabled=False,
        api_visibility="private",
        concurrency_limit=1,
        show_progress="minimal",
        cache_examples=False,
        fill_width=True,
    )


def plain_chatbot() -> gr.Chatbot:
    """A gr.Chatbot in whose messages everything is text; by itself it shows their HTML, even without Markdown.

    The two methods are set on the object: where a class is derived from a component, Gradio writes a .pyi file.
    """
    chatbot = gr.Chatbot(show_label=False, height=420, render_markdown=False, buttons=[], feedback_options=None)
    to_browser = chatbot.postprocess

    def preprocess(payload: Any) -> list[Any]:
        return [
            {"role": message.role, "content": [_part(html.unescape(part.text))]}
            for message in (payload.root if payload else ())
            for part in message.content
            if part.type == "text"  # a browser may send files and components: they are dropped
        ]

    def postprocess(value: list[Any] | None) -> Any:
        messages: list[Any] = [
            {"role": each["role"], "content": [_part(html.escape(_text(each)))]} for each in value or ()
        ]
        return to_browser(messages)

    chatbot.preprocess, chatbot.postprocess = preprocess, postprocess
    return chatbot


def _part(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def _text(message: dict[str, Any]) -> str:
    content = message["content"]
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def _chat(view: ChatView) -> None:
    """Each message comes with the conversation before it, which Gradio keeps for the session."""

    def answer(message: str, history: list[dict[str, Any]], system: str) -> Generator[tuple[Any, str]]:
        messages = [{"role": each["role"], "content": _text(each)} for each in history]
        try:
            with closing(view.answer(message, messages, system)) as answers:
                for text, note in answers:
                    yield text, _note(note)
        except ValueError as error:
            yield [], _refusal(error)  # no answer

    note = _note_box(render=False)
    gr.ChatInterface(
        answer,
        chatbot=plain_chatbot(),
        textbox=gr.Textbox(placeholder="Message ...", max_lines=8, submit_btn=True, stop_btn=True),
        additional_inputs=[gr.Textbox(show_label=False, lines=2, render=False)],
        additional_inputs_accordion="System prompt",
        additional_outputs=[note],
        flagging_mode="never",
        analytics_enabled=False,
        api_visibility="private",
        concurrency_limit=STREAMS,
        show_progress="hidden",
        fill_width=True,
    )
    note.render()


def _writing(view: WritingView) -> None:
    draft, seed = gr.State(Draft, time_to_live=KEPT), gr.State(0)
    text = gr.Textbox(label="Text", lines=9, max_lines=22, placeholder="Write, then let the model continue ...")
    with gr.Row():
        write = gr.Button("Continue", variant="primary", min_width=90)
        offer = gr.Button("Alternatives", min_width=90)
        stop, undo, redo = (gr.Button(name, min_width=60) for name in ("Stop", "Undo", "Redo"))
    note = _note_box()
    offers = gr.Radio([], label="Alternatives: click one to take it", visible=False, elem_classes=["offers"])
    with gr.Accordion("Settings", open=False), gr.Row():
        longest = max(1, min(256, (context_length(view.model.config) or 512) // 2))
        tokens = gr.Slider(1, longest, min(32, longest), step=1, label="Maximum number of tokens")
        temperature = gr.Slider(0, 1.5, 0.8, step=0.1, label="Temperature (0 takes the most likely token)")

    given, shown = [draft, text, offers, seed, tokens, temperature], [text, draft, seed, note, offers]

    def on(event: Callable[..., Any], action: Callable[..., Generator[Shown]], people: int = 1) -> Any:
        run = _action(action)
        return event(run, given, shown, api_visibility="private", concurrency_limit=people, show_progress="hidden")

    writing = on(write.click, view.write, STREAMS)
    stop.click(None, cancels=[writing], api_visibility="private")
    on(offer.click, view.alternatives)
    on(offers.input, view.take)
    on(undo.click, view.undo)
    on(redo.click, view.redo)


def _action(action: Callable[..., Generator[Shown]]) -> Callable[..., Generator[list[Any]]]:
    """A button's handler from a method of the view, which yields (text, note, alternatives to show)."""

    def run(draft: Draft, text: str, taken: str | None, seed: int, tokens: int, temperature: float):
        settings = {"max_new_tokens": int(tokens), "temperature": temperature, "seed": seed}
        try:
            with closing(action(draft, text, taken, settings)) as states:
                for text, note, offers in states:
                    yield [text, draft, seed + 1, _note(note), _offers(offers)]
        except ValueError as error:
            yield [gr.skip(), draft, seed, _refusal(error), _offers([])]

    return run


def _offers(offers: list[tuple[str, str]]) -> Any:
    return gr.update(choices=offers, value=None, visible=bool(offers))


def _note_box(*, render: bool = True) -> gr.HTML:
    return gr.HTML(_note(""), elem_classes=["note"], render=render)


def _note(text: str) -> str:
    return f"<p>{html.escape(text)}</p>"


def _refusal(error: ValueError) -> str:
    message = " ".join(str(error).split())
    return _note(message[:1].upper() + message[1:])
