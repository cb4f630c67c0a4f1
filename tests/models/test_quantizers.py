"""The contract of every quantizer, and the quantizers of the library."""

import dataclasses
import importlib.util

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hrvqvae.config import Config, QuantizerConfig, presets
from hrvqvae.config.model import FSQQuantizerConfig, LibraryQuantizerConfig
from hrvqvae.config.parsing import override
from hrvqvae.config.registry import SYSTEMS
from hrvqvae.config.schema import bits_per_image
from hrvqvae.models.build import build
from hrvqvae.models.vqpytorch import FSQQuantizer, LibraryQuantizer
from hrvqvae.quantize import Quantizer, ResidualQuantizer
from hrvqvae.training.state import TrainState
from hrvqvae.utils.errors import InputError, NonFiniteError
from tests.conftest import same, state_of, with_training


def latents(*shape: int, seed: int = 1, dim: int = 6) -> torch.Tensor:
    return torch.randn(*shape, dim, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=40, deadline=None)
@given(levels=st.lists(st.integers(3, 9), min_size=1, max_size=4), seed=st.integers(0, 10**6))
def test_fsq_agrees_with_the_paper(levels: list[int], seed: int) -> None:
    """Section 3.1 and appendix A.1: bound, round, and number the grid points."""
    z = 2 * latents(2, 3, 3, seed=seed, dim=len(levels))
    quantizer = FSQQuantizer(FSQQuantizerConfig(channel_levels=tuple(levels), dim=len(levels)))
    result = quantizer(z)
    codes = []
    points = []
    for vector in z.reshape(-1, len(levels)).double().numpy():
        code = 0
        radix = 1
        point = []
        for value, count in zip(vector, levels, strict=True):
            half = (count - 1) * (1 + 1e-3) / 2
            offset = 0.5 if count % 2 == 0 else 0.0
            bounded = np.tanh(value + np.arctanh(offset / half)) * half - offset
            digit = int(np.round(bounded)) + count // 2
            assert 0 <= digit < count
            code = code + digit * radix
            radix = radix * count
            point.append(digit / (count // 2) - 1)  # evenly spaced in [-1, 1]
        codes.append(code)
        points.append(point)
    assert result.codes[0].flatten().tolist() == codes
    np.testing.assert_allclose(result.latents.reshape(-1, len(levels)).numpy(), points, atol=1e-6)
    assert quantizer.sizes == (int(np.prod(levels)),)
    assert dict(result.losses) == {}


def test_simvq_s_loss_is_on_the_scale_of_ours() -> None:
    """||sg[z] - e||^2 + 0.25 ||z - sg[e]||^2, summed over the batch."""
    quantizer = LibraryQuantizer(LibraryQuantizerConfig(name="simvq", codewords=8, dim=6))
    z = latents(2, 3, 4)
    z.requires_grad_()
    result = quantizer(z)
    codewords = quantizer.lookup(result.codes).detach()
    error = float((z.detach() - codewords).square().sum())
    assert set(result.losses) == {"auxiliary"}
    assert float(result.losses["auxiliary"].detach()) == pytest.approx(1.25 * error, rel=1e-4)
    (gradient,) = torch.autograd.grad(result.losses["auxiliary"], z)
    torch.testing.assert_close(gradient, 0.5 * (z.detach() - codewords), rtol=1e-4, atol=1e-4)


def test_vq_starts_from_the_latents_it_is_given() -> None:
    z = latents(4, 10, 10)
    results = []
    for seed in (0, 0, 1):
        torch.manual_seed(0)
        quantizer = LibraryQuantizer(LibraryQuantizerConfig(name="vq", codewords=8, dim=6))
        quantizer.initialize(z, torch.Generator().manual_seed(seed))
        results.append(quantizer.eval()(z).latents)
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])
    assert float((results[0] - z).square().mean()) < 0.8 * float(z.square().mean())
    quantizer.train()
    with pytest.raises(NonFiniteError):
        quantizer.encode(z * torch.nan)
    assert quantizer.training


@pytest.mark.parametrize("data", ["mnist", "imagenet", "emoji32"])
@pytest.mark.parametrize("system", ["fsq", "vqpytorch", "vqvae", "rqvae"])
def test_presets_have_the_tree_s_network_grid_and_bits(system: str, data: str) -> None:
    config, tree = (presets.get(f"{name}/{data}").config for name in (system, "hrvqvae"))
    assert dataclasses.replace(config, name="", model=tree.model) == dataclasses.replace(
        tree, name=""
    )
    fields = dataclasses.asdict(config.model)
    tree_fields = dataclasses.asdict(tree.model)
    quantizer, tree_quantizer = (each.pop("quantizer") for each in (fields, tree_fields))
    fields["system"] = tree_fields["system"]
    assert fields | {"train_prefixes": False} == tree_fields
    assert quantizer["dim"] == tree_quantizer["dim"]
    size = (config.data.size, config.data.size)
    assert bits_per_image(config.model, *size) == bits_per_image(tree.model, *size)
    if system == "rqvae":
        assert quantizer == {**tree_quantizer, "linked": 1}, "only the linking differs"
    else:
        assert config.model.num_codewords == tree.model.num_codewords[-1:], (
            "as many codewords as the tree has leaves"
        )


def test_another_quantizer_is_one_option() -> None:
    config = override(presets.get("vqpytorch/mnist").config, {"model.quantizer.name": "lfq"})
    assert type(build(config).quantizer.residual).__name__ == "ResidualLFQ"
    fsq = presets.get("fsq/mnist").config
    for other, name, value, message in (
        (config, "codewords", "100", r"quantizer\.codewords is '?100'?; it must be a power of"),
        (fsq, "channel_levels", "2,5", "at least 3 each"),
        (fsq, "channel_levels", "8," * 9 + "8", "at most 2"),
    ):
        with pytest.raises(InputError, match=message):
            override(other, {f"model.quantizer.{name}": value})


def test_without_the_library_one_line_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None)
    assert not SYSTEMS.get("fsq").available
    with pytest.raises(
        InputError, match=r"^FSQ needs vector_quantize_pytorch: pip install 'hrvqvae\[vqpytorch\]'$"
    ):
        build(presets.get("fsq/mnist").config)


def test_whole_numbers_are_not_averaged(tiny: Config) -> None:
    """FSQ has an integer buffer of 3; 0.9 * 3 + 0.1 * 3 is less than 3 and would become 2."""
    quantizer = FSQQuantizerConfig(channel_levels=(3, 7, 6), dim=4)
    model = dataclasses.replace(SYSTEMS.get("fsq").config, quantizer=quantizer)
    config = dataclasses.replace(with_training(tiny, polyak_decay=0.9), model=model)
    model = build(config)
    state = TrainState.start(model, config.training)
    for _ in range(3):
        state.averaged.update_parameters(model)
    images = torch.rand(2, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    averaged = state.averaged.module
    assert torch.equal(averaged.encode(images)[0], model.encode(images)[0])
    assert torch.equal(averaged.decode(averaged.encode(images)), model.decode(model.encode(images)))


QUANTIZERS: dict[str, QuantizerConfig | FSQQuantizerConfig | LibraryQuantizerConfig] = {
    "flat": QuantizerConfig(codewords=7, dim=6),
    "linked": QuantizerConfig(levels=3, codewords=4, dim=6),
    "groups": QuantizerConfig(levels=5, codewords=3, linked=2, dim=6),
    "joint": QuantizerConfig(levels=3, codewords=4, linked=1, beam=4, joint_beam=True, dim=6),
    "gradient": QuantizerConfig(levels=2, codewords=4, dim=6, update="gradient"),
    "fsq": FSQQuantizerConfig(channel_levels=(5, 3, 4), dim=6),
    **{
        f"{name}-{levels}": LibraryQuantizerConfig(name=name, codewords=4, levels=levels, dim=6)
        for name in ("simvq", "lfq", "qinco", "vq")
        for levels in (1, 3)
    },
}
every = pytest.mark.parametrize("name", QUANTIZERS)


def started(name: str) -> tuple[Quantizer, int, int]:
    torch.manual_seed(0)
    config = QUANTIZERS[name]
    if isinstance(config, FSQQuantizerConfig):
        return FSQQuantizer(config), 1, 60
    quantizer = (
        ResidualQuantizer(config)
        if isinstance(config, QuantizerConfig)
        else LibraryQuantizer(config)
    )
    quantizer.initialize(latents(4, 8, 8), torch.Generator().manual_seed(0))
    return quantizer, config.levels, config.codewords


@every
def test_codes_give_what_training_decodes(name: str) -> None:
    quantizer, levels, _ = started(name)
    z = latents(2, 3, 4).bfloat16()
    before = state_of(quantizer)
    with torch.autocast("cpu", torch.bfloat16):
        codes = quantizer.train().encode(z)
        assert quantizer.training
        result = quantizer.eval()(z)
        found = quantizer.lookup(codes)
    assert [(code.shape, code.dtype) for code in codes] == [((2, 3, 4), torch.int64)] * levels
    assert same(codes, result.codes)
    assert (found.shape, found.dtype, result.latents.dtype) == (
        z.shape,
        torch.float32,
        torch.float32,
    )
    torch.testing.assert_close(found, result.latents, rtol=1e-4, atol=1e-4)
    assert torch.equal(result.latents, quantizer(z.float()).latents)
    assert same(quantizer.state_dict(), before)


@every
def test_a_prefix_is_what_its_levels_add(name: str) -> None:
    quantizer, levels, _ = started(name)
    z = latents(2, 3, 4)
    codes = quantizer.eval().encode(z)
    sums = [quantizer.lookup(codes[:count]) for count in range(1, levels + 1)]
    assert len({tuple(one.flatten().tolist()) for one in sums}) == levels
    if (
        levels == 3 and "-" in name and "qinco" not in name
    ):  # a level's codewords do not depend on the coarser ones
        last = quantizer.lookup((codes[0], codes[0] * 0, codes[2])) - quantizer.lookup(
            (codes[0], codes[0] * 0)
        )
        torch.testing.assert_close(sums[2] - sums[1], last, rtol=1e-4, atol=1e-4)


@every
def test_it_draws_nothing_and_refuses_what_it_can_not_code(name: str) -> None:
    quantizer, levels, values = started(name)
    z = latents(2, 4, 4)
    draws = torch.get_rng_state()
    quantizer.train().encode(z)
    quantizer(z)
    assert torch.equal(torch.get_rng_state(), draws), "draws of a start are its own"
    z[0, 1, 1, 2] = float("nan")
    before = state_of(quantizer)
    for call in (quantizer, quantizer.encode):
        with pytest.raises(NonFiniteError, match="latents: 1 of 192 values"):
            call(z)
    assert same(quantizer.state_dict(), before)
    code = torch.zeros(1, 2, 2, dtype=torch.long)
    for codes, message in (
        ((), "0 levels of codes given"),
        ((code,) * (levels + 1), f"this model has 1 to {levels}"),
        ((code + values,), f"level 1 has code {values}; codes lie in 0..{values - 1}"),
        ((code - 1,), "level 1 has code -1"),
        ((code.float(),), "float32"),
        *([((code, code[:, :1]), r"level 2 .*\(1, 1, 2\)")] if levels > 1 else []),
    ):
        with pytest.raises(InputError, match=message):
            quantizer.lookup(codes)
