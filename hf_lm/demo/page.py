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
from collections.abc import Sequence
from typing import Any

FONTS = ["system-ui", "-apple-system", "Segoe UI", "Noto Sans", "Noto Sans CJK SC", "PingFang SC", "sans-serif"]
MONO = ["ui-monospace", "Menlo", "Consolas", "monospace"]
POLICY = (  # unsafe-eval: gr.HTML evaluates its template in the browser and shows an error without it
    "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; connect-src 'self'; frame-ancestors {frames}; "
    "form-action 'self'; object-src 'none'"
)
SESSIONS = 100  # whose drafts and conversations are kept; the one that was used last longest ago is dropped
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
        from starlette.middleware.trustedhost import TrustedHostMiddleware

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
            state_session_capacity=SESSIONS,
            theme=theme,
            css=CSS,
            app_kwargs={
                "middleware": [
                    Middleware(_Guard, policy=POLICY.format(frames="'none'" if is_loopback(self.host) else "*")),
                    Middleware(TrustedHostMiddleware, allowed_hosts=_allowed_hosts(self.host), www_redirect=False),
                ]
            },
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
    from hf_lm.demo.layouts import lay_out
    from hf_lm.demo.views import load_view

    if not models:
        raise ValueError("name at least one model: a folder or a Hub id.")
    views = []
    for name in models:
        print(f"loading {name} ...", file=sys.stderr, flush=True)
        views.append(load_view(str(name), device=device))
    return lay_out(views)


def _fonts(gradio: Any) -> dict[str, Any]:
    """Fonts of the reader's own machine; a plain string would be looked for on the server."""
    font = gradio.themes.Font
    return {"font": [font(name) for name in FONTS], "font_mono": [font(name) for name in MONO]}


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _allowed_hosts(host: str) -> list[str]:
    """Names under which the page is reached; every one where it listens on all addresses, as in a Space.

    A site whose name is pointed to this machine (DNS rebinding) could otherwise read the page.
    """
    return ["*"] if host in ("0.0.0.0", "::") else ["localhost", "127.0.0.1", "[::1]", host]


def free_port(host: str, port: int) -> int:
    """The port, or for 0 a free one. Raises OSError that names the next free one where it is in use."""

    def bound(port: int) -> int:
        kind, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            return probe.getsockname()[1]

    if not 0 <= port < 65536:
        raise ValueError(f"--port {port} is not a port; give one from 1024 to 65535.")
    try:
        return bound(port)
    except socket.gaierror:
        raise ValueError(f"{host} is not an address of this machine; 127.0.0.1 is.") from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            for other in range(port + 1, min(port + 100, 65536)):
                try:
                    message = f"port {port} of {host} is in use; {bound(other)} is free: give --port {other}"
                except OSError:
                    continue
                raise OSError(message) from None
        raise OSError(f"cannot listen on port {port} of {host}: {error.strerror}.") from None


class _Guard:
    """ASGI: every answer carries the content security policy, and no file is taken: no part of the page needs one."""

    def __init__(self, app: Any, policy: str) -> None:
        self.app, self.policy = app, policy.encode()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        from starlette.responses import PlainTextResponse

        async def send_with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), (b"content-security-policy", self.policy)]
            await send(message)

        if scope["type"] == "http" and scope["path"].rstrip("/").endswith("/upload"):
            await PlainTextResponse("this page takes no files", status_code=403)(scope, receive, send_with_policy)
        else:
            await self.app(scope, receive, send_with_policy if scope["type"] == "http" else send)
