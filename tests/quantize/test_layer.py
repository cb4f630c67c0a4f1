"""TreeVQ, the layer for other models: shapes, masks, what it does by itself, and what it keeps."""

import copy
from functools import cache
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.testing import assert_close

from hrvqvae import TreeVQ
from hrvqvae.quantize.search.tensors import search_tensors
from tests.conftest import (
    approx,
    generator,
    input_error,
    nonfinite_error,
    normal,
    parametrize,
    same,
    state_of,
)
from tests.newest.waits import CountReads

DIM = 6
SIZE = 3
LEVELS = 3


def features(*positions, seed=0):
    """Return vectors (..., DIM) around twenty centres."""
    random = generator(seed)
    chosen = torch.randint(20, positions, generator=random)
    return normal(20, DIM, seed=99)[chosen] + 0.1 * torch.randn(*positions, DIM, generator=random)


def batches_of(count):
    """Batches of a hundred vectors."""
    return [features(5, 20, seed=seed) for seed in range(count)]


BATCH = features(10, 20)


def layer(**options):
    return TreeVQ(DIM, SIZE, LEVELS, **({"start_vectors": 100} | options))


@cache
def _started():
    vq = layer()
    vq(BATCH)
    assert vq.schedule.steps == 1
    return vq.state_dict()


def in_a_model(vq):
    return nn.Sequential(nn.Linear(DIM, DIM), vq)


def started(**options):
    """A layer whose start is done, in evaluation mode."""
    vq = layer(**options)
    vq.load_state_dict(_started())
    return vq.eval()


@parametrize("positions", [(7,), (2, 5), (2, 3, 4), (1, 2, 3, 2)])
@parametrize("channel_last", [True, False])
def test_any_positions_are_quantized_as_by_its_quantizer(positions, channel_last):
    def rows(tensor):
        return (tensor if channel_last else tensor.movedim(1, -1)).reshape(-1, DIM)

    vq = started(channel_last=channel_last)
    x = features(*positions, seed=1)
    if not channel_last:
        x = x.movedim(-1, 1)
    x.requires_grad_()
    quantized, indices, loss = vq(x)
    assert quantized.shape == x.shape
    assert indices.shape == (*positions, LEVELS)
    expected = vq.quantizer(rows(x))
    assert_close(rows(quantized), expected.latents)
    assert same(indices.view(-1, LEVELS), torch.stack(expected.codes, -1))
    codewords = torch.stack(vq.quantizer.codeword_indices(expected.codes), -1)
    assert same(vq.codeword_indices(indices).view(-1, LEVELS), codewords)
    for levels in range(1, LEVELS + 1):
        coarse = vq.get_output_from_indices(indices[..., :levels])
        assert_close(rows(coarse), vq.quantizer.lookup(expected.codes[:levels]))
    assert_close(loss, sum(expected.losses.values()) / x.numel())
    weight = torch.arange(x.numel()).view_as(x).float()
    (gradient,) = torch.autograd.grad((quantized * weight).sum(), x)
    assert same(gradient, weight)


def test_a_mask_leaves_positions_out_of_everything():
    masked = layer()
    alone = layer()
    x = features(4, 50)
    mask = torch.rand(4, 50, generator=generator(5)) < 0.7
    padded = x.masked_fill(~mask.unsqueeze(-1), torch.nan).requires_grad_()
    for _ in range(3):
        quantized, indices, loss = masked(padded, mask)
        expected = alone(x[mask].unsqueeze(0))
    assert same(masked, alone)
    assert same([quantized[mask][None], indices[mask][None], loss], expected)
    (gradient,) = torch.autograd.grad(quantized.sum() + loss, padded)
    assert gradient.isfinite().all()
    decoded = masked.eval().get_output_from_indices(indices)
    for values in (quantized, gradient, decoded):
        assert (values[~mask] == 0).all()
    for codes in (indices, masked.codeword_indices(indices)):
        assert (codes[~mask] == -1).all()


def test_a_batch_of_padding_alone_changes_nothing_but_time():
    vq = layer()
    padding = (features(2, 5), torch.zeros(2, 5).bool())
    quantized, indices, loss = vq(*padding)
    assert float(loss) == 0
    assert vq.schedule.steps == 0
    assert (quantized == 0).all()
    assert (indices == -1).all()
    vq(BATCH)
    assert same(vq, started())
    first = vq.quantizer.levels[0].codewords
    before = first.clone()
    vq(*padding)
    assert_close(first, before, rtol=1e-5, atol=0)
    for empty in (features(0, 5), features(2, 0)):  # as the last batch of a process may be
        shapes = [value.shape for value in vq(empty)]
        assert shapes == [empty.shape, (*empty.shape[:2], LEVELS), ()]


@parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_types_come_back_as_they_are(dtype):
    """Inside it is float32, whatever the model is converted to."""
    vq = layer().to(dtype)
    x = BATCH.to(dtype).requires_grad_()
    quantized, indices, loss = vq(x)
    assert quantized.dtype == dtype
    assert loss.dtype == torch.float32
    assert indices.dtype == torch.int64
    assert {value.dtype for value in vq.quantizer.state_dict().values()} == {torch.float32}
    (quantized.float().sum() + loss).backward()
    assert x.grad.dtype == dtype
    assert same(layer()(x.detach().float())[1], indices)


def test_it_starts_by_itself_and_once_more_when_there_is_enough():
    """Before training it quantizes to zero; the first batch by what was fitted to it; then it
    follows, until there are enough vectors.
    """
    vq = layer(start_vectors=250)
    assert not vq.eval()(features(2, 5))[0].any()
    vq.train()
    batches = batches_of(4)
    quantized, indices, _ = vq(batches[0])
    spread = batches[0].flatten(0, -2).var(0).mean()
    assert (quantized - batches[0]).square().mean() < 0.2 * spread
    assert len(indices.flatten(0, -2).unique(dim=0)) > 15
    assert vq.schedule.steps == 0
    finest = vq.quantizer.levels[-1].codewords
    early = finest.clone()
    vq(batches[1])
    assert (finest - early).abs().max() < 0.1 * spread
    vq(batches[2])
    assert vq.schedule.steps == 1
    counts = vq.quantizer.levels[0].count
    assert float(counts.sum()) == approx(100, rel=1e-4)  # those of a batch
    before = state_of(vq)
    vq.eval()(batches[3])
    assert same(before, vq)


def test_a_start_that_is_interrupted_is_made_again():
    vq = layer()
    interrupt = patch.object(vq.quantizer, "initialize", side_effect=KeyboardInterrupt)
    with interrupt, pytest.raises(KeyboardInterrupt):
        vq(BATCH)
    with torch.device("meta"):  # a default for new tensors, as "cuda" is in some notebooks
        vq(BATCH)
    assert same(vq, started())


@parametrize("bad", [torch.nan, torch.inf, 1e30])
def test_a_batch_that_is_refused_does_not_harm_the_start(bad):
    vq = layer(start_vectors=400)
    batch = features(5, 20)
    batch[2, 3, 1] = bad
    before = state_of(vq)
    with nonfinite_error():
        vq(batch)
    assert same(before, vq)


def test_it_goes_on_from_its_state_after_the_start(tmp_path):
    """From a file, to the same bits, in a layer that has seen other batches."""
    options = {"start_vectors": 250, "restart_every": 2, "total_steps": 8}
    vq = layer(**options)
    batches = batches_of(13)
    assert all(value.is_floating_point() for value in vq.state_dict().values())
    file = tmp_path / "state"
    for after, batch in enumerate(batches[:10]):
        vq(batch)
        save_file(vq.state_dict(), file)
        resumed = layer(**options)
        resumed(features(5, 20, seed=99))
        resumed.load_state_dict(load_file(file))
        if after < 2:  # its start begins anew
            assert resumed.schedule.steps == 0
            continue
        going = copy.deepcopy(vq)
        for later in batches[after + 1 : after + 4]:
            assert same(going(later)[1], resumed(later)[1])
        assert same(going, resumed)


def test_nothing_restarts_in_the_last_tenth(monkeypatch):
    vq = started(restart_every=3, total_steps=20).train()
    steps = []
    monkeypatch.setattr(
        vq.quantizer, "restart_dead_codes", lambda *_: steps.append(vq.schedule.steps)
    )
    for seed in range(22):
        vq(features(2, 5, seed=seed))
    assert steps == [3, 6, 9, 12, 15]


def test_a_training_step_waits_for_no_device():
    """No value is read from a tensor after the start, by the search that a GPU has; nor while the
    layer is copied.
    """
    vq = layer(restart_every=0)
    vq.quantizer.search = search_tensors
    vq(BATCH)
    with CountReads() as mode:
        for _ in range(3):
            vq(BATCH)
    assert mode.reads == 0
    assert vq.schedule.steps == 4


@parametrize("buffers", [False, True])
def test_an_average_of_a_model_can_be_kept_from_the_first_step_and_trained_on(buffers):
    """By torch, or as timm's ModelEmaV2 and V3 do, which average every floating value. It follows,
    and does not start anew.
    """
    model = in_a_model(layer(start_vectors=250))
    averaged = AveragedModel(model, use_buffers=buffers)
    for batch in batches_of(12):
        model(batch)
        averaged.update_parameters(model)
    fresh = in_a_model(layer(start_vectors=250))
    fresh.load_state_dict(averaged.module.state_dict())
    before = fresh[1].schedule.steps
    fresh(features(5, 20, seed=99))
    assert fresh[1].schedule.steps == before + 1 > 1


def test_frozen_it_stays_as_it_is_in_training_mode():
    vq = layer()
    vq(BATCH)
    before = state_of(vq.freeze().train())
    x = features(10, 20, seed=1)
    quantized, _, loss = vq(x.clone().requires_grad_())
    (quantized.sum() + loss).backward()
    assert same(before, vq)
    vq.unfreeze()(x)
    assert not same(before, vq)


def test_levels_of_their_own_sizes_and_groups():
    """The beam looks beyond a group of linked levels; without links this is residual quantization
    with a beam.
    """
    last = torch.full((3,), 7, dtype=torch.uint8)
    assert TreeVQ(DIM).codeword_indices(last).tolist() == [7, 63, 511]
    x = normal(10, 20, DIM)
    for linked, num_books in ((0, [1, 5, 10]), (1, [1, 1, 1]), (2, [1, 5, 1])):
        greedy, beam = (
            TreeVQ(DIM, (5, 2, 4), linked=linked, beam=width, coarse_weight=0.0) for width in (1, 8)
        )
        assert [len(book.count) for book in greedy.quantizer.levels] == num_books
        greedy(x)
        beam.load_state_dict(greedy.state_dict())
        near, nearer = ((layer.eval()(x)[0] - x).square().sum() for layer in (greedy, beam))
        assert nearer < near


@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf"
)  # torch's own, while it traces
def test_compiled_as_a_part_of_a_model():
    """Whole graph in evaluation mode; in training mode the same steps as uncompiled, start and
    restarts too.
    """
    torch.manual_seed(0)
    model = in_a_model(layer(start_vectors=250, restart_every=2))
    plain = copy.deepcopy(model)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager")
    for batch in batches_of(7):
        codes = []
        for network in (compiled, plain):
            network.zero_grad()
            quantized, indices, loss = network(batch)
            (quantized.square().mean() + loss).backward()
            codes.append(indices)
        assert same(*codes)
    assert_close(model[0].weight.grad, plain[0].weight.grad)
    assert_close(model[1].state_dict(), plain[1].state_dict())
    graph = torch.compile(model.eval(), backend="eager", fullgraph=True)
    x = features(3, 7, seed=1)
    assert_close(graph(x), model(x))
    wide = TreeVQ(16, 300, 1).fit(10 + normal(2_000, 16))
    encode = torch.compile(wide.quantizer.encode, backend="eager")
    x = 10 + normal(500, 16, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        assert same(encode(x)[0], wide.encode(x)[:, 0])
    torch._dynamo.reset()


def test_what_it_is_made_of_is_checked():
    for options in ({"decay": 1.0}, {"codewords": [4, 4]}, {"levels": 1, "beam": 0}):
        with input_error(f"quantizer.(level_)?{next(reversed(options))} is"):
            TreeVQ(4, **options)


def test_what_it_is_given_is_checked():
    vq = started().train()
    x = features(2, 5)
    before = state_of(vq)
    indices = torch.zeros(2, 5, LEVELS).long()
    other_level = indices - torch.tensor([0, 1, 0])
    decode = vq.get_output_from_indices
    for call, arguments, line in (
        (vq, (x.movedim(-1, 1),), "latents have 5 channels; the codebooks have 6"),
        (decode, (indices.repeat(1, 1, 2),), "6 levels of codes given; this model has 1 to 3"),
        (decode, (indices + SIZE,), "level 1 has code"),
        (decode, (other_level,), "level 3 has codes at positions that have stopped"),
    ):
        with input_error(line):
            call(*arguments)
    with nonfinite_error():
        vq(x * torch.nan)
    assert same(before, vq)
