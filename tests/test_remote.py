"""Models behind an API: what they are asked, and that no refusal, silence or nonsense of a server loses an answer."""

import json
import os
import pickle
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from hf_lm.data.tables import Table
from hf_lm.files import locked
from hf_lm.scoring.api import answers_in, complete, draw, messages_of
from hf_lm.scoring.score import Data, score_api
from hf_lm.tasks.by_name import TASKS
from hf_lm.tasks.sentiment import to_label

pytest.importorskip("openai")
KEY = "sk-secret-of-the-test"
ROWS = [{"text": f"number {i}", "label": ("pos", "neg")[i % 2]} for i in range(12)]
TRAIN = [{"text": f"old {i}", "label": ("pos", "neg")[i % 3 == 0]} for i in range(9)]
NO_COMPLETION = {  # of status 200
    "empty": {"choices": []},
    "no message": {"choices": [{"index": 0, "message": None}]},
    "parts": {
        "choices": [{"index": 0, "message": {"role": "assistant", "content": [{"type": "text", "text": "pos"}]}}]
    },
    "error": {"error": {"message": "overloaded", "code": 503}},
}


class Server:
    """A loopback API. `script`: what the next requests get, a status or a kind of nonsense; after it all get 200."""

    def __init__(self):
        self.script, self.seen, self.lock = [], [], threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
                with server.lock:
                    server.seen.append((self.headers["authorization"], asked))
                    step = server.script.pop(0) if server.script else 200
                if step in ("hang", "sleep"):
                    time.sleep(1.5 if step == "hang" else 30)
                    return
                text = asked["messages"][-1]["content"]
                body = {"choices": [{"index": 0, "message": {"role": "assistant", "content": server.answer(text)}}]}
                if step in ("garbage", "broken"):
                    body = "<html>a page</html>"
                elif step in NO_COMPLETION:
                    body = NO_COMPLETION[step]
                elif step == 422:
                    body = {"detail": "the prompt is too long"}  # as FastAPI says it
                elif step != 200:
                    body = {
                        "error": {"message": f"no, {KEY} will not do", "param": "max_tokens" if step == 400 else None}
                    }
                content = (body if isinstance(body, str) else json.dumps(body)).encode()
                self.send_response(step if isinstance(step, int) else 200)
                self.send_header("content-type", "text/html" if step == "garbage" else "application/json")
                self.send_header("content-length", str(len(content)))
                self.send_header("retry-after-ms", "10")
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"

    def answer(self, text):
        return {"number 1": "Neg.", "number 3": "I cannot say"}.get(text, "pos")


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


@pytest.fixture
def asked():
    return messages_of(TASKS["sentiment"], ROWS, TRAIN, labels=["neg", "pos"], few_shot=2)


def run(server, asked, path, rows=range(12), **options):
    complete("m", asked, list(rows), base_url=server.url, path=path, **{"retries": 2, "timeout": 5.0} | options)


def refused(server, asked, path, **options):
    with pytest.raises(OSError, match="api:m") as error:
        run(server, asked, path, **options)
    assert KEY not in str(error.value)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_every_answer_is_kept_and_429_and_500_are_tried_again(server, asked, tmp_path):
    server.script = [429, 429, 200, 500, 503]
    run(server, asked, tmp_path / "a.jsonl")
    assert set(answers_in(tmp_path / "a.jsonl")) == {asked.key(i) for i in range(12)}
    assert len(server.seen) == 12 + 4
    assert {key for key, _ in server.seen} == {f"Bearer {KEY}"}
    assert KEY not in (tmp_path / "a.jsonl").read_text()
    assert all(request["model"] == "m" and request["temperature"] == 0 for _, request in server.seen)


def test_a_refused_key_is_said_at_once(server, asked, tmp_path):
    server.script = [401] * 9
    assert "refused the key: set OPENAI_API_KEY" in refused(server, asked, tmp_path / "a.jsonl")
    assert len(server.seen) == 1


def test_what_was_answered_before_an_error_is_kept_and_not_asked_again(server, asked, tmp_path):
    server.script = [200] * 5 + [500] * 50
    said = refused(server, asked, tmp_path / "a.jsonl", retries=1)
    assert "answered 500" in said
    kept = answers_in(tmp_path / "a.jsonl")
    assert f"{len(kept)} of 12 answers are kept" in said
    assert len(kept) == 5
    with (tmp_path / "a.jsonl").open("a") as file:
        file.write('{"asked": "cut off in the mid')  # as a kill leaves it
    server.script, server.seen = [], []
    run(server, asked, tmp_path / "a.jsonl", [i for i in range(12) if asked.key(i) not in kept])
    assert len(server.seen) == 7
    assert len(answers_in(tmp_path / "a.jsonl")) == 12


NONSENSE = [
    *[("garbage", "no completion"), ("broken", "no JSON"), (404, "answered 404"), (422, "the prompt is too long")],
    *((step, "no completion: ") for step in ("empty", "no message", "parts")),
    ("error", "overloaded"),
]


def test_answers_that_another_program_keeps_meanwhile_stay(server, asked, tmp_path, monkeypatch):
    path, answer = tmp_path / "a.jsonl", server.answer

    def killed(text):
        if text == "number 5":  # another program was killed while it wrote
            with locked(path), path.open("a") as file:
                file.write('{"asked": "cut off in the mid')
        return answer(text)

    monkeypatch.setattr(server, "answer", killed)
    other = threading.Thread(target=run, args=(server, asked, path), kwargs={"rows": range(6, 12)})
    other.start()
    run(server, asked, path, rows=range(6))
    other.join()
    assert set(answers_in(path)) == {asked.key(i) for i in range(12)}


def test_a_full_disk_is_named_with_what_is_kept(server, asked, tmp_path):
    run(server, asked, tmp_path / "a.jsonl", rows=range(3))
    before, limits = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / "a.jsonl").stat().st_size * 2, limits[1]))
        said = refused(server, asked, tmp_path / "a.jsonl", rows=range(3, 12))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    kept = answers_in(tmp_path / "a.jsonl")
    assert f"File too large: '{tmp_path / 'a.jsonl'}'; {len(kept) - 3} of 9 answers are kept" in said
    run(server, asked, tmp_path / "a.jsonl", [i for i in range(12) if asked.key(i) not in kept])
    assert set(answers_in(tmp_path / "a.jsonl")) == {asked.key(i) for i in range(12)}


@pytest.mark.parametrize(("step", "said"), NONSENSE)
def test_nonsense_ends_in_one_line(server, asked, tmp_path, step, said):
    server.script = [200, *[step] * 30]
    assert said in refused(server, asked, tmp_path / "a.jsonl")


def test_silence_ends_in_one_line(server, asked, tmp_path):
    server.script = ["hang"] * 9
    assert "did not answer in time" in refused(server, asked, tmp_path / "a.jsonl", retries=0, timeout=0.3)


ASK = """
import pickle, sys
from pathlib import Path
from hf_lm.scoring.api import complete
complete("m", pickle.loads(Path(sys.argv[1]).read_bytes()), range(12), base_url=sys.argv[2], path=Path(sys.argv[3]))
"""


def test_ctrl_c_waits_for_no_request_and_says_what_is_kept(server, asked, tmp_path):
    server.script = [200, *["sleep"] * 30]
    (tmp_path / "asked").write_bytes(pickle.dumps(asked))
    command = [sys.executable, "-c", ASK, tmp_path / "asked", server.url, tmp_path / "a.jsonl"]
    asking = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | {"OPENAI_API_KEY": KEY})
    while len(server.seen) < 3:
        assert asking.poll() is None, asking.stderr.read()
        time.sleep(0.01)
    interrupted = time.time()
    asking.send_signal(signal.SIGINT)
    said = asking.communicate()[1]
    assert time.time() - interrupted < 20  # a request sleeps for 30 seconds
    assert asking.returncode != 0
    assert len(answers_in(tmp_path / "a.jsonl")) == 1
    assert "1 of 12 answers are kept; the same command continues" in said


def test_a_parameter_that_a_model_refuses_is_left_out(server, asked, tmp_path):
    server.script = [400]
    run(server, asked, tmp_path / "a.jsonl", range(2))
    assert "max_tokens" in server.seen[0][1]
    assert "max_tokens" not in server.seen[1][1]


def test_nothing_that_listens_is_said_at_once(asked, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    started = time.time()
    with pytest.raises(OSError, match=r"nothing answers at 127.0.0.1:\d+"):
        complete("m", asked, [0], base_url=url, path=tmp_path / "a.jsonl")
    assert time.time() - started < 2
    with pytest.raises(ValueError, match="is no address"):
        complete("m", asked, [0], base_url="somewhere", path=tmp_path / "a.jsonl")


def test_without_key_and_address_nothing_is_asked(monkeypatch, asked, tmp_path):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ValueError, match="set OPENAI_API_KEY"):
        complete("m", asked, [0], base_url="", path=tmp_path / "a.jsonl")


def test_a_scored_api_is_asked_once_and_its_invalid_answers_are_counted(server, tmp_path, monkeypatch):
    monkeypatch.setattr("hf_lm.scoring.score.default_cache", lambda: tmp_path)
    table = Table("x", "f", {"train": TRAIN, "test": ROWS}, labels=["neg", "pos"])
    data = Data("sentiment", "test", table, {})
    options = {"base_url": server.url, "few_shot": 2, "instruction": "", "say": lambda said: None}
    scored = score_api("api:m", data, **options)
    assert [row["prediction"] for row in scored.examples[:4]] == ["pos", "neg", "pos", "I cannot say"]
    assert scored.notes == ["1 of 12 answers are none of the classes, and wrong"]
    asked_of = len(server.seen)
    again = score_api("api:m", data, **options)
    assert len(server.seen) == asked_of == 12
    assert again.examples == scored.examples
    assert not any(KEY in path.read_text() for path in tmp_path.rglob("*.jsonl"))


def test_empty_answers_are_counted_with_the_tokens_that_an_answer_may_have(server, tmp_path, monkeypatch):
    """Of a model that reasons, the tokens may end before its answer begins: a score of 0 would not say so."""
    monkeypatch.setattr("hf_lm.scoring.score.default_cache", lambda: tmp_path)
    server.answer = lambda text: "" if text == "number 1" else "pos"
    data = Data("sentiment", "test", Table("x", "f", {"train": TRAIN, "test": ROWS}, labels=["neg", "pos"]), {})
    scored = score_api("api:m", data, base_url=server.url, few_shot=0, instruction="", say=lambda said: None)
    assert scored.notes[1].startswith("1 of 12 answers are empty: it may write 16 tokens, which a model that reasons")


def test_a_refused_parameter_that_is_no_name_is_one_line(server, asked, tmp_path, monkeypatch):
    import httpx
    import openai

    def refuse(*args, **more):
        response = httpx.Response(400, request=httpx.Request("POST", server.url))
        raise openai.BadRequestError("no", response=response, body={"message": "no", "param": ["x"]})

    monkeypatch.setattr("openai.resources.chat.completions.Completions.create", refuse)
    assert "the API answered 400, no" in refused(server, asked, tmp_path / "a.jsonl")


def test_the_prompt_holds_examples_of_train_that_are_not_scored(asked):
    first, *shots, last = asked.messages[3]
    assert first["role"] == "system"
    assert "neg, pos" in first["content"]
    assert last == {"role": "user", "content": "number 3"}
    assert {turn["content"] for turn in shots if turn["role"] == "assistant"} == {"neg", "pos"}  # each class in turn
    assert all(conversation[:-1] == asked.messages[0][:-1] for conversation in asked.messages)
    leaked = [{"text": "Number 3!", "label": "neg"}, *TRAIN]
    assert leaked[0] not in draw(TASKS["sentiment"], ROWS, leaked, 9)
    with pytest.raises(ValueError, match="train has 9 rows"):
        draw(TASKS["sentiment"], ROWS, TRAIN, 10)


def test_a_translation_needs_its_languages():
    rows = [{"source": "eins", "targets": ["one"]}]
    named = messages_of(TASKS["translation"], rows, rows, columns={"source": "de", "target": "en"})
    assert "from de to en" in named.instruction
    with pytest.raises(ValueError, match="--instruction"):
        messages_of(TASKS["translation"], rows, rows, columns={"source": "src", "target": "tgt"})


def test_the_length_of_a_summary_is_asked_for_in_its_own_units():
    english = [{"source": "a", "targets": ["a summary of five words"]}]
    chinese = [{"source": "甲", "targets": ["春眠不觉晓"]}]
    assert "about 5 words" in messages_of(TASKS["summarization"], english, english).instruction
    assert "about 5 characters" in messages_of(TASKS["summarization"], chinese, chinese).instruction


def test_an_answer_is_a_class_only_where_it_names_exactly_one():
    labels = ["positive", "very positive", "negative"]
    assert to_label("Positive.", labels) == "positive"
    assert to_label("It is **very positive**", labels) == "very positive"
    assert to_label("positive or negative", labels) == ""
    assert to_label("positively", labels) == ""
    assert to_label("1", ["0", "1"]) == "1"
    assert to_label("这是好评。", ["好评", "差评"]) == "好评"


def test_an_answer_that_there_is_none_is_empty():
    rows = [{"id": "1", "question": "Who?", "context": "No one.", "answers": []}]
    examples, _ = TASKS["question_answering"].examples_of(rows, ["None."], [])
    assert examples[0]["prediction"] == ""
    assert examples[0]["score"] == 1.0
