"""The patch discriminator and the losses around it (Esser et al. 2021, section 3.1; Isola et al. 2017).

Shapes: images (B, C, Y, X) in [-1, 1]; the discriminator's answers (B, 1, h, w), one a patch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from hrvqvae import distributed

_LARGEST = 1e4
_DELTA = 1e-6


class BatchNorm2d(nn.BatchNorm2d):
    """torch's, by the statistics of the batches of all processes that train together: (B, C, Y, X) kept.

    torch's own SyncBatchNorm has no form for the CPU.
    """

    def forward(self, features: Tensor) -> Tensor:
        if not (self.training and distributed.is_distributed()):
            return super().forward(features)
        running = (self.running_mean, self.running_var, self.num_batches_tracked)
        running_mean, running_var, tracked = (one for one in running if one is not None)
        momentum = self.momentum or 0.0
        values = features.float()
        axes, shape = (0, 2, 3), (1, -1, 1, 1)
        number = distributed.all_reduce_with_gradient(values.new_tensor([values.numel() / self.num_features]))
        mean = distributed.all_reduce_with_gradient(values.sum(axes)) / number
        centred = values - mean.view(shape)
        variance = distributed.all_reduce_with_gradient(centred.square().sum(axes)) / number
        with torch.no_grad():
            tracked += 1
            running_mean.lerp_(mean, momentum)
            running_var.lerp_(variance * number / (number - 1), momentum)
        scaled = centred * torch.rsqrt(variance + self.eps).view(shape)
        return (scaled * self.weight.view(shape) + self.bias.view(shape)).to(features.dtype)


class PatchDiscriminator(nn.Sequential):
    """image -> [conv 4x4, stride 2, norm, leaky relu] x layers -> two convs 4x4: positive where it looks real."""

    def __init__(self, channels: int, units: int, layers: int) -> None:
        parts: list[nn.Module] = [nn.Conv2d(channels, units, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        width = units
        for layer in range(1, layers + 1):
            wider, stride = units * min(2**layer, 8), 2 if layer < layers else 1
            parts += [nn.Conv2d(width, wider, 4, stride=stride, padding=1, bias=False), BatchNorm2d(wider)]
            parts += [nn.LeakyReLU(0.2)]
            width = wider
        parts.append(nn.Conv2d(width, 1, 4, padding=1))
        super().__init__(*parts)


def hinge_loss(real: Tensor, fake: Tensor) -> Tensor:
    """The discriminator's: mean(max(0, 1 - real)) / 2 + mean(max(0, 1 + fake)) / 2, a scalar."""
    return (relu(1 - real).mean() + relu(1 + fake).mean()) / 2


def generator_loss(fake: Tensor) -> Tensor:
    """The generator's: -mean(fake), a scalar."""
    return -fake.mean()


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, last_layer: Tensor) -> Tensor:
    """lambda = |grad reconstruction| / (|grad adversarial| + delta) by the decoder's last weights (equation 7).

    At most 1e4; a scalar without gradient. Both losses keep their graphs. Where several processes train together, the
    gradients are those of the whole batch.
    """
    gradients = [torch.autograd.grad(loss, last_layer, retain_graph=True)[0] for loss in (reconstruction, adversarial)]
    of_reconstruction, of_adversarial = (gradient.norm() for gradient in distributed.all_reduce_mean(gradients))
    weight: Tensor = of_reconstruction / (of_adversarial + _DELTA)
    return weight.clamp(max=_LARGEST).detach()


class _KnownGradient(torch.autograd.Function):
    """A loss whose gradient by one tensor is given."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, at: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[None, Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return None, gradient * outer[0], None


def with_known_gradient(loss: Tensor, at: Tensor) -> Tensor:
    """The same loss of `at`, a scalar, with its gradient by `at` computed now and kept.

    What stands between is gone through once, however often the loss is differentiated later, and nothing beside `at`
    gets a gradient: the adaptive weight and the update both need it, and a network of features is most of a step.
    """
    (gradient,) = torch.autograd.grad(loss, at)
    known: Tensor = _KnownGradient.apply(loss.detach(), at, gradient)  # type: ignore[no-untyped-call]
    return known
