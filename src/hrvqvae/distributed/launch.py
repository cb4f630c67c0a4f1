"""How processes that torchrun started come together, and how they end."""

from __future__ import annotations

import os
import platform
import signal
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from datetime import timedelta
from typing import Any

import torch
from torch import distributed as dist
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from hrvqvae.distributed import all_gather_numbers, on_rank_zero
from hrvqvae.utils.errors import InputError

TIMEOUT = timedelta(minutes=30)  # for which the others are waited for; those that end are noticed at once


@contextmanager
def process_group() -> Iterator[None]:
    """Join the processes that torchrun started, where it did; leave them at the end.

    GPUs talk by NCCL where each process of this machine has one, by LOCAL_RANK; else all talk by gloo. Only rank 0
    prints. Where an error ends all of them one process tells it; the others exit with code 2. Raises InputError where
    another process has ended.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1 or "RANK" not in os.environ or dist.is_initialized():
        yield
        return
    backend = "gloo"
    if torch.cuda.is_available():
        devices, local = torch.cuda.device_count(), int(os.environ.get("LOCAL_RANK", "0"))
        torch.cuda.set_device(local % devices)
        backend = "cpu:gloo,cuda:nccl" if int(os.environ.get("LOCAL_WORLD_SIZE", size)) <= devices else backend
    store = None
    try:
        common, number, size = next(rendezvous("env://", timeout=TIMEOUT))
        store = PrefixStore(_name_of_these(common, number, size), common)
        dist.init_process_group(backend, store=store, rank=number, world_size=size, timeout=TIMEOUT)
        with ExitStack() as stack:
            if number:  # only rank 0 prints
                nowhere = stack.enter_context(open(os.devnull, "w"))  # noqa: PTH123
                stack.enter_context(redirect_stdout(nowhere))
                stack.enter_context(redirect_stderr(nowhere))
            yield
        dist.barrier()  # rank 0 ends last: it evaluates and draws, and a process that left before it has been aborted
        _wait_for_all(store, size)
        dist.destroy_process_group()
    except Exception as error:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun ends those that are left: the line is told before
        if store is not None and not _tells(store):
            sys.exit(2)
        if _is_lost(error):
            raise InputError(
                "another process of this training has ended or can't be reached; "
                "what the newest checkpoint holds is kept, and --resume goes on from it"
            ) from error
        raise


def _name_of_these(store: Any, number: int, size: int) -> str:
    """A new name for the processes that come together now.

    torchrun keeps one store for all its restarts, with what earlier processes wrote. So each of the others asks under a
    random word, and rank 0 answers until all have the name.
    """
    word = uuid.uuid4().hex
    if number:
        store.set(f"asks/{number}", word)
        name: str = store.get(f"answer/{word}").decode()
        store.set(f"heard/{name}/{number}", "")
        return name
    missing, ends = set(range(1, size)), time.monotonic() + TIMEOUT.total_seconds()
    while missing:
        for other in sorted(missing):
            if store.check([f"asks/{other}"]):
                store.set(f"answer/{store.get(f'asks/{other}').decode()}", word)
        missing = {other for other in missing if not store.check([f"heard/{word}/{other}"])}
        if time.monotonic() > ends:
            raise InputError(f"{len(missing)} of {size} processes have not come; start the training again")
        time.sleep(0.01)
    return word


def _wait_for_all(store: Any, size: int) -> None:
    """Wait until all have left the barrier: gloo aborts a process that is still in it when another closes."""
    ends = time.monotonic() + 10
    with suppress(Exception):  # the machine that kept the store is gone
        here = store.add("left", 1)
        while here < size and time.monotonic() < ends:
            time.sleep(0.01)
            here = store.add("left", 0)


def _tells(store: Any) -> bool:
    """Whether this process is the first that has an error to tell."""
    try:
        return bool(store.add("told", 1) == 1)
    except Exception:  # the machine that kept the store is gone
        return True


def _is_lost(error: Exception) -> bool:
    """Whether an error of torch means that a process has ended. Gloo's errors have no class of their own."""
    said = str(error)
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and ("gloo" in said or "peer" in said or "NCCL" in said)
    )


def is_restarted(began: Callable[[], bool]) -> bool:
    """Whether torchrun started these processes to go on with a training of processes that have ended.

    torchrun does not count it as a restart when machines come or go; then the name of the job tells. `began`, called in
    rank 0, tells whether the run bears the mark of this job already (`job_id`).
    """
    named = os.environ.get("TORCHELASTIC_RUN_ID", "none") != "none"
    count = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    restarted = any(restarts for (restarts,) in all_gather_numbers(count))
    return (named or restarted) and on_rank_zero(began)


def job_id() -> str:
    """A mark of this training that torchrun's restarts share; empty where torchrun did not start it.

    That is the name given by --rdzv-id, which outlives a machine's loss, or else the number of torchrun's process.
    """
    name = os.environ.get("TORCHELASTIC_RUN_ID", "")
    return f"{platform.node()} {os.getppid()}" if name == "none" else name
