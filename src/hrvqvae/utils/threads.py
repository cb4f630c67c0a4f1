"""Compiled code on torch's own threads."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import torch

T = TypeVar("T")


@cache
def _team() -> Any:
    """The function of torch's OpenMP runtime that calls a callback on each of torch's threads; None without one.

    Not a pool of our own: torch's threads keep spinning on their cores for milliseconds after each of its operations,
    so that a thread of another pool finds none. Nor numba's layers: they can't be called from two threads at once
    (workqueue), or end a process that forks afterwards (OpenMP), which loading images with workers does.
    """
    for name in ("libtorch_cpu.so", "libtorch_cpu.dylib"):
        try:
            call = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / name)).GOMP_parallel
        except (OSError, AttributeError):
            continue
        call.argtypes = [_MEMBER, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        call.restype = None
        return call
    return None


_MEMBER = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_is_child = False


def _after_fork() -> None:
    """A forked child has none of its parent's threads, and would wait for them."""
    global _is_child
    _is_child = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def in_parts(count: int, run: Callable[[int, int], T], *, alone: int = 1) -> list[T]:
    """run(first, last) for equal parts of `count` things, on as many threads as torch uses.

    Args:
        run: code that releases the interpreter's lock.
        alone: so few things take one thread.
    """
    threads = min(torch.get_num_threads(), max(1, count))
    team = None if threads == 1 or count <= alone or _is_child else _team()
    if team is None:
        return [run(0, count)]
    parts = list(pairwise(count * part // threads for part in range(threads + 1)))
    results: dict[int, T] = {}
    tickets = iter(range(threads))
    errors: list[BaseException] = []

    def member(_: object) -> None:
        for part in tickets:  # each thread takes the parts that no other has taken
            try:
                results[part] = run(*parts[part])
            except BaseException as error:  # it can't cross the runtime that called; Ctrl-C comes here as well
                errors.append(error)

    team(_MEMBER(member), None, threads, 0)
    if errors:
        raise errors[0]
    return [results[part] for part in range(threads)]
