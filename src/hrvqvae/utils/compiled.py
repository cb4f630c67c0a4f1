"""Compiled functions, kept on disk until the source that they were compiled from changes, and torch's threads for them.

numba's cache watches the file of a function alone, though what it calls and the constants that it reads in other files
are compiled into it: after a change of those the old code would run on, and no test would tell. Here the name of a
cached file holds a digest of all source files of the function's folder, and **what a compiled function calls and reads
lies in its own folder** (a test holds this).
"""

from __future__ import annotations

import ctypes
import hashlib
import inspect
import os
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import llvmlite
import numba
import torch
from numba.core.caching import FunctionCache, IndexDataCacheFile

from hrvqvae.utils.progress import waiting

Function = Callable[..., Any]
T = TypeVar("T")


@cache
def _digest_of(folder: Path) -> str:
    """Of all that code of a folder depends on, but for the types of what it is called with and the processor."""
    found = hashlib.sha256(f"{numba.__version__} {llvmlite.__version__}".encode())
    for path in sorted(folder.glob("*.py")):
        source = path.read_bytes()
        found.update(f"\n{path.name} {len(source)}\n".encode() + source)
    return found.hexdigest()[:16]


@cache
def _say_once() -> None:
    waiting("compiling for this processor; later runs find it on disk")


class _Files(IndexDataCacheFile):
    """A file for each signature of a function, named after all that its code depends on.

    numba keeps an index of numbered files instead. Two processes that add to it at once can both take the same number,
    and a later one then finds the code of another signature.
    """

    def __init__(self, folder: str, function: Function) -> None:
        name = re.sub(r"[<>]", "", f"{function.__module__}.{function.__qualname__}")
        self._function = f"{name}-{sys.implementation.cache_tag}"
        digest = _digest_of(Path(inspect.getfile(function)).parent)
        self._current = f"{self._function}-{digest}"
        super().__init__(folder, self._current, digest)  # type: ignore[no-untyped-call]

    def _name(self, key: object) -> str:
        return f"{self._current}-{hashlib.sha256(repr(key).encode()).hexdigest()[:16]}.nbc"

    def load(self, key: object) -> Any:
        try:
            return self._load_data(self._name(key))  # type: ignore[no-untyped-call]
        except FileNotFoundError:
            _say_once()
            return None

    def save(self, key: object, data: Any) -> None:
        self._save_data(self._name(key), data)  # type: ignore[no-untyped-call]  # to a temporary name, then renamed
        for path in Path(self._cache_path).glob(f"{self._function}-*.nbc"):
            if not path.name.startswith(self._current):
                path.unlink(missing_ok=True)


def compiled(**options: Any) -> Callable[[Function], Any]:
    """Have numba compile a function when it is first called, and keep the code on disk for later processes.

    Args:
        options: as numba's `njit`, without `cache`. The interpreter's lock is released while the code runs, and a
            division by zero raises nothing.
    """

    def compile_function(function: Function) -> Any:
        dispatcher: Any = numba.njit(nogil=True, **{"error_model": "numpy", **options})(function)
        with suppress(RuntimeError):  # no folder can be written: each process compiles for itself
            found = FunctionCache(function)  # type: ignore[no-untyped-call]
            found._cache_file = _Files(found._cache_path, function)
            dispatcher._cache = found
        return dispatcher

    return compile_function


# On torch's own threads


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
