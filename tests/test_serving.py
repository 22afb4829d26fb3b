"""`transformers serve` as a child: it speaks OpenAI's protocol, asks for its key, and is never left behind."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from hf_lm.serving import Server, _wait_until_ready, check_servable, example_request, has_chat_template, serving

ROOT = Path(__file__).parent.parent
TEMPLATE = (  # what is said next is ASCII: a stream holds back half a character
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}assistant: The quick"
)


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory) -> Path:
    import transformers

    from hf_lm.models.gpt2 import new_gpt2

    transformers.set_seed(0)
    out = tmp_path_factory.mktemp("served") / "tiny"
    new_gpt2(tokenizer, n_layer=2, n_head=2, n_embd=16, block_size=128).save_pretrained(out)
    tokenizer.save_pretrained(out)
    (out / "chat_template.jinja").write_text(TEMPLATE)
    return out


@pytest.fixture(scope="module")
def server(folder):
    pytest.importorskip("openai")
    pytest.importorskip("uvicorn")
    with serving(str(folder), port=0, api_key="open sesame", device="cpu") as server:
        yield server


@pytest.fixture
def client(server):
    import openai

    with openai.OpenAI(base_url=server.base_url, api_key="open sesame", max_retries=0) as client:
        yield client


def test_the_official_client_completes_chats_and_streams(client, server, tokenizer):
    assert server.model == "tiny"  # not the path of this machine
    assert [model.id for model in client.models.list()] == ["tiny"]
    completed = client.completions.create(model="tiny", prompt="The quick 春眠", max_tokens=4)
    assert completed.usage.prompt_tokens == len(tokenizer("The quick 春眠")["input_ids"])
    assert completed.usage.completion_tokens <= 4
    messages = [{"role": "user", "content": "Hello"}]
    chatted = client.chat.completions.create(model="tiny", messages=messages, max_tokens=8)
    assert chatted.choices[0].message.role == "assistant"
    chunks = list(client.chat.completions.create(model="tiny", messages=messages, max_tokens=8, stream=True))
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert streamed == chatted.choices[0].message.content != ""  # greedy, so the same
    assert len(chunks) > 3


def test_without_the_key_nothing_is_answered(server):
    import openai

    for key in ("guess", "open sesam", "open sesame!"):
        with openai.OpenAI(base_url=server.base_url, api_key=key, max_retries=0) as client:
            with pytest.raises(openai.AuthenticationError, match="API key"):
                client.models.list()
            with pytest.raises(openai.AuthenticationError):
                client.completions.create(model="tiny", prompt="The", max_tokens=1)
    assert not any("sesame" in argument for argument in psutil.Process(server.process.pid).cmdline())


def test_a_server_that_dies_is_one_line_and_ends_the_wait(server):
    server.process.send_signal(signal.SIGKILL)
    with pytest.raises(ChildProcessError, match=r"the server of tiny was ended by SIGKILL .*Its last output: "):
        server.wait()


def test_a_server_that_does_not_start_says_its_last_words():
    code = "print('loading'); print('RuntimeError: no\\x1b[2J room'); raise SystemExit(3)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    server = Server("tiny", "http://127.0.0.1:9/v1", process)
    with pytest.raises(ChildProcessError, match=r"exit code 3\. Its last output: RuntimeError: no \[2J room"):
        _wait_until_ready(server, "127.0.0.1", 9, "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_however_it_ends_no_server_is_left(folder, number):
    pytest.importorskip("uvicorn")
    run = subprocess.Popen(
        [sys.executable, "-m", "hf_lm.cli", "serve", str(folder), "--port", "0"],
        stderr=subprocess.DEVNULL,
        cwd=ROOT,
    )
    deadline = time.time() + 30
    while not (children := psutil.Process(run.pid).children()) and time.time() < deadline:
        time.sleep(0.02)
    os.kill(run.pid, number)
    assert run.wait(timeout=30) == (-number if number == signal.SIGKILL else 128 + number)
    gone, left = psutil.wait_procs(children, timeout=30)
    assert len(gone) == 1
    assert not left


def test_a_port_in_use_is_named_and_the_next_free_one_offered():
    pytest.importorskip("uvicorn")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with (
            pytest.raises(OSError, match=rf"port {port} of 127\.0\.0\.1 is in use; (\d+) is free: give --port \1"),
            serving("out/chat", port=port),
        ):
            pass


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.4", "::", "example.org"])
def test_other_machines_are_not_let_in_without_a_key(host):
    with pytest.raises(ValueError, match="give a key with --api_key"), serving("out/chat", host=host):
        pass


@pytest.mark.parametrize("key", ["芝麻开门", "open sesame ", "open\nsesame"])
def test_a_key_that_no_client_could_send_is_refused(key):
    with pytest.raises(ValueError, match="ASCII, with no space"), serving("out/chat", api_key=key):
        pass


def test_what_cannot_be_listened_on_or_is_not_installed_is_one_line(monkeypatch):
    pytest.importorskip("uvicorn")
    with pytest.raises(ValueError, match="--port 70000"), serving("out/chat", port=70000):
        pass
    with pytest.raises(ValueError, match="is no address"), serving("out/chat", host="no such host", api_key="k"):
        pass
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    said = r"needs fastapi, uvicorn, openai: pip install 'hf-lm\[serve\]'"
    with pytest.raises(ImportError, match=said), serving("out/chat"):
        pass


def test_what_is_no_language_model_is_refused(folder, tokenizer, tmp_path):
    from hf_lm.models.bert import new_bert

    check_servable(str(folder))
    new_bert(tokenizer, labels=["bad", "good"], block_size=32).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"BertForSequenceClassification.*serves causal language models"):
        check_servable(str(tmp_path))
    with pytest.raises(FileNotFoundError):
        check_servable(str(tmp_path / "nothing"))
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="hf-lm merge"):
        check_servable(str(tmp_path))


def test_the_example_is_a_command_without_the_key_in_it(folder, tmp_path):
    server = type("Server", (), {"model": "it's", "base_url": "http://127.0.0.1:1/v1"})
    chat, completion = (example_request(server, chat=chat, key=chat) for chat in (True, False))
    assert "$HF_LM_API_KEY" in chat
    assert "Authorization" not in completion
    for line in (chat, completion):
        words = subprocess.run(["bash", "-c", f"printf '%s\\n' {line}"], capture_output=True, text=True).stdout
        assert '"model": "it\'s"' in words
    assert has_chat_template(str(folder))
    assert has_chat_template("user/name")
    assert not has_chat_template(str(tmp_path))
