"""The page: a model gets its tab, what the tabs answer, whose text is whose, and text that stays text."""

import copy
import http.client
import importlib.util
import json
import shutil
import socket

import pytest
import transformers
import yaml
from test_conversation import CHATML

from hf_lm.cli import main
from hf_lm.demo import views
from hf_lm.demo.space import _readme, export_space
from hf_lm.inference.chat import Conversation
from hf_lm.inference.writing import Draft
from hf_lm.models.bert import new_bert
from hf_lm.models.encoder_decoder import new_bart
from hf_lm.models.gpt2 import new_gpt2
from hf_lm.tokenization.tokenizer import add_frame

HOSTILE = "<img src=x onerror=alert(1)> ${alert(2)} {{7*7}} 花落知多少 😀 مرحبا"
has_gradio = pytest.mark.skipif(importlib.util.find_spec("gradio") is None, reason="gradio is not installed")


@pytest.fixture(scope="module")
def folders(tokenizer, tmp_path_factory):
    """A tiny model of each kind: {kind: folder}."""
    transformers.set_seed(0)
    root = tmp_path_factory.mktemp("models")
    chat = copy.deepcopy(tokenizer)
    chat.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    chat.chat_template = CHATML
    framed = add_frame(copy.deepcopy(tokenizer))
    small = {"n_layer": 1, "n_head": 2, "n_embd": 16}
    config = new_bert(framed, **small, block_size=64).config
    config.id2label, config.label2id = {0: "bad <b>", 1: "good"}, {"bad <b>": 0, "good": 1}
    summary = new_bart(framed, **small, block_size=64)
    summary.config.task_specific_params = {"summarization": {"prefix": ""}}
    made = {
        "writing": (new_gpt2(tokenizer, **small, block_size=64), tokenizer),
        "chat": (new_gpt2(chat, **small, block_size=256), chat),
        "classes": (transformers.BertForSequenceClassification(config), framed),
        "answers": (transformers.BertForQuestionAnswering(config), framed),
        "summary": (summary, framed),
        "encoder": (transformers.BertModel(config), framed),
    }
    for name, (model, own) in made.items():
        model.save_pretrained(root / name)
        own.save_pretrained(root / name)
    report = {"recipe": "sentiment", "metrics": {"test": {"accuracy": {"value": 80.0, "low": 70.0, "high": 90.0}}}}
    report["proofs"] = {"load_back": {"passed": True, "said": "<script>"}}
    (root / "classes" / "report.json").write_text(json.dumps(report))
    return {name: str(root / name) for name in made}


@pytest.mark.parametrize(
    ("kind", "view", "title"),
    [
        ("writing", "WritingView", "Writing"),
        ("chat", "ChatView", "Chat"),
        ("classes", "ClassesView", "Sentiment"),
        ("answers", "AnswersView", "Question answering"),
        ("summary", "TextView", "Summary"),
    ],
)
def test_a_model_gets_the_view_of_its_task(folders, kind, view, title):
    loaded = views.load_view(folders[kind])
    assert (type(loaded).__name__, loaded.title) == (view, title)


def test_what_is_no_model_or_of_another_kind_is_said_in_one_line(folders, tmp_path, capsys):
    for name, said in ((tmp_path, "no config.json"), (tmp_path / "x", "no folder"), (folders["encoder"], "BertModel")):
        with pytest.raises(SystemExit):
            main(["demo", str(name), "--port", "0"])
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("error: ")
        assert said in error


SETTINGS = {"max_new_tokens": 5, "temperature": 1.5, "seed": 0}


def test_a_draft_is_continued_taken_and_undone(folders):
    view, draft = views.load_view(folders["writing"]), Draft()
    *_, (text, _, _) = view.write(draft, "The fox", None, SETTINGS)
    assert text.startswith("The fox")
    assert draft.text == text
    [(_, _, offers)] = view.alternatives(draft, "The dog", None, SETTINGS)
    assert "% a token" in offers[0][0]
    [(taken, _, _)] = view.take(draft, "The dog", offers[0][1], SETTINGS)
    assert taken == "The dog" + offers[0][1]
    assert next(view.undo(draft, taken, None, {}))[0] == "The dog"
    assert next(view.undo(draft, "The dog", None, {}))[0] == text
    with pytest.raises(ValueError, match="has changed"):
        next(view.take(draft, "something else", offers[0][1], SETTINGS))


def test_a_stream_that_is_closed_keeps_what_it_wrote(folders):
    view, draft = views.load_view(folders["writing"]), Draft()
    pieces = view.write(draft, "The fox", None, SETTINGS | {"max_new_tokens": 20})
    text, *_ = next(pieces)
    pieces.close()
    assert draft.text == text != "The fox"
    assert next(view.undo(draft, text, None, {}))[0] == "The fox"


def test_a_chat_is_held_by_who_chats(folders, monkeypatch):
    view, seen = views.load_view(folders["chat"]), []
    encode = Conversation.encode
    monkeypatch.setattr(
        Conversation, "encode", lambda self, messages: seen.append([*messages]) or encode(self, messages)
    )
    turns = [{"role": "user", "content": "<b>"}, {"role": "assistant", "content": "yes"}]
    refused = {"role": "user", "content": "a question without an answer"}
    *_, (answer, note) = view.answer(" and now? ", [*turns, refused], "Be short.")
    assert isinstance(answer, str)
    assert note == ("" if answer else "The answer is empty.")
    system, asked = {"role": "system", "content": "Be short."}, {"role": "user", "content": "and now?"}
    assert seen == [[system, *turns, asked]]
    with pytest.raises(ValueError, match="shorten it"):
        list(view.answer("word " * 300, []))


@has_gradio
def test_a_message_is_text_to_the_browser_and_comes_back_as_it_was():
    from gradio.components.chatbot import ChatbotDataMessages

    from hf_lm.demo.layouts import plain_chatbot

    chat = plain_chatbot()
    text = f"  indented\n    {HOSTILE} &amp;"
    shown = chat.postprocess([{"role": "user", "content": text}])
    assert "<" not in shown.root[0].content[0].text
    assert chat.preprocess(shown) == [{"role": "user", "content": [{"type": "text", "text": text}]}]
    forged = {"role": "user", "content": [{"type": "file", "file": {"path": "/etc/passwd"}}]}
    assert chat.preprocess(ChatbotDataMessages(root=[forged])) == []


def test_classes_have_probabilities_and_a_cut_is_said(folders):
    view = views.load_view(folders["classes"])
    found, note = view.answer(HOSTILE[:40])
    assert set(found) == {"bad <b>", "good"}
    assert sum(found.values()) == pytest.approx(1)
    assert note == ""
    assert "bad &lt;b&gt;" in views.bars_html(found)
    assert "read the first" in view.answer("word " * 200)[1]


def test_an_answer_is_marked_in_its_context_and_hostile_text_stays_text(folders):
    shown, _ = views.load_view(folders["answers"]).answer("What is it?", HOSTILE)
    assert "<img" not in shown
    assert "&lt;img" in shown
    assert views.marked("a <b> c", 2, 5) == ('<div class="context" dir="auto">a <mark>&lt;b&gt;</mark> c</div>')


def test_a_text_is_written_and_what_was_not_read_is_said(folders):
    view = views.load_view(folders["summary"])
    assert view.answer("The quick fox.")[1] == ""
    assert "read the first" in view.answer("fox " * 300)[1]


def test_no_text_and_too_long_a_text_are_refused(folders):
    for kind, texts in (("classes", 1), ("summary", 1), ("answers", 2)):
        view = views.load_view(folders[kind])
        with pytest.raises(ValueError, match=r"no text yet|is empty"):
            view.answer(*[" "] * texts)
        with pytest.raises(ValueError, match="1,000,000 characters"):
            view.answer(*["x" * 1_000_000] * texts)
    with pytest.raises(ValueError, match="1,000,000 characters"):
        next(views.load_view(folders["writing"]).write(Draft(), "x" * 1_000_000, None, SETTINGS))


def test_half_of_a_surrogate_pair_is_read_as_the_recipes_read_it(folders):
    """A browser sends it as \\ud83d, and no tokenizer takes it."""
    half, odd = "the \ud83d fox", {"role": "user", "content": "\ud83d"}
    for kind, texts in (("classes", 1), ("summary", 1), ("answers", 2)):
        view = views.load_view(folders[kind])
        assert str(view.answer(*[half] * texts)) == str(view.answer(*["the \ufffd fox"] * texts))
    (*_, (text, _, _)) = views.load_view(folders["writing"]).write(Draft(), half, None, SETTINGS)
    assert text.startswith("the \ufffd fox")
    chat = views.load_view(folders["chat"])
    assert list(chat.answer(half, [odd, odd | {"role": "assistant"}], half))


def test_a_translation_is_shown_also_where_its_settings_name_the_languages(folders, tmp_path):
    shutil.copytree(folders["summary"], tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text()) | {"task_specific_params": {"translation_en_to_de": {"prefix": ""}}}
    path.write_text(json.dumps(config))
    view = views.load_view(str(tmp_path / "model"))
    assert view.title == "Translation"
    assert view.answer("The quick fox.")[0]


def test_the_report_shows_intervals_and_escapes_what_it_says(folders):
    view = views.load_view(folders["classes"])
    shown = views.report_html(view.report, view.name)
    assert "80.0 % (70.0 % to 90.0 %)" in shown
    assert "&lt;script&gt;" in shown
    assert "<script" not in shown


@has_gradio
def test_a_port_in_use_is_named_with_the_next_one(folders, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SystemExit):
            main(["demo", folders["writing"], "--port", str(port)])
    assert f"port {port} of 127.0.0.1 is in use" in capsys.readouterr().err


def test_without_gradio_one_line_says_what_to_install(folders, monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: None)
    with pytest.raises(SystemExit):
        main(["demo", folders["writing"]])
    assert "pip install 'hf-lm[demo]'" in capsys.readouterr().err


@has_gradio
def test_a_space_is_complete_and_nothing_is_overwritten(folders, tmp_path):
    from huggingface_hub import SpaceCard

    folder = export_space([folders["classes"], folders["writing"]], tmp_path / "space")
    card = SpaceCard.load(folder / "README.md")
    assert (card.data.sdk, card.data.app_file) == ("gradio", "app.py")
    compile((folder / "app.py").read_text(), "app.py", "exec")
    for name in ("models/classes/model.safetensors", "models/classes/report.json", "hf_lm/demo/page.py"):
        assert (folder / name).is_file()
    required = (folder / "requirements.txt").read_text()
    assert "transformers==" in required
    assert ("sentencepiece==" in required) is bool(importlib.util.find_spec("sentencepiece"))  # Marian needs it
    with pytest.raises(FileExistsError):
        export_space([folders["classes"]], folder)
    with pytest.raises(ValueError, match="BertModel"):
        export_space([folders["encoder"]], tmp_path / "other")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["space"]


@pytest.fixture(scope="module")
def served(folders):
    """(port, page) of a page that runs."""
    pytest.importorskip("gradio")
    from hf_lm.demo.page import build_page, free_port, running

    page, port = build_page([folders["classes"]]), free_port("127.0.0.1", 0)
    with running(page, port=port):
        yield port, page


def ask(port: int, method: str, path: str, host: str = "", **more) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request(method, path, headers={"Host": host or f"127.0.0.1:{port}"} | more.pop("headers", {}), **more)
    answer = connection.getresponse()
    answer.body = answer.read()
    connection.close()
    return answer


def test_a_request_under_another_name_is_refused(served):
    port, _ = served
    for path in ("/", "/config", "/gradio_api/info"):
        for host in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", "www.localhost"):
            assert ask(port, "GET", path, host).status == 400
    for host in (f"127.0.0.1:{port}", f"localhost:{port}", f"[::1]:{port}"):
        assert ask(port, "GET", "/config", host).status == 200


def test_no_other_site_frames_the_page(served):
    policy = ask(served[0], "GET", "/").getheader("Content-Security-Policy")
    assert "frame-ancestors 'none'" in policy


def test_a_space_may_be_framed_and_has_any_name():
    pytest.importorskip("gradio")
    from hf_lm.demo.page import _allowed_hosts, is_loopback

    assert _allowed_hosts("0.0.0.0") == ["*"]
    assert not is_loopback("0.0.0.0")


def test_no_file_is_taken(served):
    port, page = served
    body = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.txt"\r\n\r\nhello\r\n--x--\r\n'
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    for path in ("/gradio_api/upload", "/gradio_api/upload/", "/upload", "/gradio_api/%75pload?upload_id=1"):
        assert ask(port, "POST", path, body=body, headers=headers).status in (403, 404, 405)
    assert not page.upload_file_set


def test_drafts_of_old_sessions_are_dropped(folders, served):
    import gradio

    from hf_lm.demo.layouts import KEPT, lay_out

    page = lay_out([views.load_view(folders[kind]) for kind in ("writing", "chat")])
    kept = [block.time_to_live for block in page.blocks.values() if isinstance(block, gradio.State)]
    assert kept.count(KEPT) == 1  # a draft; Gradio drops a conversation with its session
    assert served[1].state_holder.capacity == 100


@pytest.mark.slow
@has_gradio
def test_two_people_in_a_browser(folders):
    sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not chromium:
        pytest.skip("there is no Chromium")
    from hf_lm.demo.layouts import lay_out
    from hf_lm.demo.page import free_port, running

    page = lay_out([views.load_view(folders[kind]) for kind in ("writing", "chat", "answers")])
    asked: list[str] = []
    with running(page, port=free_port("127.0.0.1", 0)) as url, sync.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        people = [browser.new_context().new_page() for _ in range(2)]
        for number, one in enumerate(people):
            one.on("request", lambda request: asked.append(request.url))
            one.on("dialog", lambda dialog: pytest.fail(dialog.message))
            one.goto(url)
            box = one.get_by_label("Text", exact=True).first
            box.fill(f"Person {number} {HOSTILE}")
            one.get_by_role("button", name="Alternatives").click()
        for number, one in enumerate(people):
            one.get_by_role("radio").first.click(timeout=30_000)
            box = one.get_by_label("Text", exact=True).first
            sync.expect(box).not_to_have_value(f"Person {number} {HOSTILE}")
            assert box.input_value().startswith(f"Person {number} {HOSTILE}")
        one = people[0]
        one.get_by_role("tab", name="Chat").click()
        one.get_by_placeholder("Message ...").fill("<b>hi</b>")
        one.get_by_placeholder("Message ...").press("Enter")
        sync.expect(one.get_by_test_id("user")).to_have_text("<b>hi</b>", timeout=30_000)
        sync.expect(one.get_by_test_id("bot")).to_be_visible(timeout=30_000)
        one.get_by_role("tab", name="Question answering").click()
        one.get_by_label("Text", exact=True).locator("visible=true").fill(HOSTILE)
        one.get_by_label("Question", exact=True).fill("Who?")
        one.get_by_role("button", name="Answer", exact=True).click()
        sync.expect(one.locator(".context")).to_have_text(HOSTILE, timeout=30_000)
        browser.close()
    outside = [each for each in asked if not each.startswith((url, "data:", "blob:"))]
    assert outside == []
    assert f"{url}x" not in asked  # no image was made of text


@pytest.mark.parametrize("title", ["null", "- a", "yes", "1e3", 'a: "b"', "space", "---", ""])
def test_a_space_has_a_title_that_is_text_whatever_its_folder_is_called(title):
    settings = yaml.safe_load(_readme(["models/a"], title).split("---\n")[1])
    assert isinstance(settings["title"], str)
    assert settings["sdk"] == "gradio"


@pytest.mark.parametrize("kind", ["classes", "answers", "summary", "writing"])
def test_a_device_that_is_not_here_is_refused_in_one_line(folders, kind):
    with pytest.raises(ValueError, match="there is no device 'foo' here; give cpu"):
        views.load_view(folders[kind], device="foo")
