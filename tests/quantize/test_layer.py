"""TreeVQ, the layer for other models: shapes, masks, what it does by itself, and what it keeps."""

import copy
import pickle
from functools import cache
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from hrvqvae import InputError, QuantizerConfig, TreeVQ
from hrvqvae.config import presets
from hrvqvae.quantize.search.tensors import search_tensors
from hrvqvae.utils.errors import NonFiniteError
from tests.conftest import same, state_of

DIM = 6
SIZE = 3
LEVELS = 3


def features(*positions: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(20, DIM, generator=torch.Generator().manual_seed(99))
    chosen = torch.randint(20, positions, generator=generator)
    return centres[chosen] + 0.1 * torch.randn(*positions, DIM, generator=generator)


def layer(**options: object) -> TreeVQ:
    return TreeVQ(DIM, SIZE, LEVELS, **({"start_vectors": 100} | options))  # type: ignore[arg-type]


@cache
def _started() -> dict[str, Tensor]:
    one = layer()
    one(features(10, 20))
    assert one.schedule.steps == 1
    return one.state_dict()


def started(**options: object) -> TreeVQ:
    """A layer whose start is done, in evaluation mode."""
    one = layer(**options)
    one.load_state_dict(_started())
    return one.eval()


def books(one: TreeVQ) -> list[np.ndarray]:
    return [book.codewords.detach().numpy() for book in one.quantizer.levels]


@pytest.mark.parametrize("positions", [(7,), (2, 5), (2, 3, 4), (1, 2, 3, 2)])
@pytest.mark.parametrize("channel_last", [True, False])
def test_any_positions_are_quantized_as_by_its_quantizer(
    positions: tuple[int, ...], channel_last: bool
) -> None:
    def row(tensor: Tensor) -> Tensor:
        return (tensor if channel_last else tensor.movedim(1, -1)).reshape(1, 1, -1, DIM)

    one = started(channel_last=channel_last)
    x = features(*positions, seed=1)
    given = (x if channel_last else x.movedim(-1, 1)).requires_grad_()
    quantized, indices, loss = one(given)
    assert (quantized.shape, indices.shape) == (given.shape, (*positions, LEVELS))
    expected = one.quantizer(row(given))
    torch.testing.assert_close(row(quantized), expected.latents)
    for levels in range(1, LEVELS + 1):
        code, path = (
            one_of[..., levels - 1].flatten() for one_of in (indices, one.codeword_indices(indices))
        )
        assert torch.equal(code, expected.codes[levels - 1].flatten())
        assert torch.equal(
            path, one.quantizer.codeword_indices(expected.codes)[levels - 1].flatten()
        )
        coarse = one.get_output_from_indices(indices[..., :levels])
        torch.testing.assert_close(row(coarse), one.quantizer.lookup(expected.codes[:levels]))
    torch.testing.assert_close(loss, sum(expected.losses.values()) / x.numel())
    weight = torch.arange(x.numel()).view_as(given).float()
    (gradient,) = torch.autograd.grad((quantized * weight).sum(), given)
    assert torch.equal(gradient, weight)


def test_options_of_the_quantizer_arrive() -> None:
    expected = presets.get("treevq/mnist").config.model.quantizer
    own = TreeVQ(
        expected.dim, expected.codewords, expected.levels, beta=expected.beta
    ).quantizer.config
    assert own == expected, "defaults are those of the system"
    fields = {
        "beta": 0.5,
        "level_betas": (0.0, 0.1, 0.2),
        "beam": 4,
        "coarse_weight": 0.1,
        "update": "gradient",
        "decay": 0.9,
        "restart_every": 7,
        "restart_below": 0.1,
    }
    assert layer(level_betas=0.3).quantizer.config.level_betas == (0.3,)
    expected = QuantizerConfig(dim=DIM, codewords=SIZE, levels=LEVELS, **fields)  # type: ignore[arg-type]
    assert layer(**fields).quantizer.config == expected


@pytest.mark.parametrize("update", ["ema", "gradient"])
def test_a_mask_leaves_positions_out_of_everything(update: str) -> None:
    masked = layer(update=update)
    alone = layer(update=update)
    x = features(4, 50)
    mask = torch.rand(4, 50, generator=torch.Generator().manual_seed(5)) < 0.7
    padded = x.masked_fill(~mask.unsqueeze(-1), torch.nan).requires_grad_()
    for _ in range(3):
        quantized, indices, loss = masked(padded, mask)
        only, codes, expected = alone(x[mask].unsqueeze(0))
    assert same(state_of(masked), state_of(alone))
    assert torch.equal(quantized[mask], only[0])
    assert torch.equal(indices[mask], codes[0])
    assert torch.equal(loss, expected)
    assert (quantized[~mask] == 0).all()
    assert (indices[~mask] == -1).all()
    (gradient,) = torch.autograd.grad(quantized.sum() + loss, padded)
    assert gradient.isfinite().all()
    assert (gradient[~mask] == 0).all()
    torch.testing.assert_close(
        masked.eval().get_output_from_indices(indices)[~mask], torch.zeros_like(x[~mask])
    )
    assert (masked.codeword_indices(indices)[~mask] == -1).all()


def test_a_mask_of_images_with_channels_first() -> None:
    one = started(channel_last=False)
    x = features(2, 3, 4).movedim(-1, 1)
    mask = torch.ones(2, 3, 4, dtype=torch.bool)
    mask[1, 2] = False
    quantized, indices, _ = one(x, mask)
    torch.testing.assert_close(quantized, one(x)[0] * mask.unsqueeze(1))
    torch.testing.assert_close(one.get_output_from_indices(indices), quantized)
    torch.testing.assert_close(one.get_output_from_indices(indices.int()), quantized)
    torch.testing.assert_close(one.get_output_from_indices(indices[0, 0, 0]), quantized[0, :, 0, 0])


def test_a_batch_of_padding_alone_changes_nothing_but_time() -> None:
    one = layer()
    nothing = torch.zeros(2, 5, dtype=torch.bool)
    quantized, indices, loss = one(features(2, 5), nothing)
    assert (float(loss), one.schedule.steps) == (0, 0)
    assert (quantized == 0).all()
    assert (indices == -1).all()
    one(features(10, 20))
    assert same(state_of(one), state_of(started()))
    before = books(one.train())[0].copy()
    one(features(2, 5), nothing)
    np.testing.assert_allclose(books(one)[0], before, rtol=1e-5)
    for empty in (features(0, 5), features(2, 0)):  # as the last batch of a process may be
        assert [value.shape for value in one(empty)] == [
            empty.shape,
            (*empty.shape[:2], LEVELS),
            (),
        ]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_types_come_back_as_they_are(dtype: torch.dtype) -> None:
    one = layer().to(dtype)
    x = features(10, 20).to(dtype).requires_grad_()
    quantized, indices, loss = one(x)
    assert (quantized.dtype, loss.dtype, indices.dtype) == (dtype, torch.float32, torch.int64)
    assert {value.dtype for value in one.quantizer.state_dict().values()} == {torch.float32}
    (quantized.float().sum() + loss).backward()
    assert x.grad is not None
    assert x.grad.dtype == dtype
    plain = layer()
    assert torch.equal(plain(x.detach().float())[1], indices), (
        "float32 inside, whatever the model is converted to"
    )


def test_it_starts_by_itself_and_once_more_when_there_is_enough() -> None:
    one = layer(start_vectors=250)
    assert not one.eval()(features(2, 5))[0].any(), "before training it quantizes to zero"
    one.train()
    batches = [features(5, 20, seed=seed) for seed in range(4)]
    first = one(batches[0])
    spread = float(batches[0].flatten(0, -2).var(0).mean())
    error = float((first[0] - batches[0]).square().mean())
    assert error < 0.2 * spread, "the first batch is quantized by what was fitted to it"
    assert one.codeword_indices(first[1])[..., -1].unique().numel() > 15
    assert one.schedule.steps == 0
    early = books(one)[-1].copy()
    one(batches[1])
    assert np.abs(books(one)[-1] - early).max() < 0.1 * spread, "it only follows in between"
    one(batches[2])
    assert one.schedule.steps == 1
    counts = one.quantizer.levels[0].count
    assert float(counts.sum()) == pytest.approx(100, rel=1e-4), "counts are those of a batch"
    before = state_of(one)
    one.eval()(batches[3])
    assert same(before, state_of(one)), "nothing changes in evaluation mode"
    other = layer(start_vectors=250)
    longer = layer(start_vectors=300)
    other(batches[0])
    longer.load_state_dict(other.state_dict())
    longer(batches[1])
    assert torch.equal(longer.schedule.waiting[:200], torch.cat(batches[:2]).flatten(0, 1)), (
        "none of them is lost"
    )
    one = layer()
    batch = features(10, 20)
    with (
        patch.object(one.quantizer, "initialize", side_effect=KeyboardInterrupt),
        pytest.raises(KeyboardInterrupt),
    ):
        one(batch)
    with torch.device("meta"):  # a default for new tensors, as "cuda" is in some notebooks
        one(batch)
    assert same(state_of(one), state_of(started())), "the start is made again"


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 1e30])
def test_a_batch_that_is_refused_does_not_harm_the_start(bad: float) -> None:
    one = layer(start_vectors=400)
    batch = features(5, 20)
    batch[2, 3, 1] = bad
    before = state_of(one)
    with pytest.raises(NonFiniteError):
        one(batch)
    assert same(before, state_of(one))
    for seed in range(1, 5):
        one(features(5, 20, seed=seed))
    assert one.schedule.steps == 1


@pytest.mark.parametrize("fields", [{"update": "ema"}, {"update": "gradient"}])
def test_it_goes_on_from_its_state_after_every_step(
    tmp_path: Path, fields: dict[str, object]
) -> None:
    """From a file, to the same bits, in a layer that has seen other batches: start, restarts, last
    tenth included.
    """
    options = {"start_vectors": 250, "restart_every": 2, "total_steps": 8, **fields}
    one = layer(**options)
    batches = [features(5, 20, seed=seed) for seed in range(13)]
    assert all(value.is_floating_point() for value in one.state_dict().values())
    waiting = []
    for after in range(10):
        save = save_file if after % 2 else torch.save
        save(one.state_dict(), tmp_path / "state")
        other = layer(**options)
        going = copy.deepcopy(one)
        other(features(5, 20, seed=99))
        other.load_state_dict(
            load_file(tmp_path / "state") if after % 2 else torch.load(tmp_path / "state")
        )
        assert same(state_of(one), state_of(other))
        for batch in batches[after : after + 4]:
            assert torch.equal(going(batch)[1], other(batch)[1])
        assert same(state_of(going), state_of(other))
        waiting.append(tuple(one.schedule.waiting.shape))
        one(batches[after])
    assert waiting == [(250, DIM)] * 3 + [(1, 1)] * 7


def test_nothing_restarts_in_the_last_tenth(monkeypatch: pytest.MonkeyPatch) -> None:
    one = started(restart_every=3, total_steps=20).train()
    restarted = list[int]()
    monkeypatch.setattr(
        one.quantizer, "restart_dead_codes", lambda *_: restarted.append(one.schedule.steps)
    )
    for seed in range(22):
        one(features(2, 5, seed=seed))
    assert restarted == [3, 6, 9, 12, 15]


def test_a_training_step_waits_for_no_device() -> None:
    """No value is read from a tensor after the start, by the search that a GPU has; nor while the
    layer is copied.
    """

    class Reads(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            self.count += func.__name__.startswith(
                ("_local_scalar_dense", "equal", "nonzero", "is_nonzero")
            )
            return func(*args, **(kwargs or {}))

    one = layer(restart_every=0)
    one.quantizer.search = search_tensors
    one(features(10, 20))
    with Reads() as reads:
        for seed in range(3):
            one(features(10, 20, seed=seed))
    assert reads.count == 0
    assert one.schedule.steps == 4


@pytest.mark.parametrize("buffers", [False, True])
def test_an_average_of_a_model_can_be_kept_from_the_first_step_and_trained_on(
    buffers: bool,
) -> None:
    """By torch, or as timm's ModelEmaV2 and V3 do, which average every floating value."""
    model = nn.Sequential(nn.Linear(DIM, DIM), layer(start_vectors=250))
    averaged = AveragedModel(model, use_buffers=buffers)
    for seed in range(12):
        model(features(5, 20, seed=seed))
        averaged.update_parameters(model)
    fresh = nn.Sequential(nn.Linear(DIM, DIM), layer(start_vectors=250))
    fresh.load_state_dict(averaged.module.state_dict())
    found = fresh[1]
    assert isinstance(found, TreeVQ)
    before = found.schedule.steps
    fresh(features(5, 20, seed=99))
    assert found.schedule.steps == before + 1 > 1, "it follows, and does not start anew"


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_is_refused_unless_the_codebooks_stay(reentrant: bool) -> None:
    """It computes the layer again in a backward pass, with codebooks that have followed the batch,
    however many passes wait.
    """
    model = nn.Sequential(nn.Linear(DIM, DIM), started().train())
    x = features(5, 20).requires_grad_()
    quantized, _, loss = checkpoint(model, x, use_reentrant=reentrant)
    with pytest.raises(InputError, match="call it outside the checkpointed function, or freeze it"):
        (quantized.square().mean() + loss).backward()

    model[1].freeze()
    gradients = []
    for call in (model, lambda x: checkpoint(model, x, use_reentrant=reentrant)):
        model.zero_grad()
        quantized, _, loss = call(x)
        (quantized.square().mean() + loss).backward()
        gradients.append(model[0].weight.grad.clone())
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("every", [4, 0])
def test_dead_codewords_come_back_by_themselves(every: int) -> None:
    one = layer(restart_every=every, decay=0.5)
    one(features(10, 20))
    for seed in range(20):
        x = (
            3 * features(10, 20, seed=seed) + 40
        )  # the data has moved: most codewords are far from all of it
        indices = one(x)[1]
    used = one.codeword_indices(indices)[..., -1].unique().numel()
    assert used > 11 if every else used < 8


def test_restarted_codewords_are_copied_to_an_average_in_each_form() -> None:
    """An AveragedModel, its module, the layer in it, its quantizer."""
    for take in (
        lambda averaged: averaged,
        lambda averaged: averaged.module,
        lambda averaged: averaged.module[1],
        lambda averaged: averaged.module[1].quantizer,
    ):
        one = layer(restart_every=1)
        one(features(10, 20))
        for book in one.quantizer.levels:
            book.count[:, 0] = 0
        averaged = AveragedModel(nn.Sequential(nn.Linear(DIM, DIM), one))
        one(features(10, 20))
        moved = list(one.schedule._moved.values())
        one.schedule.forget(averaged=take(averaged))
        copies = averaged.module[1].quantizer.levels
        for book, copied, rows in zip(one.quantizer.levels, copies, moved, strict=True):
            assert rows.any()
            for name in ("codewords", "count", "total"):
                assert torch.equal(getattr(book, name)[rows], getattr(copied, name)[rows])
    one(features(10, 20))
    two_layers = AveragedModel(nn.Sequential(one, one.__class__(DIM, SIZE, LEVELS)))
    with pytest.raises(InputError, match="has 6 levels of codebooks, this layer 3.*give the copy"):
        one.schedule.forget(averaged=two_layers)


def test_restarted_codewords_are_known_on_another_device() -> None:
    one = layer(restart_every=1)
    one(features(10, 20))
    one(features(10, 20))
    one.to("meta")
    with one.schedule.track_moves(one.quantizer):
        pass
    one.schedule.forget(averaged=one.quantizer)


def test_a_layer_is_pickled_unless_it_has_a_process_group() -> None:
    one = started()
    assert same(state_of(pickle.loads(pickle.dumps(one))), state_of(one))
    one.schedule.processes.group = "some processes"
    with pytest.raises(InputError, match="a process group can't be pickled: save the layer's"):
        pickle.dumps(one)
    assert copy.deepcopy(one).schedule.processes.group == "some processes"


def test_on_meta_and_then_emptied_it_begins_anew() -> None:
    with torch.device("meta"):
        one = layer(start_vectors=250)
    one.to_empty(device="cpu")
    for value in one.state_dict().values():
        value.fill_(torch.nan)
    one.reset_parameters()
    assert same(state_of(one), state_of(layer(start_vectors=250)))
    one(features(10, 20))
    one.reset_parameters()
    assert one.schedule.steps == 0
    assert same(state_of(one), state_of(layer(start_vectors=250)))


@pytest.mark.parametrize(("dim", "most"), [(64, 65_536), (2_048, 8_192), (8_192, 4_096)])
def test_the_vectors_of_its_start_take_little_memory(dim: int, most: int) -> None:
    with torch.device("meta"):
        assert TreeVQ(dim, 256, 2).schedule.start_vectors == most


def test_frozen_it_stays_as_it_is_in_training_mode() -> None:
    for update in ("ema", "gradient"):
        one = layer(update=update)
        one(features(10, 20))
        before = state_of(one.freeze().train())
        quantized, _, loss = one(features(10, 20, seed=1).requires_grad_())
        (quantized.sum() + loss).backward()
        assert all(parameter.grad is None for parameter in one.parameters())
        assert same(before, state_of(one))
        one.unfreeze()(features(10, 20, seed=1))[2].requires_grad_().backward()
        assert not same(before, state_of(one))


def test_losses_of_levels_add_up_to_the_loss() -> None:
    one = TreeVQ(DIM, SIZE, 11, linked=3, start_vectors=100, beam=1).eval()
    x = features(10, 20)
    assert one(x, return_losses=True)[3].shape == (11,)
    one.train()(x)
    loss, losses = one.eval()(x, return_losses=True)[2:]
    torch.testing.assert_close(losses.sum(), loss)
    left = [
        (x - one.get_output_from_indices(one(x)[1][..., : n + 1])).square().mean()
        for n in range(11)
    ]
    expected = 0.05 * torch.stack(left)
    expected[-1] += 0.25 * left[-1]
    torch.testing.assert_close(losses, expected)


def test_levels_of_their_own_sizes_and_groups() -> None:
    """The beam looks beyond a group of linked levels; without links this is residual quantization
    with a beam.
    """
    x = torch.randn(10, 20, DIM, generator=torch.Generator().manual_seed(0))
    assert TreeVQ(DIM, 8, 3).codeword_indices(torch.full((3,), 7, dtype=torch.uint8)).tolist() == [
        7,
        63,
        511,
    ]
    for linked, number in ((0, [1, 5, 10]), (1, [1, 1, 1]), (2, [1, 5, 1])):
        greedy, beam = (
            TreeVQ(DIM, (5, 2, 4), linked=linked, beam=width, coarse_weight=0.0) for width in (1, 8)
        )
        assert [len(book.count) for book in greedy.quantizer.levels] == number
        greedy(x)
        beam.load_state_dict(greedy.state_dict())
        (nearest, indices, _), (nearer, _, _) = greedy.eval()(x), beam.eval()(x)
        assert indices.amax((0, 1)).tolist() == [4, 1, 3]
        assert (nearer - x).square().sum() < (nearest - x).square().sum()


def test_it_refuses_to_train_under_inference_mode() -> None:
    one = layer()
    before = state_of(one)
    with torch.inference_mode(), pytest.raises(InputError, match="call eval"):
        one(features(10, 20))
    assert same(before, state_of(one))
    with torch.inference_mode():
        one.fit(features(200))
        another = layer()
    one(features(10, 20))
    another.fit(features(200))


@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf"
)  # torch's own, while it traces
def test_compiled_as_a_part_of_a_model() -> None:
    """Whole graph in evaluation mode; in training mode the same steps as uncompiled, start and
    restarts too.
    """
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(DIM, DIM), layer(start_vectors=250, restart_every=2))
    other = copy.deepcopy(model)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager")
    for seed in range(7):
        for one in (compiled, other):
            one.zero_grad()
            quantized, indices, loss = one(features(5, 20, seed=seed))
            (quantized.square().mean() + loss).backward()
            if one is compiled:
                expected = indices
        assert torch.equal(indices, expected)
    torch.testing.assert_close(model[0].weight.grad, other[0].weight.grad)
    torch.testing.assert_close(model[1].state_dict(), other[1].state_dict())
    whole = torch.compile(model.eval(), backend="eager", fullgraph=True)
    x = features(3, 7, seed=1)
    torch.testing.assert_close(whole(x), model(x))
    wide = TreeVQ(16, 300, 1).fit(
        10 + torch.randn(2_000, 16, generator=torch.Generator().manual_seed(0))
    )
    encode = torch.compile(wide.quantizer.encode, backend="eager")
    x = 10 + torch.randn(500, 16)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(encode(x)[0], wide.encode(x)[:, 0])
    torch._dynamo.reset()


def test_what_it_is_made_of_is_checked() -> None:
    for option, value, line in (
        ("decay", 1.0, "decay is 1.0; it must be at least 0 and below 1"),
        ("codewords", (4, 4), r"codewords is \(4, 4\); it must be none or 3 values"),
        ("num_quantizers", 3, "TreeVQ has no argument num_quantizers; it is called levels here"),
        (
            "coarse_weights",
            0.1,
            "TreeVQ has no argument coarse_weights; did you mean coarse_weight\\?",
        ),
        ("colour", 1, "TreeVQ has no argument colour"),
        ("start_vectors", 0, "start_vectors is 0; it must be a whole number from 1"),
        ("start_vectors", 2.5, "start_vectors is 2.5; it must be a whole number or None"),
        ("total_steps", -5, "total_steps is -5; it must be a whole number from 1"),
    ):
        with pytest.raises(InputError, match=f"^{line}$"):
            TreeVQ(4, **{option: value})  # type: ignore[arg-type]
    swept = TreeVQ(4, np.int64(5), level_betas=np.float32(0.5))  # type: ignore[arg-type]
    assert swept.quantizer.config == TreeVQ(4, 5, level_betas=0.5).quantizer.config


@pytest.mark.parametrize("update", ["ema", "gradient"])
@pytest.mark.parametrize("level_betas", [0.05, ()])
def test_a_single_level_has_each_term_of_the_loss_once(update: str, level_betas: object) -> None:
    # type: ignore[arg-type]
    one = TreeVQ(DIM, SIZE, 1, level_betas=level_betas, update=update, start_vectors=100)
    x = features(10, 20)
    one(x)
    quantized, _, loss = one.eval()(x)
    terms = 0.25 if update == "ema" else 1.25
    torch.testing.assert_close(loss, terms * (x - quantized).square().mean())


def test_what_it_is_given_is_checked() -> None:
    one = started()
    x = features(2, 5)
    before = state_of(one)
    indices = one(x)[1]
    for wrong, mask, line in (
        (
            x.movedim(-1, 1),
            None,
            r"float32 \(2, 6, 5\); they must be floating-point \(B, ..., 6\) \(channel_last=",
        ),
        (x[0, 0], None, r"float32 \(6,\)"),
        (x.long(), None, r"int64 \(2, 5, 6\)"),
        (x, torch.ones(2, 4).bool(), r"mask is torch.bool \(2, 4\); it must be bool \(2, 5\)"),
        (x, torch.ones(2, 5), r"mask is torch.float32"),
    ):
        with pytest.raises(InputError, match=line):
            one.train()(wrong, mask)
    with pytest.raises(NonFiniteError):
        one(x * torch.nan)
    for codes, line in (
        (indices[..., :0], "0 levels"),
        (indices.repeat(1, 1, 2), "6 levels"),
        (indices + SIZE, "level 1 has code"),
        (torch.where(torch.arange(LEVELS) == 1, -1, indices), "level 2 has code -1"),
    ):
        with pytest.raises(InputError, match=line):
            one.get_output_from_indices(codes)
    assert same(before, state_of(one))
