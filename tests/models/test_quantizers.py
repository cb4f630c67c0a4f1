"""What every quantizer promises, ours and the library's."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hrvqvae.config import QuantizerConfig
from hrvqvae.config.model import FSQQuantizerConfig, LibraryQuantizerConfig
from hrvqvae.models.library import FSQQuantizer, LibraryQuantizer
from hrvqvae.quantize import Quantizer, ResidualQuantizer
from hrvqvae.utils.errors import InputError, NonFiniteError

DIM = 6
QUANTIZERS: dict[str, QuantizerConfig | FSQQuantizerConfig | LibraryQuantizerConfig] = {
    "flat": QuantizerConfig(codewords=7, dim=DIM),
    "linked": QuantizerConfig(levels=3, codewords=4, dim=DIM),
    "groups": QuantizerConfig(levels=5, codewords=3, linked=2, dim=DIM),
    "shared": QuantizerConfig(levels=3, codewords=4, linked=1, shared=True, dim=DIM),
    "gradient": QuantizerConfig(levels=2, codewords=4, dim=DIM, update="gradient"),
    "fsq": FSQQuantizerConfig(channel_levels=(5, 3, 4), dim=DIM),
    **{f"{name}-{levels}": LibraryQuantizerConfig(name=name, codewords=4, levels=levels, dim=DIM)
       for name in ("simvq", "lfq", "qinco", "vq") for levels in (1, 3)},
}  # fmt: skip
every = pytest.mark.parametrize("name", QUANTIZERS)


def latents(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, DIM, generator=torch.Generator().manual_seed(seed))


def started(name: str) -> tuple[Quantizer, int, int]:
    """The quantizer, its levels, and how many values a code can take."""
    torch.manual_seed(0)
    config = QUANTIZERS[name]
    if isinstance(config, FSQQuantizerConfig):
        return FSQQuantizer(config), 1, 60
    quantizer = ResidualQuantizer(config) if isinstance(config, QuantizerConfig) else LibraryQuantizer(config)
    quantizer.initialize(latents(4, 8, 8), torch.Generator().manual_seed(0))
    return quantizer, config.levels, config.codewords


@every
def test_codes_give_what_training_decodes(name: str) -> None:
    """Coded, looked up and passed forward are the same, in float32 whatever autocast says; nothing is changed."""
    quantizer, levels, _ = started(name)
    z = latents(2, 3, 4).bfloat16()
    before = {key: one.clone() for key, one in quantizer.state_dict().items()}
    with torch.autocast("cpu", torch.bfloat16):
        codes = quantizer.train().encode(z)
        assert quantizer.training
        result, found = quantizer.eval()(z), quantizer.lookup(codes)
    assert [(code.shape, code.dtype) for code in codes] == [((2, 3, 4), torch.int64)] * levels
    assert all(torch.equal(one, other) for one, other in zip(codes, result.codes, strict=True))
    assert (found.shape, found.dtype, result.latents.dtype) == (z.shape, torch.float32, torch.float32)
    torch.testing.assert_close(found, result.latents, rtol=1e-4, atol=1e-4)
    assert torch.equal(result.latents, quantizer(z.float()).latents)
    assert all(torch.equal(one, before[key]) for key, one in quantizer.state_dict().items())


@every
def test_a_prefix_is_what_its_levels_add(name: str) -> None:
    quantizer, levels, _ = started(name)
    z = latents(2, 3, 4)
    codes = quantizer.eval().encode(z)
    sums = [quantizer.lookup(codes[:number]) for number in range(1, levels + 1)]
    assert len({tuple(one.flatten().tolist()) for one in sums}) == levels
    pairs = quantizer.compared(z, codes)
    assert len(pairs) == levels
    assert all(one.shape == other.shape for one, other in pairs)
    if levels == 3 and "-" in name and "qinco" not in name:  # a level's codewords do not depend on the coarser ones
        last = quantizer.lookup((codes[0], codes[0] * 0, codes[2])) - quantizer.lookup((codes[0], codes[0] * 0))
        torch.testing.assert_close(sums[2] - sums[1], last, rtol=1e-4, atol=1e-4)


@every
def test_it_draws_nothing_and_refuses_what_it_can_not_code(name: str) -> None:
    quantizer, levels, values = started(name)
    z, draws = latents(2, 4, 4), torch.get_rng_state()
    quantizer.train().encode(z)
    quantizer(z)
    assert torch.equal(torch.get_rng_state(), draws), "draws of a start are its own"
    z[0, 1, 1, 2] = float("nan")
    before = {key: one.clone() for key, one in quantizer.state_dict().items()}
    for call in (quantizer, quantizer.encode):
        with pytest.raises(NonFiniteError, match="latents: 1 of 192 values"):
            call(z)
    assert all(torch.equal(one, before[key]) for key, one in quantizer.state_dict().items())
    code = torch.zeros(1, 2, 2, dtype=torch.long)
    for codes, message in (
        ((), "0 levels of codes given"), ((code,) * (levels + 1), f"this model has 1 to {levels}"),
        ((code + values,), f"level 1 has code {values}; codes lie in 0..{values - 1}"),
        ((code - 1,), "level 1 has code -1"), ((code.float(),), "float32"),
        *([((code, code[:, :1]), r"level 2 .*\(1, 1, 2\)")] if levels > 1 else []),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message):
            quantizer.lookup(codes)
