"""The contract of the quantizer, in every form."""

import dataclasses

import pytest
import torch

from hrvqvae.config import QuantizerConfig, presets
from hrvqvae.config.schema import bits_per_image
from hrvqvae.quantize import Quantizer, ResidualQuantizer
from hrvqvae.utils.errors import InputError, NonFiniteError
from tests.conftest import same, state_of


def latents(*shape: int, seed: int = 1, dim: int = 6) -> torch.Tensor:
    return torch.randn(*shape, dim, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("data", ["mnist", "imagenet", "emoji32"])
@pytest.mark.parametrize("system", ["vqvae", "rqvae"])
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
    size = config.data.image_size
    assert bits_per_image(config.model, *size) == bits_per_image(tree.model, *size)
    if system == "rqvae":
        assert quantizer == {**tree_quantizer, "linked": 1}, "only the linking differs"
    else:
        assert config.model.num_codewords == tree.model.num_codewords[-1:], (
            "as many codewords as the tree has leaves"
        )


QUANTIZERS = {
    "flat": QuantizerConfig(codewords=7, dim=6),
    "linked": QuantizerConfig(levels=3, codewords=4, dim=6),
    "groups": QuantizerConfig(levels=5, codewords=3, linked=2, dim=6),
    "joint": QuantizerConfig(levels=3, codewords=4, linked=1, beam=4, joint_beam=True, dim=6),
    "gradient": QuantizerConfig(levels=2, codewords=4, dim=6, update="gradient"),
}
every = pytest.mark.parametrize("name", QUANTIZERS)


def started(name: str) -> tuple[Quantizer, int, int]:
    torch.manual_seed(0)
    config = QUANTIZERS[name]
    quantizer = ResidualQuantizer(config)
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
    if name == "joint":  # a level's codewords do not depend on the coarser ones
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
