"""Tensors on disk: safetensors with a checksum, written whole or not at all. Never pickle.

The header carries `meta` (JSON) and `digest`, a BLAKE2 hash of the meta and of every tensor's name, type, shape and
bytes.

A compact file (`hrvqvae export --compact`) holds weights in a quarter to a half of their bytes. A matrix or filter of a
prior or a progressive decoder is int8, with one float32 scale per row in `NAME:scale`. Any other tensor is float16 if
its values fit. The `total` of a codebook is replaced by a marker, `NAME:product`. Reading restores the original names:
matrices in float32, and codewords * count for `total`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from hrvqvae.utils.errors import DamagedFileError, InputError
from hrvqvae.utils.outputs import write_atomic

_SCALE, _PRODUCT = ":scale", ":product"


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _digest(tensors: Mapping[str, Tensor], meta: str = "") -> str:
    state = hashlib.blake2b(meta.encode(), digest_size=16)
    for name, tensor in sorted(tensors.items()):
        state.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        state.update(np.ascontiguousarray(tensor.reshape(-1).view(torch.uint8).numpy()).data)
    return state.hexdigest()


def weights_digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the digest of weights without their configuration, 32 hex digits; float16 is hashed as float32."""
    plain = _plain(tensors).items()
    return _digest({name: tensor.float() if tensor.dtype == torch.float16 else tensor for name, tensor in plain})


def write(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Write tensors and `meta`, which must be JSON, atomically. Raises OSError."""
    plain, text = _plain(tensors), json.dumps(meta, sort_keys=True)
    content = save_tensors(plain, metadata={"format": "pt", "meta": text, "digest": _digest(plain, text)})
    length = int.from_bytes(content[:8], "little")  # of the header, which safetensors writes in any order
    header = json.dumps(json.loads(content[8 : 8 + length]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    write_atomic(path, len(header).to_bytes(8, "little") + header + content[8 + length :])


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise InputError(f"{path}: there is no such file") from error
    except (SafetensorError, KeyError, TypeError, OverflowError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:100] or type(error).__name__
        raise DamagedFileError(f"{path} is damaged: {reason}") from error


def _header(content: bytes) -> tuple[str, dict[str, Any], str]:
    """Return `meta` as text, `meta`, and the digest, from a file or its beginning."""
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")].decode())["__metadata__"]
    meta = json.loads(header["meta"])
    if not isinstance(meta, dict):
        raise TypeError("its meta is no JSON object")
    return header["meta"], meta, header["digest"]


def read_meta(path: Path) -> dict[str, Any]:
    """Return `meta` from the header of a file, without a check of its content. Raises as `read_with_digest`."""
    with _damage(path), path.open("rb") as stream:
        start = stream.read(8)
        return _header(start + stream.read(min(int.from_bytes(start, "little"), path.stat().st_size)))[1]


def read_with_digest(path: Path) -> tuple[dict[str, Tensor], dict[str, Any], str]:
    """Return the tensors, on the CPU, `meta` and the digest of a file that `write` made.

    Raises:
        InputError: There is no such file.
        DamagedFileError: The file is cut short, changed, or of another format.
    """
    with _damage(path):
        content = path.read_bytes()
        text, meta, announced = _header(content)
        tensors = load_tensors(content)
        if _digest(tensors, text) != announced:
            raise ValueError("its content does not match its checksum")
        return restored(tensors), meta, announced


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and `meta` of a file. Raises as `read_with_digest`."""
    return read_with_digest(path)[:2]


def digest(path: Path) -> str:
    """Return the digest of a file. Raises as `read_with_digest`."""
    return read_with_digest(path)[2]


def compacted(weights: Mapping[str, Tensor], *, matrices: bool, fine: Collection[str] = ()) -> dict[str, Tensor]:
    """Return weights as a compact file holds them; with `matrices`, matrices are int8, or int16 if named in `fine`."""
    compact = dict[str, Tensor]()
    for name, tensor in weights.items():
        if name.endswith(".total") and name.removesuffix("total") + "count" in weights:
            compact[name + _PRODUCT] = torch.zeros(1, dtype=torch.int8)
        elif matrices and tensor.is_floating_point() and tensor.ndim > 1 and not name.endswith(".count"):
            scale = tensor.float().flatten(1).abs().amax(1).clamp(min=1e-12) / (32767 if name in fine else 127)
            rounded = (tensor.float() / _align_rows(scale, tensor)).round()
            compact[name] = rounded.to(torch.int16 if name in fine else torch.int8)
            compact[name + _SCALE] = scale
        else:
            half = tensor.half() if tensor.is_floating_point() else tensor
            compact[name] = half if half.isfinite().all() else tensor
    return compact


def restored(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of the tensors of a file. Tensors of a file that is not compact are unchanged."""
    weights = dict[str, Tensor]()
    for name, tensor in stored.items():
        if name + _SCALE in stored:
            weights[name] = tensor * _align_rows(stored[name + _SCALE], tensor)
        elif not name.endswith((_SCALE, _PRODUCT)):
            weights[name] = tensor
    for name in (name.removesuffix(f"total{_PRODUCT}") for name in stored if name.endswith(_PRODUCT)):
        weights[f"{name}total"] = weights[f"{name}codewords"].float() * weights[f"{name}count"].float()[..., None]
    return weights


def _align_rows(scale: Tensor, tensor: Tensor) -> Tensor:
    return scale.view(-1, *(1 for _ in tensor.shape[1:]))
