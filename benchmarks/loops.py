"""TreeVQ in training loops and wrappers that are not ours, on the CPU: what is left of the variance after training.

pip install accelerate ema-pytorch lightning timm
"""

from __future__ import annotations

import copy
import importlib
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint

from benchmarks.common import Row, as_script, finish, options
from hrvqvae.quantize.layer import TreeVQ

DIM, STEPS, DECAY = 8, 150, 0.9


class Model(nn.Module):
    """An autoencoder that is nearly the layer alone; its forward gives the loss."""

    def __init__(self, checkpointed: bool = False) -> None:
        super().__init__()
        self.checkpointed = checkpointed
        self.encoder, self.decoder = nn.Linear(DIM, DIM), nn.Linear(DIM, DIM)
        self.quantizer = TreeVQ(DIM, 4, 3, start_vectors=512)
        for linear in (self.encoder, self.decoder):
            nn.init.eye_(linear.weight)
            nn.init.zeros_(linear.bias)

    def through(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(values again, indices, loss of the layer)."""
        quantized, indices, loss = self.quantizer(self.encoder(x))
        return self.decoder(quantized), indices, loss

    def forward(self, x: Tensor) -> Tensor:
        found = checkpoint(self.through, x, use_reentrant=False) if self.checkpointed else self.through(x)
        values, _, loss = found
        return (values - x).square().mean() + loss


def batches(steps: int = STEPS, seed: int = 0) -> list[Tensor]:
    """(4, 64, D) each, around forty centres."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(40, DIM, generator=torch.Generator().manual_seed(9), dtype=torch.float32)
    chosen = torch.randint(40, (steps, 4, 64), generator=generator)
    return list(centres[chosen] + 0.1 * torch.randn(steps, 4, 64, DIM, generator=generator, dtype=torch.float32))


def train(model: nn.Module, after: Callable[[], object] = lambda: None, of: Iterable[Tensor] = ()) -> None:
    """The plain loop."""
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, eps=1e-4)  # of float16, too
    for x in of or batches():
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
    average: Any = AveragedModel(model, use_buffers=buffers, avg_fn=lambda a, m, _: a.lerp(m.to(a.dtype), 1 - DECAY))
    train(model, lambda: average.update_parameters(model))
    if not buffers:  # as the manual of torch says of batch normalization: buffers are to be taken over
        average.module.quantizer.load_state_dict(model.quantizer.state_dict())
    return average.module


def _module(name: str) -> Any:
    return importlib.import_module(name)


def _timm(version: str) -> Any:
    model = Model()
    average = getattr(_module("timm.utils"), f"ModelEma{version}")(model, decay=DECAY)
    train(model, lambda: average.update(model))
    return average.module


def _ema_pytorch() -> Any:
    model = Model()
    average = _module("ema_pytorch").EMA(model, beta=DECAY, update_after_step=0, update_every=1)
    train(model, average.update)
    return average.ema_model


def _accelerate() -> Any:
    accelerator = _module("accelerate").Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = Model()
    prepared, optimizer = accelerator.prepare(model, torch.optim.Adam(model.parameters(), 1e-3))
    for x in batches():
        with accelerator.accumulate(prepared):
            optimizer.zero_grad()
            accelerator.backward(prepared(x))
            optimizer.step()
    return accelerator.unwrap_model(prepared)


def _lightning() -> Any:
    lightning = _module("lightning")

    class Lit(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.model = Model()

        def training_step(self, x: Tensor, _: int) -> Any:
            return self.model(x)

        def validation_step(self, x: Tensor, _: int) -> None:
            self.model(x)

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters(), 1e-3)

    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    module = Lit()
    loaders: Any = [torch.utils.data.DataLoader(some, batch_size=None) for some in (batches(), batches(2, 1))]  # type: ignore[arg-type]
    lightning.Trainer(accelerator="cpu", max_epochs=1, enable_model_summary=False, **quiet).fit(module, *loaders)
    return module.model


def _compiled() -> Any:
    model = Model()
    train(torch.compile(model, backend="eager"))  # type: ignore[arg-type]
    return model


def _checkpointed() -> Any:
    model = Model(checkpointed=True)
    train(model)
    other = _plain()
    same = zip(model.quantizer.state_dict().values(), other.quantizer.state_dict().values(), strict=True)
    assert model.quantizer.steps == other.quantizer.steps, "statistics are taken once"
    assert all(torch.allclose(one, two, atol=0.05, rtol=0.05) for one, two in same)
    return model


def _default_dtype(dtype: torch.dtype) -> Any:
    torch.set_default_dtype(dtype)
    try:
        model = Model()
        train(model, of=[x.to(dtype) for x in batches()])
        assert {one.dtype for one in model.quantizer.state_dict().values()} == {torch.float32}
    finally:
        torch.set_default_dtype(torch.float32)
    return model.float()


def _copied() -> Any:
    model = Model()
    train(model, of=batches(20))
    other = copy.deepcopy(model)
    train(other, of=batches(STEPS)[20:])
    return other


def _other_process() -> Any:
    model = Model()
    train(model, of=batches(1))  # in the middle of the start
    code = (
        "import pickle, sys; from benchmarks import loops; model = pickle.load(sys.stdin.buffer); "
        "loops.train(model); sys.stdout.buffer.write(pickle.dumps(model))"
    )
    done = subprocess.run([sys.executable, "-c", code], input=pickle.dumps(model), capture_output=True, check=True)
    return pickle.loads(done.stdout)


LOOPS: dict[str, Callable[[], Any]] = {
    "plain loop": _plain, "AveragedModel, buffers too": partial(_swa, True), "AveragedModel": partial(_swa, False),
    "timm ModelEmaV2": partial(_timm, "V2"), "timm ModelEmaV3": partial(_timm, "V3"), "ema-pytorch": _ema_pytorch,
    "accelerate, accumulating 2": _accelerate, "Lightning, with validation": _lightning, "torch.compile": _compiled,
    "activation checkpointing": _checkpointed, "copy.deepcopy": _copied, "pickled to another process": _other_process,
    "default bfloat16": partial(_default_dtype, torch.bfloat16),
    "default float16": partial(_default_dtype, torch.float16),
    "default float64": partial(_default_dtype, torch.float64),
}  # fmt: skip


def measure(name: str) -> Row:
    """Row with loop, left (of the variance), used (leaves), or error."""
    torch.manual_seed(0)
    try:
        model = LOOPS[name]().eval()
        x = torch.cat(batches(8, 1))
        with torch.no_grad():
            values, indices, _ = model.through(x)
        leaves = model.quantizer.codeword_indices(indices)[..., -1].unique().numel()
        return {"loop": name, "left": float((values - x).square().mean() / x.var()), "used": leaves, "error": ""}
    except Exception as error:
        return {"loop": name, "error": f"{type(error).__name__}: {' '.join(str(error).split())[:90]}"}


COLUMNS = {"loop": "{loop}", "variance left": "{left:.4f}", "leaves of 64": "{used}", "error": "{error}"}


def main(argv: Sequence[str] | None = None) -> None:
    """Train in every loop."""
    arguments = options(__doc__).parse_args(argv)
    warnings.simplefilter("ignore")
    finish([measure(name) for name in LOOPS], COLUMNS, arguments.json)


if __name__ == "__main__":
    from benchmarks.loops import main as named  # so that pickles name this module

    as_script(named)
