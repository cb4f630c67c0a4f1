"""Two processes that train with a TreeVQ: the same codebooks to the bit, and those of one process
on whole batches.
"""

import inspect
import subprocess
import sys
import warnings
from pathlib import Path

import torch
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close

from hrvqvae import TreeVQ
from tests.conftest import generator, normal, same, shared_fixture

ROOT = Path(__file__).parent.parent.parent
STEPS = 8

# what docs/layer.md gives DistributedDataParallel, by the version of torch
_IS_NEW = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
NO_BUFFERS = {"forward_sync_buffers" if _IS_NEW else "broadcast_buffers": False}


def batch(step):
    """(8, 50, 6) around a few centres, which move after a while, and a mask that leaves out ten
    positions a row.
    """
    rng = generator(step)
    centres = normal(20, 6, seed=99) + (8 if step > 3 else 0)
    chosen = centres[torch.randint(20, (8, 50), generator=rng)]
    x = chosen + 0.1 * normal(8, 50, 6, seed=step)
    return x, torch.rand(8, 50, generator=rng).argsort(-1) < 40


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(6, 6)
        self.layer = TreeVQ(6, 3, 3, start_vectors=700, restart_every=3, decay=0.5)

    def forward(self, x, mask):
        quantized, _, loss = self.layer(self.encoder(x), mask)
        return (quantized - x)[mask].square().mean() + loss


def train(rank, size):
    """Return the state after some steps, and how many codewords jumped."""
    torch.manual_seed(0)
    network = Network()
    trained = network
    if size > 1:
        trained = DistributedDataParallel(network, **NO_BUFFERS)
    optimizer = torch.optim.SGD(network.parameters(), 0.05)
    jumped = 0
    for step in range(STEPS):
        x, mask = (values.chunk(size)[rank] for values in batch(step))
        before = network.layer.quantizer.levels[0].codewords.detach().clone()
        loss = trained(x, mask)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        moved = (network.layer.quantizer.levels[0].codewords - before).norm(dim=-1)
        jumped += int((moved > 3).sum()) if step > 3 else 0
    return network.state_dict(), jumped


@shared_fixture
def folder(tmp_path_factory):
    """What two processes on this machine have written; a file as the meeting place."""
    folder = tmp_path_factory.mktemp("processes")
    command = [sys.executable, "-m", __name__, str(folder)]
    both = [
        subprocess.Popen([*command, str(rank)], cwd=ROOT, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    for process in both:
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors
    return folder


def saved(folder, name):
    return [torch.load(folder / f"{name}-{rank}.pt") for rank in range(2)]


def test_two_processes_agree_with_each_other_and_with_one(folder):
    """The start takes three batches, and something is restarted on the way."""
    (first, jumped), (second, _) = saved(folder, "trained")
    assert same(first, second)
    assert jumped > 0
    alone, _ = train(0, 1)
    assert alone["layer.schedule.progress"] == STEPS - 2
    assert_close(first, alone, rtol=1e-3, atol=1e-4)


def main(folder, rank):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2
    )
    torch.save(train(rank, 2), folder / f"trained-{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    warnings.simplefilter("error")
    main(Path(sys.argv[1]), int(sys.argv[2]))
