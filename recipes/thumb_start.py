#!/usr/bin/env python
"""Write the configuration and the first weights of the model thumb: an autoencoder that begins as a linear transform.

    recipes/thumb_start.py IMAGES OUT      IMAGES: what recipes/thumb_images.py writes

Convolutions halve the image three times: at first each takes the Haar transform of what two by two positions hold, and
the last one the principal components of 8x8 pixels. A bias keeps their values above 0, where ReLU changes nothing.
The decoder is the inverse. From random weights the training needs an hour of one core to come as far.

OUT/thumb.yaml is for `hrvqvae train`, OUT/start/model.safetensors for its --training.init_from.
"""

import sys
from pathlib import Path

import numpy as np
import torch
import yaml
from torch import Tensor, nn

from hrvqvae.checkpoints.run import save_model
from hrvqvae.config import to_dict
from hrvqvae.config.presets import get
from hrvqvae.models.build import build
from hrvqvae.models.single_grid import SingleGridAutoencoder

SETTINGS = {
    "name": "thumb", "data.dataset": "thumb", "data.labels": False,
    "model.stride": 8, "model.hidden_units": 64, "model.residual_units": 32, "model.residual_blocks": 3,
    "model.train_prefixes": True, "model.quantizer.levels": 16, "model.quantizer.codewords": 128,
    "model.quantizer.linked": 1, "model.quantizer.beam": 1, "model.quantizer.coarse_weight": 0.0,
    "model.quantizer.dim": 64, "model.quantizer.beta": 0.25, "model.quantizer.level_betas": (0.0,),
    "model.quantizer.decay": 0.98, "model.quantizer.restart_every": 200,
    "training.batch_size": 64, "training.learning_rate": 1e-3, "training.epochs": 999, "training.precision": "fp32",
    "training.device": "cpu",
    "training.threads": 1, "training.evaluate_every": 1000, "training.checkpoint_every": 1000,
    "training.evaluation_images": 500,
}  # fmt: skip
FIRST, SPARE = 1536, 4  # images that all is fitted to; channels of the latents that no component takes at first
HAAR = torch.tensor([[1, 1, 1, 1], [1, 1, -1, -1], [1, -1, 1, -1], [1, -1, -1, 1]]) / 2


@torch.no_grad()
def begin_linear(model: SingleGridAutoencoder, images: Tensor) -> None:
    """Let encoder and decoder be a transform and its inverse, fitted to images (B, 3, Y, X) in [-1, 1]."""
    convolutions = [layer for layer in model.encoder if isinstance(layer, nn.Conv2d)]
    transposed = [layer for layer in model.decoder if isinstance(layer, nn.ConvTranspose2d)][::-1]
    for stack in (model.encoder, model.decoder):
        for name, weights in stack.named_parameters():
            if "pointwise" in name:
                weights.zero_()  # the residual blocks change nothing
    values, shift = images, torch.zeros(3)
    for step, (down, up) in enumerate(zip(convolutions[:3], transposed, strict=True)):
        inputs = len(shift)
        blocks = values[:, :inputs].unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).permute(0, 2, 4, 1, 3, 5).flatten(3)
        centred = blocks - shift.repeat_interleave(4)  # (B, Y, X, inputs * 4)
        matrix = torch.kron(torch.eye(inputs), HAAR)
        if step == 2:
            flat = centred.flatten(0, 2)[:20_000]
            matrix = torch.linalg.svd(flat, full_matrices=False)[2][: model.latent_dim - SPARE]
        made = centred @ matrix.T
        offset = made.flatten(0, 2).mean(0).abs() + 4 * made.flatten(0, 2).std(0)
        outputs, filters = len(matrix), matrix.view(-1, inputs, 2, 2)
        down.weight[:outputs], up.weight[:, :inputs] = 0, 0
        down.weight[:outputs, :inputs, 1:3, 1:3] = up.weight[:outputs, :inputs, 1:3, 1:3] = filters
        down.bias[:outputs] = offset - matrix @ shift.repeat_interleave(4)
        # The last channel that the decoder's layer sees is 1: it takes the offsets away.
        up.weight[-1, :inputs, 1:3, 1:3] = shift[:, None, None] - torch.einsum("o,oiyx->iyx", offset, filters)
        up.bias[:inputs] = 0
        if step:
            up.weight[:, -1], up.bias[-1] = 0, 1
        values, shift = (made + offset).permute(0, 3, 1, 2), offset
    bias = torch.cat([shift, torch.zeros(SPARE - 1), torch.ones(1)])
    for layer, added in ((convolutions[3], 0 * bias), (convolutions[4], -bias), (model.decoder[0], bias)):
        layer.weight.zero_()
        side = layer.weight.shape[-1] // 2
        layer.weight[:, :, side, side].fill_diagonal_(1)
        layer.bias[:] = added
    model.decoder[0].weight[-1] = 0


def main() -> None:
    """Write both."""
    source, out = Path(sys.argv[1]), Path(sys.argv[2])
    config = get("treevq-deep/cifar10").config.replace(**SETTINGS)
    torch.manual_seed(0)
    model = build(config)
    rows = np.random.default_rng(0).choice(len(stored := np.load(source / "train_images.npy", mmap_mode="r")), FIRST)
    images = torch.from_numpy(stored[np.sort(rows)]).permute(0, 3, 1, 2)
    begin_linear(model, images.float() / 127.5 - 1)
    model.initialize(images, torch.Generator().manual_seed(0), config.training.batch_size)
    (out / "start").mkdir(parents=True, exist_ok=True)
    save_model(out / "start" / "model.safetensors", config, model.state_dict(), 0)
    (out / "thumb.yaml").write_text(yaml.safe_dump(to_dict(config), sort_keys=False))


if __name__ == "__main__":
    main()
