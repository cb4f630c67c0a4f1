"""The entropy model of a run, which writes and reads its files of codes."""

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hrvqvae.checkpoints.folder import PROGRESSIVE, RunFolder, decoder_folder
from hrvqvae.codes.maps import BATCH_SIZE, encode_images
from hrvqvae.compression.decoder_search import encode_with_distances
from hrvqvae.compression.entropy_model import EntropyModel, read_entropy_model
from hrvqvae.compression.learning import fit, fit_stops
from hrvqvae.compression.stops import measure_bits
from hrvqvae.data.batches import ImageSet, evaluation_batches
from hrvqvae.data.copies import list_copies
from hrvqvae.data.loading import open_images
from hrvqvae.models.single_grid import SingleGridAutoencoder
from hrvqvae.quantize import QUALITIES, choose_depths, stop_at
from hrvqvae.utils.device import exact_float32
from hrvqvae.utils.errors import InputError, explain_write_errors
from hrvqvae.utils.locks import lock_folder
from hrvqvae.utils.outputs import write_atomic
from hrvqvae.utils.progress import Say, note, tracked

_MOST_STOPPED = 20_000  # images from which it is learned where positions stop


def bare_entropy_model(run: RunFolder) -> EntropyModel:
    """Return an entropy model without networks, by which all codes of a level take equal bits."""
    model = run.read_config().model
    return EntropyModel(str(run), run.digest, model.geometry, model.num_symbols)


def load_entropy_model(run: RunFolder) -> EntropyModel:
    """Return the entropy model of a run; one without networks if none was fitted. Raises InputError
    if it is damaged or was fitted for other weights.
    """
    if not run.tables.is_file():
        return bare_entropy_model(run)
    fitted = read_entropy_model(run.tables.read_bytes(), str(run.tables))
    if fitted.model != run.digest:
        raise InputError(
            f"{run.tables} was made for another state of the autoencoder, whose files need it: move"
            " it to the weights of that state"
        )
    return fitted


def fit_entropy_model(
    run: RunFolder,
    root: str | None = None,
    duration: float = 1.0,
    shifts: int = 0,
    device: torch.device | None = None,
    say: Say = note,
) -> EntropyModel:
    """Fit the entropy model to the codes of the training images, and write it beside the weights.

    If the model was trained on mirror images too, their codes are fitted as well. If the run has a
    progressive decoder, it is also fitted where positions stop. An entropy model that is there is
    kept, because files that were written with it can't be read without it.

    Args:
        root: Folder of the data (default: as in training).
        duration: Of the fit, in multiples of the usual duration.
        shifts: Number of further copies of the images to fit, each shifted by some pixels.

    Raises InputError if the data is missing, another process fits the model, or the entropy model
    that is there was fitted for other weights.
    """
    with lock_folder(run.path):
        fitted = load_entropy_model(run)
        has_stops = bool(fitted.stops) or not decoder_folder(run.path, PROGRESSIVE).model.is_file()
        if fitted.networks and has_stops:
            return fitted
        model, config = run.load(decoder=None)
        config = config.with_root(root)
        images = open_images(config.data, "train")
        model.to(device or "cpu")
        if not fitted.networks:
            copies = []
            for copy in list_copies(config.data.flip, shifts):
                maps = encode_images(model.encode, images, fitted.symbols, device, copy.augment)
                copies.append(maps.levels)
            levels = [np.concatenate(arrays) for arrays in zip(*copies, strict=True)]
            bare = replace(fitted, name=config.name)
            fitted = fit(bare, levels, duration, say, len(copies))
            with explain_write_errors(run.tables):
                write_atomic(run.tables, fitted.content)
        if not has_stops:
            assert isinstance(model, SingleGridAutoencoder)
            stopped = _encode_with_stops(fitted, model, images, device)
            fitted = fit_stops(fitted, *stopped, duration, say)
            with explain_write_errors(run.tables):
                write_atomic(run.tables, fitted.content)
        return fitted


@exact_float32()
@torch.inference_mode()
def _encode_with_stops(
    entropy_model: EntropyModel,
    model: SingleGridAutoencoder,
    images: ImageSet,
    device: torch.device | None,
) -> tuple[list[NDArray[np.int16]], NDArray[np.int64]]:
    """Return codes (N, H, W) per level of training images, -1 where positions have stopped, and the
    quality of each image (N,).
    """
    num_levels = len(entropy_model.symbols)
    size = images.config.image_size
    codes = list[NDArray[np.int16]]()  # per batch, (levels, B, H, W)
    qualities = list[Tensor]()
    workers = images.config.workers
    count = min(len(images), _MOST_STOPPED)
    batches = evaluation_batches(images, batch_size=BATCH_SIZE, limit=count, workers=workers)
    for batch in tracked(batches, "stops", count, lambda batch: len(batch.images)):
        batch_codes, distances = encode_with_distances(model, batch.images.to(device), num_levels)
        bits = measure_bits(entropy_model, batch_codes, size)
        quality = torch.arange(len(batch.images), device=device) % QUALITIES
        depths = choose_depths(distances, model.quantizer.price_bits(bits, quality))
        stopped = torch.stack(stop_at(batch_codes, depths))
        codes.append(stopped.cpu().numpy().astype(np.int16))
        qualities.append(quality.cpu())
    return list(np.concatenate(codes, 1)), torch.cat(qualities).numpy()
