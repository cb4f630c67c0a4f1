"""The contract of every system."""

import dataclasses
from unittest.mock import Mock

import pytest
import torch

from hrvqvae.config import Config, DataConfig, QuantizerConfig, SingleGridConfig, to_dict
from hrvqvae.config.parsing import from_dict
from hrvqvae.config.registry import SYSTEMS
from hrvqvae.data.batches import Batch
from hrvqvae.models.distortion import evaluate
from hrvqvae.utils.errors import InputError
from tests.conftest import same, state_of
from tests.models.small import EVERY, FLAT, TREE, config_of, model_of

systems = pytest.mark.parametrize("name", EVERY)


@pytest.mark.parametrize(
    ("name", "changes", "size"),
    [
        *((name, {}, size) for name in EVERY for size in ((14, 14), (9, 17), (1, 1))),
        ("hrvqvae", {"stride": 16, "padding": 3}, (5, 40)),
        ("vqvae2", {"stride": 8, "padding": 2}, (37, 11)),
    ],
)
def test_codes_and_images_of_any_size(
    name: str, changes: dict[str, int], size: tuple[int, int]
) -> None:
    config = config_of(name, **changes)
    model = model_of(config)
    images = torch.rand(2, 3, *size)
    codes = model.encode(images)
    result = model(images)
    assert [tuple(code.shape) for code in codes] == [
        (2, *grid) for grid in config.geometry.grids(*size)
    ]
    for code, path, symbols, codewords in zip(
        codes, model.codeword_indices(codes), config.num_symbols, config.num_codewords, strict=True
    ):
        assert code.dtype == path.dtype == torch.int64
        assert 0 <= int(code.min()) <= int(code.max()) < symbols
        assert 0 <= int(path.min()) <= int(path.max()) < codewords
    decoded = model.decode(codes, size=size)
    assert decoded.shape == images.shape
    torch.testing.assert_close(decoded, result.images.clamp(0, 1), rtol=1e-4, atol=1e-5)
    assert same(codes, result.codes)
    torch.testing.assert_close(
        result.losses["reconstruction"], (result.images - images).square().mean() * 4
    )
    assert model.prefixes[-1] == len(codes)
    for levels in model.prefixes:
        prefix = model.decode(codes[:levels], levels=levels, size=size).detach()
        assert prefix.shape == images.shape
        assert 0 <= float(prefix.min()) <= float(prefix.max()) <= 1
        assert torch.equal(prefix, model.decode(codes, levels=levels)[..., : size[0], : size[1]])


@systems
def test_an_image_does_not_depend_on_its_batch(name: str) -> None:
    model = model_of(config_of(name))
    images = torch.randint(256, (4, 3, 14, 14), dtype=torch.uint8)
    together = model.encode(images)
    alone = model.encode(images[1:2] / 255)
    assert same([codes[1:2] for codes in together], alone), "bytes or floats"


@systems
def test_what_it_refuses(name: str) -> None:
    model = model_of(config_of(name))
    codes = model.encode(torch.rand(1, 3, 8, 8))
    last = len(codes)
    with pytest.raises(InputError, match="level"):
        model.decode(())
    for levels in (0, -1, last + 1):
        with pytest.raises(InputError, match="level"):
            model.decode(codes, levels=levels)
    if last > 1:
        with pytest.raises(InputError, match=r"1 level$|levels is 1;"):
            model.decode(codes[:1], levels=2 if len(model.prefixes) > 1 else None)
    for worst in (-1, model.config.num_symbols[-1]):
        with pytest.raises(
            InputError,
            match=f"level {1 if name == 'vqvae' else last} has code {worst}; codes lie in",
        ):
            model.decode((*codes[:-1], torch.full_like(codes[-1], worst)))
    with pytest.raises(InputError, match="size 50x50 does not fit"):
        model.decode(codes, size=(50, 50))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.rand(3, 8, 8), "3 dimensions"),
        (torch.rand(8), "1 dimensions"),
        (torch.full((1, 3, 8, 8), -0.1), "values from -0.1"),
        (torch.full((1, 3, 8, 8), float("nan")), "nan"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.int64), "int64"),
        (torch.rand(1, 3, 0, 8), "0x8 pixels"),
        (torch.rand(2, 1, 8, 8), "1 channels; this model takes 3"),
        (torch.rand(1, 3, 8, 8) * 2 + 0.5, r"values from .* expected \[0, 1\]"),
    ],
)
def test_images_outside_the_contract(images: torch.Tensor, message: str) -> None:
    model = model_of(config_of("vqvae"))
    for call in (model.encode, model):
        with pytest.raises(InputError, match=message):
            call(images)


@systems
def test_every_parameter_learns_from_the_losses(name: str) -> None:
    model = model_of(config_of(name)).train()
    images = torch.rand(8, 3, 14, 14)
    torch.stack(list(model(images).losses.values())).sum().backward()
    for part, weight in model.named_parameters():
        assert weight.grad is not None, part
        assert weight.grad.abs().sum() > 0, part


@systems
def test_training_alone_changes_a_model(name: str) -> None:
    model = model_of(config_of(name))
    images = torch.rand(8, 3, 14, 14)
    before = state_of(model)
    model.decode(model(images).codes)
    model.train().encode(images)
    assert same(model.state_dict(), before)
    model(images)
    assert not same(model.state_dict(), before), "moving averages"


@systems
def test_a_start_is_seeded_and_dead_codewords_come_back(name: str) -> None:
    config = config_of(name)
    images = torch.rand(8, 3, 14, 14)
    first = model_of(config)
    second = model_of(config)
    assert same(first.state_dict(), second.state_dict())
    counts = [buffer for key, buffer in first.named_buffers() if key.endswith(".count")]
    for count in counts:
        count.view(-1)[0] = 0
    restarted = first.restart_dead_codes(images, torch.Generator().manual_seed(0))
    assert restarted >= 1 if counts else restarted == 0
    assert bool(counts) == bool(config.restart_every)


@pytest.mark.parametrize("leaves", [8, 512])
def test_a_random_start_has_codewords_apart_from_each_other(leaves: int) -> None:
    for quantizer in (
        dataclasses.replace(FLAT, codewords=leaves, init_vectors=0),
        dataclasses.replace(TREE, codewords=round(leaves ** (1 / 3)), init_vectors=0),
    ):
        model = model_of(config_of("hrvqvae", quantizer=quantizer))
        finest = model.quantizer.levels[-1].codewords
        assert sum(len(book.unique(dim=0)) for book in finest) > 0.95 * leaves
        codes = model.codeword_indices(model.encode(torch.rand(64, 3, 14, 14)))[-1]
        assert len(codes.unique()) > 0.3 * leaves, "they lie where latents are"


def test_names_of_stored_weights() -> None:
    for name, key in (
        ("hrvqvae", "quantizer.codebooks.2.codewords"),
        ("vqvae", "quantizer.codebook.codewords"),
        ("vqvae2", "quantizers.2.codebook.codewords"),
    ):
        config = config_of(name)
        assert from_dict(to_dict(Config(model=config)), "stored").model == config
        assert key in model_of(config).state_dict()


def test_what_a_quantizer_makes_of_one_architecture() -> None:
    sizes = {
        name: config_of(name).num_codewords for name in ("hrvqvae", "groups", "vqvae", "rqvae")
    }
    assert sizes == {
        "hrvqvae": (3, 9, 27),
        "groups": (3, 9, 3, 9, 3),
        "vqvae": (6,),
        "rqvae": (3, 3, 3),
    }
    assert SingleGridConfig() == SYSTEMS.get("hrvqvae").config
    linked = {name: len(model_of(config_of(name)).linked_codebooks) for name in sizes}
    assert linked == {"hrvqvae": 3, "groups": 0, "vqvae": 0, "rqvae": 0}
    with pytest.raises(InputError, match=r"model\.quantizer\.levels is 2; it must be 1"):
        dataclasses.replace(SYSTEMS.get("vqvae2").config, quantizer=QuantizerConfig(levels=2))


def test_prefixes_are_measured_on_some_images(monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config(data=DataConfig(channels=3, size=14), model=config_of("hrvqvae"))
    model = model_of(config.model)
    images = torch.randint(256, (9, 3, 14, 14), dtype=torch.uint8)
    coarse = model.decode(model.encode(images[::4]), levels=1, size=(14, 14))
    decode = Mock(side_effect=model.decode)
    monkeypatch.setattr(model, "decode", decode)
    batches = [Batch(images, torch.zeros(9, dtype=torch.long))]
    report = evaluate(model, config, batches, "test", torch.device("cpu"), prefix_interval=4)
    calls = [(call.kwargs.get("levels"), len(call.args[0][0])) for call in decode.call_args_list]
    assert calls == [(1, 3), (2, 3), (None, 9)]
    error = (coarse - images[::4] / 255).square().mean()
    assert report.levels[0].mse == pytest.approx(float(error.detach()), rel=1e-4)
