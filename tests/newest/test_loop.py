"""The trainer's whole loop on a GPU that is not there, in the first of two processes.

Tensors of the device "meta" stand for those of the GPU: torch refuses to mix them with others, or
to read them. A copy to the CPU is filled with zeros.
"""

import dataclasses
from contextlib import ExitStack, contextmanager, nullcontext
from unittest.mock import patch

import pytest
import torch
from torch import distributed as dist
from torch import nn
from torch.optim import optimizer

from hrvqvae import distributed
from hrvqvae.config.parsing import override
from tests.conftest import parametrize, with_quantizer, with_training
from tests.newest.waits import Waits
from tests.trained_run import GIVEN_GPT, fields, tiny_systems, trained_copy
from tests.training.tasks import TASKS, Case

GPU = torch.device("meta")
aten = torch.ops.aten


class StandIn(Waits):
    """Copies from the device become zeros, and values that are read are 0."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        options = kwargs or {}
        to_host = options.get("device", GPU) != GPU
        if func is aten._to_copy.default and args[0].device == GPU and to_host:
            kind = options.get("dtype") or args[0].dtype
            return torch.zeros(args[0].shape, dtype=kind)
        if func is aten.copy_.default and args[1].device == GPU != args[0].device:
            return args[0].zero_()
        if torch.is_inference_mode_enabled():  # where composed operations come whole
            with self:
                parts = func.decompose(*args, **options)
            if parts is not NotImplemented:
                return parts
        return super().__torch_dispatch__(func, types, args, kwargs)


@contextmanager
def gpu():
    """Let every task compute on the stand-in."""
    supported = [*optimizer._get_fused_kernels_supported_devices(), GPU.type]
    with ExitStack() as stack:
        for target, value in {
            "hrvqvae.utils.device.resolve_device": lambda _: GPU,
            "torch.autocast": lambda *_, **__: nullcontext(),
            # their numbers of vectors are read, and decide shapes
            "hrvqvae.quantize.ResidualQuantizer.initialize": lambda *_, **__: None,
            "hrvqvae.quantize.ResidualQuantizer.restart_dead_codes": lambda *_: 0,
            "torch.optim.optimizer._get_fused_kernels_supported_devices": lambda: supported,
        }.items():
            stack.enter_context(patch(target, value))
        stack.enter_context(StandIn(value=0))
        yield


@contextmanager
def two_processes():
    """Make this process the first of two, whose other has the same values."""

    def keep(*_, **__):
        pass

    def gather(parts, value, **_):
        parts[:] = [value] * len(parts)

    def gather_to_first(value, parts):
        gather(parts, value)

    stand_ins = {
        "is_initialized": lambda: True,
        "get_world_size": lambda group=None: 2,
        "get_rank": lambda group=None: 0,
        "all_reduce": keep,
        "broadcast": keep,
        "broadcast_object_list": keep,
        "all_gather": gather,
        "all_gather_object": gather,
        "gather_object": gather_to_first,
    }
    alone = {
        "average_gradients": lambda network: nn.Identity(),
        "all_gather": lambda vectors: torch.cat([vectors, vectors]),
        "all_gather_numbers": lambda *numbers: [numbers, numbers],
    }
    with patch.multiple(dist, **stand_ins), patch.multiple(distributed, **alone):
        yield


def config_of(name, tiny, mnist_root):
    """Return a configuration that logs, saves, restarts and evaluates within 6 steps."""
    systems = tiny_systems(mnist_root)
    if name not in systems:
        return tiny
    config = systems[name]
    if name == "vqgan":
        return dataclasses.replace(config, prior=tiny.prior)
    return with_quantizer(config, restart_every=2)


# of a checkpoint that is read
@pytest.mark.filterwarnings("ignore:.*copying from a non-meta parameter")
@parametrize(
    "name", ["treevq", "vqvae2", "vqgan", "rqvae", "prior", "gpt", "progressive", "generation"]
)
def test_the_whole_loop(name, tiny, mnist_root, tmp_path, tmp_path_factory):
    config = config_of(name, tiny, mnist_root)
    kind = "prior" if name == "gpt" else name if name in TASKS else "autoencoder"
    path = tmp_path / "run"
    if kind != "autoencoder":
        trained_copy(tiny, tmp_path_factory, path)
    case = Case(kind, path, with_training(config, precision="fp32"))
    with gpu(), two_processes():
        for steps in (4, 6):
            few = f"max_steps={steps} log_every=1 checkpoint_every=2 evaluate_every=3"
            changes = GIVEN_GPT if name == "gpt" else {"prior.network.dropout": "0"}
            chosen = override(case.config(), changes | fields(case.section, few))
            outcome = case.train(config=chosen, resume=steps == 6)
            assert outcome.step == steps
    assert [record["step"] for record in case.records("evaluation")] == [3, 4, 6]
