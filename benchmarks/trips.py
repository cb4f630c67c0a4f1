"""Count the functions that a reader passes on four trips: to the first gradient, and through three
calls.

    python -m benchmarks.trips

A line has the functions of this package that run at least once, their files, and the returns to a
file that the trip had left. A trip visits the functions in the order of their first calls.
"""

import io
import sys
import tempfile
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from itertools import groupby
from pathlib import Path
from types import CodeType, FrameType
from unittest.mock import patch

import torch

import hrvqvae
from hrvqvae.cli import main
from hrvqvae.data.images import to_pil

SOURCE = str(Path(hrvqvae.__file__).parent)


class FirstGradientError(Exception):
    """Ends the trip of a training."""


def follow(trip: Callable[[], object]) -> list[CodeType]:
    """Return the functions of the package that a trip runs, in the order of their first calls."""
    visited = dict[CodeType, None]()

    def visit(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(SOURCE) and code.co_name[0] != "<":
            visited[code] = None

    sys.setprofile(visit)
    try:
        with suppress(FirstGradientError):
            trip()
    finally:
        sys.setprofile(None)
    return list(visited)


def count(functions: list[CodeType]) -> tuple[int, int, int]:
    """Return the number of functions, of their files, and of returns into a file already left."""
    stays = [file for file, _ in groupby(code.co_filename for code in functions)]
    files = set(stays)
    return len(functions), len(files), len(stays) - len(files)


def call(command: list[str]) -> None:
    """Run a command. Raises SystemExit if it fails, after its message."""
    if code := main(command):
        raise SystemExit(code)


def train(folder: Path) -> Callable[[], object]:
    """Return a trip of `hrvqvae train`, up to its first gradient."""

    command = ["train", "hrvqvae/mnist", "--out", str(folder / "run"), "--max-steps", "100"]

    def trip() -> None:
        with patch.object(torch.Tensor, "backward", side_effect=FirstGradientError):
            call(command)

    return trip


def sample(folder: Path) -> Callable[[], object]:
    """Return a trip of the first samples of a loaded model."""
    model = hrvqvae.load("mnist")
    return lambda: model.sample(1)


def compress(folder: Path) -> Callable[[], object]:
    """Return a trip of `hrvqvae compress` for one image."""
    to_pil(torch.zeros(1, 28, 28)).save(folder / "image.png")
    files = [str(folder / "image.png"), "-o", str(folder / "image.hrv")]
    return lambda: call(["compress", "mnist", *files])


def quantize(folder: Path) -> Callable[[], object]:
    """Return a trip of a training call of the layer."""
    layer = hrvqvae.TreeVQ(dim=8)
    latents = torch.randn(2, 4, 4, 8)
    layer(latents)  # the first call fits the codewords
    return lambda: layer(latents)


TRIPS = {
    "train to backward": train,
    "Model.sample": sample,
    "hrvqvae compress": compress,
    "TreeVQ.forward": quantize,
}


def report() -> None:
    """Print a line per trip."""
    print(f"{'':20}{'functions':>10}{'files':>7}{'returns':>9}")
    for title, prepare in TRIPS.items():
        for _ in range(2):  # the first trip also does what happens once in a process
            with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
                functions = follow(prepare(Path(folder)))
        print("{:20}{:10}{:7}{:9}".format(title, *count(functions)))


if __name__ == "__main__":
    report()
