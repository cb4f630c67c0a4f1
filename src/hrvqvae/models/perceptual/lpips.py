"""LPIPS (Zhang et al. 2018) on VGG16, as VQGAN was published with it: torchmetrics' form, torchvision's weights."""

from __future__ import annotations

from torch import Tensor, nn

from hrvqvae.models.perceptual import published
from hrvqvae.models.perceptual.distance import PerceptualDistance, three_channels


class LPIPS(PerceptualDistance):
    """Learned weights of the squared differences of VGG16's normalized features, at five depths.

    Raises:
        InputError: VGG16's weights are not on this machine, or damaged.
    """

    name, title = published.LPIPS.name, "LPIPS (VGG16)"

    def __init__(self) -> None:
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

        super().__init__()
        with published.LPIPS.read():
            self.network: nn.Module = LearnedPerceptualImagePatchSimilarity("vgg").net.requires_grad_(False)

    @staticmethod
    def there() -> bool:
        return published.LPIPS.there

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        distances: Tensor = self.network(three_channels(one), three_channels(other), normalize=True)
        return distances.mean()
