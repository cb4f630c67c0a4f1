#!/usr/bin/env python
"""Write the weights of the model thumb in 8 bits, those of transposed convolutions in 16.

    recipes/thumb_pack.py RUN IMAGES EXPORT      EXPORT: what `hrvqvae export RUN EXPORT --compact`
    wrote

Features have large means, so that rounded filters shift what they give: biases take the mean of
that away again, layer after layer.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from hrvqvae.checkpoints import storage
from hrvqvae.checkpoints.folder import open_run
from hrvqvae.models.single_grid import SingleGridAutoencoder


def means(model: SingleGridAutoencoder, layer: nn.Module, images: Tensor) -> Tensor:
    """Return the mean output of each channel of a layer."""
    outputs: list[Tensor] = []
    handle = layer.register_forward_hook(lambda *values: outputs.append(values[-1].mean((0, 2, 3))))
    latents = model.quantizer.lookup(model.quantizer.encode(model.latents(images)))
    model.decoder(latents.permute(0, 3, 1, 2))
    handle.remove()
    return outputs[0]


@torch.no_grad()
def main() -> None:
    """Write the weights."""
    (model, _), (rounded, _) = open_run(sys.argv[1]).load(), open_run(sys.argv[1]).load()
    export = Path(sys.argv[3], "model.safetensors")
    images = torch.from_numpy(
        np.load(Path(sys.argv[2], "train_images.npy"), mmap_mode="r")[::350].copy()
    )
    images = images.permute(0, 3, 1, 2).float() / 255
    names = [
        name
        for name, layer in model.named_modules()
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d))
    ]
    fine = {
        f"{name}.weight"
        for name in names
        if isinstance(model.get_submodule(name), nn.ConvTranspose2d)
    }
    rounded.load_state_dict(
        storage.restore_weights(
            storage.compact_weights(model.state_dict(), matrices=True, fine=fine)
        )
    )
    for name in names:
        layer = rounded.get_submodule(name)
        layer.bias += means(model, model.get_submodule(name), images) - means(
            rounded, layer, images
        )
    weights = storage.compact_weights(rounded.state_dict(), matrices=True, fine=fine)
    meta = storage.read_meta(export)
    meta["config"]["name"] = "thumb"
    storage.write(export, weights, meta)
    export.with_name("config.json").write_text(json.dumps(meta["config"], indent=2) + "\n")


if __name__ == "__main__":
    main()
