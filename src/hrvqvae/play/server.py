"""Serving the page: to this machine alone by default, with nothing from elsewhere."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import gradio as gr
from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hrvqvae.checkpoints.trained import TrainedModel
from hrvqvae.play.page import Page
from hrvqvae.play.tasks import Limits
from hrvqvae.utils.errors import InputError

LOOPBACK = ("127.0.0.1", "localhost", "::1")
_MOST_SESSIONS = 32
_MOST_UPLOADS = 64  # of the largest size, kept at once
_POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; frame-ancestors 'none'"
)


class Guard:
    """Middleware that limits who may ask, the size of a request and of all uploads, and what a browser may load.

    Another host name in a request for the loopback, or another origin than the host, means another site's page.
    """

    def __init__(self, app: ASGIApp, most_bytes: int, hosts: tuple[str, ...], folder: Path) -> None:
        self.app, self.most_bytes, self.hosts, self.folder = app, most_bytes, hosts, folder

    def _refusal(self, path: str, headers: dict[bytes, str]) -> tuple[int, str] | None:
        """(HTTP status, reason) where the head of a request is refused."""
        whole = headers.get(b"host", "")
        host = whole.rpartition(":")[0].strip("[]") or whole
        if self.hosts and host not in self.hosts:
            return 403, f"this page answers to {self.hosts[0]} alone"
        if b"origin" in headers and urlsplit(headers[b"origin"]).netloc != whole:
            return 403, "this page answers to itself alone"
        if int(headers.get(b"content-length", "0") or 0) > self.most_bytes:
            return 413, f"too large: at most {self.most_bytes:,} bytes are admitted"
        if path.endswith("/upload"):
            kept = sum(one.stat().st_size for one in self.folder.rglob("*") if one.is_file())
            if kept > _MOST_UPLOADS * self.most_bytes:
                return 503, "too many uploads are kept; wait until some are deleted"
        return None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        refusal = self._refusal(
            scope["path"], {name.lower(): text.decode("latin-1") for name, text in scope["headers"]}
        )
        if refusal is not None:
            while (await receive()).get("more_body"):  # read to its end, so that the answer arrives
                pass
            await JSONResponse({"detail": refusal[1]}, refusal[0])(scope, receive, send)
            return
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            return message if received <= self.most_bytes else {"type": "http.disconnect"}

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", _POLICY.encode())]
            await send(message)

        await self.app(scope, counted, guarded)


def serve(model: TrainedModel, limits: Limits, host: str, port: int | None, say: Callable[[str], None]) -> None:
    """Serve the page of a model until the process is interrupted or ended; uploads lie in a temporary folder.

    Args:
        port: None takes a free one from 7860 on.

    Raises:
        InputError: the port is taken, or the host is none of this machine.
    """
    with tempfile.TemporaryDirectory(prefix="hrvqvae-play-", ignore_cleanup_errors=True) as folder:
        os.environ.update(GRADIO_TEMP_DIR=folder, HF_HUB_DISABLE_TELEMETRY="1")
        guard = Middleware(
            Guard, most_bytes=limits.upload_bytes + (1 << 16), hosts=LOOPBACK if host in LOOPBACK else (),
            folder=Path(folder),
        )  # fmt: skip
        page = Page(model, limits).blocks()
        theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
        try:
            _, address, _ = page.launch(
                server_name=host, server_port=port, max_file_size=limits.upload_bytes, share=False, ssr_mode=False,
                mcp_server=False, pwa=False, enable_monitoring=False, run_history=False, footer_links=[], quiet=True,
                prevent_thread_lock=True, inbrowser=False, state_session_capacity=_MOST_SESSIONS, theme=theme,
                app_kwargs={"middleware": [guard], "docs_url": None, "redoc_url": None, "openapi_url": None},
            )  # fmt: skip
        except OSError as error:
            raise InputError(f"the page can't be served at {host}, port {port or '7860 and on'} ({error})") from error
        say(f"{model.run}: {address}   (Ctrl-C ends it)")
        if host not in LOOPBACK:
            say("everyone who reaches this machine can use it")
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the folder is deleted then as well
        try:
            while True:
                time.sleep(3_600)
        except KeyboardInterrupt:
            say("ended")
        finally:
            page.close(verbose=False)
