"""Where and how tensors are computed: device, precision, memory format."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from hrvqvae.utils.errors import InputError

M = TypeVar("M", bound=nn.Module)


def resolve_device(name: str | torch.device) -> torch.device:
    """Return a device by name; auto is a GPU if there is one, else the CPU. Raises InputError if it
    does not exist.
    """
    gpus = torch.cuda.device_count()
    if name == "auto":
        name = "cuda" if gpus else "cpu"
    with suppress(RuntimeError):  # torch knows no such device
        device = torch.device(name)
        if device.type == "cpu" or (device.type == "cuda" and (device.index or 0) < gpus):
            return device
    raise InputError(
        f"device is {str(name)!r}; it must be auto, cpu, cuda or cuda:N, and there are {gpus} GPUs"
        " here; use --device cpu"
    )


def decide_device(config: Any) -> str:
    """Return the type of the device, cpu or cuda, of a `config.StageConfig`."""
    return resolve_device(config.device).type


def decide_precision(config: Any) -> str:
    """Return the precision, bf16 or fp32, that "auto" stands for on the device of a
    `config.StageConfig`.
    """
    return "bf16" if computes_bf16(resolve_device(config.device)) else "fp32"


def computes_bf16(device: torch.device) -> bool:
    """Return whether a device multiplies bfloat16 in hardware: a CPU with AVX-512 BF16 or AMX, a
    GPU from Ampere on.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


@contextmanager
def torch_defaults() -> Iterator[None]:
    """Compute with torch's own defaults, whatever a caller has set: float32, CPU, gradients, no
    autocast."""
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))  # this enables gradients too
        # A device context slows each operation, so it is entered only where it is needed.
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        # With its cache, autocast would keep old weights while a training changes them.
        for device in ("cpu", "cuda"):
            stack.enter_context(torch.autocast(device, enabled=False, cache_enabled=False))
        stack.callback(torch.set_default_dtype, torch.get_default_dtype())
        torch.set_default_dtype(torch.float32)
        yield


@contextmanager
def exact_float32() -> Iterator[None]:
    """Compute float32 convolutions and matrix products without TF32, to which a GPU may round their
    inputs.
    """
    matmul = torch.backends.cuda.matmul
    cudnn = torch.backends.cudnn
    # torch has fp32_precision from 2.9 on, and raises an error unless both names agree
    settings = (
        (matmul, "fp32_precision", "ieee"),
        (getattr(cudnn, "conv", None), "fp32_precision", "ieee"),
        (matmul, "allow_tf32", False),
        (cudnn, "allow_tf32", False),
    )
    with ExitStack() as stack:
        # all values are read before the first is set: the others can't be read then
        with suppress(RuntimeError):
            precision = torch.get_float32_matmul_precision()
            if precision == "medium":
                stack.callback(torch.set_float32_matmul_precision, precision)
        for target, name, _ in settings:
            with suppress(AttributeError, RuntimeError):
                stack.callback(setattr, target, name, getattr(target, name))
        # `allow_tf32` first, because it changes `fp32_precision`
        for target, name, exact in reversed(settings):
            with suppress(AttributeError):
                setattr(target, name, exact)
        yield


class Compute:
    """Device, precision and memory format of a `config.StageConfig`, with "auto" fields resolved
    for this machine.
    """

    def __init__(self, config: Any) -> None:
        self.device = resolve_device(config.device)
        is_auto = config.precision == "auto"
        self.precision: str = decide_precision(config) if is_auto else config.precision
        self.bf16 = self.precision == "bf16"
        channels_last = config.memory_format == "channels_last"
        self._format = torch.channels_last if channels_last else torch.contiguous_format

    def place_model(self, model: M) -> M:
        """Move a model to the device, and its 4-dimensional weights to the memory format."""
        model.to(self.device)
        return model.to(memory_format=self._format)  # type: ignore[call-overload]

    def place_images(self, images: Tensor) -> Tensor:
        """Return images (B, C, Y, X) on the device, in the memory format."""
        return images.to(self.device, memory_format=self._format, non_blocking=True)

    def autocast(self) -> AbstractContextManager[Any]:
        """Compute convolutions in bfloat16, if this is the precision; losses and quantizers stay in
        float32.
        """
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16)
