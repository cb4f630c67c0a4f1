"""Turn a trained run with flat codebooks into a run with a tree."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from hrvqvae.checkpoints.folder import RunFolder, open_run, save_model
from hrvqvae.quantize.layer import TreeVQ
from hrvqvae.utils.errors import InputError
from hrvqvae.utils.outputs import create_folder


def plant(run: str | Path, out: str | Path, codewords: int = 8) -> Path:
    """Write a TreeVQ run with the autoencoder of a run of `vqvae/*` or `rqvae/*`; return its
    folder.

    The codewords of each flat codebook become the leaves of a tree (`TreeVQ.from_codebook`).

    Raises:
        InputError: The run is of another system, or `out` exists or can't be written.
    """
    loaded: Any = open_run(run).load(decoder=None)
    model, config = loaded
    if config.model.system not in ("vqvae", "rqvae"):
        raise InputError(f"{run} is a {config.model.system}; plant a vqvae or an rqvae")
    codebooks = torch.cat([level.codewords for level in model.quantizer.levels])
    counts = torch.cat([level.count for level in model.quantizer.levels])
    tree = TreeVQ.from_codebook(codebooks, codewords, counts).quantizer
    model.quantizer = tree
    settings = replace(config.model, system="treevq", quantizer=tree.config)
    config = replace(config, model=settings)
    with create_folder(Path(out)) as path:
        folder = RunFolder(path)
        save_model(folder.model, config, model.state_dict(), 0)
        folder.write_config(config)
    return Path(out)
