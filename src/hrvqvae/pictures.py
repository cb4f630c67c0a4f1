"""Draw reconstructions, samples and completions of a trained model as PNG files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from hrvqvae.compression.hrv import ImageCodes
from hrvqvae.compression.images import decode_images
from hrvqvae.config import level_names
from hrvqvae.data.images import decode_image, describe_conversions, read_image, to_pil, write_image
from hrvqvae.model import Model
from hrvqvae.plots import sheets
from hrvqvae.priors.sampling import SamplingParams
from hrvqvae.utils.errors import InputError
from hrvqvae.utils.outputs import Outputs, check_output
from hrvqvae.utils.progress import note

_COMPLETIONS_PER_ROW = 8
_ROWS = 1024  # of pixels that are compared at once


def draw_levels(model: Model, codes: ImageCodes, out: Path) -> None:
    """Write a sheet with an image decoded from each prefix of its levels that the model decodes."""
    rows = list[sheets.SheetRow]()
    for level in model.autoencoder.prefixes:
        if level <= len(codes.codes):
            decoded = decode_images(model.autoencoder, [codes], model.device, level)
            written = sum(codes.lengths[: level + 1])
            rows.append(sheets.SheetRow(f"{level_names(range(level))}: {written} bytes", decoded))
    write_image(sheets.draw(rows), out)


def reconstruct(
    run: str | Path, paths: Sequence[Path], out: Path, levels: int | None = None, beam: int | None = None,
    lmbda: float | None = None, *, force: bool = False,
) -> list[tuple[Path, float]]:  # fmt: skip
    """Write a sheet (.png) of image files above their reconstructions, and return the MSE of each (values in [0, 1]).

    Images keep their sizes, and are converted to the model's channels, with a notice.

    Args:
        levels: How many levels to use (default: all).
        beam: As for `hrvqvae.load`.
        lmbda: As for `Model.encode`.
        force: Overwrite a file that exists.

    Raises:
        InputError: No such run, image or level; the sheet exists or can't be written.
    """
    check_output(out, force=force, inputs=paths, suffix=".png")
    trained = Model(run, beam=beam)
    model, max_pixels = trained.autoencoder, trained.config.data.max_pixels
    most = model.check_levels(levels)
    encode = trained.encoder(lmbda, levels)
    originals, decoded, errors, lost = [], [], [], {}
    with torch.inference_mode():
        for path in paths:
            read, lost[path] = decode_image(path, model.channels, max_pixels)
            pixels = torch.from_numpy(read)
            image = model.decode(encode(pixels[None]), levels, (pixels.shape[-2], pixels.shape[-1]))[0]
            error, shown = 0.0, torch.empty_like(pixels)
            for top in range(0, pixels.shape[1], _ROWS):
                rows = slice(top, top + _ROWS)
                error += float((image[:, rows] - pixels[:, rows] / 255).square().sum())
                shown[:, rows] = (image[:, rows] * 255).round()
            del image  # float32: four times as large as the uint8 pixels
            originals.append(pixels)
            decoded.append(shown)
            errors.append((path, error / pixels.numel()))
    if converted := describe_conversions(lost):
        note(converted)
    caption = f"reconstruction, {level_names(range(most))}{'' if levels == 1 else f' of {model.prefixes[-1]}'}"
    write_image(sheets.draw([sheets.SheetRow("original", originals), sheets.SheetRow(caption, decoded)]), out)
    return errors


def sample(
    run: str, count: int, out: Path, *, seed: int = 0, class_name: str | None = None,
    params: SamplingParams | None = None, save_dir: Path | None = None, force: bool = False,
) -> None:  # fmt: skip
    """Write a sheet (.png) of samples, and with `save_dir` a PNG file of each, named by class and number.

    Args:
        seed: As for `Model.sample`, like `class_name` and `params`.
        save_dir: A folder that gets one file per sample.
        force: Overwrite files that exist.

    Raises:
        InputError: As `Model.sample`; a file exists or can't be written.
    """
    check_output(out, force=force, suffix=".png")
    if save_dir is not None:
        check_output(save_dir / "0000.png", force=True)
        if not force and next(save_dir.glob("*.png"), None):
            raise InputError(f"{save_dir} has images already; choose another folder, or overwrite them with --force")
    drawn = Model(run).draw(count, seed=seed, class_name=class_name, params=params)
    if save_dir is not None:
        outputs, digits = Outputs(save_dir, force=force), max(4, len(str(count - 1)))
        for index, (image, name) in enumerate(zip(drawn.images, drawn.classes, strict=True)):
            label = f"{name}-{index:0{digits}d}" if name else f"{index:0{digits}d}"
            write_image(to_pil(image), outputs.reserve(label.replace("/", "_"), ".png"))
    write_image(sheets.draw_grid(list(drawn.images)), out)


def draw_completions(
    model: Model, image: Tensor, keep: str | Tensor, count: int, *, seed: int, class_name: str | None,
    params: SamplingParams | None,
) -> tuple[Tensor, float, Tensor]:  # fmt: skip
    """Complete an image (C, size, size) uint8, as `Model.complete`.

    Returns:
        The image, grey where nothing is kept; the share of its codes that is kept; the completions.
    """
    kept = model.keep_part(image, keep)
    images = model.draw(count, seed=seed, class_name=class_name, params=params, kept=kept).images
    visible = interpolate(kept.masks[-1][None, None].float(), image.shape[-2:])[0] > 0.5
    return torch.where(visible, image / 255, 0.5), float(kept.masks[-1].float().mean()), images


def complete(
    run: str, path: Path, keep: str, count: int, out: Path, *, seed: int = 0, class_name: str | None = None,
    params: SamplingParams | None = None, force: bool = False,
) -> None:  # fmt: skip
    """Write a sheet (.png) of an image, resized to the size of training, the part that is kept, and completions.

    Args:
        keep: As for `Model.complete`, or an image file, whose white part is kept.
        seed: As for `Model.complete`, like `class_name` and `params`.
        force: Overwrite a file that exists.

    Raises:
        InputError: As `Model.complete`; an image can't be read; the sheet exists or can't be written.
    """
    check_output(out, force=force, inputs=[path, Path(keep)], suffix=".png")
    model = Model(run)
    data = model.config.data
    read, lost = decode_image(path, data.channels, data.max_pixels, data.size)
    if converted := describe_conversions({path: lost}):
        note(converted)
    pixels = torch.from_numpy(read)
    mask = torch.from_numpy(read_image(Path(keep), 1))[0] > 127 if Path(keep).is_file() else keep
    kept, _, drawn = draw_completions(model, pixels, mask, count, seed=seed, class_name=class_name, params=params)
    rows = [sheets.SheetRow("original, and what is kept", [pixels, kept])]
    for start in range(0, count, _COMPLETIONS_PER_ROW):
        rows.append(sheets.SheetRow("" if start else "completions", list(drawn[start : start + _COMPLETIONS_PER_ROW])))
    write_image(sheets.draw(rows), out)
