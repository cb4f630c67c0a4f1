"""Compile functions with numba, keep the code on disk until its source changes, and run it on
torch's threads.

The compiled code of a function includes the functions that it calls and the constants that it
reads. Yet numba's own cache watches a single source file per function. Here it watches all source
files in the function's folder. So **a compiled function uses only functions and constants of its
own folder**.
"""

import ctypes
import hashlib
import inspect
import os
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import llvmlite
import numba
import torch
from numba.core.caching import FunctionCache

from hrvqvae.utils.progress import note_once

Function = Callable[..., Any]
T = TypeVar("T")


@cache
def _digest_sources(folder: Path) -> str:
    """Return a digest of the source files in a folder and the versions of the compiler."""
    digest = hashlib.sha256(f"{numba.__version__} {llvmlite.__version__}".encode())
    for path in sorted(folder.glob("*.py")):
        source = path.read_bytes()
        digest.update(f"\n{path.name} {len(source)}\n".encode() + source)
    return digest.hexdigest()[:16]


class _Cache(FunctionCache):
    """numba's cache, whose stamp covers the folder of a function. A cache that can't be read or
    written stops nothing: the function is compiled.
    """

    def __init__(self, function: Function) -> None:
        super().__init__(function)  # type: ignore[no-untyped-call]
        folder = Path(inspect.getfile(function)).parent
        self._cache_file._source_stamp = _digest_sources(folder)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Return the compiled code of a signature, or None."""
        loaded = None
        with suppress(Exception):
            loaded = super().load_overload(sig, target_context)  # type: ignore[no-untyped-call]
        if loaded is None:
            note_once(
                "compiling for this processor (some seconds; later runs find the code on disk) ..."
            )
        return loaded

    def save_overload(self, sig: Any, data: Any) -> None:
        """Write the compiled code of a signature."""
        with suppress(Exception):
            super().save_overload(sig, data)  # type: ignore[no-untyped-call]


def compiled(**options: Any) -> Callable[[Function], Any]:
    """Return a decorator that compiles a function with numba at its first call.

    The compiled code releases the interpreter's lock, raises nothing on division by zero, and does
    not check indices.
    """
    options |= {"nogil": True, "error_model": "numpy", "no_cfunc_wrapper": True}

    def compile_function(function: Function) -> Any:
        dispatcher: Any = numba.njit(**options)(function)
        # If no folder can be written, each process compiles the function.
        with suppress(RuntimeError):
            dispatcher._cache = _Cache(function)
        return dispatcher

    return compile_function


inlined = compiled(inline="always")
"""For functions that only compiled functions call: halves the time of compilation."""


@cache
def _load_team_runner() -> Any:
    """Return the function of torch's OpenMP runtime that runs a callback on each of torch's
    threads, or None.
    """
    # Threads of another pool would find no free core: torch's threads spin for milliseconds after
    # each operation. numba's threading layers are no way either: some can't be called from two
    # threads at once, and with the others a process that forks afterwards is ended.
    for name in ("libtorch_cpu.so", "libtorch_cpu.dylib"):
        try:
            call = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / name)).GOMP_parallel
        except (OSError, AttributeError):
            continue
        call.argtypes = [_CALLBACK, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        call.restype = None
        return call
    return None


_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_is_child = False


def _mark_child() -> None:
    """Record that this process was forked. It has no copy of torch's threads, and would wait for
    them forever.
    """
    global _is_child
    _is_child = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_mark_child)


def in_parts(count: int, run: Callable[[int, int], T], *, one_thread_up_to: int = 1) -> list[T]:
    """Call run(first, last) for equal ranges of `count` items on torch's threads, and return the
    results in order.

    For counts up to `one_thread_up_to`, run(0, count) is called on the calling thread alone.
    """
    threads = min(torch.get_num_threads(), max(1, count))
    is_alone = threads == 1 or count <= one_thread_up_to or _is_child
    run_on_team = None if is_alone else _load_team_runner()
    if run_on_team is None:
        return [run(0, count)]
    ranges = list(pairwise(count * index // threads for index in range(threads + 1)))
    results: dict[int, T] = {}
    errors: list[BaseException] = []
    # The threads share this iterator: each takes the next range until none is left.
    indices = iter(range(threads))

    def work(_: object) -> None:
        for index in indices:
            try:
                results[index] = run(*ranges[index])
            # No exception can pass through the OpenMP runtime, not even Ctrl-C.
            except BaseException as error:
                errors.append(error)

    run_on_team(_CALLBACK(work), None, threads, 0)
    if errors:
        raise errors[0]
    return [results[index] for index in range(threads)]
