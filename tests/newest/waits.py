"""A GPU that is not there: fake CUDA tensors, and a list of every place where a step waits for the
device.
"""

from __future__ import annotations

import traceback
import warnings
from contextlib import contextmanager
from unittest.mock import patch

import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
_READ = {aten._local_scalar_dense.default, aten.equal.default, aten.is_nonzero.default}
_SHAPE = {
    aten.nonzero.default,
    aten.masked_select.default,
    aten.bincount.default,
    aten._unique2.default,
    aten.unique_dim.default,
    aten.unique_consecutive.default,
    aten.repeat_interleave.Tensor,
    aten.histc.default,
}
_INDEX = {
    aten.index.Tensor,
    aten.index_put_.default,
    aten._index_put_impl_.default,
    aten.index_put.default,
}
_COPY = {aten._to_copy.default, aten.copy_.default}


def _on_device(tensor):
    return tensor.device.type != "cpu"


class CountReads(TorchDispatchMode):
    """Count the operations that would wait for a GPU, wherever they compute."""

    reads = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        names = ("_local_scalar_dense", "nonzero", "equal", "is_nonzero")
        self.reads += func.overloadpacket.__name__ in names
        return func(*args, **(kwargs or {}))


class Waits(TorchDispatchMode):
    """Record each operation that waits for the device. A value that is read is `value`; a mask
    selects all elements.
    """

    def __init__(self, value=1):
        super().__init__()
        self.value = value
        self.places = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        on_device = any(map(_on_device, tensors))
        if func in _INDEX and on_device:
            return func(args[0], self._without_masks(func, args), *args[2:], **kwargs)
        if func in _READ | _SHAPE and on_device:
            self._note(func)
        if func in _READ and on_device:
            return bool(self.value) if tensors[0].dtype == torch.bool else self.value
        if func is aten.nonzero.default and on_device:
            return args[0].new_zeros(args[0].numel(), args[0].ndim, dtype=torch.long)
        if func is aten.masked_select.default and on_device:
            return args[0].new_zeros(args[0].numel())
        if func is aten.bincount.default and on_device:
            return args[0].new_zeros(kwargs.get("minlength", 0) or 1)
        result = func(*args, **kwargs)
        if func in _COPY and len({*map(_on_device, (*tensors, result))}) > 1:
            in_background = kwargs.get("non_blocking") or args[2:] == (True,)
            if not in_background or not _on_device(result):
                self._note(func)
        return result

    def _without_masks(self, func, args):
        indices = []
        for index in args[1]:
            if index is not None and index.dtype in (torch.bool, torch.uint8):
                # a fill needs no number
                if func is aten.index.Tensor or args[2].numel() != 1:
                    self._note(func)
                places = index.new_zeros(index.numel(), dtype=torch.long)
                indices += [places] * index.ndim
                continue
            if index is not None and _on_device(args[0]) and not _on_device(index):
                self._note(func)
            indices.append(index)
        return indices

    def _note(self, func):
        stack = traceback.extract_stack()
        where = [frame for frame in stack if "/hrvqvae/" in frame.filename][-1:] or stack
        self.places.append(f"{func} at {where[0].filename}:{where[0].lineno}")


@contextmanager
def fake_gpu(value=1):
    """Make new tensors fake ones of a GPU, and list the waits; nothing is computed."""
    # of copies of a model
    shared = patch.object(FakeTensorMode, "__deepcopy__", lambda self, _: self, create=True)
    one_gpu = patch("torch.cuda.device_count", lambda: 1)
    with shared, one_gpu, warnings.catch_warnings(), FakeTensorMode(), Waits(value) as waits:
        # copies of a model do
        warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")
        yield waits
