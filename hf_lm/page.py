"""`hf-lm demo`: a page in the browser with a tab for every model named. Extra `demo` (Gradio).

open_page(["out/chat", "out/sentiment"])

Nothing is loaded from another host, and a policy in every answer keeps the browser from trying. The page is for this
machine: 127.0.0.1.
"""

import html
import importlib.util
import os
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hf_lm.serving import free_port

FONTS = ["system-ui", "-apple-system", "Segoe UI", "Noto Sans", "Noto Sans CJK SC", "PingFang SC", "sans-serif"]
MONO = ["ui-monospace", "Menlo", "Consolas", "monospace"]
POLICY = (
    b"default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; connect-src 'self'; frame-ancestors *; "
    b"form-action 'self'; object-src 'none'"
)
CSS = """
.gradio-container { width: 100% !important; max-width: 1080px !important; margin: 0 auto !important; }
.gradio-container main, .gradio-container .wrap, .gradio-container .contain { width: 100%; max-width: 100%; }
textarea, .message, .label-wrap { unicode-bidi: plaintext; }
footer { display: none !important; }
.model { margin: 0; font-family: var(--font-mono); font-size: 0.85em; color: var(--body-text-color-subdued); }
.note p { margin: 0; min-height: 1.5em; color: var(--body-text-color-subdued); unicode-bidi: plaintext; }
.context { white-space: pre-wrap; overflow-wrap: anywhere; max-height: 26em; overflow-y: auto; line-height: 1.6;
  padding: 12px 14px; border: 1px solid var(--border-color-primary); border-radius: 6px; }
.context mark { background: #fde68a; color: #1f2937; padding: 1px 2px; border-radius: 3px; }
table.figures { border-collapse: collapse; margin: 12px 0; font-size: 0.95em; border: 0 !important; }
table.figures tr { border: 0 !important; }
table.figures th, table.figures td { text-align: start; padding: 5px 24px 5px 0 !important; vertical-align: top;
  border: 0 !important; border-bottom: 1px solid var(--border-color-primary) !important; overflow-wrap: break-word; }
table.figures th { font-weight: 600; color: var(--body-text-color-subdued); white-space: nowrap; }
.bars { padding: 4px 0; }
.bars .class { display: flex; justify-content: space-between; gap: 12px; overflow-wrap: anywhere; }
.bars .bar { height: 8px; margin: 3px 0 12px; background: #e2e8f0; border-radius: 4px; overflow: hidden; }
.bars .bar div { height: 100%; background: #64748b; }
.talk { height: 400px; overflow-y: auto; border: 1px solid var(--border-color-primary); border-radius: 6px;
  padding: 12px !important; }
.talk .said { white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: plaintext; width: fit-content;
  max-width: 80%; margin: 0 0 10px; padding: 8px 12px; border-radius: 6px; line-height: 1.5; }
.talk .user { margin-inline-start: auto; background: #e2e8f0; color: #1e293b; }
.talk .assistant { background: var(--background-fill-secondary); border: 1px solid var(--border-color-primary); }
button.lg, button.sm { font-weight: 500 !important; }
.report h3 { margin: 18px 0 4px; font-size: 1.05em; }
.report .plots { display: grid; grid-template-columns: 1fr 1fr; gap: 12px; margin: 18px 0; }
.report .plots img { width: 100%; background: white; border: 1px solid var(--border-color-primary); }
"""


def open_page(
    models: Sequence[str],
    *,
    host: str = "127.0.0.1",
    port: int = 7860,  # 0 takes any that is free
    device: Any = None,
) -> None:
    """Show models on a page until Ctrl-C.

    Raises ImportError without the extra, OSError for a port in use, and OSError or ValueError, in one line, for a
    model that is none or of a kind the page does not show; all of it before the page opens.
    """
    check_gradio()
    port = free_port(host, port)
    page = build_page(models, device=device)
    with running(page, host=host, port=port) as url:
        print(f"{url}   (Ctrl-C ends it)", flush=True)
        threading.Event().wait()  # until a signal


class running:
    """Serve a page while the block runs; gives its address."""

    def __init__(self, page: Any, *, host: str = "127.0.0.1", port: int) -> None:
        self.page, self.host, self.port = page, host, port

    def __enter__(self) -> str:
        import gradio
        from starlette.middleware import Middleware

        theme = gradio.themes.Default(primary_hue="slate", neutral_hue="slate", radius_size="sm", **_fonts(gradio))
        _, url, _ = self.page.queue(max_size=64).launch(
            server_name=self.host,
            server_port=self.port,
            prevent_thread_lock=True,
            share=False,
            quiet=True,
            ssr_mode=False,
            show_error=False,
            inbrowser=False,
            enable_monitoring=False,
            mcp_server=False,
            pwa=False,
            footer_links=[],
            theme=theme,
            css=CSS,
            app_kwargs={"middleware": [Middleware(_SameHost)]},
        )
        return url

    def __exit__(self, *_: Any) -> None:
        self.page.close(verbose=False)


def check_gradio() -> None:
    if importlib.util.find_spec("gradio") is None:
        raise ImportError("the page needs gradio: pip install 'hf-lm[demo]'.")
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported


def build_page(models: Sequence[str], *, device: Any = None) -> Any:
    """A gradio.Blocks with a tab per model, each loaded once and shared by all who look. Raises as `open_page`."""
    check_gradio()
    from hf_lm.views import load_view

    if not models:
        raise ValueError("name at least one model: a folder or a Hub id.")
    views = []
    for name in models:
        print(f"loading {name} ...", file=sys.stderr, flush=True)
        views.append(load_view(str(name), device=device))
    return lay_out(views)


def lay_out(views: Sequence[Any]) -> Any:
    """A gradio.Blocks with a tab per view."""
    import gradio as gr

    from hf_lm.views import report_html

    with gr.Blocks(title="hf-lm", analytics_enabled=False) as page, gr.Tabs():
        for view in views:  # long titles would not all fit: the model is named where two have the same
            twins = sum(other.title == view.title for other in views) > 1
            with gr.Tab(f"{view.title} · {_short(view)}" if twins else view.title):
                gr.HTML(f'<p class="model" dir="auto">{html.escape(view.name)}</p>')
                if not view.report:
                    LAYOUTS[type(view).__name__](gr, view)
                    continue
                with gr.Tabs():
                    with gr.Tab("Try it"):
                        LAYOUTS[type(view).__name__](gr, view)
                    with gr.Tab("Report of its training"):
                        gr.HTML(report_html(view.report, view.name))
    return page


def _writing(gr: Any, view: Any) -> None:
    from hf_lm.views import OFFERED, selection, title_of
    from hf_lm.writing import Draft

    draft, seed, offers, selected = gr.State(Draft), gr.State(0), gr.State(None), gr.State(None)
    text = gr.Textbox(label="Text", lines=9, max_lines=22, placeholder="Write, then let the model go on ...")
    with gr.Row():
        go_on = gr.Button("Continue", variant="primary", min_width=90)
        three = gr.Button("Alternatives", min_width=90)
        stop = gr.Button("Stop", min_width=60)
        undo = gr.Button("Undo", min_width=60)
        redo = gr.Button("Redo", min_width=60)
    with gr.Row(equal_height=True):
        words = gr.Textbox(
            label="Passage to rewrite",
            placeholder="its words, or FROM ... TO; empty takes the selection, else the last sentence",
            scale=4,
            lines=1,
        )
        again = gr.Button("Rewrite", scale=1, min_width=90)
    note = _note_box(gr)
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
        cells = []
        for i in range(OFFERED):
            there = i < len(found)
            cells.append(
                gr.update(value=found[i].text, label=title_of(found[i]), visible=True)
                if there
                else gr.update(visible=False)
            )
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

    def offer(ask, draft, text, seed, tokens, temperature, *more):
        settings = {"max_new_tokens": int(tokens), "temperature": temperature, "seed": seed}
        with _Refusals() as refused:
            found, place, said = ask(draft, text, *more, **settings)
            return [draft, seed + 1, (found, place), _said(said), *shown_offers(found)]
        return [draft, seed, None, _said(refused.said), *shown_offers([])]

    def alternatives(draft, text, seed, tokens, temperature):
        return offer(view.alternatives, draft, text, seed, tokens, temperature)

    def rewrite(draft, text, seed, tokens, temperature, words, picked):
        place = selection(text, *picked) if picked else None
        return offer(view.rewrite, draft, text, seed, tokens, temperature, words, place)

    def take(number: int) -> Callable:
        def run(draft, text, offers):
            with _Refusals() as refused:
                if not offers:
                    raise ValueError("nothing is offered any more: ask again.")
                text = view.take(draft, text, offers[0][number], offers[1])
            return [text, draft, None, _said(refused.said), *shown_offers([])]

        return run

    def step(which: Callable) -> Callable:
        def run(draft, text):
            with _Refusals() as refused:
                text, said = which(draft, text)
                return [text, draft, None, _said(said), *shown_offers([])]
            return [gr.skip(), draft, None, _said(refused.said), *shown_offers([])]

        return run

    def select(event: gr.SelectData):
        return (event.value, event.index) if event.value else None

    text.select(select, None, selected, show_progress="hidden", queue=False, **PRIVATE)
    settings = [draft, text, seed, tokens, temperature]
    writing = go_on.click(write, settings, [text, draft, seed, offers, note, *offered], **STREAM)
    stop.click(None, None, None, cancels=[writing], **PRIVATE)
    three.click(alternatives, settings, [draft, seed, offers, note, *offered], **ONCE)
    again.click(rewrite, [*settings, words, selected], [draft, seed, offers, note, *offered], **ONCE)
    for number, button in enumerate(buttons):
        button.click(take(number), [draft, text, offers], [text, draft, offers, note, *offered], **ONCE)
    for button, which in ((undo, view.undo), (redo, view.redo)):
        button.click(step(which), [draft, text], [text, draft, offers, note, *offered], **ONCE)


def _chat(gr: Any, view: Any) -> None:
    from hf_lm.views import said_html

    talk = gr.State(None)  # a Conversation, from the first message on: it holds the model, which is not to be copied
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
    note = _note_box(gr)

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


def _text(gr: Any, view: Any) -> None:
    with gr.Row(equal_height=True):
        text = gr.Textbox(label="Text", lines=10, max_lines=20)
        written = gr.Textbox(label=view.title, lines=10, max_lines=20, interactive=False, buttons=["copy"])
    _one_question(gr, view.answer, [text], written, "Write")


def _classes(gr: Any, view: Any) -> None:
    from hf_lm.views import bars_html

    with gr.Row():
        text = gr.Textbox(label="Text", lines=6, max_lines=20, scale=1)
        bars = gr.HTML()  # gr.Label draws gradients

    def ask(text: str) -> tuple[str, str]:
        found, said = view.answer(text)
        return bars_html(found), said

    _one_question(gr, ask, [text], bars, "Classify")


def _answers(gr: Any, view: Any) -> None:
    context = gr.Textbox(label="Text", lines=7, max_lines=16)
    question = gr.Textbox(label="Question", lines=1)
    found = gr.HTML(render=False)
    _one_question(gr, view.answer, [question, context], found, "Answer", enter=question)


def _one_question(gr: Any, ask: Callable, given: list[Any], shown: Any, verb: str, *, enter: Any = None) -> None:
    button, note = gr.Button(verb, variant="primary"), _note_box(gr)
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
PRIVATE = {"api_visibility": "private"}
STREAM = {**PRIVATE, "concurrency_limit": 4, "show_progress": "hidden"}  # people who are written for at once
ONCE = {**PRIVATE, "concurrency_limit": 1, "show_progress": "minimal"}


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


def _note_box(gr: Any) -> Any:
    return gr.HTML(_said(""), elem_classes=["note"])


def _said(text: str) -> str:
    return f"<p>{html.escape(text)}</p>"


def _longest(model: Any) -> int:
    from hf_lm.models.checkpoints import context_length

    return max(1, min(256, (context_length(model.config) or 512) // 2))


def _fonts(gradio: Any) -> dict[str, Any]:
    """Fonts of the reader's own machine; a plain string would be looked for on the server."""
    font = gradio.themes.Font
    return {"font": [font(name) for name in FONTS], "font_mono": [font(name) for name in MONO]}


class _SameHost:
    """ASGI: every answer tells the browser to load nothing from another host."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def told(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), (b"content-security-policy", POLICY)]
            await send(message)

        await self.app(scope, receive, told if scope["type"] == "http" else send)
