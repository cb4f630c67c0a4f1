"""The prior of a level: causal, conditioned, and the network that its docstring draws."""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from hrvqvae.config import PriorNetworkConfig
from hrvqvae.priors.base import Level, LevelPrior, code_loss, total_bits
from hrvqvae.priors.causal import CausalConv2d
from hrvqvae.priors.configs import PixelSNAILConfig
from hrvqvae.priors.pixelsnail import PixelSNAIL
from hrvqvae.utils.errors import InputError


@dataclass(frozen=True, kw_only=True)
class TableConfig(PriorNetworkConfig):
    """Registered by no one, unless a test does."""

    kind: str = "table"


class Table(LevelPrior):
    """A prior that says the same everywhere: the shares of the symbols."""

    def __init__(self, level: Level, shares: Sequence[float]) -> None:
        super().__init__(TableConfig(), level)
        self.shares = torch.tensor(shares).log()

    def logits(self, codes: Tensor, coarser: object, label: Tensor | None) -> Tensor:
        return (self.shares + 7)[None, :, None, None].expand(len(codes), -1, *self.level.grid)


def network(**changes: object) -> PixelSNAILConfig:
    fields: dict[str, object] = {
        "hidden_units": 8, "residual_units": 6, "residual_blocks": 3, "attention_layers": (2,), "attention_heads": 2,
        "kernel": 5, "dropout": (0.3,),
    }  # fmt: skip
    return PixelSNAILConfig(**{**fields, **changes})  # type: ignore[arg-type]


def random_prior(config: PixelSNAILConfig, level: Level, index: int = 0, seed: int = 0) -> PixelSNAIL:
    """A prior in evaluation mode whose weights are large enough that everything matters."""
    torch.manual_seed(seed)
    prior = PixelSNAIL(config, level, index).eval().requires_grad_(False)
    for parameter in prior.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.2)
    return prior


def moved(
    prior: PixelSNAIL, one: tuple[Tensor, list[Tensor]], other: tuple[Tensor, list[Tensor]], label: Tensor | None
) -> Tensor:
    """(H * W) bool: the positions whose logits differ, in float64, where nothing is lost to rounding."""
    prior = copy.deepcopy(prior).double()
    return (prior.logits(*one, label) != prior.logits(*other, label)).any(1)[0].flatten()


def inputs(level: Level, batch: int, seed: int = 0) -> tuple[Tensor, list[Tensor], Tensor | None]:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(level.symbols, (batch, *level.grid), generator=generator)
    coarser = [torch.randint(words, (batch, *level.grid), generator=generator) for words in level.coarser]
    label = torch.randint(level.classes, (batch,), generator=generator) if level.classes else None
    return codes, coarser, label


@pytest.mark.parametrize("kernel", [3, 5, 7])
@pytest.mark.parametrize("strict", [True, False])
def test_a_causal_convolution_is_a_masked_one(kernel: int, strict: bool) -> None:
    torch.manual_seed(0)
    causal = CausalConv2d(3, 4, kernel, strict=strict)
    reach, weight = kernel // 2, torch.zeros(4, 3, kernel, kernel)
    weight[:, :, :reach] = causal.above.detach()
    weight[:, :, reach : reach + 1, : reach + (not strict)] = causal.left.detach()
    features = torch.randn(2, 3, 6, 5)
    expected = nn.functional.conv2d(features, weight, causal.bias, padding=reach)
    torch.testing.assert_close(causal(features), expected)


@pytest.mark.parametrize("attention", [0, 2])
@pytest.mark.parametrize(("coarser", "classes"), [((), 0), ((3, 9), 4)])
def test_logits_of_a_position_do_not_move_when_it_or_later_ones_do(
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
        inside = (torch.arange(20) % 5 < 4)[:, None]  # a row's last code is seen from the next row's middle on
        assert reached[later & inside].all(), "with attention every later position sees every earlier one"
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
            "its last place moves even the first position"
        )


def test_the_class_moves_every_position() -> None:
    level = Level(grid=(3, 4), symbols=3, classes=5)
    prior = random_prior(network(), level)
    codes, _, _ = inputs(level, 1)
    one, other = (prior.logits(codes, [], torch.tensor([number])) for number in (1, 4))
    assert (one != other).any(1).all()


def test_an_image_does_not_depend_on_its_batch() -> None:
    level = Level(grid=(3, 4), symbols=3, coarser=(3,), classes=5)
    prior = random_prior(network(), level)
    codes, paths, label = inputs(level, 4)
    assert label is not None
    alone = prior.logits(codes[2:3], [paths[0][2:3]], label[2:3])
    torch.testing.assert_close(prior.logits(codes, paths, label)[2:3], alone)


def test_dropout_is_of_training_alone_and_takes_the_level_own_share() -> None:
    level = Level(grid=(3, 4), symbols=3)
    codes, _, _ = inputs(level, 2)
    prior = random_prior(network(dropout=(0.0, 0.5), attention_layers=(0, 3)), level, index=0)
    assert (len(prior.attentions), prior.blocks[0].dropped) == (0, 0.0)
    prior = random_prior(network(dropout=(0.0, 0.5), attention_layers=(0, 3)), level, index=1)
    assert (len(prior.attentions), prior.blocks[0].dropped) == (3, 0.5)
    assert torch.equal(prior.logits(codes, [], None), prior.logits(codes, [], None))
    prior.train()
    assert not torch.equal(prior.logits(codes, [], None), prior.logits(codes, [], None))


@pytest.mark.parametrize(
    ("blocks", "layers", "after"), [(8, 4, (2, 4, 6, 8)), (8, 1, (8,)), (3, 2, (2, 3)), (5, 5, (1, 2, 3, 4, 5))]
)
def test_attention_is_spread_evenly(blocks: int, layers: int, after: tuple[int, ...]) -> None:
    config = network(residual_blocks=blocks, attention_layers=(layers,))
    assert random_prior(config, Level(grid=(2, 2), symbols=2)).attention_after == after


def test_bits_are_the_entropy_of_what_was_said() -> None:
    prior = Table(Level(grid=(2, 2), symbols=2), [0.25, 0.75])
    codes = torch.tensor([[[0, 1], [1, 1]]])
    expected = 2 + 3 * math.log2(4 / 3)
    assert total_bits(prior, [codes], [], None) == pytest.approx([expected])
    assert float(code_loss(prior, [codes], [], None)) == pytest.approx(expected / 4 * math.log(2))


@pytest.mark.parametrize(
    ("coarser", "label", "message"),
    [
        ([], torch.tensor([0, 0]), "0 coarser levels are given; this prior sees 1"),
        ([torch.full((2, 3, 4), 3)], torch.tensor([0, 0]), "outside 0..2"),
        ([torch.zeros(2, 3, 4, dtype=torch.long)], None, "class-conditional"),
        ([torch.zeros(2, 3, 4, dtype=torch.long)], torch.tensor([0, 5]), "outside 0..4"),
    ],
)
def test_what_it_is_conditioned_on_is_checked(coarser: list[Tensor], label: Tensor | None, message: str) -> None:
    level = Level(grid=(3, 4), symbols=3, coarser=(3,), classes=5)
    prior = random_prior(network(), level)
    with pytest.raises(InputError, match=message):
        prior.logits(torch.zeros(2, 3, 4, dtype=torch.long), coarser, label)


def test_a_label_for_a_prior_without_classes_is_refused() -> None:
    level = Level(grid=(3, 4), symbols=3)
    with pytest.raises(InputError, match="no classes"):
        random_prior(network(), level).logits(torch.zeros(1, 3, 4, dtype=torch.long), [], torch.tensor([0]))
