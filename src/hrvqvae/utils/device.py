"""Where and how tensors are computed: device, precision, memory format."""

import sys
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
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(str(name))
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise InputError(f"device is {name!r}; it must be auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(
            f"device is {name!r}, but there are {torch.cuda.device_count()} GPUs here; use"
            " --device cpu"
        )
    return device


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
    dtype = torch.get_default_dtype()
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))  # this enables gradients too
        # A device context slows each operation, so it is entered only where it is needed.
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                # With its cache, autocast would keep old weights while a training changes them.
                autocast = torch.autocast(device, enabled=False, cache_enabled=False)
                stack.enter_context(autocast)
        stack.callback(torch.set_default_dtype, dtype)
        torch.set_default_dtype(torch.float32)
        yield


@contextmanager
def exact_float32() -> Iterator[None]:
    """Compute float32 convolutions and matrix products without TF32, to which a GPU may round their
    inputs.
    """
    matmul = torch.backends.cuda.matmul
    cudnn = torch.backends.cudnn
    settings = (
        (matmul, "allow_tf32", False),
        (cudnn, "allow_tf32", False),
        (matmul, "fp32_precision", "ieee"),
        (getattr(cudnn, "conv", None), "fp32_precision", "ieee"),
    )
    # Keep the values of the settings that can be read. torch has fp32_precision from 2.9 on; once
    # that is set, to read allow_tf32 or the precision of matrix products is an error.
    previous = []
    for target, name, exact in settings:
        with suppress(AttributeError, RuntimeError):
            previous.append((target, name, getattr(target, name), exact))
    precision = ""
    with suppress(RuntimeError):
        precision = torch.get_float32_matmul_precision()
    try:
        for target, name, _, exact in previous:
            setattr(target, name, exact)
        yield
    finally:
        for target, name, value, _ in previous:
            setattr(target, name, value)
        if precision == "medium":  # setting allow_tf32 to true has made this "high"
            torch.set_float32_matmul_precision(precision)


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

    def peak_bytes(self) -> int:
        """Return the peak memory in bytes: of the tensors on a GPU, or of the process on the CPU (0
        on Windows).
        """
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        if sys.platform == "win32":
            return 0
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024

    def autocast(self) -> AbstractContextManager[Any]:
        """Compute convolutions in bfloat16, if this is the precision; losses and quantizers stay in
        float32.
        """
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16)
