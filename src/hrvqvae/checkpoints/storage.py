"""Tensors on disk: safetensors with a checksum, written whole or not at all. Never pickle.

The header carries `meta` (JSON) and `digest`, a BLAKE2 hash of the meta and of every tensor's name, type, shape and
bytes.

A compact file (`hrvqvae export --compact`) has weights in a quarter to a half of their bytes: a matrix or filter of a
prior or a progressive decoder is int8 with a float32 scale a row, `NAME:scale`; every other number is float16 where it
fits; and `total` of codebooks is left out, for which `NAME:product` stands. Whoever reads the file gets the names of
the weights: matrices in float32, and codewords * count for `total`.
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
    """The digest of weights as a model has them, half precision in float32, without configuration: 32 digits."""
    plain = _plain(tensors)
    return _digest(
        {name: tensor.float() if tensor.dtype == torch.float16 else tensor for name, tensor in plain.items()}
    )


def write(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Write tensors and a JSON-able `meta`, atomically. Raises OSError."""
    plain, text = _plain(tensors), json.dumps(meta, sort_keys=True)
    header = {"format": "pt", "meta": text, "digest": _digest(plain, text)}
    write_atomic(path, _ordered(save_tensors(plain, metadata=header)))


def _ordered(content: bytes) -> bytes:
    """The same file with its header in order: safetensors writes the metadata in any, which differs each time."""
    length = int.from_bytes(content[:8], "little")
    text = json.dumps(json.loads(content[8 : 8 + length]), sort_keys=True, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


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
    """(meta as text, meta, digest) of a file or of its beginning."""
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")].decode())["__metadata__"]
    meta = json.loads(header["meta"])
    if not isinstance(meta, dict):
        raise TypeError("its meta is no JSON object")
    return header["meta"], meta, header["digest"]


def read_meta(path: Path) -> dict[str, Any]:
    """`meta` of a file that `write` made, from its header alone: no checksum is compared.

    Raises:
        InputError: there is no such file.
        DamagedFileError: the header is damaged, or of another format.
    """
    with _damage(path), path.open("rb") as stream:
        start = stream.read(8)
        return _header(start + stream.read(min(int.from_bytes(start, "little"), path.stat().st_size)))[1]


def read_with_digest(path: Path) -> tuple[dict[str, Tensor], dict[str, Any], str]:
    """(tensors, meta, digest) of one state of a file that `write` made, on the CPU.

    Raises:
        InputError: there is no such file.
        DamagedFileError: it is cut short, changed, or of another format.
    """
    with _damage(path):
        content = path.read_bytes()
        text, meta, announced = _header(content)
        tensors = load_tensors(content)
        if _digest(tensors, text) != announced:
            raise ValueError("its content does not match its checksum")
        return restored(tensors), meta, announced


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, meta) of a file. Raises as `read_with_digest`."""
    return read_with_digest(path)[:2]


def digest(path: Path) -> str:
    """The digest of a file. Raises as `read_with_digest`."""
    return read_with_digest(path)[2]


def compacted(weights: Mapping[str, Tensor], *, matrices: bool, fine: Collection[str] = ()) -> dict[str, Tensor]:
    """What the file holds; `matrices` says whether matrices become int8, those in `fine` int16."""
    compact = dict[str, Tensor]()
    for name, tensor in weights.items():
        if name.endswith(".total") and name.removesuffix("total") + "count" in weights:
            compact[name + _PRODUCT] = torch.zeros(1, dtype=torch.int8)
        elif matrices and tensor.is_floating_point() and tensor.ndim > 1 and not name.endswith(".count"):
            scale = tensor.float().flatten(1).abs().amax(1).clamp(min=1e-12) / (32767 if name in fine else 127)
            whole = (tensor.float() / _by_row(scale, tensor)).round()
            compact[name] = whole.to(torch.int16 if name in fine else torch.int8)
            compact[name + _SCALE] = scale
        else:
            half = tensor.half() if tensor.is_floating_point() else tensor
            compact[name] = half if half.isfinite().all() else tensor
    return compact


def restored(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights from what a file holds; those of a file that is not compact are as they are."""
    weights = dict[str, Tensor]()
    for name, tensor in stored.items():
        if name + _SCALE in stored:
            weights[name] = tensor * _by_row(stored[name + _SCALE], tensor)
        elif not name.endswith((_SCALE, _PRODUCT)):
            weights[name] = tensor
    for name in (name.removesuffix(f"total{_PRODUCT}") for name in stored if name.endswith(_PRODUCT)):
        weights[f"{name}total"] = weights[f"{name}codewords"].float() * weights[f"{name}count"].float()[..., None]
    return weights


def _by_row(scale: Tensor, tensor: Tensor) -> Tensor:
    return scale.view(-1, *(1 for _ in tensor.shape[1:]))
