"""Turn the codebook of a public tokenizer (VQGAN, LlamaGen) into a tree.

plant.py CHECKPOINT [KEY] [--codewords M] [--out TABLE]

CHECKPOINT is a PyTorch or safetensors state, KEY the name of its codebook (K, D). Prints how near
the first levels of the tree come to the codewords, and writes a table with the path of each token.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from hrvqvae import TreeVQ

# names of the codebook in states of LlamaGen, taming-transformers and others
KEYS = ("quantize.embedding.weight", "quantize.embed.weight", "quantizer.embedding.weight")


def read_codebook(path: Path, key: str | None) -> torch.Tensor:
    """Return the codebook (K, D) of a state."""
    if path.suffix == ".safetensors":
        state = load_file(path)
    else:
        state = torch.load(path, map_location="cpu", weights_only=True)
    # states of trainings hold that of the model
    for name in ("model", "state_dict", "ema"):
        if isinstance(state.get(name), dict):
            state = state[name]
            break
    names = [name for name in (key or "", *KEYS) if name in state]
    if not names:
        raise SystemExit(f"no codebook; tensors: {', '.join(state)}")
    return state[names[0]].float()


def main() -> None:
    """Plant the codebook of a checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("key", nargs="?")
    parser.add_argument("--codewords", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path("paths.npy"))
    options = parser.parse_args()
    codebook = read_codebook(options.checkpoint, options.key)
    # LlamaGen compares normalized codewords: so that the nearest is the same, normalize them, and
    # the features, before you plant
    tree = TreeVQ.from_codebook(codebook, options.codewords)

    # token -> path, and back
    tokens = torch.arange(len(codebook))
    paths = tree.indices_of(tokens)  # (K, L)
    assert (tree.leaf_of(paths) == tokens).all()
    np.save(options.out, paths.numpy().astype(np.uint8 if options.codewords <= 256 else np.int64))
    num_levels = paths.shape[1]
    print(f"{len(codebook):,} tokens, paths of {num_levels} levels in {options.out}")

    # how much of the codewords' variance the first levels leave
    variance = (codebook - codebook.mean(0)).square().sum(1).mean()
    for level in range(1, num_levels + 1):
        prefix = tree.get_output_from_indices(paths[:, :level])
        error = (codebook - prefix).square().sum(1).mean()
        print(f"levels 1..{level}: {error / variance:7.2%} of the variance left")

    # constrained sampling: which next codes lead to a token
    for prefix in (paths[:1, :0], paths[:1, : num_levels - 1]):
        mask = tree.valid_next(prefix, paths)[0]
        print(f"after {prefix[0].tolist()}: {mask.int().tolist()}")


if __name__ == "__main__":
    main()
