"""HR-VQVAE: shapes, contract, loss, and its forward path against one put together by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import conv2d, conv_transpose2d, relu

from hrvqvae.config import QuantizerConfig
from hrvqvae.models.hrvqvae.config import HRVQVAEConfig
from hrvqvae.models.hrvqvae.model import HRVQVAE
from hrvqvae.utils.errors import InputError

SMALL = HRVQVAEConfig(
    stride=4, padding=1, hidden_units=8, residual_units=6, residual_blocks=2,
    quantizer=QuantizerConfig(levels=3, codewords=3, dim=5, init_vectors=500),
)  # fmt: skip


def model_of(config: HRVQVAEConfig = SMALL, channels: int = 3, seed: int = 0) -> HRVQVAE:
    torch.manual_seed(seed)
    model = HRVQVAE(config, channels)
    model.initialize(torch.rand(8, channels, 20, 20), torch.Generator().manual_seed(seed))
    return model.eval()


@settings(max_examples=40, deadline=None)
@given(
    levels=st.integers(1, 4), codewords=st.integers(2, 5), halvings=st.integers(1, 4), padding=st.integers(0, 3),
    height=st.integers(1, 40), width=st.integers(1, 40),
    channels=st.sampled_from([1, 3]), update=st.sampled_from(["ema", "gradient"]),
)  # fmt: skip
def test_any_size_any_depth(
    levels: int, codewords: int, halvings: int, padding: int, height: int, width: int, channels: int, update: str
) -> None:
    quantizer = QuantizerConfig(levels=levels, codewords=codewords, dim=3, update=update)  # type: ignore[arg-type]
    config = HRVQVAEConfig(
        stride=2**halvings, padding=padding, hidden_units=4, residual_units=4, residual_blocks=1, quantizer=quantizer
    )
    model = model_of(config, channels)
    images = torch.rand(2, channels, height, width)
    result = model(images)
    assert result.images.shape == images.shape
    grids = config.latent_grids(height, width)
    assert [tuple(code.shape) for code in result.codes] == [(2, *grid) for grid in grids]
    assert all(code.dtype == torch.int64 and code.min() >= 0 and code.max() < codewords for code in result.codes)
    for prefix in range(1, levels + 1):
        decoded = model.decode(result.codes, levels=prefix, size=(height, width))
        assert decoded.shape == images.shape
        assert decoded.min() >= 0
        assert decoded.max() <= 1
    torch.testing.assert_close(model.decode(result.codes, size=(height, width)), result.images.clamp(0, 1))


def test_forward_path_by_hand() -> None:
    model = model_of()
    images = torch.rand(2, 3, 10, 14)
    weights = model.state_dict()

    def layer(name: str, x: torch.Tensor, **options: int) -> torch.Tensor:
        kind = conv_transpose2d if options.pop("up", 0) else conv2d
        return kind(x, weights[f"{name}.weight"], weights[f"{name}.bias"], **options)

    def stack(name: str, x: torch.Tensor) -> torch.Tensor:
        for block in range(2):
            inner = layer(f"{name}.{block}.spatial", relu(x), padding=1)
            x = x + layer(f"{name}.{block}.pointwise", relu(inner))
        return relu(x)

    # 10 + 2 * 1 = 12 rows stand already; 14 + 2 * 1 = 16 columns as well
    rows = [0, *range(10), 9]
    columns = [0, *range(14), 13]
    x = (images * 2 - 1)[:, :, rows][:, :, :, columns]
    x = relu(layer("encoder.0", x, stride=2, padding=1))
    x = relu(layer("encoder.2", x, stride=2, padding=1))
    x = stack("encoder.5", layer("encoder.4", x, padding=1))
    z = layer("encoder.6", x)
    q = torch.zeros_like(z)
    for b in range(2):
        for i in range(3):
            for j in range(4):
                path, residual = 0, z[b, :, i, j]
                for level in range(3):
                    book = weights[f"quantizer.codebooks.{level}.codewords"][path]
                    child = int((residual - book).square().sum(-1).argmin())
                    residual, path = residual - book[child], path * 3 + child
                    q[b, :, i, j] += book[child]
    x = stack("decoder.1", layer("decoder.0", q, padding=1))
    x = relu(layer("decoder.2", x, stride=2, padding=1, up=1))
    x = layer("decoder.4", x, stride=2, padding=1, up=1)
    expected = (x[:, :, 1:11, 1:15] + 1) / 2
    result = model(images)
    torch.testing.assert_close(result.images, expected, atol=1e-5, rtol=1e-5)
    reconstruction = (2 * expected - 2 * images).square().mean()
    torch.testing.assert_close(result.losses["reconstruction"], reconstruction)
    torch.testing.assert_close(result.losses["commitment"], 0.25 * (z - q).square().sum() / images.numel())


def test_padding_never_enters_a_loss_or_metric() -> None:
    model = model_of()
    images = torch.rand(1, 3, 9, 9)
    with torch.no_grad():
        output = model.pixels(model.quantizer(model.latents(images)).latents, (9, 9))
        loss = model(images).losses["reconstruction"]
    torch.testing.assert_close(loss, (output - (2 * images - 1)).square().mean())


def test_decoding_all_of_the_grid_without_a_size() -> None:
    model = model_of()
    codes = model.encode(torch.rand(1, 3, 9, 13))
    assert model.decode(codes).shape == (1, 3, 10, 14)  # 12 x 16 less the padding of 1 a side


def test_uint8_and_float_are_the_same_image() -> None:
    model = model_of()
    images = torch.randint(256, (2, 3, 12, 12), dtype=torch.uint8)
    for one, other in zip(model.encode(images), model.encode(images / 255), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.rand(2, 1, 8, 8), "1 channels; this model takes 3"),
        (torch.rand(3, 8, 8), "3 dimensions"),
        (torch.rand(1, 3, 8, 8) * 2 + 0.5, r"values from .* expected \[0, 1\]"),
        (torch.full((1, 3, 8, 8), -0.1), "values from -0.1"),
        (torch.full((1, 3, 8, 8), float("nan")), "nan"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.int64), "int64"),
        (torch.rand(1, 3, 0, 8), "0x8 pixels"),
    ],
)
def test_images_outside_the_contract(images: torch.Tensor, message: str) -> None:
    model = model_of()
    for call in (model.encode, model):
        with pytest.raises(InputError, match=message):
            call(images)


def test_levels_and_sizes_out_of_range() -> None:
    model = model_of()
    codes = model.encode(torch.rand(1, 3, 8, 8))
    for levels in (0, 4, -1):
        with pytest.raises(InputError, match=f"levels is {levels}; this model has levels 1 to 3"):
            model.decode(codes, levels=levels)
    with pytest.raises(InputError, match="the codes have 1 level$"):
        model.decode(codes[:1], levels=2)
    with pytest.raises(InputError, match="size 50x50 does not fit"):
        model.decode(codes, size=(50, 50))
