"""Read a bundle in Python, without the checks of the page: the oracle of the page's pixels and
codes.
"""

import json
import math
import zlib

import numpy as np
import torch

from hrvqvae.checkpoints import storage
from hrvqvae.compression.entropy_model import read_entropy_model
from hrvqvae.config.parsing import from_dict
from hrvqvae.models.build import build, build_progressive_decoder, require_several_levels


def read_bundle(path):
    """The model of a bundle, with the rounded weights that a page has, and its entropy model."""
    content = path.read_bytes()
    end = 12 + int.from_bytes(content[8:12], "little")
    header = json.loads(content[12:end])
    body = zlib.decompress(content[end:])
    offset = header["tables"]
    stored = {}
    entropy_model = read_entropy_model(body[:offset], str(path))
    for name, kind, shape in header["arrays"]:
        values = np.frombuffer(body, kind, math.prod(shape), offset)
        stored[name] = torch.from_numpy(values.copy()).view(shape)
        offset += values.nbytes
    weights = storage.restore_weights(stored)
    config = from_dict(header["config"], str(path))
    model = build(config)
    progressive = {
        name.removeprefix("progressive."): weights.pop(name)
        for name in list(weights)
        if name.startswith("progressive.")
    }
    if header["progressive"]:
        decoder = build_progressive_decoder(require_several_levels(model, config), config)
        decoder.load_state_dict(progressive)
        model.use_progressive_decoder(decoder.eval())
    # a bundle has no counts, which are for training only
    model.load_state_dict({**model.state_dict(), **weights})
    return model.requires_grad_(False).eval(), entropy_model
