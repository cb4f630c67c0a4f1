"""Bundles for the web module: codebooks, networks and entropy model of a model in one file
(docs/web.md).
"""

import json
import shutil
import zlib
from pathlib import Path

import torch
from torch import nn

from hrvqvae.checkpoints import storage
from hrvqvae.checkpoints.entropy import load_entropy_model
from hrvqvae.checkpoints.export import without_paths
from hrvqvae.checkpoints.folder import open_run
from hrvqvae.compression.entropy_model import FINGERPRINT_BYTES
from hrvqvae.config import to_dict
from hrvqvae.models.single_grid import SingleGridAutoencoder
from hrvqvae.quantize import ResidualQuantizer
from hrvqvae.utils.errors import InputError
from hrvqvae.utils.outputs import base_name, create_folder, write_atomic

SUFFIX = ".hrvw"
_MODULE = Path(__file__).parent / "javascript"
_MAGIC = b"HRVQWEB1"
_PREFIX = "progressive."
_STATISTICS = (".count", ".total")  # of codewords, for training only
_KINDS = {torch.int8: "i1", torch.int16: "i2", torch.float32: "f4"}


def export_web(run: str | Path, out: Path) -> list[Path]:
    """Write the bundle of a model, and the JavaScript module that reads it, into a new folder.

    Matrices and codebooks are stored in 8 bits with one scale per row, transposed convolutions in
    16 bits, all other tensors in float32, rounded to half precision. The bundle is NAME.hrvw.
    Return the written files. Raises InputError if the model has several latent grids or another
    quantizer, or `out` can't be written.
    """
    loaded = open_run(run)
    model, config = loaded.load()
    if (
        not isinstance(model, SingleGridAutoencoder)
        or not isinstance(model.quantizer, ResidualQuantizer)
        or model.quantizer.config.level_codewords
    ):
        raise InputError(
            f"{run} does not work in a page: that takes one latent grid, and codebooks of residuals"
            " of one size"
        )

    # the tensors that a page needs; those in `fine` get 16 bits
    name = base_name(run)
    networks: dict[str, nn.Module] = {"": model}
    if model.progressive_decoder is not None:
        networks[_PREFIX] = model.progressive_decoder
    weights = {
        f"{prefix}{key}": tensor
        for prefix, network in networks.items()
        for key, tensor in network.state_dict().items()
        if not key.endswith(_STATISTICS)
    }
    fine = {
        f"{prefix}{key}.weight"
        for prefix, network in networks.items()
        for key, layer in network.named_modules()
        if isinstance(layer, nn.ConvTranspose2d)
    }
    arrays = storage.compact_weights(weights, matrices=True, fine=fine)
    for key, tensor in arrays.items():
        if tensor.is_floating_point():
            arrays[key] = tensor.float()  # a bundle has no half precision

    entropy_model = load_entropy_model(loaded)
    header = {
        "name": name,
        "config": to_dict(without_paths(config)),
        "progressive": _PREFIX in networks,
        "tables": len(entropy_model.content),  # bytes
        # of files that the networks encode; without networks there are none
        "fingerprint": list(
            entropy_model.fingerprint if entropy_model.networks else bytes(FINGERPRINT_BYTES)
        ),
        # of files whose positions stop at levels of their own
        "stop_fingerprint": list(entropy_model.stop_fingerprint),
        "arrays": [[key, _KINDS[array.dtype], list(array.shape)] for key, array in arrays.items()],
    }

    # magic, length of the header, header as JSON, and a compressed body: entropy model, tensors,
    # checksum of the header
    text = json.dumps(header, separators=(",", ":")).encode()
    stored = b"".join(array.contiguous().numpy().tobytes() for array in arrays.values())
    body = entropy_model.content + stored + zlib.crc32(text).to_bytes(4, "little")
    bundle = _MAGIC + len(text).to_bytes(4, "little") + text + zlib.compress(body, 9)
    with create_folder(out) as folder:
        shutil.copytree(_MODULE, folder, dirs_exist_ok=True)
        write_atomic(folder / f"{name}{SUFFIX}", bundle)
    return sorted(out.iterdir())
