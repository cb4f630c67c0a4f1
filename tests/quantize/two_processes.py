"""One of the processes that train a small model with a TreeVQ together, or one that trains it alone.

python -m tests.quantize.two_processes FOLDER RANK SIZE: writes FOLDER/UPDATE-RANK-SIZE.pt, the state of the model.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from hrvqvae import TreeVQ

STEPS = 8


def batch(step: int) -> tuple[Tensor, Tensor]:
    """(8, 50, 6) around a few centres, which move after a while, and a mask that leaves out ten positions a row."""
    generator = torch.Generator().manual_seed(step)
    centres = torch.randn(20, 6, generator=torch.Generator().manual_seed(99)) + (8 if step > 3 else 0)
    x = centres[torch.randint(20, (8, 50), generator=generator)] + 0.1 * torch.randn(8, 50, 6, generator=generator)
    return x, torch.rand(8, 50, generator=generator).argsort(-1) < 40


def train(update: str, rank: int, size: int) -> tuple[dict[str, Tensor], int]:
    """The state after some steps on this process's part of each batch, and how many codewords jumped on the way."""
    torch.manual_seed(0)
    layer = TreeVQ(6, 3, 3, update=update, start_vectors=700, restart_every=3, decay=0.5)  # type: ignore[arg-type]
    whole = _Whole(nn.Linear(6, 6), layer)
    trained = DistributedDataParallel(whole) if size > 1 else whole
    optimizer = torch.optim.SGD(whole.parameters(), 0.05)
    jumped = 0
    for step in range(STEPS):
        x, mask = (one.chunk(size)[rank] for one in batch(step))
        before = layer.quantizer.levels[0].codewords.detach().clone()
        loss = trained(x, mask)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        jumped += int(((layer.quantizer.levels[0].codewords - before).norm(dim=-1) > 3).sum()) if step > 3 else 0
    return whole.state_dict(), jumped


class _Whole(nn.Module):
    def __init__(self, encoder: nn.Module, layer: TreeVQ) -> None:
        super().__init__()
        self.encoder, self.layer = encoder, layer

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        quantized, _, loss = self.layer(self.encoder(x), mask)
        return (quantized - x)[mask].square().mean() + loss  # type: ignore[no-any-return]


def main(folder: Path, rank: int, size: int) -> None:
    torch.set_num_threads(1)
    if size > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=size)
    for update in ("ema", "gradient"):
        torch.save(train(update, rank, size), folder / f"{update}-{rank}-{size}.pt")
    if size > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    warnings.simplefilter("error")
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
