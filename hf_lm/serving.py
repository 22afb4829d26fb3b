"""A model behind OpenAI's protocol: `transformers serve`, started, watched and ended by this process.

No server of ours: what is added is a check of the model, of the port and, with a key, of the caller.
"""

import errno
import http.client
import importlib.util
import ipaddress
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

KEY = "HF_LM_API_KEY"  # environment variable: arguments of a process can be read by everyone on a machine


@dataclass
class Server:
    """A running server: `model` is the name that requests give, `base_url` what a client is pointed to."""

    model: str
    base_url: str
    process: subprocess.Popen
    last: deque[str] = field(default_factory=lambda: deque(maxlen=20))  # lines of its output
    echo: bool = False  # whether they go to stderr as they come

    def __post_init__(self) -> None:
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def wait(self) -> None:
        """Return never: raise ChildProcessError, with the last output, when the server ends."""
        self.process.wait()
        self._reader.join(timeout=5)
        raise ChildProcessError(f"the server of {self.model} {self._end()}.{self._last_line()}")

    def _read(self) -> None:
        for line in self.process.stdout:
            line = "".join(c if c.isprintable() else " " for c in line).rstrip()
            if line:
                self.last.append(line)
                if self.echo:
                    print(line, file=sys.stderr, flush=True)

    def _end(self) -> str:
        code = self.process.returncode
        if code >= 0:
            return f"ended with exit code {code}"
        said = f"was ended by {signal.Signals(-code).name}"
        return said + (" (out of memory?)" if code == -signal.SIGKILL else "")

    def _last_line(self) -> str:
        return f" Its last output: {self.last[-1]}" if self.last else " It wrote nothing."


@contextmanager
def serving(
    model: str,  # a folder or a Hub id
    *,
    host: str = "127.0.0.1",
    port: int = 8000,  # 0 takes any that is free
    api_key: str = "",  # asked of every request; "" asks nothing, and then only this machine can be served
    dtype: str = "auto",  # as saved, or float32, bfloat16, float16
    device: str = "auto",
) -> Iterator[Server]:
    """Serve a causal language model while the block runs; it begins when the server answers, and no process is left.

    Raises ValueError for an address beyond this machine without a key, ImportError without the extra `serve`, OSError
    for a port in use, and ChildProcessError with the server's last output where it does not start.
    """
    if not api_key and not _is_loopback(host):
        raise ValueError(
            f"--host {host} lets other machines in: give a key with --api_key, or {KEY} in the environment."
        )
    if api_key != api_key.strip() or not (api_key.isascii() and api_key.isprintable()):
        raise ValueError("an API key stands in a header: ASCII, with no space around it.")
    missing = [name for name in ("fastapi", "uvicorn", "openai") if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"serving needs {', '.join(missing)}: pip install 'hf-lm[serve]'.")
    port = free_port(host, port)
    folder = Path(model).expanduser()
    # Served from the folder above, so that the name that clients give, and see, is not a path of this machine.
    name, above = (folder.resolve().name, str(folder.resolve().parent)) if folder.is_dir() else (model, ".")
    command = [sys.executable, "-m", "hf_lm.serving", above, name, host, str(port), dtype, device]
    process = subprocess.Popen(
        command,
        env={key: value for key, value in os.environ.items() if key != KEY} | ({KEY: api_key} if api_key else {}),
        stdin=subprocess.PIPE,  # it ends with this process, whatever ends this one: see _end_with_parent
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,  # Ctrl-C is for this process, which ends the server
    )
    url = f"http://{f'[{_reached_at(host)}]' if ':' in host else _reached_at(host)}:{port}/v1"
    server = Server(name, url, process)
    try:
        _wait_until_ready(server, host, port, api_key)
        yield server
    finally:
        process.terminate()
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:  # it waits for a request to end
            process.kill()
            process.wait()
        process.stdin.close()


def example_request(server: Server, *, chat: bool, key: bool) -> str:
    """A request that can be pasted into a terminal; the key itself is not in it."""
    body = {"model": server.model} | (
        {"messages": [{"role": "user", "content": "Hello!"}]} if chat else {"prompt": "Once upon a time"}
    )
    path = "chat/completions" if chat else "completions"
    header = f" -H 'Authorization: Bearer '\"${KEY}\"" if key else ""
    data = shlex.quote(json.dumps(body | {"max_tokens": 64}))
    return f"curl {server.base_url}/{path} -H 'Content-Type: application/json'{header} -d {data}"


def has_chat_template(model: str) -> bool:
    """Whether a folder's tokenizer brings a template for chats; a model on the Hub is taken to."""
    folder = Path(model).expanduser()
    settings = folder / "tokenizer_config.json"
    if not folder.is_dir() or (folder / "chat_template.jinja").is_file():
        return True
    return settings.is_file() and bool(json.loads(settings.read_text(encoding="utf-8")).get("chat_template"))


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _reached_at(host: str) -> str:
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)


def free_port(host: str, port: int) -> int:
    """The port, or for 0 a free one. Raises OSError that names the next free one where it is in use."""

    def bound(port: int) -> int:
        kind, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            return probe.getsockname()[1]

    if not 0 <= port < 65536:
        raise ValueError(f"--port {port} is no port; give one from 1024 to 65535.")
    try:
        return bound(port)
    except socket.gaierror:
        raise ValueError(f"--host {host} is no address; 127.0.0.1 serves this machine, 0.0.0.0 every one.") from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            for other in range(port + 1, min(port + 100, 65536)):
                try:
                    said = f"port {port} of {host} is in use; {bound(other)} is free: give --port {other}"
                except OSError:
                    continue
                raise OSError(said) from None
        raise OSError(f"cannot listen on port {port} of {host}: {error.strerror}.") from None


def _wait_until_ready(server: Server, host: str, port: int, api_key: str) -> None:
    """Return once the server answers; loading may take minutes, so only its end is a failure."""
    while _status(host, port, api_key) != 200:
        if server.process.poll() is not None:
            server.wait()
        time.sleep(0.1)
    if api_key and _status(host, port, "") != 401:
        raise ChildProcessError("the server answers without a key; it was ended.")


def _status(host: str, port: int, api_key: str) -> int:
    connection = http.client.HTTPConnection(_reached_at(host), port, timeout=5)
    try:
        connection.request("GET", "/health", headers={"Authorization": f"Bearer {api_key}"} if api_key else {})
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()


def check_servable(model: str) -> None:
    """Raise OSError or ValueError, in one line, for what `transformers serve` cannot load as a language model."""
    if Path(model, "adapter_config.json").is_file():
        raise ValueError(f"{model} is an adapter; make it a model first: hf-lm merge FOLDER")

    from transformers.models.auto import modeling_auto

    from hf_lm.models.configuration import load_config

    kind = (load_config(model).architectures or ["model of no known architecture"])[0]
    known = {
        *modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values(),
        *modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.values(),
    }
    if kind not in known:
        raise ValueError(
            f"{model} is a {kind}, and `transformers serve` serves causal language models; hf-lm predict runs a "
            "labelled task."
        )


def _become_server(above: str, name: str, host: str, port: str, dtype: str, device: str) -> None:
    """In the child: `transformers serve`, after a look at the model, and behind the key if there is one."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    api_key = os.environ.pop(KEY, "")
    os.chdir(above)
    try:
        check_servable(name)
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from None

    from transformers.cli.serving import server
    from transformers.cli.transformers import app
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    if api_key:
        build = server.build_server

        def build_with_key(*args, **kwargs):
            application = build(*args, **kwargs)
            application.add_middleware(_RequireKey, api_key=api_key)
            return application

        server.build_server = build_with_key
    app(["serve", name, "--host", host, "--port", port, "--dtype", dtype, "--device", device])


def _end_with_parent() -> None:
    """stdin is a pipe that nobody writes to: it ends when the parent does, even one that was killed."""
    os.read(0, 1)
    os._exit(1)


class _RequireKey:
    """ASGI: every request must carry the key, as OpenAI's clients send it; `transformers serve` looks at none."""

    def __init__(self, app, api_key: str) -> None:
        self.app, self.expected = app, f"Bearer {api_key}".encode()

    async def __call__(self, scope, receive, send) -> None:
        import hmac

        from starlette.responses import JSONResponse

        given = dict(scope.get("headers", ())).get(b"authorization", b"")
        if scope["type"] == "lifespan" or hmac.compare_digest(given, self.expected):
            await self.app(scope, receive, send)
        else:
            error = {"message": "a wrong API key or none", "type": "invalid_request_error", "code": "invalid_api_key"}
            await JSONResponse({"error": error}, status_code=401)(scope, receive, send)


if __name__ == "__main__":
    _become_server(*sys.argv[1:])
