"""Losses that need a network of their own, perceptual and adversarial; how a name becomes a perceptual distance."""

from hrvqvae import hub
from hrvqvae.errors import InputError
from hrvqvae.losses.efficientnet import EfficientNetDistance
from hrvqvae.losses.lpips import LPIPS
from hrvqvae.losses.perceptual import PerceptualDistance

_DISTANCES = {kind.name: kind for kind in (LPIPS, EfficientNetDistance)}  # the best first


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
        f"no network whose features images are compared by: pip install 'hrvqvae[perceptual]', or {hub.LPIPS.how}; "
        "or leave a perceptual loss out: perceptual none in the model's configuration"
    )


def perceptual_distance(name: str = "auto") -> PerceptualDistance:
    """The distance of that name, or the best there is.

    Raises:
        InputError: its network is not on this machine.
    """
    return _DISTANCES[choose_perceptual(name)]()


__all__ = ["LPIPS", "EfficientNetDistance", "PerceptualDistance", "choose_perceptual", "perceptual_distance"]
