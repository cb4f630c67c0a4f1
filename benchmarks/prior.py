"""Throughput of a prior's training: forms of a PixelSNAIL side by side."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d
from torch.nn.utils.parametrizations import weight_norm

from benchmarks.common import Row, as_script, finish, options, positive, preset_of, side_by_side
from hrvqvae.config import Config, Levels
from hrvqvae.models.base import Autoencoder
from hrvqvae.models.build import build
from hrvqvae.priors.base import Prior, build_prior
from hrvqvae.priors.causal import Attention, CausalConv2d
from hrvqvae.priors.generative import sample_codes
from hrvqvae.priors.sampling import SamplingParams
from hrvqvae.quantize import Codes
from hrvqvae.training.prior import CodeBatch, PriorTask
from hrvqvae.training.state import TrainState, count_parameters
from hrvqvae.utils.device import Compute


class MaskedConv2d(nn.Module):
    """A causal convolution in its common form: a whole k x k filter, masked in each forward pass."""

    def __init__(self, causal: CausalConv2d) -> None:
        super().__init__()
        outputs, inputs, reach, kernel = causal.above.shape
        across = causal.left.shape[3]
        weight = torch.zeros(outputs, inputs, kernel, kernel)
        weight[:, :, :reach], weight[:, :, reach, :across] = causal.above.detach(), causal.left.detach()[:, :, 0]
        mask = torch.zeros(1, 1, kernel, kernel)
        mask[:, :, :reach], mask[:, :, reach, :across] = 1, 1
        self.weight, self.bias, self.reach = nn.Parameter(weight), nn.Parameter(causal.bias.detach().clone()), reach
        self.register_buffer("mask", mask)
        self.mask: Tensor

    def forward(self, features: Tensor) -> Tensor:
        """(B, in, H, W) -> (B, out, H, W)."""
        return conv2d(features, self.weight * self.mask, self.bias, padding=self.reach)


def matrix_attention(queries: Tensor, keys: Tensor, values: Tensor, *, causal: bool) -> Tensor:
    """Attention with its whole (N, N) matrix of scores, masked: as `causal.attend`."""
    scores = queries @ keys.transpose(-1, -2) / queries.shape[-1] ** 0.5
    if causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(later, float("-inf"))
    attended: Tensor = scores.softmax(-1) @ values
    return attended


@dataclasses.dataclass(frozen=True, kw_only=True)
class Form:
    """One form of the same network: what it still has of the plain one."""

    masked: bool = False
    normed: bool = False
    attention: Callable[..., Tensor] | None = None
    bf16: bool = True
    channels_last: bool = True


FORMS = {
    "plain": Form(masked=True, normed=True, attention=matrix_attention, bf16=False, channels_last=False),
    "+ bf16": Form(masked=True, normed=True, attention=matrix_attention, channels_last=False),
    "+ channels last": Form(masked=True, normed=True, attention=matrix_attention),
    "+ no weight norm": Form(masked=True, attention=matrix_attention),
    "+ cropped kernels": Form(attention=matrix_attention),
    "+ attention in blocks (hrvqvae)": Form(),
}


def _replaced(module: nn.Module, form: Form) -> None:
    for name, child in module.named_children():
        if isinstance(child, CausalConv2d) and form.masked:
            masked = MaskedConv2d(child)
            setattr(module, name, weight_norm(masked) if form.normed else masked)
        else:
            if isinstance(child, Attention) and form.attention is not None:
                child.form = form.attention
            _replaced(child, form)


class PriorSide:
    """One form of the prior of some levels, which takes training steps of a batch of random codes."""

    def __init__(self, config: Config, levels: Levels, form: Form) -> None:
        training = config.prior.training_of(levels.start)
        training = dataclasses.replace(
            training,
            precision="bf16" if form.bf16 else "fp32",
            memory_format="channels_last" if form.channels_last else "contiguous",
        )
        self.compute = Compute.of(training)
        torch.manual_seed(0)
        prior = build_prior(config, levels, classes=10)
        self.parameters = count_parameters(prior)
        _replaced(prior, form)
        prior = self.compute.place_model(prior)
        self.state = TrainState.start(prior, training)
        self.step = PriorTask("", levels, config, (build(config), config, "")).step
        size = training.batch_size
        codes = tuple(torch.randint(level.symbols, (size, *level.grid)) for level in prior.levels)
        grids = config.model.latent_grids(config.data.size, config.data.size)
        coarser = zip(prior.level.coarser, grids, strict=False)
        paths = tuple(torch.randint(codewords, (size, *grid)) for codewords, grid in coarser)
        self.batch = CodeBatch(codes, paths, torch.randint(10, (size,)))

    def train(self) -> None:
        """One training step."""
        self.step(self.state, self.batch)
        self.state.step += 1


def bench_prior(config: Config, rounds: int = 5) -> list[Row]:
    """Rows with measured, method, batch, parameters, images_per_second (median step), ratio (to the plain form's).

    Forms of the prior of the coarsest level take turns, a step each for random codes. Each adds one change to the one
    above it.
    """
    sides = {name: PriorSide(config, config.prior_levels[0], form) for name, form in FORMS.items()}
    batch, device = config.prior.training_of(0).batch_size, sides["plain"].compute.device
    spent = side_by_side({name: side.train for name, side in sides.items()}, rounds, device)
    return [
        {
            "measured": "training", "method": name, "batch": batch, "parameters": side.parameters,
            "images_per_second": batch / spent[name], "ratio": spent["plain"] / spent[name],
        }
        for name, side in sides.items()
    ]  # fmt: skip


def random_priors(config: Config) -> list[Prior]:
    """Priors of all levels with random weights, in evaluation mode."""
    torch.manual_seed(0)
    classes = 10 if config.data.labels else 0
    return [build_prior(config, levels, classes).eval().requires_grad_(False) for levels in config.prior_levels]


def draws(model: Autoencoder, priors: Sequence[Prior], batch: int) -> Callable[[], Codes]:
    """Draws codes of all levels of so many images."""
    label = torch.zeros(batch, dtype=torch.long) if priors[0].level.classes else None
    return lambda: sample_codes(priors, model.paths, range(batch), seed=0, label=label, params=SamplingParams())


COLUMNS = {
    "measured": "{measured}", "method": "{method}", "batch": "{batch}", "parameters": "{parameters:,}",
    "images/s": "{images_per_second:.2f}", "ratio": "{ratio:.2f}",
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Time the training of a preset's prior; `--section.field VALUE` changes the preset."""
    parser = options(__doc__)
    parser.add_argument("--preset", default="hrvqvae/mnist", metavar="PRESET", help="default: hrvqvae/mnist")
    parser.add_argument("--rounds", type=positive, default=5, metavar="N", help="steps of each form (default: 5)")
    given = {"prior.training.batch_size": "32", "prior.network.residual_blocks": "18"}
    arguments, config = preset_of(parser, argv, given=given)
    finish(bench_prior(config, arguments.rounds), COLUMNS, arguments.json)


if __name__ == "__main__":
    as_script(main)
