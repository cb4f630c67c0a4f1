"""Digests of what must not change: short trainings, samples, codes and files.

python -m benchmarks.digests > before.txt     # then change the code
python -m benchmarks.digests | diff before.txt -

A training takes six steps of a system on CIFAR10, and two steps of its coarsest prior. Samples are
eight images of each shipped model. Codes and files are those of 200 made images. Digests are equal
on one machine with the same torch; another processor may round otherwise.
"""

import argparse
import hashlib
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import hrvqvae
from hrvqvae.checkpoints import storage
from hrvqvae.checkpoints.folder import prior_folders

SYSTEMS = ("hrvqvae", "treevq", "vqvae", "vqvae2", "vqgan", "rqvae", "treevq-deep")
MODELS = ("mnist", "cifar10", "treevq-mnist", "treevq-cifar10", "thumb")
_KEPT = ("weight", "bias", "codewords")


def digest_files(files: Iterable[bytes]) -> str:
    """Return a digest of the contents of files, in order."""
    digest = hashlib.blake2b(digest_size=8)
    for content in files:
        digest.update(content)
    return digest.hexdigest()


def digest_tensors(tensors: Iterable[Tensor]) -> str:
    """Return a digest of the values of tensors, in order."""
    return digest_files(tensor.detach().contiguous().cpu().numpy().tobytes() for tensor in tensors)


def digest_training(system: str, folder: Path) -> Iterator[tuple[str, str]]:
    """Train a system and its coarsest prior for a few steps; yield a name and a digest of each."""
    fields: dict[str, Any] = {"training.batch_size": 16}
    if system == "vqgan":
        fields |= {"model.perceptual": "none", "model.adversarial_start": 2}
    model = hrvqvae.train(f"{system}/cifar10", out=folder, max_steps=6, **fields)

    # weights and codewords alone: other buffers may come and go
    weights = model.autoencoder.state_dict()
    kept = (name for name in weights if name.rpartition(".")[2] in _KEPT)
    yield "autoencoder", digest_tensors(weights[name] for name in sorted(kept))

    if system in ("hrvqvae", "treevq-deep"):
        fields = {"prior.training.batch_size": 8, "prior.training.evaluation_images": 64}
        model.train_prior(level=1, max_steps=2, **fields)
        first = next(iter(prior_folders(folder).values()))
        weights, _ = storage.read(first.model)
        yield "prior", digest_tensors(value for _, value in sorted(weights.items()))


def digest_model(name: str) -> Iterator[tuple[str, str]]:
    """Yield a name and a digest of a shipped model's codes, files and samples."""
    model = hrvqvae.load(name)
    height, width = model.config.data.image_size

    # made images: no data set is needed, and every machine makes the same
    image = torch.arange(200)[:, None, None, None]
    channel = torch.arange(1, model.config.data.channels + 1)[:, None, None]
    row = torch.arange(height)[:, None]
    column = torch.arange(width)
    pattern = image * channel * 7 + row * 5 + column * 3 + row * column * image * channel // 64
    images = (pattern % 256).to(torch.uint8)

    codes = model.encode(images)
    yield "codes", digest_tensors(codes)
    yield "reconstructions", digest_tensors([model.decode(codes)])
    yield "files", digest_files(model.compress(images))
    if name != "thumb":
        yield "samples", digest_tensors([model.sample(8, seed=3)])


def main() -> None:
    """Print a line per digest."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for system in SYSTEMS:
            for part, digest in digest_training(system, Path(folder) / system):
                print(f"{system:16}{part:18}{digest}", flush=True)
    for name in MODELS:
        for part, digest in digest_model(name):
            print(f"{name:16}{part:18}{digest}", flush=True)


if __name__ == "__main__":
    main()
