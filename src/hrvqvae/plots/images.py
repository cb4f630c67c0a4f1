"""Sheets of what a trained model makes: reconstructions, samples, completions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from hrvqvae.compression.hrv import ImageCodes
from hrvqvae.compression.images import decode_images
from hrvqvae.config import level_names
from hrvqvae.data.images import conversions, decode_image, read_image, to_pil, write_image
from hrvqvae.model import Model
from hrvqvae.models.base import Autoencoder
from hrvqvae.plots import sheets
from hrvqvae.priors.sampling import SamplingParams
from hrvqvae.utils.outputs import Outputs, check_output
from hrvqvae.utils.progress import note

_COMPLETIONS_A_ROW = 8
_ROWS = 1024  # of an image that are compared together


@torch.inference_mode()
def level_rows(model: Autoencoder, images: Tensor, captions: Sequence[str]) -> list[sheets.SheetRow]:
    """Originals above their reconstructions, a row for each prefix of the levels, with its caption."""
    codes, rows = model.encode(images), [sheets.SheetRow("original", list(images))]
    for level, caption in zip(model.prefixes, captions, strict=True):
        decoded = model.decode(codes, levels=level, size=(images.shape[-2], images.shape[-1]))
        rows.append(sheets.SheetRow(caption, list(decoded)))
    return rows


def draw_levels(model: Model, codes: ImageCodes, out: Path) -> None:
    """A sheet of one image by each prefix of its levels that the model decodes."""
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
    """Write a sheet of image files above their reconstructions; -> (path, MSE in [0, 1]) of each.

    Images keep their sizes, and are converted to the model's channels, with a notice. The rest is as for
    `Model`. Raises InputError: no such run, image or level; the sheet can't be written.
    """
    check_output(out, force=force, inputs=paths, suffix=".png")
    trained = Model(run, beam=beam)
    model, config = trained.autoencoder, trained.config
    most = model.prefixes[-1]
    model.check_levels(levels)
    encode = trained.encoder(lmbda, levels)
    originals, decoded, errors, lost = [], [], [], {}
    with torch.inference_mode():
        for path in paths:
            read, lost[path] = decode_image(path, model.channels, config.data.max_pixels)
            pixels = torch.from_numpy(read)
            image = model.decode(encode(pixels[None]), levels, (pixels.shape[-2], pixels.shape[-1]))[0]
            error, shown = 0.0, torch.empty_like(pixels)
            for top in range(0, pixels.shape[1], _ROWS):
                rows = slice(top, top + _ROWS)
                error += float((image[:, rows] - pixels[:, rows] / 255).square().sum())
                shown[:, rows] = (image[:, rows] * 255).round()
            del image  # of a large image four times as large as what is drawn
            originals.append(pixels)
            decoded.append(shown)
            errors.append((path, error / pixels.numel()))
    if converted := conversions(lost):
        note(converted)
    caption = f"reconstruction, {level_names(range(levels or most))}{'' if levels == 1 else f' of {most}'}"
    write_image(sheets.draw([sheets.SheetRow("original", originals), sheets.SheetRow(caption, decoded)]), out)
    return errors


def sample(
    run: str, count: int, out: Path, *, seed: int = 0, class_name: str | None = None,
    params: SamplingParams | None = None, save_dir: Path | None = None, force: bool = False,
) -> None:  # fmt: skip
    """Write a sheet of samples, and a PNG file of each to `save_dir`, named by class and number. Raises InputError."""
    check_output(out, force=force, suffix=".png")
    model = Model(run)
    drawn = model.draw(count, seed=seed, class_name=class_name, params=params)
    if save_dir is not None:
        outputs, digits = Outputs(save_dir, force=force), max(4, len(str(count - 1)))
        names = [f"{name}-{index:0{digits}d}".lstrip("-") for index, name in enumerate(drawn.classes)]
        for image, target in zip(drawn.images, [outputs.reserve(name, ".png") for name in names], strict=True):
            write_image(to_pil(image), target)
    write_image(sheets.grid(list(drawn.images)), out)


def completions(
    model: Model, image: Tensor, keep: str | Tensor, count: int, *, seed: int, class_name: str | None,
    params: SamplingParams | None,
) -> tuple[Tensor, float, Tensor]:  # fmt: skip
    """An image (C, size, size) uint8, grey where nothing is kept; the share of its codes that is kept; completions.

    Arguments and errors are those of `Model.complete`.
    """
    known = model.known_part(image, keep)
    images = model.draw(count, seed=seed, class_name=class_name, params=params, known=known).images
    kept = interpolate(known.where[-1][None, None].float(), image.shape[-2:])[0] > 0.5
    return torch.where(kept, image / 255, 0.5), float(known.where[-1].float().mean()), images


def complete(
    run: str, path: Path, keep: str, count: int, out: Path, *, seed: int = 0, class_name: str | None = None,
    params: SamplingParams | None = None, force: bool = False,
) -> None:  # fmt: skip
    """Write a sheet: an image, resized to the size of training, the part that is kept, and `count` completions.

    `keep` may be an image file, whose white part is kept. The rest is as for `Model.complete`. Raises
    InputError: as there; an image can't be read.
    """
    check_output(out, force=force, inputs=[path, Path(keep)], suffix=".png")
    model = Model(run)
    data = model.config.data
    read, lost = decode_image(path, data.channels, data.max_pixels, data.size)
    if converted := conversions({path: lost}):
        note(converted)
    pixels = torch.from_numpy(read)
    mask = torch.from_numpy(read_image(Path(keep), 1))[0] > 127 if Path(keep).is_file() else keep
    kept, _, drawn = completions(model, pixels, mask, count, seed=seed, class_name=class_name, params=params)
    rows = [sheets.SheetRow("original, and what is kept", [pixels, kept])]
    for start in range(0, count, _COMPLETIONS_A_ROW):
        rows.append(sheets.SheetRow("" if start else "completions", list(drawn[start : start + _COMPLETIONS_A_ROW])))
    write_image(sheets.draw(rows), out)
