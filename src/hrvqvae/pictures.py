"""Draw reconstructions, samples and completions of a trained model as PNG files."""

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from hrvqvae.config import level_names
from hrvqvae.data.images import decode_image, read_image, to_pil, write_image
from hrvqvae.model import Model
from hrvqvae.models.base import image_size
from hrvqvae.plots import sheets
from hrvqvae.priors.sampling import SamplingParams
from hrvqvae.utils.errors import InputError
from hrvqvae.utils.outputs import Outputs, Record, check_output
from hrvqvae.utils.progress import note

_COMPLETIONS_PER_ROW = 8
_SHEET_PIXELS = 1 << 24  # of the samples on a sheet
_RECORD = "samples.json"


def reconstruct(
    run: str | Path,
    paths: Sequence[Path],
    out: Path,
    levels: int | None = None,
    beam: int | None = None,
    effort: int = 0,
    *,
    force: bool = False,
) -> list[tuple[Path, float]]:
    """Write a sheet (.png) of images above their reconstructions, and return the MSE of each image.

    The MSE is of values in [0, 1]. Images keep their sizes. They are converted to the model's
    channels, with a notice. `levels` and `effort` are as for `Model.encode` and
    `Model.decode`, `beam` as for `hrvqvae.load`. Raises InputError as these, or if an image can't
    be read, or the sheet can't be written or exists and `force` is not given.
    """
    check_output(out, force=force, inputs=paths, suffix=".png")
    model = Model(run, beam=beam)
    autoencoder = model.autoencoder
    max_pixels = model.config.data.max_pixels
    num_levels = autoencoder.check_levels(levels)
    encode = model.encoder(levels, effort)
    originals = []
    decoded = []
    errors = []
    with torch.inference_mode():
        for path in paths:
            pixels = torch.from_numpy(decode_image(path, autoencoder.channels, max_pixels))
            (image,) = autoencoder.decode(encode(pixels[None]), levels, image_size(pixels))
            error = (image - pixels / 255).square().mean()
            originals.append(pixels)
            decoded.append((image * 255).round().to(torch.uint8))
            errors.append((path, float(error)))
    total = "" if levels == 1 else f" of {autoencoder.prefixes[-1]}"
    caption = f"reconstruction, {level_names(range(num_levels))}{total}"
    sheet_rows = [sheets.SheetRow("original", originals), sheets.SheetRow(caption, decoded)]
    write_image(sheets.draw(sheet_rows), out)
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
    PNG file too, as soon as it is drawn.

    A second call into the same folder goes on where the first stopped. The sheet shows the first
    samples. Raises InputError as `Model.sample`, or if a file exists or can't be written.
    """
    check_output(out, force=force, suffix=".png")
    model = Model(run)
    shown = min(count, max(1, _SHEET_PIXELS // math.prod(model.config.data.image_size)))
    params = params or SamplingParams(**model.run.sampling_options())
    if save_dir is not None:
        paths = _write_samples(model, count, save_dir, seed, class_name, params, force=force)
        images = [read_image(path) for path in paths[:shown]]
    elif shown < count:
        raise InputError(f"a sheet shows at most {shown:,} samples: take fewer, or --save-dir")
    else:
        images = [*model.draw(count, seed=seed, class_name=class_name, params=params).images]
    write_image(sheets.draw_grid(images), out)
    if shown < count:
        note(f"{out} shows the first {shown:,} samples")


def _write_samples(
    model: Model,
    count: int,
    folder: Path,
    seed: int,
    class_name: str | None,
    params: SamplingParams,
    *,
    force: bool,
) -> list[Path]:
    """Write the samples that a folder lacks, and return the paths of all."""
    check_output(folder / _RECORD, force=True)

    weights = hashlib.blake2b(digest_size=16)
    for path in sorted(model.run.path.glob("**/model.safetensors")):
        weights.update(path.read_bytes())
    options = {"weights": weights.hexdigest(), "seed": seed, "class": class_name, **vars(params)}
    options["decoder"] = params.decoder or model.run.read_sampling().decoder
    record = Record(folder / _RECORD, options)

    # Names are known before anything is drawn, from the classes.
    priors = model.load_priors(model.autoencoder.check_levels(params.levels))
    labels = model.draw_labels(range(count), seed, class_name, priors)
    outputs = Outputs(folder)
    paths = {}
    for index in range(count):
        name = f"{index:04d}"
        if labels is not None:
            name = f"{priors.classes[labels[index]]}-{name}".replace("/", "_")
        paths[index] = outputs.reserve(name, ".png")

    missing = [*paths]
    if not force or record.is_written():
        missing = record.select_missing(paths, lambda _: record.path)
    remaining = iter(missing)
    for batch in model.draw_batches(missing, seed=seed, class_name=class_name, params=params):
        if not record.is_written():
            for path in paths.values():
                path.unlink(missing_ok=True)
            record.write()
        for image in batch.images:
            write_image(to_pil(image), paths[next(remaining)])
    return [*paths.values()]


def draw_completions(
    model: Model,
    image: Tensor,
    keep: float | str | Tensor,
    count: int,
    *,
    seed: int,
    class_name: str | None,
    params: SamplingParams | None,
) -> tuple[Tensor, float, Tensor]:
    """Draw completions of an image (C, Y, X) uint8 (see `Model.complete`).

    Return the image, grey where no codes are kept; the share of the finest codes that is kept; and
    the completions.
    """
    kept = model.keep_part(image, keep)
    images = model.draw(count, seed=seed, class_name=class_name, params=params, kept=kept).images
    # for the eye, so the margin of the padding is not regarded
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
    array = decode_image(path, data.channels, data.max_pixels, data.image_size)
    pixels = torch.from_numpy(array)
    mask = read_image(Path(keep), 1)[0] > 127 if Path(keep).is_file() else keep
    kept_image, _, completions = draw_completions(
        model, pixels, mask, count, seed=seed, class_name=class_name, params=params
    )
    rows = [sheets.SheetRow("original, and what is kept", [pixels, kept_image])]
    for row, images in enumerate(torch.split(completions, _COMPLETIONS_PER_ROW)):
        rows.append(sheets.SheetRow("" if row else "completions", list(images)))
    write_image(sheets.draw(rows), out)
