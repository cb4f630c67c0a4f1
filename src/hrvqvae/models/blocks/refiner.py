"""A decoder that knows which of a few cases its input is, and looks farther around."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import relu


class _Block(nn.Module):
    """x + conv1x1(relu(dilated conv(relu(x + bias of the case)))): shape kept."""

    def __init__(self, hidden: int, inner: int, kernel: int, dilation: int, cases: int) -> None:
        super().__init__()
        self.case = nn.Embedding(cases, hidden)
        self.spatial = nn.Conv2d(hidden, inner, kernel, padding=dilation * (kernel // 2), dilation=dilation)
        self.pointwise = nn.Conv2d(inner, hidden, 1)
        nn.init.zeros_(self.case.weight)

    def forward(self, features: Tensor, case: Tensor) -> Tensor:
        residual: Tensor = self.pointwise(relu(self.spatial(relu(features + self.case(case)[..., None, None]))))
        return features + residual


class Refiner(nn.Module):
    """(B, D, H, W) latents -> the same shape: latents + conv1x1(relu(blocks(conv(latents)))), the identity at first.

    Args:
        dim: D.
        hidden: channels of the features; half as many inside a block.
        blocks: residual blocks, each with a bias of the features for each case, dilated by 1, 1, 2, 2, 4, 4, ...
        kernel: filter size.
        cases: how many there are.
    """

    def __init__(self, *, dim: int, hidden: int, blocks: int, kernel: int, cases: int) -> None:
        super().__init__()
        self.inward = nn.Conv2d(dim, hidden, kernel, padding=kernel // 2)
        self.blocks = nn.ModuleList(
            _Block(hidden, max(1, hidden // 2), kernel, 2 ** (number // 2), cases) for number in range(blocks)
        )
        self.outward = nn.Conv2d(hidden, dim, 1)
        for values in self.outward.parameters():
            nn.init.zeros_(values)

    def forward(self, latents: Tensor, case: Tensor) -> Tensor:
        """Refine latents.

        Args:
            latents: (B, D, H, W).
            case: int64, from 0: () of all of them, or (B,) of each.
        """
        features = self.inward(latents)
        for block in self.blocks:
            features = block(features, case)
        added: Tensor = self.outward(relu(features))
        return latents + added


class ProgressiveDecoder(nn.Module):
    """(B, D, H, W) latents of a case -> refiner -> decoder -> (B, C, Y, X)."""

    def __init__(self, refiner: Refiner, decoder: nn.Module) -> None:
        super().__init__()
        self.refiner, self.decoder = refiner, decoder

    def forward(self, latents: Tensor, case: Tensor) -> Tensor:
        """Decode; the case as for the refiner."""
        decoded: Tensor = self.decoder(self.refiner(latents, case))
        return decoded
