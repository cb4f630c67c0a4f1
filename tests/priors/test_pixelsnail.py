"""PixelSNAIL: causality and conditions."""

import copy

import torch
from torch import nn
from torch.testing import assert_close

from hrvqvae.priors.causal import CausalConv2d
from tests.conftest import parametrize
from tests.priors.networks import change_code, inputs, level_of, network, random_prior


def logits(prior, codes, coarser, label):
    return prior.level_logits([codes], coarser, label)[0]


def moved(
    prior,
    before,
    after,
    label,
):
    """The positions (H * W) bool whose logits differ in float64."""
    prior = copy.deepcopy(prior).double()
    return (logits(prior, *before, label) != logits(prior, *after, label)).any(1)[0].flatten()


@parametrize("kernel", [3, 5, 7])
@parametrize("strict", [True, False])
def test_a_causal_convolution_is_a_masked_one(kernel, strict):
    torch.manual_seed(0)
    causal = CausalConv2d(3, 4, kernel, strict=strict)
    reach = kernel // 2
    weight = torch.zeros(4, 3, kernel, kernel)
    weight[:, :, :reach] = causal.above.detach()
    weight[:, :, reach : reach + 1, : reach + (not strict)] = causal.left.detach()
    features = torch.randn(2, 3, 6, 5)
    expected = nn.functional.conv2d(features, weight, causal.bias, padding=reach)
    assert_close(causal(features), expected)


@parametrize("attention", [0, 2])
@parametrize("coarser, classes", [((), 0), ((3, 9), 4)])
def test_a_position_sees_neither_itself_nor_later_ones(attention, coarser, classes):
    level = level_of(grid=(4, 5), coarser=coarser, classes=classes)
    prior = random_prior(network(attention_layers=(attention,)), level)
    codes, paths, label = inputs(level, 1)
    reached = torch.stack(
        [
            moved(prior, (codes, paths), (change_code(codes, place, 3), paths), label)
            for place in range(20)
        ]
    )
    later = torch.ones(20, 20).triu(1).bool()
    assert not reached[~later].any()
    if attention:
        # a row's last code is seen from the next row's middle on
        inside = (torch.arange(20) % 5 < 4)[:, None]
        assert reached[later & inside].all()
    else:
        assert reached[:-1].any(1).all()
