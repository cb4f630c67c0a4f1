"""The page (Gradio): its widgets and what they call. `tasks` computes what is shown."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable
from functools import partial, wraps
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import gradio as gr
import torch
from PIL import Image
from torch import Tensor

from hrvqvae.checkpoints.trained import TrainedModel
from hrvqvae.data.images import to_pil
from hrvqvae.play import tasks
from hrvqvae.play.tasks import MOST_IMAGES, Limits, Picture
from hrvqvae.plots import sheets
from hrvqvae.utils.errors import InputError

_Given = TypeVar("_Given")
_SIDE = 360  # pixels on the screen of an image's longer side, about
_ANY = "any class"
_KEPT_SECONDS = 3_600  # uploads and drawn images
_CANVAS = "<canvas></canvas><button>Clear</button>"
_CANVAS_STYLE = "canvas { touch-action: none; cursor: crosshair; display: block; }"
_PAINTER = Path(__file__).with_name("painter.js")
_HEADS = ["level", "codewords", "used by this image", "perplexity", "perplexity in training"]


class Page:
    """The page of one model, which serves one request at a time."""

    def __init__(self, model: TrainedModel, limits: Limits) -> None:
        self.model, self.limits, self.size = model, limits, model.config.data.size
        try:
            self.classes, self.missing = model.classes, ""
            self.guided = all(prior.level.unconditional for prior in model.priors.networks)
        except InputError as error:
            self.classes, self.missing, self.guided = (), str(error), False

    def _answer(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function; the page shows its InputError as one line."""

        @wraps(function)
        def answer(*values: Any) -> Any:
            try:
                return function(*values)
            except InputError as error:
                raise gr.Error(str(error), title="Not possible", print_exception=False) from None

        return answer

    def look(self, picture: Picture, levels: int, whole: bool) -> tuple[Any, ...]:
        """All that is shown of a new image."""
        rows = [
            [number, codewords, used, f"{perplexity:.1f}", "-" if trained is None else f"{trained:.1f}"]
            for number, (codewords, used, perplexity, trained) in enumerate(tasks.usage(self.model, picture.square), 1)
        ]
        made = self.reconstruct(picture, levels, whole)
        painter, square = self._canvas(picture), _enlarged(picture.square)
        return picture, _enlarged(picture.own), picture.note, *made, painter, square, rows, None

    def upload(self, file: str | None, levels: int, whole: bool) -> tuple[Any, ...]:
        """An uploaded image file."""
        taken = tasks.take(Path(_given(file)), self.model.autoencoder.channels, self.size, self.limits)
        return self.look(taken, levels, whole)

    def borrow(self, seed: int, levels: int, whole: bool) -> tuple[Any, ...]:
        """An image from the model; -> the next seed, and all that is shown of it."""
        drawn = (self.model.sample(1, seed=int(seed))[0] * 255).round().to(torch.uint8)
        picture = Picture(drawn, drawn, f"drawn by the model with seed {int(seed)}")
        return int(seed) + 1, *self.look(picture, levels, whole)

    def reconstruct(self, picture: Picture | None, levels: int, whole: bool) -> tuple[Image.Image, str]:
        """An image from the chosen levels."""
        image = _given(picture).own if whole else _given(picture).square
        made, length, psnr = tasks.reconstruct(self.model, image, int(levels))
        error = "equal" if math.isinf(psnr) else f"PSNR {psnr:.2f} dB"
        (height, width), pixels = image.shape[-2:], image.numel()
        line = f"{length:,} bytes, {length / pixels:.2%} of the {pixels:,} of {width}x{height} pixels; {error}"
        return _enlarged(made), line

    def draw(self, count: int, *how: Any) -> Image.Image:
        """New images."""
        return sheets.grid(list(self.model.sample(_checked(count), **_params(*how))))

    def complete(
        self, picture: Picture | None, painted: str | None, count: int, *how: Any
    ) -> tuple[Image.Image, str, Image.Image]:
        """Images that keep what is painted."""
        image, marks = _given(picture).square, tasks.marked(painted)
        kept, share, images = tasks.complete(self.model, image, marks, _checked(count), **_params(*how))
        return _enlarged(kept), f"{share:.0%} of the codes are kept", sheets.grid(list(images))

    def hierarchy(self, picture: Picture | None, where: gr.SelectData) -> Image.Image:
        """Figure 10 for the position that was clicked."""
        image = _given(picture).square
        x, y = (int(value) // _zoom(image) for value in where.index)
        stream = BytesIO()
        tasks.hierarchy_at(self.model, image, x, y).savefig(stream, format="png")
        return Image.open(stream)

    def _canvas(self, picture: Picture) -> str:
        """The painter's JSON: an image, and nothing painted."""
        stream = BytesIO()
        to_pil(picture.square).save(stream, "PNG")
        url = "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
        return json.dumps({"picture": url, "side": min(tasks.MOST_MARKS, self.size), "marks": ""})

    def blocks(self) -> gr.Blocks:
        """The page, to be served."""
        config, prefixes, can_draw = self.model.config, self.model.autoencoder.prefixes, not self.missing
        about = (
            f"## {config.name}\n{config.model.system}, codewords by level: "
            f"{', '.join(f'{one:,}' for one in config.model.num_codewords)}; trained on {config.data.dataset} at "
            f"{self.size}x{self.size} pixels.{'' if can_draw else f' Nothing can be drawn: {self.missing}'}"
        )
        most = self.limits.upload_bytes / (1 << 20)
        title, kept = f"hrvqvae: {config.name}", (600, _KEPT_SECONDS)
        with gr.Blocks(title=title, analytics_enabled=False, delete_cache=kept) as page:
            gr.Markdown(about)
            picture, next_seed = gr.State(None, time_to_live=_KEPT_SECONDS), gr.State(1)
            with gr.Row():
                with gr.Column(scale=1, min_width=260):
                    file = gr.File(label=f"An image: PNG, JPEG, WebP; at most {most:.3g} MB", height=150)
                    file.async_move_resource_to_block_cache = _uploaded_only(file.async_move_resource_to_block_cache)
                    borrow = gr.Button("Let the model draw one", interactive=can_draw, elem_id="borrow")
                    original = _image("Original", "original")
                    note = gr.Markdown()
                with gr.Column(scale=2):
                    with gr.Tab("Reconstruct"):
                        levels = gr.Slider(
                            prefixes[0], max(prefixes[-1], prefixes[0] + 1), value=prefixes[-1], step=1,
                            label=f"Levels of {prefixes[-1]}", interactive=len(prefixes) > 1, elem_id="levels",
                        )  # fmt: skip
                        own = f"at its own size (else as in training, {self.size}x{self.size})"
                        whole = gr.Checkbox(True, label=own)
                        line = gr.Markdown(elem_id="line")
                        made = _image("From the file of its codes", "made")
                    with gr.Tab("Draw"):
                        asked = self._asked(16)
                        go_draw = gr.Button("Draw", variant="primary", interactive=can_draw, elem_id="draw")
                        drawn = _image("New images", "drawn")
                    with gr.Tab("Complete"):
                        gr.Markdown("Paint over what should stay; the rest is drawn anew.")
                        painter = gr.HTML(
                            "", html_template=_CANVAS, css_template=_CANVAS_STYLE, js_on_load=_PAINTER.read_text(),
                            elem_id="painter",
                        )  # fmt: skip
                        asked_too = self._asked(8)
                        go = gr.Button("Complete", variant="primary", interactive=can_draw, elem_id="complete")
                        kept_line = gr.Markdown(elem_id="kept-line")
                        with gr.Row():
                            kept, completed = _image("What is kept", "kept"), _image("Completions", "completed")
                    with gr.Tab("Codebook"):
                        table = gr.Dataframe(headers=_HEADS, interactive=False, elem_id="usage")
                        clicked = _image("Click on a position", "clicked")
                        reach = _image("The codebooks within its reach (Figure 10)", "reach")
            seen = [picture, original, note, made, line, painter, clicked, table, reach]
            on = partial(gr.on, concurrency_id="model", concurrency_limit=1)  # one request at a time
            answer, how = self._answer, [levels, whole]
            on(file.upload, answer(self.upload), [file, *how], seen, api_name="upload")
            on(borrow.click, answer(self.borrow), [next_seed, *how], [next_seed, *seen], api_name="borrow")
            on(
                [levels.change, whole.change], answer(self.reconstruct), [picture, *how], [made, line],
                trigger_mode="always_last", api_name="reconstruct",
            )  # fmt: skip
            on(go_draw.click, answer(self.draw), asked, drawn, api_name="draw")
            on(go.click, answer(self.complete), [picture, painter, *asked_too], [kept, kept_line, completed],
               api_name="complete")  # fmt: skip
            on(clicked.select, answer(self.hierarchy), picture, reach, api_visibility="private")
        page.queue(max_size=MOST_IMAGES, default_concurrency_limit=1)
        return page

    def _asked(self, count: int) -> list[Any]:
        """The widgets of a sampling: number, class, temperature, seed, guidance."""
        with gr.Row():
            return [
                gr.Slider(1, MOST_IMAGES, value=count, step=1, label="Images"),
                gr.Dropdown([_ANY, *self.classes], value=_ANY, label="Class", interactive=bool(self.classes)),
                gr.Slider(0.05, 2, value=1, step=0.05, label="Temperature"),
                gr.Number(0, precision=0, minimum=0, maximum=2**32, label="Seed"),
                gr.Slider(0, 4, value=1, step=0.1, label="Guidance", visible=self.guided),
            ]


def _checked(count: int) -> int:
    if not 1 <= count <= MOST_IMAGES:
        raise InputError(f"{count} images are asked for; 1 to {MOST_IMAGES} can be drawn at once")
    return int(count)


def _params(name: str, temperature: float, seed: int, guidance: float) -> dict[str, Any]:
    class_name = None if name == _ANY else name
    return {"class_name": class_name, "temperature": float(temperature), "seed": int(seed), "guidance": float(guidance)}


def _image(label: str, name: str) -> Any:
    return gr.Image(label=label, interactive=False, format="png", buttons=[], elem_id=name)


def _uploaded_only(move: Callable[..., Any]) -> Callable[..., Any]:
    """Refuses addresses, which Gradio would fetch."""

    async def moved(path: Any) -> Any:
        if "://" in str(path):
            raise gr.Error("an address is given instead of a file", print_exception=False)
        return await move(path)

    return moved


def _given(given: _Given | None) -> _Given:
    if given is None:
        raise InputError("there is no image yet: upload one, or draw one")
    return given


def _zoom(image: Tensor) -> int:
    return max(1, round(_SIDE / max(image.shape[-2:])))


def _enlarged(image: Tensor) -> Image.Image:
    """An image whose pixels can be seen."""
    picture, zoom = to_pil(image), _zoom(image)
    return picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.NEAREST)
