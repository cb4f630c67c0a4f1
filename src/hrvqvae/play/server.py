"""How the page is served: to this machine alone unless it is told otherwise, and with nothing from elsewhere."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

import gradio as gr
from starlette.middleware import Middleware

from hrvqvae.checkpoints.trained import TrainedModel
from hrvqvae.play.limits import Limits
from hrvqvae.play.page import Page
from hrvqvae.utils.errors import InputError

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

LOOPBACK = ("127.0.0.1", "localhost", "::1")
_MOST_SESSIONS = 32
_POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; frame-ancestors 'none'"
)


class Guard:
    """What stands before the page: hosts that it answers to, the size of a request, where a browser may load from.

    Another host name in a request for the loopback is another site's page that tries to get in.
    """

    def __init__(self, app: App, most_bytes: int, hosts: tuple[str, ...]) -> None:
        self.app, self.most_bytes, self.hosts = app, most_bytes, hosts

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get(b"host", "").rpartition(":")[0].strip("[]") or headers.get(b"host", "")
        if self.hosts and host not in self.hosts:
            await _refuse(send, 403, f"this page answers to {self.hosts[0]} alone")
            return
        if int(headers.get(b"content-length", "0") or 0) > self.most_bytes:
            while (await receive()).get("more_body"):  # read to its end and kept nowhere, so that the answer arrives
                pass
            await _refuse(send, 413, f"too large: at most {self.most_bytes:,} bytes are admitted")
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


async def _refuse(send: Send, status: int, line: str) -> None:
    body = f'{{"detail": "{line}"}}'.encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@contextmanager
def served(
    model: TrainedModel, limits: Limits | None = None, host: str = "127.0.0.1", port: int | None = None
) -> Iterator[str]:
    """Serve the page of a model as long as the context is open; -> its address.

    What is uploaded and drawn lies in a temporary folder, which is deleted in the end.

    Args:
        port: None takes a free one from 7860 on.

    Raises:
        InputError: the port is taken, or the host is none of this machine.
    """
    limits = limits or Limits()
    hosts = LOOPBACK if host in LOOPBACK else ()
    guard = Middleware(Guard, most_bytes=limits.upload_bytes + (1 << 16), hosts=hosts)
    kept = {name: os.environ.get(name) for name in ("GRADIO_TEMP_DIR", "HF_HUB_DISABLE_TELEMETRY")}
    with tempfile.TemporaryDirectory(prefix="hrvqvae-play-", ignore_cleanup_errors=True) as folder:
        os.environ.update(GRADIO_TEMP_DIR=folder, HF_HUB_DISABLE_TELEMETRY="1")
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
        try:
            yield address
        finally:
            page.close(verbose=False)
            for name, value in kept.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value


def serve(model: TrainedModel, limits: Limits, host: str, port: int | None, say: Callable[[str], None]) -> None:
    """Serve the page of a model until the process is interrupted. Raises as `served`."""
    with served(model, limits, host, port) as address:
        say(f"{model.run}: {address}   (Ctrl-C ends it)")
        if host not in LOOPBACK:
            say("everyone who reaches this machine can use it")
        try:
            while True:
                time.sleep(3_600)
        except KeyboardInterrupt:
            say("ended")
