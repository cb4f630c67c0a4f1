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
from hrvqvae.data.images import decode_image, note_conversions, read_image, to_pil, write_image
from hrvqvae.model import Model
from hrvqvae.plots import sheets
from hrvqvae.priors.sampling import SamplingParams
from hrvqvae.utils.errors import InputError
from hrvqvae.utils.outputs import Outputs, check_output

_COMPLETIONS_PER_ROW = 8
_PIXEL_ROWS = 1024  # that are compared with the original at once


def draw_levels(model: Model, codes: ImageCodes, out: Path) -> None:
    """Write a sheet of the images that the model decodes from the first level, the first two
    levels, and so on.
    """
    rows = list[sheets.SheetRow]()
    for level in model.autoencoder.prefixes:
        if level <= len(codes.codes):
            decoded = decode_images(model.autoencoder, [codes], model.device, level)
            num_bytes = sum(codes.lengths[: level + 1])
            rows.append(sheets.SheetRow(f"{level_names(range(level))}: {num_bytes} bytes", decoded))
    write_image(sheets.draw(rows), out)


def reconstruct(
    run: str | Path,
    paths: Sequence[Path],
    out: Path,
    levels: int | None = None,
    beam: int | None = None,
    lmbda: float | None = None,
    *,
    force: bool = False,
) -> list[tuple[Path, float]]:
    """Write a sheet (.png) of images above their reconstructions, and return the MSE of each image.

    The MSE is of values in [0, 1]. Images keep their sizes. They are converted to the model's
    channels, with a notice. `levels` and `lmbda` are as for `Model.encode` and `Model.decode`,
    `beam` as for `hrvqvae.load`. Raises InputError as these, or if an image can't be read, or the
    sheet can't be written or exists and `force` is not given.
    """
    check_output(out, force=force, inputs=paths, suffix=".png")
    model = Model(run, beam=beam)
    autoencoder = model.autoencoder
    max_pixels = model.config.data.max_pixels
    num_levels = autoencoder.check_levels(levels)
    encode = model.encoder(lmbda, levels)
    originals = []
    decoded = []
    errors = []
    conversions = {}
    with torch.inference_mode():
        for path in paths:
            array, conversions[path] = decode_image(path, autoencoder.channels, max_pixels)
            pixels = torch.from_numpy(array)
            image = autoencoder.decode(
                encode(pixels[None]), levels, (pixels.shape[-2], pixels.shape[-1])
            )[0]
            error = 0.0
            rounded = torch.empty_like(pixels)
            for top in range(0, pixels.shape[1], _PIXEL_ROWS):
                rows = slice(top, top + _PIXEL_ROWS)
                error += float((image[:, rows] - pixels[:, rows] / 255).square().sum())
                rounded[:, rows] = (image[:, rows] * 255).round()
            del image  # float32: four times as large as the uint8 pixels
            originals.append(pixels)
            decoded.append(rounded)
            errors.append((path, error / pixels.numel()))
    note_conversions(conversions)
    total = "" if levels == 1 else f" of {autoencoder.prefixes[-1]}"
    caption = f"reconstruction, {level_names(range(num_levels))}{total}"
    write_image(
        sheets.draw([sheets.SheetRow("original", originals), sheets.SheetRow(caption, decoded)]),
        out,
    )
    return errors


def sample(
    run: str,
    count: int,
    out: Path,
    *,
    seed: int = 0,
    class_name: str | None = None,
    params: SamplingParams | None = None,
    save_dir: Path | None = None,
    force: bool = False,
) -> None:
    """Write a sheet (.png) of samples, see `Model.draw`. With `save_dir`, write each sample as a
    PNG file too.

    Raises InputError as `Model.sample`, or if a file exists or can't be written.
    """
    check_output(out, force=force, suffix=".png")
    if save_dir is not None:
        check_output(save_dir / "0000.png", force=True)
        if not force and next(save_dir.glob("*.png"), None):
            raise InputError(
                f"{save_dir} has images already; choose another folder, or overwrite them with"
                " --force"
            )
    samples = Model(run).draw(count, seed=seed, class_name=class_name, params=params)
    if save_dir is not None:
        outputs = Outputs(save_dir, force=force)
        digits = max(4, len(str(count - 1)))
        if out.parent.resolve() == save_dir.resolve():
            outputs.reserve(out.stem, out.suffix)
        for index, (image, name) in enumerate(zip(samples.images, samples.classes, strict=True)):
            file_name = f"{name}-{index:0{digits}d}" if name else f"{index:0{digits}d}"
            write_image(to_pil(image), outputs.reserve(file_name.replace("/", "_"), ".png"))
    write_image(sheets.draw_grid(list(samples.images)), out)


def draw_completions(
    model: Model,
    image: Tensor,
    keep: str | Tensor,
    count: int,
    *,
    seed: int,
    class_name: str | None,
    params: SamplingParams | None,
) -> tuple[Tensor, float, Tensor]:
    """Draw completions of an image (C, size, size) uint8 (see `Model.complete`).

    Return the image, grey where no codes are kept; the share of the finest codes that is kept; and
    the completions.
    """
    kept = model.keep_part(image, keep)
    images = model.draw(count, seed=seed, class_name=class_name, params=params, kept=kept).images
    visible = interpolate(kept.masks[-1][None, None].float(), image.shape[-2:])[0] > 0.5
    return torch.where(visible, image / 255, 0.5), float(kept.masks[-1].float().mean()), images


def complete(
    run: str,
    path: Path,
    keep: str,
    count: int,
    out: Path,
    *,
    seed: int = 0,
    class_name: str | None = None,
    params: SamplingParams | None = None,
    force: bool = False,
) -> None:
    """Resize an image to the size in training, and write a sheet (.png) of it, its kept part and
    completions.

    `keep` is as for `Model.complete`, or an image file that is white where the image is kept.
    Raises InputError as `Model.complete`, or if an image can't be read, or the sheet can't be
    written or exists and `force` is not given.
    """
    check_output(out, force=force, inputs=[path, Path(keep)], suffix=".png")
    model = Model(run)
    data = model.config.data
    array, conversion = decode_image(path, data.channels, data.max_pixels, data.size)
    note_conversions({path: conversion})
    pixels = torch.from_numpy(array)
    mask = read_image(Path(keep), 1)[0] > 127 if Path(keep).is_file() else keep
    kept_image, _, completions = draw_completions(
        model, pixels, mask, count, seed=seed, class_name=class_name, params=params
    )
    rows = [sheets.SheetRow("original, and what is kept", [pixels, kept_image])]
    for row, images in enumerate(torch.split(completions, _COMPLETIONS_PER_ROW)):
        rows.append(sheets.SheetRow("" if row else "completions", list(images)))
    write_image(sheets.draw(rows), out)
