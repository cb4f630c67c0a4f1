"""Normalization by the statistics of a batch, also where several processes have a part of it each."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hrvqvae import distributed


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
