"""Distances between images by the features of a published network, by name; the best that this machine has."""

from typing import Any

from hrvqvae.models.perceptual import published
from hrvqvae.models.perceptual.distance import PerceptualDistance
from hrvqvae.models.perceptual.efficientnet import EfficientNetDistance
from hrvqvae.models.perceptual.lpips import LPIPS
from hrvqvae.utils.errors import InputError

_DISTANCES = {kind.name: kind for kind in (LPIPS, EfficientNetDistance)}  # the best first


def decide(config: Any) -> str:
    """The distance that a configuration with the field `perceptual` takes where it leaves that to the machine."""
    return choose_perceptual(config.perceptual)


def choose_perceptual(name: str = "auto") -> str:
    """The name itself, or of "auto" the best distance whose network is on this machine.

    Raises:
        InputError: there is none.
    """
    if name != "auto":
        return name
    for found, kind in _DISTANCES.items():
        if kind.there():
            return found
    raise InputError(
        "no network whose features images are compared by: pip install 'hrvqvae[perceptual]', or "
        f"{published.LPIPS.how}; or leave a perceptual loss out: perceptual none in the model's configuration"
    )


def perceptual_distance(name: str = "auto") -> PerceptualDistance:
    """The distance of that name, or the best there is.

    Raises:
        InputError: its network is not on this machine.
    """
    return _DISTANCES[choose_perceptual(name)]()


__all__ = ["LPIPS", "EfficientNetDistance", "PerceptualDistance", "choose_perceptual", "perceptual_distance"]
