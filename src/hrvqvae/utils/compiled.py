"""Compile functions with numba, keep the code on disk until its source changes, and run it on
torch's threads.

The compiled code of a function includes the functions that it calls and the constants that it
reads. Yet numba's own cache watches a single source file per function. Here it watches all source
files in the function's folder. So **a compiled function uses only functions and constants of its
own folder**.
"""

import ctypes
import inspect
import os
import zlib
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import numba
import torch
from numba.core.caching import FunctionCache

from hrvqvae.utils.progress import note_once

Function = Callable[..., Any]
T = TypeVar("T")


@cache
def _list_sources(folder: Path) -> list[tuple[str, int]]:
    """Return the names and checksums of the source files in a folder."""
    return [(path.name, zlib.crc32(path.read_bytes())) for path in sorted(folder.glob("*.py"))]


class _Cache(FunctionCache):
    """numba's cache, which is made anew when any source file in the folder of a function has
    changed.
    """

    def __init__(self, function: Function) -> None:
        super().__init__(function)  # type: ignore[no-untyped-call]
        folder = Path(inspect.getfile(function)).parent
        self._cache_file._source_stamp = _list_sources(folder)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Return the compiled code of a signature, or None."""
        try:
            loaded = super().load_overload(sig, target_context)  # type: ignore[no-untyped-call]
        except Exception:  # a damaged file
            loaded = None
            self.flush()  # type: ignore[no-untyped-call]
        if loaded is None:
            note_once(
                "compiling for this processor (some seconds; later runs find the code on disk) ..."
            )
        return loaded


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


_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_PROCESS = os.getpid()


@cache
def _load_team_runner() -> Any:
    """Return the function of torch's OpenMP runtime that runs a callback on each of torch's
    threads; None if torch has another runtime.
    """
    # Threads of another pool would find no free core: torch's threads spin for milliseconds after
    # each operation. numba's threading layers are no way either: some can't be called from two
    # threads at once, and with the others a process that forks afterwards is ended.
    try:
        call = ctypes.CDLL(torch._C.__file__).GOMP_parallel
    except AttributeError:
        return None
    call.argtypes = [_CALLBACK, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    call.restype = None
    return call


def in_parts(count: int, run: Callable[[int, int], T], *, one_thread_up_to: int = 1) -> list[T]:
    """Call run(first, last) for equal ranges of `count` items on torch's threads, and return the
    results in order.

    For counts up to `one_thread_up_to`, run(0, count) is called on the calling thread alone.
    """
    threads = min(torch.get_num_threads(), max(1, count))
    run_on_team = _load_team_runner()
    # A process that was forked has no copy of torch's threads, and would wait for them forever.
    is_child = os.getpid() != _PROCESS
    if run_on_team is None or is_child or threads == 1 or count <= one_thread_up_to:
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
