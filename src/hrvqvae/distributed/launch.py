"""Join the processes that torchrun started, and leave them."""

import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from datetime import timedelta
from typing import Any

import torch
from torch import distributed as dist
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from hrvqvae.utils.errors import InputError

TIMEOUT = timedelta(minutes=30)  # longest wait for another process; its end is noticed at once


@contextmanager
def process_group() -> Iterator[None]:
    """Join the processes that torchrun started, if any, and leave them at the end.

    The backend is NCCL if each process of this machine has a GPU, chosen by LOCAL_RANK; otherwise
    it is gloo. Only rank 0 prints. A single process reports an error, such as the end of another;
    the others exit with code 2.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1 or dist.is_initialized():
        yield
        return
    backend = "gloo"
    if torch.cuda.is_available():
        devices = torch.cuda.device_count()
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % devices)
        if int(os.environ.get("LOCAL_WORLD_SIZE", size)) <= devices:
            backend = "cpu:gloo,cuda:nccl"
    store: Any = None
    try:
        common, rank, size = next(rendezvous("env://", timeout=TIMEOUT))
        # the store of torchrun outlives a restart, with the keys of earlier processes
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = PrefixStore(f"attempt-{attempt}", common)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=TIMEOUT)
        with ExitStack() as stack:
            if rank:  # only rank 0 prints
                devnull = stack.enter_context(open(os.devnull, "w"))  # noqa: PTH123
                stack.enter_context(redirect_stdout(devnull))
                stack.enter_context(redirect_stderr(devnull))
            yield
        # rank 0 evaluates and plots last; gloo would abort the other processes if they left earlier
        dist.barrier()
        _wait_for_all(store, size)
        dist.destroy_process_group()
    except Exception as error:
        # torchrun ends the other processes; report first
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        reports = 1
        with suppress(Exception):  # there is no store, or its machine is gone
            reports = store.add("reports", 1)
        if reports > 1:
            sys.exit(2)
        if _is_lost(error):
            raise InputError(
                "another process of this training has ended or can't be reached; "
                "what the newest checkpoint holds is kept, and --resume goes on from it"
            ) from error
        raise


def _wait_for_all(store: Any, size: int) -> None:
    """Wait until all processes have left the barrier: gloo aborts a process in it when another
    process closes.
    """
    deadline = time.monotonic() + 10
    with suppress(Exception):  # the machine that keeps the store is gone
        left = store.add("left", 1)
        while left < size and time.monotonic() < deadline:
            time.sleep(0.01)
            left = store.add("left", 0)


def _is_lost(error: Exception) -> bool:
    """Return whether an error of torch means that a process has ended."""
    if isinstance(error, dist.DistError):
        return True
    return isinstance(error, RuntimeError) and re.search("gloo|peer|NCCL", str(error)) is not None
