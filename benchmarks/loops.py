"""TreeVQ in other training loops and wrappers, on the CPU: the unexplained share of the variance
after training.

pip install accelerate ema-pytorch lightning timm
python -m benchmarks.loops "DDP, 2 processes" Lightning
"""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from importlib import import_module
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    set_model_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.multiprocessing.spawn import start_processes
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint

from benchmarks.common import Row, as_script, finish, options
from hrvqvae.quantize.layer import TreeVQ

DIM = 8
STEPS = 150
DECAY = 0.9


class Model(nn.Module):
    """An autoencoder that is nearly the layer alone; its forward returns the loss."""

    def __init__(self, checkpointed: bool = False) -> None:
        super().__init__()
        self.checkpointed = checkpointed
        self.encoder = nn.Linear(DIM, DIM)
        self.decoder = nn.Linear(DIM, DIM)
        self.quantizer = TreeVQ(DIM, 4, 3, start_vectors=512)
        for linear in (self.encoder, self.decoder):
            nn.init.eye_(linear.weight)
            nn.init.zeros_(linear.bias)

    def reconstruct(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the reconstruction, the indices and the layer's loss."""
        quantized, indices, loss = self.quantizer(self.encoder(x))
        return self.decoder(quantized), indices, loss

    def forward(self, x: Tensor) -> Tensor:
        recomputed = partial(checkpoint, self.reconstruct, use_reentrant=False)
        values, _, loss = recomputed(x) if self.checkpointed else self.reconstruct(x)
        return (values - x).square().mean() + loss


def make_batches(steps: int = STEPS, seed: int = 0) -> list[Tensor]:
    """Return tensors (4, 64, D) around forty centres."""
    rng = torch.Generator().manual_seed(seed)
    centres = torch.randn(40, DIM, generator=torch.Generator().manual_seed(9), dtype=torch.float32)
    chosen = torch.randint(40, (steps, 4, 64), generator=rng)
    return list(
        centres[chosen] + 0.1 * torch.randn(steps, 4, 64, DIM, generator=rng, dtype=torch.float32)
    )


def train(
    model: nn.Module, after: Callable[[], object] = lambda: None, of: Iterable[Tensor] = ()
) -> None:
    """Train in a plain loop; call `after` after each step."""
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, eps=1e-4)  # an eps that float16 holds
    for x in of or make_batches():
        optimizer.zero_grad()
        model(x).backward()
        optimizer.step()
        after()


def _plain() -> Model:
    model = Model()
    train(model)
    return model


def _swa(buffers: bool) -> Any:
    model = Model()
    average: Any = AveragedModel(
        model, use_buffers=buffers, avg_fn=lambda a, m, _: a.lerp(m.to(a.dtype), 1 - DECAY)
    )
    train(model, lambda: average.update_parameters(model))
    if not buffers:  # as torch's manual says of batch normalization: copy the buffers
        average.module.quantizer.load_state_dict(model.quantizer.state_dict())
    return average.module


def _timm(version: str) -> Any:
    model = Model()
    average = getattr(import_module("timm.utils"), f"ModelEma{version}")(model, decay=DECAY)
    train(model, lambda: average.update(model))
    return average.module


def _ema_pytorch() -> Any:
    model = Model()
    average = import_module("ema_pytorch").EMA(
        model, beta=DECAY, update_after_step=0, update_every=1
    )
    train(model, average.update)
    return average.ema_model


def _accelerate() -> Any:
    accelerator = import_module("accelerate").Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = Model()
    prepared, optimizer = accelerator.prepare(model, torch.optim.Adam(model.parameters(), 1e-3))
    for x in make_batches():
        with accelerator.accumulate(prepared):
            optimizer.zero_grad()
            accelerator.backward(prepared(x))
            optimizer.step()
    return accelerator.unwrap_model(prepared)


def _lightning() -> Any:
    lightning: Any = import_module("lightning")

    class Lit(lightning.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = Model()

        def training_step(self, x: Tensor, _: int) -> Any:
            return self.model(x)

        def validation_step(self, x: Tensor, _: int) -> None:
            self.model(x)

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters(), 1e-3)

    quiet: dict[str, Any] = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
    }
    module = Lit()
    sets: Any = make_batches(), make_batches(2, 1)
    loaders = [torch.utils.data.DataLoader(samples, batch_size=None) for samples in sets]
    lightning.Trainer(accelerator="cpu", max_epochs=1, enable_model_summary=False, **quiet).fit(
        module, *loaders
    )
    return module.model


def _compiled() -> Any:
    model = Model()
    train(torch.compile(model, backend="eager"))  # type: ignore[arg-type]
    return model


def _checkpointed() -> Any:
    model = Model(checkpointed=True)
    train(model)
    states = [trained.quantizer.state_dict().values() for trained in (model, _plain())]
    for value, expected in zip(*states, strict=True):
        torch.testing.assert_close(value, expected, atol=1e-4, rtol=1e-4)
    return model


def _autocast() -> Any:
    model = Model()
    model.forward = torch.autocast("cpu", torch.bfloat16)(model.forward)  # type: ignore[method-assign]
    train(model)
    del model.forward
    return model


def _worker(rank: int, kind: str, folder: str) -> None:
    """Train in one of two processes, on half of each batch; the first process writes the state."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2
    )
    torch.manual_seed(0)
    model = Model()
    trained: nn.Module = model
    if kind == "DDP":
        trained = DistributedDataParallel(model)
    else:
        with torch.device("meta"):
            trained = model = Model()
        mesh = init_device_mesh("cpu", (2,))
        fully_shard(model.encoder, mesh=mesh)
        fully_shard(model.decoder, mesh=mesh)
        fully_shard(model, mesh=mesh)
        model.to_empty(device="cpu")
        model.quantizer.reset_parameters()
        start = {
            name: value
            for name, value in Model().state_dict().items()
            if not name.startswith("quantizer.")
        }
        set_model_state_dict(
            model, start, options=StateDictOptions(full_state_dict=True, strict=False)
        )
    train(trained, of=[x.chunk(2)[rank] for x in make_batches()])
    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    if rank == 0:
        torch.save(state, f"{folder}/state.pt")
    distributed.destroy_process_group()


def _two_processes(kind: str) -> Any:
    model = Model()
    with TemporaryDirectory() as folder:
        start_processes(_worker, (kind, folder), nprocs=2, start_method="spawn")  # type: ignore[no-untyped-call]
        model.load_state_dict(torch.load(f"{folder}/state.pt"))
    return model


def _default_dtype(dtype: torch.dtype) -> Any:
    torch.set_default_dtype(dtype)
    try:
        model = Model()
        train(model, of=[x.to(dtype) for x in make_batches()])
        assert {value.dtype for value in model.quantizer.state_dict().values()} == {torch.float32}
    finally:
        torch.set_default_dtype(torch.float32)
    return model.float()


def _copied() -> Any:
    model = Model()
    train(model, of=make_batches(20))
    other = copy.deepcopy(model)
    train(other, of=make_batches(STEPS)[20:])
    return other


def _other_process() -> Any:
    model = Model()
    train(model, of=make_batches(1))  # in the middle of the start
    code = (
        "import pickle, sys; from benchmarks import loops; model = pickle.load(sys.stdin.buffer); "
        "loops.train(model); sys.stdout.buffer.write(pickle.dumps(model))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=pickle.dumps(model), capture_output=True, check=True
    )
    return pickle.loads(done.stdout)


LOOPS: dict[str, Callable[[], Any]] = {
    "plain loop": _plain,
    "AveragedModel, buffers too": partial(_swa, True),
    "AveragedModel": partial(_swa, False),
    "timm ModelEmaV2": partial(_timm, "V2"),
    "timm ModelEmaV3": partial(_timm, "V3"),
    "ema-pytorch": _ema_pytorch,
    "accelerate, accumulating 2": _accelerate,
    "Lightning, with validation": _lightning,
    "torch.compile": _compiled,
    "activation checkpointing": _checkpointed,
    "autocast, bfloat16": _autocast,
    "DDP, 2 processes": partial(_two_processes, "DDP"),
    "FSDP2 by meta, 2 processes": partial(_two_processes, "FSDP2"),
    "copy.deepcopy": _copied,
    "pickled to another process": _other_process,
    "default bfloat16": partial(_default_dtype, torch.bfloat16),
    "default float16": partial(_default_dtype, torch.float16),
    "default float64": partial(_default_dtype, torch.float64),
}


def measure(name: str) -> Row:
    """Return a row with loop, left (of the variance) and used (leaves), or error."""
    torch.manual_seed(0)
    try:
        model = LOOPS[name]().eval()
        x = torch.cat(make_batches(8, 1))
        with torch.no_grad():
            values, indices, _ = model.reconstruct(x)
        used = len(torch.unique(indices.flatten(0, -2), dim=0))
        return {
            "loop": name,
            "left": float((values - x).square().mean() / x.var()),
            "used": used,
            "error": "",
        }
    except Exception as error:
        return {
            "loop": name,
            "error": f"{type(error).__name__}: {' '.join(str(error).split())[:90]}",
        }


COLUMNS = {
    "loop": "{loop}",
    "variance left": "{left:.4f}",
    "leaves of 64": "{used}",
    "error": "{error}",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Train in the loops that are named."""
    parser = options(__doc__)
    parser.add_argument(
        "loops", nargs="*", metavar="NAME", help=f"{', '.join(LOOPS)} (default: all)"
    )
    arguments = parser.parse_args(argv)
    if unknown := set(arguments.loops) - set(LOOPS):
        parser.error(f"there is no loop {', '.join(sorted(unknown))}; there are {', '.join(LOOPS)}")
    warnings.simplefilter("ignore")
    finish([measure(name) for name in arguments.loops or LOOPS], COLUMNS, arguments.json)


if __name__ == "__main__":
    from benchmarks.loops import main as run  # so that pickles name this module

    as_script(run)
