"""A process of 64 that are not there: how often it communicates in a step, and how much it sends.

Collectives of the fake process group leave each process its own values.
"""

from contextlib import contextmanager
from unittest.mock import patch

from torch import Tensor
from torch import distributed as dist
from torch.futures import Future
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hrvqvae import distributed
from hrvqvae.config.parsing import override
from hrvqvae.models.build import build, build_objective
from hrvqvae.quantize.codebook import LevelCodebooks
from hrvqvae.training.trainer import Evaluation
from tests.conftest import parametrize
from tests.trained_run import fields, tiny_systems
from tests.training.tasks import Case

RANKS = 64
FEW_STEPS = "max_steps=4 evaluate_every=100 checkpoint_every=100 precision=fp32 device=cpu"


class Sent(TorchDispatchMode):
    """The bytes of each tensor that a process gives to a collective."""

    def __init__(self):
        super().__init__()
        self.bytes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "c10d" and "allreduce" in func.__name__:
            self.bytes += [leaf.nbytes for leaf in tree_leaves(args) if isinstance(leaf, Tensor)]
        return func(*args, **(kwargs or {}))


@contextmanager
def many_ranks():
    """Make this process the first of 64; yield the bytes of each bucket of gradients."""
    buckets = []
    usual = distributed.average_gradients

    def finish(_, bucket):
        buckets.append(bucket.buffer().nbytes)
        done = Future()
        done.set_result(bucket.buffer())
        return done

    def average_gradients(network):
        engine = usual(network)
        engine.register_comm_hook(None, finish)
        return engine

    dist.init_process_group("fake", rank=0, world_size=RANKS, store=FakeStore())
    try:
        with (
            patch.object(distributed, "average_gradients", average_gradients),
            # those of the others would be 0
            patch.object(distributed, "all_gather_numbers", lambda *numbers: [numbers] * RANKS),
        ):
            yield buckets
    finally:
        dist.destroy_process_group()


def nothing(*_):
    return Evaluation({}, "")


def watch_steps(case, config):
    """Return the bytes of the buckets and of the other sums of each step of a training."""
    steps = []
    usual = case.kind.step

    with many_ranks() as buckets:

        def step(self, state, batch):
            first = len(buckets)
            with Sent() as sent:
                metrics = usual(self, state, batch)
            steps.append((buckets[first:], sent.bytes))
            return metrics

        patches = {"step": step, "evaluate": nothing, "draw": nothing}
        with patch.multiple(case.kind, **patches):
            case.train(config=config)
    return steps


def count_exchanged(config):
    """Return the bytes of the gradients, and of the codebooks that follow moving averages."""
    model = build(config)
    networks = [model, *build_objective(config).auxiliary.values()]
    gradients = sum(weight.nbytes for network in networks for weight in network.parameters())
    books = [book for book in model.modules() if isinstance(book, LevelCodebooks)]
    return gradients, sum(book.count.nbytes + book.total.nbytes for book in books)


@parametrize("system", ["hrvqvae", "treevq", "vqvae2", "vqgan", "rqvae"])
def test_a_step_sends_gradients_and_codebooks(system, mnist_root, tmp_path):
    few = fields("training", f"{FEW_STEPS} batch_size={RANKS}")
    config = override(tiny_systems(mnist_root)[system], few)
    case = Case("autoencoder", tmp_path / "run", config)
    buckets, sums = watch_steps(case, config)[-1]
    gradients, codebooks = count_exchanged(config)
    assert sum(buckets) == gradients
    assert len(buckets) == (2 if system == "vqgan" else 1)
    assert sum(sums) >= codebooks
    if system != "vqgan":  # the rest is the losses
        assert sum(sums) == codebooks + sums[-1]
        assert sums[-1] <= 4 * 10
        assert len(sums) == (5 if system == "vqvae2" else 3), "whatever the number of levels"
