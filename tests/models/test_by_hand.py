"""Forward passes of both architectures against passes by hand from the names of the weights."""

import torch
from torch.nn.functional import conv2d, conv_transpose2d, pad, relu
from torch.testing import assert_close

from tests.conftest import input_error, parametrize, same
from tests.models.small import config_of, model_of


@parametrize("name", ["hrvqvae", "vqgan"])
def test_one_grid(name):
    model = model_of(config_of(name, stride=4, residual_blocks=2)).requires_grad_(False)
    images = torch.rand(2, 3, 10, 14)
    weights = model.state_dict()

    def layer(name, x, *, up=False, **options):
        kind = conv_transpose2d if up else conv2d
        return kind(x, weights[f"{name}.weight"], weights[f"{name}.bias"], **options)

    def stack(name, x):
        for block in range(2):
            inner = layer(f"{name}.{block}.spatial", relu(x), padding=1)
            x = x + layer(f"{name}.{block}.pointwise", relu(inner))
        return relu(x)

    # 10 + 2 * 1 = 12 rows stand already; 14 + 2 * 1 = 16 columns as well
    x = pad(images * 2 - 1, (1, 1, 1, 1), mode="replicate")
    x = relu(layer("encoder.0", x, stride=2, padding=1))
    x = relu(layer("encoder.2", x, stride=2, padding=1))
    x = stack("encoder.5", layer("encoder.4", x, padding=1))
    z = layer("encoder.6", x)
    quantized = model.quantizer(z.permute(0, 2, 3, 1))
    q = quantized.latents.permute(0, 3, 1, 2)
    x = stack("decoder.1", layer("decoder.0", q, padding=1))
    x = relu(layer("decoder.2", x, stride=2, padding=1, up=True))
    x = layer("decoder.4", x, stride=2, padding=1, up=True)
    expected = (x[:, :, 1:11, 1:15] + 1) / 2
    result = model(images)
    assert same(result.codes, quantized.codes)
    assert_close(result.images, expected, atol=1e-5, rtol=1e-5)
    losses = {name: loss / images.numel() for name, loss in quantized.losses.items()}
    losses["reconstruction"] = (2 * expected - 2 * images).square().mean()
    assert_close(result.losses, losses)


def test_several_grids():
    model = model_of(config_of("vqvae2")).requires_grad_(False)
    images = torch.rand(2, 3, 14, 14)
    bottom = model.encoders[0](pad(images * 2 - 1, (1, 1, 1, 1), mode="replicate"))
    middle = model.encoders[1](bottom)
    top = model.encoders[2](middle)
    result = model(images)
    losses = {}
    raised = []
    words = None
    for level, features in enumerate((top, middle, bottom)):
        if level:
            above = model.conditions[level - 1](words)
            features = torch.cat([features, above], 1)
        z = model.projections[level](features).permute(0, 2, 3, 1)
        quantized = model.quantizers[level](z)
        assert same(quantized.codes, [result.codes[level]])
        losses[f"commitment_{level + 1}"] = quantized.losses["commitment"] / images.numel()
        words = quantized.latents.permute(0, 3, 1, 2)
        raised.append(model.upsamplings[level](words))
    output = (model.decoder(torch.cat(raised, 1))[..., 1:15, 1:15] + 1) / 2
    assert_close(result.images, output, rtol=1e-4, atol=1e-5)
    losses["reconstruction"] = (2 * output - 2 * images).square().mean()
    assert_close(result.losses, losses, rtol=1e-4, atol=1e-6)


def test_every_grid_sends_its_gradient_to_the_encoder_and_none_decodes_alone():
    model = model_of(config_of("vqvae2"))
    images = torch.rand(2, 3, 14, 14)
    for level in (1, 2, 3):
        model.zero_grad()
        model(images).losses[f"commitment_{level}"].backward()
        assert next(model.parameters()).grad.abs().sum() > 0
    codes = model.encode(images)
    with input_error("levels is 2; this model decodes 3"):
        model.decode(codes, levels=2)
    with input_error("level 2 has codes"):
        model.decode((codes[0], codes[0], codes[2]))
