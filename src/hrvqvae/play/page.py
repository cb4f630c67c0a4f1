"""The page (Gradio): its widgets and their callbacks, and how it is served. `tasks` computes what
is shown.
"""

import base64
import json
import math
import os
import re
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, wraps
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import gradio as gr
import torch
from PIL import Image, ImageOps
from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from torch import Tensor

from hrvqvae.data.images import to_pil
from hrvqvae.model import Model
from hrvqvae.play import tasks
from hrvqvae.play.address import LOOPBACK, is_admitted, list_hosts
from hrvqvae.play.tasks import MOST_IMAGES, Picture
from hrvqvae.plots import sheets
from hrvqvae.priors.guidance import format_guidance, parse_guidance
from hrvqvae.priors.sampling import SamplingParams
from hrvqvae.utils.errors import InputError
from hrvqvae.utils.progress import note

_T = TypeVar("_T")
_SIDE = 360  # pixels on the screen of an image's longer side, about
_FORM_BYTES = 1 << 16  # of a request, around the file that it uploads
_ANY = "any class"
_KEPT_SECONDS = 3_600  # uploads and drawn images
_CANVAS = "<canvas></canvas><button>Clear</button>"
_CANVAS_STYLE = "canvas { touch-action: none; cursor: crosshair; display: block; }"
_PAINTER = Path(__file__).with_name("painter.js")
_HEADS = ["level", "codewords", "used by this image", "perplexity", "perplexity in training"]


class Page:
    """The page of one model. It serves one request at a time, and takes files of at most
    `most_bytes` and images of at most `most_pixels`.
    """

    def __init__(self, model: Model, most_bytes: int, most_pixels: int) -> None:
        self.model = model
        self.limits = (most_bytes, most_pixels)
        self.size = model.config.data.image_size
        self.sampling: dict[str, Any] = {"guidance": 1.0, "levels": None}
        try:
            self.sampling = model.run.sampling_options()
            self.classes = model.classes
            self.missing = ""
            drawn = model.autoencoder.check_levels(self.sampling["levels"])
            priors = model.load_priors(drawn)
            self.guided = all(prior.level.unconditional for prior in priors.networks)
        except InputError as error:
            self.classes = ()
            self.missing = str(error)
            self.guided = False

    def show(self, picture: Picture, *modes: Any) -> tuple[Any, ...]:
        """Return the contents of all widgets that show an image; `modes` are as for
        `reconstruct`.
        """
        rows = []
        usage = tasks.measure_usage(self.model, picture.square)
        for level, (codewords, used, *perplexities) in enumerate(usage, 1):
            texts = ("-" if value is None else f"{value:.1f}" for value in perplexities)
            rows.append([level, codewords, used, *texts])
        reconstruction = self.reconstruct(picture, *modes)
        stream = BytesIO()
        to_pil(picture.square).save(stream, "PNG")
        url = "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
        # for painter.js: a grid of side x side marks, none of them painted
        side = min(tasks.MOST_MARKS, max(self.size))
        canvas = json.dumps({"picture": url, "side": side, "marks": ""})
        original = _enlarge(picture.full)
        return picture, original, picture.note, *reconstruction, canvas, rows

    def upload(self, file: str | None, *modes: Any) -> tuple[Any, ...]:
        """Show an uploaded image file."""
        picture = tasks.read_upload(
            Path(_require_image(file)), self.model.autoencoder.channels, self.size, *self.limits
        )
        return self.show(picture, *modes)

    def borrow(self, seed: int, *modes: Any) -> tuple[Any, ...]:
        """Show an image drawn by the model; return the next seed first."""
        drawn = (self.model.sample(1, seed=int(seed))[0] * 255).round().to(torch.uint8)
        picture = Picture(drawn, drawn, f"drawn by the model with seed {int(seed)}")
        return int(seed) + 1, *self.show(picture, *modes)

    def reconstruct(
        self, picture: Picture | None, levels: int, at_own_size: bool
    ) -> tuple[Image.Image, str]:
        """Return an image from the chosen levels, and a line about it."""
        picture = _require_image(picture)
        image = picture.full if at_own_size else picture.square
        decoded, length, psnr = tasks.reconstruct(self.model, image, int(levels))
        quality = "equal" if math.isinf(psnr) else f"PSNR {psnr:.2f} dB"
        height, width = image.shape[-2:]
        most = image.numel()  # bytes of the pixels
        line = (
            f"{length:,} bytes, {length / most:.2%} of the {most:,} of {width}x{height} pixels;"
            f" {quality}"
        )
        return _enlarge(decoded), line

    def draw(self, *options: Any) -> Image.Image:
        """Draw new images."""
        return sheets.draw_grid(list(self.model.draw(**self._parse_options(*options)).images))

    def complete(
        self, picture: Picture | None, painted: str | None, *options: Any
    ) -> tuple[Image.Image, str, Image.Image]:
        """Draw images that keep what is painted over."""
        image = _require_image(picture).square
        marks = tasks.parse_marks(painted)
        kept, share, images = tasks.complete(
            self.model, image, marks, **self._parse_options(*options)
        )
        return _enlarge(kept), f"{share:.0%} of the codes are kept", sheets.draw_grid(list(images))

    def build(self) -> gr.Blocks:
        """Build the widgets and connect them."""
        # what the page says of the model
        config = self.model.config
        prefixes = self.model.autoencoder.prefixes
        size = "x".join(map(str, self.size))
        can_draw = not self.missing
        about = (
            f"## {config.name}\n{config.model.system}, codewords by level:"
            f" {', '.join(f'{count:,}' for count in config.model.num_codewords)}; trained on"
            f" {config.data.dataset} at {size}"
            f" pixels.{'' if can_draw else f' Nothing can be drawn: {self.missing}'}"
        )
        most = self.limits[0] / (1 << 20)
        deletion = (600, _KEPT_SECONDS)
        with gr.Blocks(
            title=f"hrvqvae: {config.name}", analytics_enabled=False, delete_cache=deletion
        ) as page:
            gr.Markdown(about)

            # on the left the image, on the right what is made of it
            picture = gr.State(None, time_to_live=_KEPT_SECONDS)
            next_seed = gr.State(1)
            with gr.Row():
                with gr.Column(scale=1, min_width=260):
                    file = gr.File(
                        label=f"An image: PNG, JPEG, WebP; at most {most:.3g} MB", height=150
                    )
                    file.async_move_resource_to_block_cache = _refuse_addresses(
                        file.async_move_resource_to_block_cache
                    )
                    borrow = gr.Button(
                        "Let the model draw one", interactive=can_draw, elem_id="borrow"
                    )
                    original = _make_image("Original", "original")
                    note = gr.Markdown()
                with gr.Column(scale=2):
                    with gr.Tab("Reconstruct"):
                        levels = gr.Slider(
                            prefixes[0],
                            max(prefixes[-1], prefixes[0] + 1),  # Gradio refuses an empty range
                            value=prefixes[-1],
                            step=1,
                            label=f"Levels of {prefixes[-1]}",
                            interactive=len(prefixes) > 1,
                            elem_id="levels",
                        )
                        label = f"at its own size (else as in training, {size})"
                        at_own_size = gr.Checkbox(True, label=label)
                        line = gr.Markdown(elem_id="line")
                        decoded = _make_image("From the file of its codes", "made")
                    with gr.Tab("Draw"):
                        sample_options = self._make_options(16)
                        go_draw = gr.Button(
                            "Draw", variant="primary", interactive=can_draw, elem_id="draw"
                        )
                        drawn = _make_image("New images", "drawn")
                    with gr.Tab("Complete"):
                        gr.Markdown("Paint over what should stay; the rest is drawn anew.")
                        painter = gr.HTML(
                            "",
                            html_template=_CANVAS,
                            css_template=_CANVAS_STYLE,
                            js_on_load=_PAINTER.read_text(),
                            elem_id="painter",
                        )
                        completion_options = self._make_options(8)
                        go_complete = gr.Button(
                            "Complete", variant="primary", interactive=can_draw, elem_id="complete"
                        )
                        kept_line = gr.Markdown(elem_id="kept-line")
                        with gr.Row():
                            kept = _make_image("What is kept", "kept")
                            completed = _make_image("Completions", "completed")
                    with gr.Tab("Codebook"):
                        table = gr.Dataframe(headers=_HEADS, interactive=False, elem_id="usage")

            # callbacks: the widgets that they read, and those that they write
            views = [picture, original, note, decoded, line, painter, table]
            # one request at a time
            on = partial(gr.on, concurrency_id="model", concurrency_limit=1)
            modes = [levels, at_own_size]
            on(file.upload, _report(self.upload), [file, *modes], views, api_name="upload")
            on(
                borrow.click,
                _report(self.borrow),
                [next_seed, *modes],
                [next_seed, *views],
                api_name="borrow",
            )
            on(
                [levels.change, at_own_size.change],
                _report(self.reconstruct),
                [picture, *modes],
                [decoded, line],
                trigger_mode="always_last",
                api_name="reconstruct",
            )
            on(go_draw.click, _report(self.draw), sample_options, drawn, api_name="draw")
            on(
                go_complete.click,
                _report(self.complete),
                [picture, painter, *completion_options],
                [kept, kept_line, completed],
                api_name="complete",
            )
        page.queue(max_size=MOST_IMAGES, default_concurrency_limit=1)
        return page

    def _make_options(self, count: int) -> list[Any]:
        """Return the widgets of a sampling: number of images, class, temperature, seed,
        guidance.
        """
        guidance = format_guidance(self.sampling["guidance"])
        with gr.Row():
            return [
                gr.Slider(1, MOST_IMAGES, value=count, step=1, label="Images"),
                gr.Dropdown(
                    [_ANY, *self.classes], value=_ANY, label="Class", interactive=bool(self.classes)
                ),
                gr.Slider(0.05, 2, value=1, step=0.05, label="Temperature"),
                gr.Number(0, precision=0, minimum=0, maximum=2**32, label="Seed"),
                gr.Textbox(
                    guidance,
                    label="Guidance",
                    info="a number, or first and last: 1,5",
                    visible=self.guided,
                ),
            ]

    def _parse_options(
        self, count: int, name: str, temperature: float, seed: int | None, guidance: str
    ) -> dict[str, Any]:
        """Return the arguments of `Model.draw` from the widgets of a sampling. Raises InputError if
        a value is out of range or missing.
        """
        if not 1 <= count <= MOST_IMAGES:
            raise InputError(
                f"{count} images are asked for; 1 to {MOST_IMAGES} can be drawn at once"
            )
        if seed is None:
            raise InputError("there is no seed; give a whole number")
        params = SamplingParams(
            temperature=float(temperature),
            guidance=parse_guidance(str(guidance)),
            levels=self.sampling["levels"],
        )
        class_name = None if name == _ANY else name
        return {"count": int(count), "class_name": class_name, "seed": int(seed), "params": params}


def _report(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a callback whose InputError the page shows as one line."""

    @wraps(function)
    def call(*values: Any) -> Any:
        try:
            return function(*values)
        except InputError as error:
            raise gr.Error(str(error), title="Not possible", print_exception=False) from None

    return call


def _make_image(label: str, name: str) -> Any:
    return gr.Image(label=label, interactive=False, format="png", buttons=[], elem_id=name)


def _refuse_addresses(move: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap Gradio's function that moves an upload: refuse addresses, which it would download."""

    async def move_file(path: Any) -> Any:
        if "://" in str(path):
            raise gr.Error("an address is given instead of a file", print_exception=False)
        return await move(path)

    return move_file


def _require_image(value: _T | None) -> _T:
    if value is None:
        raise InputError("there is no image yet: upload one, or draw one")
    return value


def _enlarge(image: Tensor) -> Image.Image:
    """Return an image whose pixels can be seen."""
    zoom = max(1, round(_SIDE / max(image.shape[-2:])))
    return ImageOps.scale(to_pil(image), zoom, Image.Resampling.NEAREST)


_MOST_SESSIONS = 32
_MOST_UPLOADS = 64  # of the largest size, kept at once
_POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; frame-ancestors 'none'"
)


@dataclass
class Guard:
    """Middleware that limits who may ask, the size of a request and of all uploads, and what a
    browser may load.

    A request with another host name (`is_admitted`), or with another origin than the host, comes
    from another site.
    """

    app: ASGIApp
    most_bytes: int  # of an image
    hosts: tuple[str, ...]  # names of this page
    folder: Path  # of the uploads

    def check(self, path: str, headers: dict[bytes, str]) -> tuple[int, str] | None:
        """Return the HTTP status and the reason if the head of a request is refused, else None."""
        # host and origin, as a browser sends them
        address = headers.get(b"host", "")
        host = re.sub(r":\d*$", "", address).strip("[]")  # without the port
        if not is_admitted(host, self.hosts):
            return 403, f"this page answers to {' and '.join(self.hosts)} alone"
        if b"origin" in headers and urlsplit(headers[b"origin"]).netloc != address:
            return 403, "this page answers to itself alone"

        # sizes of this request, and of all uploads that are kept
        if int(headers.get(b"content-length", "0") or 0) > self.most_bytes + _FORM_BYTES:
            return 413, f"too large: at most {self.most_bytes:,} bytes are admitted"
        if path.endswith("/upload"):
            size = sum(file.stat().st_size for file in self.folder.rglob("*") if file.is_file())
            if size > _MOST_UPLOADS * self.most_bytes:
                return 503, "too many uploads are kept; wait until some are deleted"
        return None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.lower(): text.decode("latin-1") for name, text in scope["headers"]}
        if refusal := self.check(scope["path"], headers):
            while (await receive()).get("more_body"):  # read to its end, so that the answer arrives
                pass
            await JSONResponse({"detail": refusal[1]}, refusal[0])(scope, receive, send)
            return

        # A request may be longer than its head says. Each response gets the policy.
        received = 0

        async def receive_limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            return (
                message
                if received <= self.most_bytes + _FORM_BYTES
                else {"type": "http.disconnect"}
            )

        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message["headers"],
                    (b"content-security-policy", _POLICY.encode()),
                ]
            await send(message)

        await self.app(scope, receive_limited, send_with_policy)


def serve(model: Model, host: str, port: int | None, most_bytes: int, most_pixels: int) -> None:
    """Serve the page of a model until the process is interrupted or ended; uploads lie in a
    temporary folder.

    `port` None takes a free port from 7860 on. Raises InputError if the page can't be served at the
    address.
    """
    if host not in LOOPBACK:
        note("everyone who reaches this machine can use the page")
    with tempfile.TemporaryDirectory(prefix="hrvqvae-play-", ignore_cleanup_errors=True) as folder:
        os.environ.update(GRADIO_TEMP_DIR=folder, HF_HUB_DISABLE_TELEMETRY="1")
        guard = Middleware(
            Guard, most_bytes=most_bytes, hosts=list_hosts(host), folder=Path(folder)
        )
        page = Page(model, most_bytes, most_pixels).build()
        theme = gr.themes.Default(
            font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
        )
        for name in ("no_proxy", "NO_PROXY"):  # Gradio asks the page whether it is there
            os.environ[name] = ",".join(filter(None, (os.environ.get(name), *LOOPBACK, host)))

        # Gradio serves in a thread; this thread waits until it is interrupted.
        try:
            _, address, _ = page.launch(
                server_name=f"[{host}]" if ":" in host else host,
                server_port=port,
                max_file_size=most_bytes,
                share=False,
                ssr_mode=False,
                mcp_server=False,
                pwa=False,
                enable_monitoring=False,
                run_history=False,
                footer_links=[],
                quiet=True,
                prevent_thread_lock=True,
                inbrowser=False,
                state_session_capacity=_MOST_SESSIONS,
                theme=theme,
                app_kwargs={
                    "middleware": [guard],
                    "docs_url": None,
                    "redoc_url": None,
                    "openapi_url": None,
                },
            )
        except Exception as error:  # of the socket, or of Gradio's request to the page
            raise InputError(
                f"the page can't be served at {host}, port {port or '7860 and on'} ({error})"
            ) from error
        note(f"{model.run}: {address}   (Ctrl-C ends it)")
        try:
            while True:
                time.sleep(3_600)
        except KeyboardInterrupt:
            note("ended")
        finally:
            page.close(verbose=False)
