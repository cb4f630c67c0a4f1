"""Bundles for the web module: codebooks, networks and entropy model of a model in one file (docs/web.md)."""

from __future__ import annotations

import json
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from hrvqvae.checkpoints import storage
from hrvqvae.checkpoints.export import without_paths
from hrvqvae.checkpoints.folder import is_hub_name
from hrvqvae.checkpoints.run import Run
from hrvqvae.compression.entropy_model import FINGERPRINT_BYTES, EntropyModel, read_entropy_model
from hrvqvae.config import to_dict
from hrvqvae.config.parsing import from_dict
from hrvqvae.models.build import build, build_progressive_decoder
from hrvqvae.models.single_grid import SingleGridAutoencoder
from hrvqvae.quantize import ResidualQuantizer
from hrvqvae.utils.errors import DamagedFileError, InputError
from hrvqvae.utils.outputs import create_folder, write_atomic

SUFFIX = ".hrvw"
_MAGIC = b"HRVQWEB1"
_PREFIX = "progressive."
_STATISTICS = (".count", ".total", ".shared")  # of codewords, for training only
_MAX_BODY = 1 << 26  # bytes
_KINDS = {"i1": torch.int8, "i2": torch.int16, "f4": torch.float32}
_NAMES = {kind: name for name, kind in _KINDS.items()}


def export_web(run: str | Path, out: Path) -> list[Path]:
    """Write the bundle of a model into a new folder.

    Matrices and codebooks are stored in 8 bits with one scale per row, transposed convolutions in 16 bits, all other
    tensors in float32.

    Args:
        run: A run folder, a weights file or the name of a model inside the package.
        out: The new folder, which gets one file, NAME.hrvw.

    Raises:
        InputError: The model has several latent grids or another quantizer, or `out` can't be written.
    """
    loaded = Run(run)
    model, config = loaded.load()
    if not isinstance(model, SingleGridAutoencoder) or not isinstance(model.quantizer, ResidualQuantizer):
        raise InputError(f"{run} can't be decoded by a page: it has several latent grids, or no codebooks of residuals")
    quantizer = model.quantizer.config
    if quantizer.joint_beam or quantizer.level_codewords:
        raise InputError(f"{run} can't be encoded by a page: it has a joint beam, or levels of several sizes")
    if quantizer.num_codebooks != quantizer.num_parents:
        raise InputError(f"{run} can't be decoded by a page: its codebooks are not all in memory (memory_mib)")
    name = Path(run).name.removesuffix(".safetensors")
    name = name.rpartition("/")[2] if is_hub_name(name) else name
    weights = {key: tensor for key, tensor in model.state_dict().items() if not key.endswith(_STATISTICS)}
    progressive = model.progressive_decoder
    weights |= {f"{_PREFIX}{key}": tensor for key, tensor in progressive.state_dict().items()} if progressive else {}
    parts = [("", model), *([(_PREFIX, progressive)] if progressive else [])]
    fine = {
        f"{prefix}{key}.weight" for prefix, part in parts for key, layer in part.named_modules()
        if isinstance(layer, nn.ConvTranspose2d)
    }  # fmt: skip
    compact = storage.compacted(weights, matrices=True, fine=fine)
    arrays = {key: tensor.float() if tensor.is_floating_point() else tensor for key, tensor in compact.items()}
    entropy_model = loaded.entropy_model.load()
    header = {
        "name": name,
        "config": to_dict(without_paths(config)),
        "progressive": progressive is not None,
        "tables": len(entropy_model.content),
        "fingerprint": list(entropy_model.fingerprint if entropy_model.networks else bytes(FINGERPRINT_BYTES)),
        "arrays": [[key, _NAMES[array.dtype], list(array.shape)] for key, array in arrays.items()],
    }
    text = json.dumps(header, separators=(",", ":")).encode()
    stored = b"".join(array.contiguous().numpy().tobytes() for array in arrays.values())
    body = entropy_model.content + stored + zlib.crc32(text).to_bytes(4, "little")
    path = out / f"{name}{SUFFIX}"
    with create_folder(out) as folder:
        write_atomic(folder / path.name, _MAGIC + len(text).to_bytes(4, "little") + text + zlib.compress(body, 9))
    return [path]


def read_bundle(path: Path) -> tuple[SingleGridAutoencoder, EntropyModel]:
    """Return the model and the entropy model of a bundle, with the same rounded weights as in a page.

    Raises:
        InputError: The file can't be read.
        DamagedFileError: The file is no bundle, or it is damaged.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    try:
        return _parse_bundle(content, path)
    except DamagedFileError:
        raise
    except (ValueError, KeyError, TypeError, IndexError, RuntimeError, InputError, zlib.error) as error:
        raise DamagedFileError(f"{path} is damaged: {' '.join(str(error).split())[:100]}") from error


def _parse_bundle(content: bytes, path: Path) -> tuple[SingleGridAutoencoder, EntropyModel]:
    if content[:8] != _MAGIC:
        raise DamagedFileError(f"{path} is no bundle ({SUFFIX}) of this version")
    end = 12 + int.from_bytes(content[8:12], "little")
    unpack = zlib.decompressobj()
    body = unpack.decompress(content[end:], _MAX_BODY)
    if not unpack.eof or unpack.unused_data or body[-4:] != zlib.crc32(content[12:end]).to_bytes(4, "little"):
        raise DamagedFileError(f"{path} is damaged: its header or its end does not match")
    header: dict[str, Any] = json.loads(content[12:end].decode())
    offset, stored = header["tables"], {}
    entropy_model = read_entropy_model(body[:offset], str(path))
    for key, kind, shape in header["arrays"]:
        size = math.prod(shape) * _KINDS[kind].itemsize
        values = np.frombuffer(body[offset : offset + size], kind)
        stored[key] = torch.from_numpy(values.copy()).view(shape)
        offset += size
    if offset + 4 != len(body):
        raise DamagedFileError(f"{path} is damaged: its arrays are not as long as its body")
    weights, config = storage.restored(stored), from_dict(header["config"], str(path))
    model = build(config)
    assert isinstance(model, SingleGridAutoencoder)
    if header["progressive"]:
        model.use_progressive_decoder(build_progressive_decoder(model, config))
        decoder = {key.removeprefix(_PREFIX): tensor for key, tensor in weights.items() if key.startswith(_PREFIX)}
        assert model.progressive_decoder is not None
        model.progressive_decoder.load_state_dict(decoder)
        model.progressive_decoder.eval()
    autoencoder = {key: tensor for key, tensor in weights.items() if not key.startswith(_PREFIX)}
    counts = {key: tensor for key, tensor in model.state_dict().items() if key.endswith(_STATISTICS)}
    model.load_state_dict({**counts, **autoencoder})  # counts are needed for training only; bundles have none
    return model.requires_grad_(False).eval(), entropy_model
