"""Trees that are planted on flat codebooks: their leaves, their search, their growth, and runs."""

import itertools

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch.testing import assert_close

import hrvqvae
from hrvqvae import TreeVQ
from hrvqvae.quantize.planting import assign_evenly, read_leaves
from tests.conftest import do, generator, input_error, normal, parametrize
from tests.trained_run import GIVEN_GPT, as_options

DIM = 5


def flat_search(vectors, codebook):
    """Return the rows of the nearest codewords, by numpy in float64."""
    points, words = vectors.double().numpy(), codebook.double().numpy()
    squares = ((points[:, None] - words) ** 2).sum(-1)
    return torch.from_numpy(squares.argmin(1))


@parametrize("num_words, codewords", [(64, 4), (64, 2), (60, 4), (17, 4), (3, 8)])
def test_leaves_are_the_codewords(num_words, codewords):
    """Each once, up to the rounding of sums; K may be no power of m."""
    codebook = normal(num_words, DIM)
    tree = TreeVQ.from_codebook(codebook, codewords)
    tokens = torch.arange(num_words)
    indices = tree.indices_of(tokens)
    assert len(indices.unique(dim=0)) == num_words
    assert tree.leaf_of(indices).equal(tokens)
    assert_close(tree.get_output_from_indices(indices), codebook, rtol=0, atol=1e-6)

    # a beam as wide as the tree is the flat search; a leaf beyond K is never chosen
    wide = TreeVQ.from_codebook(codebook, codewords, beam=num_words)
    vectors = normal(200, DIM, seed=1)
    quantized, chosen, _ = wide(vectors)
    rows = flat_search(vectors, codebook)
    assert wide.leaf_of(chosen).equal(rows)
    assert chosen.equal(wide.indices_of(rows))
    assert_close(quantized, codebook[rows], rtol=0, atol=1e-6)


def test_a_group_is_the_mean_of_its_leaves_weighted_by_use():
    codebook = normal(64, DIM)
    counts = torch.arange(1, 65)  # integers, as bincount gives them
    tree = TreeVQ.from_codebook(codebook, 4, counts)
    indices = tree.indices_of(torch.arange(64))
    for path in itertools.product(range(4), repeat=2):
        below = (indices[:, :2] == torch.tensor(path)).all(1)
        assert below.sum() == 4  # groups of equal size
        mean = np.average(codebook[below].numpy(), axis=0, weights=counts[below].numpy())
        assert_close(tree.get_output_from_indices(torch.tensor(path)).numpy(), np.float32(mean))


def test_stages_become_groups():
    """The sum of a planted stage per group is that of the flat stages."""
    stages = normal(3, 16, DIM)
    tree = TreeVQ.from_codebook(stages, 4)
    tokens = torch.randint(16, (7, 2, 3), generator=generator())
    indices = tree.indices_of(tokens)
    assert indices.shape == (7, 2, 6)
    assert tree.leaf_of(indices).equal(tokens)
    total = sum(stage[tokens[..., index]] for index, stage in enumerate(stages))
    assert_close(tree.get_output_from_indices(indices), total, rtol=0, atol=1e-6)


def test_a_planted_layer_stays_as_it_is_in_training():
    tree = TreeVQ.from_codebook(normal(64, DIM), 4).train()
    before = tree.quantizer.state_dict()["codebooks.0.codewords"].clone()
    tree(normal(100, DIM))
    assert tree.quantizer.state_dict()["codebooks.0.codewords"].equal(before)
    other = TreeVQ.from_codebook(normal(64, DIM, seed=1), 4)
    other.load_state_dict(tree.state_dict())
    tokens = torch.arange(64)
    assert other.indices_of(tokens).equal(tree.indices_of(tokens))


def test_a_tree_grows_by_a_level():
    codebook = normal(16, DIM)
    tree = TreeVQ.from_codebook(codebook, 4, beam=16)
    # the last codeword has a single vector, the others a hundred
    chosen = torch.cat([torch.arange(15).repeat(100), torch.tensor([15])])
    vectors = codebook[chosen] + 0.05 * normal(len(chosen), DIM, seed=1)
    before = tree.quantizer.state_dict()
    error = (vectors - tree(vectors)[0]).square().mean()
    tree.grow(vectors, 3)
    after = tree.quantizer.state_dict()
    assert all(after[name].equal(value) for name, value in before.items())
    quantized, indices, _ = tree(vectors)
    assert indices.shape == (len(vectors), 3)
    assert (vectors - quantized).square().mean() < 0.8 * error
    assert tree.leaf_of(indices).equal(chosen)

    rare = torch.cat([tree.indices_of(torch.tensor(15)).repeat(3, 1), torch.arange(3)[:, None]], 1)
    leaves = tree.get_output_from_indices(rare)
    assert_close(leaves[0], vectors[-1])
    assert_close(leaves[1:], codebook[15:].repeat(2, 1))  # nothing to fill them with


@parametrize("shape", [(2, 16), (4,)])
def test_stages_and_a_flat_codebook_grow_too(shape):
    tree = TreeVQ.from_codebook(normal(*shape, DIM), 4)
    vectors = normal(500, DIM, seed=2)
    error = (vectors - tree(vectors)[0]).square().mean()
    assert (vectors - tree.grow(vectors, 6)(vectors)[0]).square().mean() < error


def test_more_links_than_levels_are_links_of_all():
    tree = TreeVQ(DIM, 4, 2, linked=5).train()
    vectors = normal(500, DIM, seed=2)
    tree(vectors)
    assert tree.freeze().grow(vectors, 4).quantizer.config.leaves == (64,)


@parametrize("count, groups", [(64, 8), (61, 8), (225, 15), (40, 2)])
def test_even_groups_cost_little_more_than_the_best(count, groups):
    points = normal(count, DIM).double()
    costs = torch.cdist(points, points[:groups]).square()
    room = np.full(groups, count // groups)
    room[: count % groups] += 1
    prices = torch.zeros(groups)
    for _ in range(10):
        group = assign_evenly(costs, room.tolist(), prices).numpy()
    costs = costs.numpy()
    assert np.bincount(group, minlength=groups).tolist() == room.tolist()
    places = np.repeat(np.arange(groups), room)
    rows, columns = linear_sum_assignment(costs[:, places])
    best = costs[rows, places[columns]].sum()
    assert costs[np.arange(count), group].sum() <= 1.01 * best


@parametrize("system, levels", [("vqvae", 1), ("rqvae", 2)])
def test_a_planted_run(system, levels, mnist_root, tmp_path):
    """Equal images for equal tokens; a tree in every other way."""
    run = tmp_path / "flat"
    quantizer = f"--model.quantizer.codewords 16 --model.quantizer.levels {levels}"
    size = "--model.hidden_units 8 --model.residual_units 8 --training.batch_size 32"
    data = f"--data {mnist_root} --data.size 12 --max-steps 5 --device cpu"
    do(f"train {system}/mnist --out {run} {data} {quantizer} {size}")
    do(f"plant {run} --codewords 4 --out {tmp_path}/tree")
    flat = hrvqvae.load(run)
    tree = hrvqvae.load(tmp_path / "tree", beam=16)
    assert (tree.config.model.system, flat.config.model.system) == ("treevq", system)
    images = torch.rand(6, 1, 12, 12, generator=generator())
    codes = tree.encode(images)
    assert len(codes) == 2 * levels
    expected = flat.decode(flat.encode(images))
    if levels == 1:
        assert_close(tree.decode(codes), expected, rtol=0, atol=1e-5)
    assert tree.decode(codes, levels=1).shape == images.shape

    with input_error("exists already"):
        hrvqvae.plant(run, tmp_path / "tree")
    with input_error("is a treevq"):
        hrvqvae.plant(tmp_path / "tree", tmp_path / "again")


def test_samples_of_a_planted_training(mnist_root, tmp_path):
    """The prior learns the tree; what it draws are leaves, which are flat codewords."""
    run = tmp_path / "run"
    model = "--model.quantizer.codewords 4 --model.quantizer.levels 2 --model.hidden_units 8"
    data = f"--data {mnist_root} --data.size 12 --training.batch_size 32"
    do(f"train treevq/mnist --out {run} {data} {model} --max-steps 5 --device cpu")
    do(f"train-prior {run} {as_options(GIVEN_GPT)}")
    tree = hrvqvae.load(run)
    drawn = tree.draw(3, seed=1)
    assert [int(codes.max()) < 4 for codes in drawn.codes] == [True, True]
    assert_close(drawn.images, tree.decode(drawn.codes))

    autoencoder = tree.autoencoder
    flat = read_leaves(autoencoder.quantizer)
    leaves = autoencoder.codeword_indices(drawn.codes)[-1]
    assert len(leaves.unique()) > 4
    assert_close(flat.lookup((leaves,)), autoencoder.quantizer.lookup(drawn.codes))
    size = drawn.images.shape[-2:]
    decoded = (autoencoder.pixels(flat.lookup((leaves,)), size) + 1) / 2
    assert_close(decoded.clamp(0, 1), drawn.images, rtol=0, atol=1e-5)
