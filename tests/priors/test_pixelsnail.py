"""PixelSNAIL: causality and conditions."""

import copy
import itertools
from collections.abc import Sequence
from pkgutil import resolve_name
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hrvqvae.config import PriorNetworkConfig
from hrvqvae.config.registry import PRIORS
from hrvqvae.priors.base import Level, Prior
from hrvqvae.priors.causal import CausalConv2d
from hrvqvae.priors.configs import PixelSNAILConfig
from tests.conftest import input_error


class TableConfig(PriorNetworkConfig):
    kind: str = "table"


class Table(Prior):
    """A prior with the same distribution at every position."""

    def __init__(self, level: Level, shares: Sequence[float]) -> None:
        super().__init__(TableConfig(), level)
        self.shares = torch.tensor(shares).log()

    def level_logits(
        self, codes: Sequence[Tensor], coarser: object, label: Tensor | None
    ) -> tuple[Tensor, ...]:
        return ((self.shares + 7)[None, :, None, None].expand(len(codes[0]), -1, *self.level.grid),)


def network(**changes: object) -> PixelSNAILConfig:
    fields: dict[str, object] = {
        "hidden_units": 8,
        "residual_units": 6,
        "residual_blocks": 3,
        "attention_layers": (2,),
        "attention_heads": 2,
        "kernel": 5,
        "dropout": (0.3,),
    }
    return PixelSNAILConfig(**{**fields, **changes})


def random_prior(config: PriorNetworkConfig, *levels: Level, seed: int = 0) -> Any:
    """A prior in evaluation mode whose weights are large enough that everything matters."""
    torch.manual_seed(seed)
    prior = (
        resolve_name(PRIORS.get(config.kind).network)(config, *levels).eval().requires_grad_(False)
    )
    for parameter in prior.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.2)
    return prior


def logits(prior: Prior, codes: Tensor, coarser: Sequence[Tensor], label: Tensor | None) -> Tensor:
    return prior.level_logits([codes], coarser, label)[0]


def moved(
    prior: Prior,
    before: tuple[Tensor, list[Tensor]],
    after: tuple[Tensor, list[Tensor]],
    label: Tensor | None,
) -> Tensor:
    """The positions (H * W) bool whose logits differ in float64."""
    prior = copy.deepcopy(prior).double()
    return (logits(prior, *before, label) != logits(prior, *after, label)).any(1)[0].flatten()


def inputs(level: Level, batch: int, seed: int = 0) -> tuple[Tensor, list[Tensor], Tensor | None]:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(level.symbols, (batch, *level.grid), generator=generator)
    coarser = [
        torch.randint(words, (batch, *level.grid), generator=generator) for words in level.coarser
    ]
    label = torch.randint(level.classes, (batch,), generator=generator) if level.classes else None
    return codes, coarser, label


@pytest.mark.parametrize("kernel", [3, 5, 7])
@pytest.mark.parametrize("strict", [True, False])
def test_a_causal_convolution_is_a_masked_one(kernel: int, strict: bool) -> None:
    torch.manual_seed(0)
    causal = CausalConv2d(3, 4, kernel, strict=strict)
    reach = kernel // 2
    weight = torch.zeros(4, 3, kernel, kernel)
    weight[:, :, :reach] = causal.above.detach()
    weight[:, :, reach : reach + 1, : reach + (not strict)] = causal.left.detach()
    features = torch.randn(2, 3, 6, 5)
    expected = nn.functional.conv2d(features, weight, causal.bias, padding=reach)
    torch.testing.assert_close(causal(features), expected)


@pytest.mark.parametrize("attention", [0, 2])
@pytest.mark.parametrize(("coarser", "classes"), [((), 0), ((3, 9), 4)])
def test_a_position_sees_neither_itself_nor_later_ones(
    attention: int, coarser: tuple[int, ...], classes: int
) -> None:
    level = Level(grid=(4, 5), symbols=3, coarser=coarser, classes=classes)
    prior = random_prior(network(attention_layers=(attention,)), level)
    codes, paths, label = inputs(level, 1)
    reached = torch.zeros(20, 20, dtype=torch.bool)
    for place in range(20):
        changed = codes.clone()
        changed.view(-1)[place] = (changed.view(-1)[place] + 1) % 3
        reached[place] = moved(prior, (codes, paths), (changed, paths), label)
    later = torch.arange(20)[None] > torch.arange(20)[:, None]
    assert not reached[~later].any(), "a position must not see itself or what comes later"
    if attention:
        inside = (torch.arange(20) % 5 < 4)[
            :, None
        ]  # a row's last code is seen from the next row's middle on
        assert reached[later & inside].all(), (
            "with attention every later position sees every earlier one"
        )
    else:
        assert reached[:-1].any(1).all()


def test_the_whole_map_of_coarser_levels_is_seen() -> None:
    level = Level(grid=(9, 9), symbols=3, coarser=(3, 9))
    prior = random_prior(network(), level)
    codes, paths, _ = inputs(level, 1)
    for which in range(2):
        changed = [path.clone() for path in paths]
        changed[which][0, 8, 8] = (changed[which][0, 8, 8] + 1) % level.coarser[which]
        assert moved(prior, (codes, paths), (codes, changed), None).all(), (
            "its last place moves all positions"
        )


def test_the_class_moves_every_position_and_no_class_is_none_of_them() -> None:
    for unconditional in (True, False):
        level = Level(grid=(3, 4), symbols=3, classes=3, unconditional=unconditional)
        prior, (codes, _, _) = random_prior(network(), level), inputs(level, 1)
        results = [logits(prior, codes, [], torch.tensor([label])) for label in range(level.labels)]
        assert len(results) == 3 + unconditional
        for left, right in itertools.combinations(results, 2):
            assert (left != right).any(1).all()


def test_dropout_is_of_training_alone_and_takes_the_level_own_share() -> None:
    config = network(dropout=(0.0, 0.5), attention_layers=(0, 3))
    for coarser, attentions, dropped in (((), 0, 0.0), ((3,), 3, 0.5)):
        level = Level(grid=(3, 4), symbols=3, coarser=coarser)
        prior, (codes, paths, _) = random_prior(config, level), inputs(level, 2)
        assert (len(prior.attentions), prior.blocks[0].dropout_share) == (attentions, dropped)
        assert torch.equal(logits(prior, codes, paths, None), logits(prior, codes, paths, None))
    prior.train()
    assert not torch.equal(logits(prior, codes, paths, None), logits(prior, codes, paths, None))


def test_attention_is_spread_evenly() -> None:
    for blocks, layers, after in (
        (8, 4, (2, 4, 6, 8)),
        (8, 1, (8,)),
        (3, 2, (2, 3)),
        (5, 5, (1, 2, 3, 4, 5)),
    ):
        config = network(residual_blocks=blocks, attention_layers=(layers,))
        assert random_prior(config, Level(grid=(2, 2), symbols=2)).attention_after == after


def test_what_it_is_conditioned_on_is_checked() -> None:
    level = Level(grid=(3, 4), symbols=3, coarser=(3,), classes=5)
    codes = torch.zeros(2, 3, 4, dtype=torch.long)
    for coarser, label, message in (
        ([], torch.tensor([0, 0]), "there are 0 coarser levels; this prior needs 1"),
        ([codes + 3], torch.tensor([0, 0]), "outside 0..2"),
        ([codes], None, "class-conditional"),
        ([codes], torch.tensor([0, 5]), "outside 0..4"),
    ):
        with input_error(message):
            logits(random_prior(network(), level), codes, coarser, label)
    with input_error("no classes"):
        logits(
            random_prior(network(), Level(grid=(3, 4), symbols=3)), codes, [], torch.tensor([0, 0])
        )
