"""Forward passes of both architectures against passes by hand from the names of the weights."""

import torch
from torch.nn.functional import conv2d, conv_transpose2d, pad, relu
from torch.testing import assert_close

from hrvqvae.models.single_grid import compute_explained_share, compute_relative_errors
from hrvqvae.training.state import count_parameters
from tests.conftest import approx, input_error, parametrize, random_images, same
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


def test_codewords_count_as_parameters_though_they_are_buffers():
    model = model_of(config_of("hrvqvae"))
    parts = (*model.encoder.parameters(), *model.decoder.parameters())
    network = sum(map(torch.numel, parts))
    assert count_parameters(model) == network + (3 + 9 + 27) * 4


def test_the_gradient_is_that_of_the_mean_logarithm_of_the_errors():
    errors = torch.tensor([4.0, 1.0, 8.0, 3.0], requires_grad=True)
    relative, means = compute_relative_errors(errors, torch.tensor([0, 1, 0, 1]), 2)
    assert (relative.tolist(), means.tolist()) == ([1, 1], [6, 2])
    relative.mean().backward()
    assert errors.grad.tolist() == approx([1 / 24, 1 / 8, 1 / 24, 1 / 8])


def test_a_channel_gets_a_gradient_by_the_share_of_its_variance_that_a_prefix_explains():
    latents = torch.randn(64, 2, 2, 3)
    scales = torch.tensor([[1.0, 0.0, 0.5], [1.0, 1.0, 1.0]])
    prefixes = latents * scales[:, None, None, None]
    centred = prefixes - prefixes.mean((1, 2, 3), keepdim=True)
    shares = compute_explained_share(latents - latents.mean((0, 1, 2)), centred)
    assert torch.allclose(shares, torch.tensor([[1, 0, 0.75], [1, 1, 1]]), atol=1e-5)


def test_images_of_a_training_batch_are_decoded_from_each_prefix_in_turn():
    model = model_of(config_of("hrvqvae", train_prefixes=True)).train()
    images = random_images(6, 3, 8, 8)
    result = model(images)
    model.eval()
    prefixes = [model.decode(result.codes, levels=levels) for levels in model.prefixes]
    expected = [prefixes[index % len(prefixes)][index] for index in range(6)]
    assert torch.allclose(result.images.clamp(0, 1), torch.stack(expected), atol=1e-5)
