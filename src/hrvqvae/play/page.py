"""The page (Gradio) of a model: reconstruct, draw and complete images."""

from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from hrvqvae.data.images import to_pil
from hrvqvae.model import Model
from hrvqvae.plots.sheets import draw_grid
from hrvqvae.priors.guidance import format_guidance, parse_guidance
from hrvqvae.priors.sampling import SamplingParams

_MOST_IMAGES = 64


def build_page(model: Model) -> gr.Blocks:
    """Return the page; a model without priors reconstructs only."""
    height, width = model.config.data.image_size
    prefixes = model.autoencoder.prefixes
    defaults = model.run.sampling_options()

    def reconstruct(image: Image.Image, levels: float) -> tuple[Image.Image, str]:
        (file,) = model.compress([image], levels=int(levels))
        (decoded,) = model.decompress([file])
        return to_pil(decoded), f"{len(file):,} bytes"

    def parse(name: str | None, temperature: float, seed: float, guidance: str) -> dict[str, Any]:
        params = SamplingParams(
            temperature=temperature, guidance=parse_guidance(guidance), levels=defaults["levels"]
        )
        return {"class_name": name or None, "seed": int(seed), "params": params}

    def draw(count: float, *options: Any) -> Image.Image:
        images = model.draw(int(count), **parse(*options)).images
        return draw_grid([*images])

    def complete(painted: dict[str, Any], count: float, *options: Any) -> Image.Image:
        # Gradio gives what was painted as a layer of its own, with opacity as fourth channel.
        image = painted["background"].convert("RGB").resize((width, height))
        paint = painted["layers"][0].resize((width, height))
        keep = np.asarray(paint)[..., 3] > 0
        images = model.complete(image, int(count), keep=keep, **parse(*options))
        return draw_grid([*images])

    level = gr.Slider(prefixes[0], prefixes[-1], value=prefixes[-1], step=1, label="Levels")
    tabs = {
        "Reconstruct": gr.Interface(
            reconstruct,
            [gr.Image(type="pil"), level],
            [gr.Image(label="From the file of codes", format="png"), gr.Text(label="File")],
            api_name="reconstruct",
        )
    }
    if model.run.count_prior_levels():
        tabs["Draw"] = gr.Interface(
            draw, _make_options(model), gr.Image(format="png"), api_name="draw"
        )
        mask = gr.ImageMask(type="pil", label="Paint over what should stay")
        tabs["Complete"] = gr.Interface(
            complete,
            [mask, *_make_options(model)],
            gr.Image(format="png"),
            api_name="complete",
        )
    title = f"hrvqvae: {model.config.name}"
    return gr.TabbedInterface([*tabs.values()], [*tabs], title=title, analytics_enabled=False)


def _make_options(model: Model) -> list[Any]:
    """Return the widgets of the number of images and of the sampling options."""
    guidance = model.run.sampling_options()["guidance"]
    return [
        gr.Slider(1, _MOST_IMAGES, value=16, step=1, label="Images"),
        gr.Dropdown([*model.classes], value=None, label="Class"),
        gr.Slider(0.05, 2, value=1, label="Temperature"),
        gr.Number(0, precision=0, label="Seed"),
        gr.Text(format_guidance(guidance), label="Guidance"),
    ]


def serve(model: Model, host: str, port: int | None) -> None:
    """Serve the page until the process is interrupted; None takes the first free port from 7860."""
    # Gradio's own themes load fonts from the internet.
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])
    page = build_page(model).queue(default_concurrency_limit=1)
    page.launch(server_name=host, server_port=port, show_error=True, theme=theme)
