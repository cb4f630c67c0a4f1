"""The transformer: causality, and its logits by hand."""

from itertools import product

import torch
from torch.nn.functional import cross_entropy, gelu, layer_norm, pad, scaled_dot_product_attention
from torch.testing import assert_close

from hrvqvae.config.parsing import override
from hrvqvae.config.presets import get
from hrvqvae.priors.base import build_prior, compute_nats
from hrvqvae.priors.configs import GPTConfig
from tests.conftest import generator, same
from tests.priors.networks import SMALL, SUMS, change_code, levels_of, random_codes, random_prior
from tests.trained_run import fields


def test_a_code_depends_on_every_code_before_it_and_on_no_other():
    """Earlier codes are those of all levels at earlier positions, and of coarser levels at the same
    position.
    """
    levels = levels_of((3, 4), (3, 2, 4), classes=3)
    prior = random_prior(SMALL, *levels).double()
    codes = random_codes(levels, 1)

    def logits(codes, label=1):
        """By position and level, a number that any change moves."""
        all_logits = prior.level_logits(codes, [], torch.tensor([label]))
        return torch.stack([level[0, 0] - level[0, 1] for level in all_logits], -1).flatten()

    before = logits(codes)
    reached = []
    for position, level in product(range(12), range(3)):
        changed = list(codes)
        changed[level] = change_code(codes[level], position, levels[level].symbols)
        reached.append(logits(changed) != before)
    assert same(torch.stack(reached), torch.ones(36, 36).triu(1).bool())
    assert (logits(codes, label=2) != before).all()
    prior.train()
    assert (logits(codes) != before).any()  # by dropout


def test_logits_by_hand():
    levels = levels_of((2, 3), (4, 2), classes=2)
    config = GPTConfig(hidden_units=6, layers=1, heads=2, path_units=3, output="choices")
    prior = random_prior(config, *levels)
    codes = random_codes(levels, 2)
    label = torch.tensor([1, 0])

    def normed(x, norm):
        return layer_norm(x, (6,), norm.weight, norm.bias)

    first, second = (table.weight for table in prior.embeddings.tables)
    embedded = [first[codes[0]], second[codes[0] * 2 + codes[1]]]
    seen = pad(embedded[0] + embedded[1], (0, 0, 1, 1, 1, 0))  # a frame of zeros
    x = torch.zeros(2, 2, 3, 6)
    for row, column in product(range(2), range(3)):
        before = seen[:, row + 1, column] if column else seen[:, row, 3]
        above = [
            seen[:, row, column + tap] @ prior.above.weight[:, :, 0, tap].T for tap in range(3)
        ]
        place = prior.rows[row] + prior.columns[column] + prior.classes.weight[label]
        x[:, row, column] = place + prior.left(before) + sum(above)
    x = x.flatten(1, 2)
    layer = prior.layers[0]
    inputs = layer.inputs(normed(x, layer.attention_norm))
    heads = [part.unflatten(-1, (2, 3)).transpose(1, 2) for part in inputs.chunk(3, -1)]
    attended = scaled_dot_product_attention(*heads, is_causal=True)
    x = x + layer.output(attended.transpose(1, 2).flatten(2))
    x = x + layer.narrow(gelu(layer.widen(normed(x, layer.network_norm))))
    features = normed(x, prior.norm)
    result = prior.level_logits(codes, [], label)
    coarser = (torch.zeros(2, 6, 3), embedded[0].flatten(1, 2))
    for head, before, logits in zip(prior.heads, coarser, result, strict=True):
        y = features + before @ head.before.weight.T
        y = y + head.narrow(gelu(head.widen(normed(y, head.norm))))
        expected = head.output(normed(y, head.last_norm))
        assert_close(logits.flatten(2).transpose(1, 2), expected)


def test_a_network_covers_the_levels_that_are_linked():
    quantizer = fields("model.quantizer", "levels=7 linked=3")
    config = override(get("treevq/cifar10").config, quantizer)
    assert config.prior_levels == (range(3), range(3, 6), range(6, 7))
    prior = build_prior(config, range(3, 6), 10)
    assert [level.index for level in prior.levels] == [3, 4, 5]
    each = override(get("vqvae2/mnist").config, {"prior.network.kind": "gpt"})
    assert each.prior_levels == (range(1), range(1, 2), range(2, 3))


def test_levels_of_sums_are_marginals_of_a_softmax_over_leaves():
    levels = levels_of((2, 3), (2, 3, 4))
    prior = random_prior(SUMS, *levels)
    codes = random_codes(levels, 5)
    paths = prior.codeword_indices(codes)
    features = torch.randn(5, 2, 3, 12, generator=generator())
    tables = [table.weight for table in prior.heads.vectors]
    leaves = [(leaf // 12, leaf // 4, leaf) for leaf in range(24)]
    vectors = [
        sum(table[path] for table, path in zip(tables, leaf, strict=True)) for leaf in leaves
    ]
    expected = cross_entropy(
        (features @ torch.stack(vectors).T).movedim(-1, 1), paths[-1], reduction="none"
    )
    pairs = zip(prior.heads(features, paths), codes, strict=True)
    nats = sum(
        cross_entropy(logits.movedim(-1, 1), level_codes, reduction="none")
        for logits, level_codes in pairs
    )
    assert_close(nats, expected)

    # a training step needs no marginals
    per_level = torch.stack(compute_nats(prior, codes, [], None))
    assert_close(prior.image_nats(codes, [], None), per_level.sum(0))


def test_large_groups_keep_the_choices():
    small, large = (random_prior(SUMS, *levels_of((1, 1), (8,) * count)) for count in (4, 5))
    assert (len(small.draws), len(large.draws)) == (1, 5)
