"""`hf-lm demo`: a page in the browser with a tab for every model named. Extra `demo` (Gradio).

open_page(["out/chat", "out/sentiment"])

Nothing is loaded from another host, and a policy in every answer keeps the browser from trying. The page is for this
machine: 127.0.0.1. Requests under another name, frames of other sites and uploads are refused.
"""

import errno
import importlib.util
import ipaddress
import os
import socket
import sys
import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gradio import Blocks
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

FONTS = ["system-ui", "-apple-system", "Segoe UI", "Noto Sans", "Noto Sans CJK SC", "PingFang SC", "sans-serif"]
MONO = ["ui-monospace", "Menlo", "Consolas", "monospace"]
POLICY = (  # unsafe-eval: gr.HTML evaluates its template in the browser and shows an error without it
    "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; connect-src 'self'; frame-ancestors {frames}; "
    "form-action 'self'; object-src 'none'"
)
SESSIONS = 100  # whose drafts are kept; the least recently used one is dropped


def open_page(
    models: Sequence[str],
    *,
    host: str = "127.0.0.1",
    port: int = 7860,  # 0 takes any that is free
    device: str | None = None,
) -> None:
    """Show models on a page until Ctrl-C.

    Before the page opens: raises ImportError without the extra, OSError for a port in use, and OSError or ValueError,
    in one line, for a model that cannot be loaded or shown.
    """
    check_gradio()
    port = free_port(host, port)
    page = build_page(models, device=device)
    with running(page, host=host, port=port) as url:
        print(f"{url}   (Ctrl-C ends it)", flush=True)
        threading.Event().wait()  # until a signal


@contextmanager
def running(page: "Blocks", *, host: str = "127.0.0.1", port: int) -> Generator[str]:
    """Serve a page while the block runs; gives its address."""
    from gradio.themes import Default, Font
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    # Fonts of the reader's own machine; a plain string would be looked for on the server.
    fonts, mono = ([Font(name) for name in names] for names in (FONTS, MONO))
    policy = POLICY.format(frames="'none'" if is_loopback(host) else "*")
    hosts = Middleware(TrustedHostMiddleware, allowed_hosts=_allowed_hosts(host), www_redirect=False)
    _, url, _ = page.queue(max_size=64).launch(
        server_name=host,
        server_port=port,
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
        state_session_capacity=SESSIONS,
        theme=Default(primary_hue="slate", neutral_hue="slate", radius_size="sm", font=fonts, font_mono=mono),
        css_paths=Path(__file__).with_name("page.css"),
        app_kwargs={"middleware": [Middleware(_Guard, policy=policy), hosts]},
    )
    try:
        yield url
    finally:
        page.close(verbose=False)


def check_gradio() -> None:
    if importlib.util.find_spec("gradio") is None:
        raise ImportError("the page needs gradio: pip install 'hf-lm[demo]'.")
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported


def build_page(models: Sequence[str], *, device: str | None = None) -> "Blocks":
    """A page with a tab per model, each loaded once and shared by all visitors. Raises as `open_page`."""
    check_gradio()
    from hf_lm.demo.layouts import lay_out
    from hf_lm.demo.views import load_view

    if not models:
        raise ValueError("name at least one model: a folder or a Hub id.")
    views = []
    for name in models:
        print(f"loading {name} ...", file=sys.stderr, flush=True)
        views.append(load_view(str(name), device=device))
    return lay_out(views)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _allowed_hosts(host: str) -> list[str]:
    """Host names that the page answers to; all where it listens on every address, as in a Space.

    A site whose name is pointed to this machine (DNS rebinding) could otherwise read the page.
    """
    return ["*"] if host in ("0.0.0.0", "::") else ["localhost", "127.0.0.1", "[::1]", host]


def free_port(host: str, port: int) -> int:
    """The port, or for 0 a free one. Raises OSError with the next free one where it is in use."""

    def bound(port: int) -> int:
        kind, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            return probe.getsockname()[1]

    if not 0 <= port < 65536:
        raise ValueError(f"--port {port} is not a port; give one from 1024 to 65535, or 0 for any that is free.")
    try:
        return bound(port)
    except socket.gaierror:
        raise ValueError(f"{host} is not an address of this machine; 127.0.0.1 is.") from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            for free in range(port + 1, min(port + 100, 65536)):
                try:
                    message = f"port {port} of {host} is in use; {bound(free)} is free: give --port {free}"
                except OSError:
                    continue
                raise OSError(message) from None
        raise OSError(f"cannot listen on port {port} of {host}: {error.strerror}.") from None


class _Guard:
    """ASGI middleware: every response carries the content security policy, and uploads are refused."""

    def __init__(self, app: "ASGIApp", policy: str) -> None:
        self.app, self.policy = app, policy.encode()

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        from starlette.responses import PlainTextResponse

        async def send_with_policy(message: "Message") -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), (b"content-security-policy", self.policy)]
            await send(message)

        if scope["type"] == "http" and scope["path"].rstrip("/").endswith("/upload"):
            await PlainTextResponse("this page takes no files", status_code=403)(scope, receive, send_with_policy)
        else:
            await self.app(scope, receive, send_with_policy if scope["type"] == "http" else send)
