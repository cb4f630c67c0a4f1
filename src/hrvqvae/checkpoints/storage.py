"""Tensors on disk: safetensors with a checksum, written whole or not at all. Never pickle.

The header carries `meta` (JSON) and `digest`, a BLAKE2 hash of the meta and of every tensor's name,
type, shape and bytes.

A compact file (`hrvqvae export --compact`) is a quarter to a half as large. It stores a matrix or
filter of a prior or a progressive decoder as int8, with one float32 scale per row in `NAME:scale`.
It stores any other tensor as float16 if the values fit. In place of a codebook's tensor `total` it
stores a marker, `total:product`. Reading a compact file restores the original names: int8 matrices
become float32, and `total` becomes codewords * count.
"""

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from hrvqvae.utils.errors import DamagedFileError, InputError
from hrvqvae.utils.outputs import write_atomic

_SCALE = ":scale"
_PRODUCT = ":product"


def _digest(tensors: Mapping[str, Tensor], meta: str = "") -> str:
    state = hashlib.blake2b(meta.encode(), digest_size=16)
    for name, tensor in sorted(tensors.items()):
        state.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        state.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return state.hexdigest()


def weights_digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the digest of weights without their configuration, 32 hex digits; float16 is hashed as
    float32.
    """
    return _digest(
        {
            name: tensor.float() if tensor.dtype == torch.float16 else tensor
            for name, tensor in tensors.items()
        }
    )


def write(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Write tensors and `meta`, which must be JSON, atomically. Raises OSError."""
    meta_text = json.dumps(meta, sort_keys=True)
    # A copy of each tensor, because safetensors refuses tied weights.
    on_cpu = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    content = save_tensors(
        on_cpu, metadata={"format": "pt", "meta": meta_text, "digest": _digest(on_cpu, meta_text)}
    )

    # Sort the header, which safetensors writes in any order.
    header_end = 8 + int.from_bytes(content[:8], "little")
    fields = json.loads(content[8:header_end])
    header = json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    write_atomic(path, len(header).to_bytes(8, "little") + header + content[header_end:])


@contextmanager
def _explain_damage(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise InputError(f"{path}: there is no such file") from error
    except (SafetensorError, KeyError, TypeError, OverflowError, ValueError) as error:
        reason = str(error) or type(error).__name__
        raise DamagedFileError(f"{path} is damaged: {reason}") from error


def _read_header(content: bytes) -> dict[str, str]:
    """Return the text fields of a header, `meta` and `digest`. `content` may end after it."""
    header_end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:header_end])["__metadata__"]
    if not isinstance(json.loads(header["meta"]), dict):
        raise TypeError("meta is no JSON object")
    return dict(header)


def read_meta(path: Path) -> dict[str, Any]:
    """Return `meta` of a file, without checking the digest. Raises as `read`."""
    with _explain_damage(path), path.open("rb") as stream:
        length = stream.read(8)
        # A damaged length may be larger than the memory.
        size = min(int.from_bytes(length, "little"), path.stat().st_size)
        header = _read_header(length + stream.read(size))
        return dict(json.loads(header["meta"]))


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors (on the CPU) and `meta` of a file that `write` made.

    Raises:
        InputError: There is no such file.
        DamagedFileError: The file is cut short, changed, or of another format.
    """
    with _explain_damage(path):
        content = path.read_bytes()
        header = _read_header(content)
        tensors = load_tensors(content)
        if _digest(tensors, header["meta"]) != header["digest"]:
            raise ValueError("the content does not match the checksum")
        return restore_weights(tensors), json.loads(header["meta"])


def compact_weights(
    weights: Mapping[str, Tensor], *, matrices: bool, fine: Collection[str] = ()
) -> dict[str, Tensor]:
    """Return weights in the form of a compact file.

    With `matrices`, round matrices and filters to int8, or to int16 if `fine` names them, with one
    scale per row.
    """
    compact = {}
    for name, tensor in weights.items():
        prefix = name.removesuffix("total")
        if name.endswith(".total") and f"{prefix}count" in weights:
            compact[name + _PRODUCT] = torch.zeros(1, dtype=torch.int8)
        elif (
            matrices
            and tensor.is_floating_point()
            and tensor.ndim > 1
            and not name.endswith(".count")  # rounding would make small counts 0
        ):
            dtype = torch.int16 if name in fine else torch.int8
            rows = tensor.float().flatten(1)
            scale = rows.abs().amax(1).clamp(min=1e-12) / torch.iinfo(dtype).max
            compact[name] = (rows / scale[:, None]).round().to(dtype).view(tensor.shape)
            compact[name + _SCALE] = scale
        else:
            half = tensor.half() if tensor.is_floating_point() else tensor
            compact[name] = half if half.isfinite().all() else tensor
    return compact


def restore_weights(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights that the tensors of a compact file stand for; tensors of any other file
    are unchanged.
    """
    weights = {}
    for name, tensor in stored.items():
        if (scale := stored.get(name + _SCALE)) is not None:
            if tensor.ndim < 2 or scale.shape != tensor.shape[:1]:
                raise ValueError(f"{name} has {scale.numel()} scales")
            weights[name] = (tensor.flatten(1) * scale[:, None]).view(tensor.shape)
        elif not name.endswith((_SCALE, _PRODUCT)):
            weights[name] = tensor
    for name in stored:
        if not name.endswith(_PRODUCT):
            continue
        prefix = name.removesuffix(f"total{_PRODUCT}")
        codewords = weights[f"{prefix}codewords"].float()
        count = weights[f"{prefix}count"].float()
        if count.shape != codewords.shape[:-1]:
            raise ValueError(f"{prefix}count has another shape than the codewords")
        weights[f"{prefix}total"] = codewords * count[..., None]
    return weights
