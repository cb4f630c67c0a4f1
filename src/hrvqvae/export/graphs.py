"""A run's autoencoder as two ONNX graphs (docs/share.md).

encoder: from images (B, C, Y, X) float32 in [0, 1] to the codes (B, H_l, W_l) int64 of each level,
    coarse first
decoder: from the codes of all levels to images (B, C, Y', X') float32 in [0, 1]

B, Y and X are free. The encoder pads an image to its grid; the decoder returns the whole grid,
whose part `[..., :Y, :X]` is the image. The graphs check no values.
"""

from pathlib import Path
from typing import Any
from warnings import catch_warnings, simplefilter

import torch
from torch import Tensor, nn
from torch.export import Dim

from hrvqvae.checkpoints.folder import open_run
from hrvqvae.models.base import Autoencoder
from hrvqvae.quantize import Codes
from hrvqvae.utils.outputs import create_folder


class _Encoder(nn.Module):
    def __init__(self, autoencoder: Autoencoder) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, images: Tensor) -> Codes:
        return self.autoencoder.encode(images)


class _Decoder(_Encoder):
    def forward(self, *codes: Tensor) -> Tensor:  # type: ignore[override]
        return self.autoencoder.decode(codes)


@torch.no_grad()
def export_graphs(run: str | Path, out: Path, beam: int | None = None) -> list[Path]:
    """Write the encoder and the decoder of a run into the new folder `out`; return the files.

    `beam` is as for `hrvqvae.load`. Raises InputError if the run has no model, or `out` exists or
    can't be written.
    """
    with create_folder(out) as folder:
        autoencoder, config = open_run(run).load(beam=beam)
        height, width = config.data.image_size
        # torch.export takes equal sizes, and a size of 1, for constants
        images = torch.rand(3, autoencoder.channels, 2 * height, 3 * width)
        codes = autoencoder.encode(images)
        names = [f"codes_{level}" for level in range(1, len(codes) + 1)]

        pixels = {0: Dim("batch"), 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
        _write_graph(_Encoder(autoencoder), (images,), (pixels,), folder, ["images"], names)

        grid = {0: Dim("batch"), 1: Dim.DYNAMIC, 2: Dim.DYNAMIC}
        grids = ((grid,) * len(codes),)
        _write_graph(_Decoder(autoencoder), codes, grids, folder, names, ["images"])
    return sorted(out.iterdir())


def _write_graph(
    module: nn.Module,
    example: tuple[Tensor, ...],
    dynamic_shapes: tuple[Any, ...],
    folder: Path,
    inputs: list[str],
    outputs: list[str],
) -> None:
    with catch_warnings():
        simplefilter("ignore")  # of torch about its own internals
        torch.onnx.export(
            module.eval(),
            example,
            folder / f"{type(module).__name__.strip('_').lower()}.onnx",
            dynamo=True,
            verbose=False,
            external_data=False,
            input_names=inputs,
            output_names=outputs,
            dynamic_shapes=dynamic_shapes,
        )
