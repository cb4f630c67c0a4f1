"""Compile functions with numba, keep the code on disk until its source changes, and run it on torch's threads.

numba's own cache watches one source file per function, although the functions that it calls and the constants that it
reads are compiled into it. Here the name of a cached file holds a digest of all source files of the function's folder.
So **a compiled function calls and reads only what lies in its own folder** (a test holds this).

numba's cache also keeps an index of numbered files, in which two processes can take the same number, and a torn index
or a full disk raises. So the two methods that read and write are replaced here.
"""

from __future__ import annotations

import ctypes
import hashlib
import inspect
import os
import pickle
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
from numba.core.caching import FunctionCache
from numba.core.serialize import dumps

from hrvqvae.utils.progress import told_once

Function = Callable[..., Any]
T = TypeVar("T")


@cache
def _digest_of(folder: Path) -> str:
    """Return a digest of a folder's source and of the compiler."""
    digest = hashlib.sha256(f"{numba.__version__} {llvmlite.__version__}".encode())
    for path in sorted(folder.glob("*.py")):
        source = path.read_bytes()
        digest.update(f"\n{path.name} {len(source)}\n".encode() + source)
    return digest.hexdigest()[:16]


class _Cache(FunctionCache):
    """One file per signature of a function. Whatever is wrong with a file or its folder, the function is compiled."""

    def __init__(self, function: Function) -> None:
        super().__init__(function)  # type: ignore[no-untyped-call]
        name = re.sub(r"[<>]", "", f"{function.__module__}.{function.__qualname__}")
        self._function = f"{name}-{sys.implementation.cache_tag}"
        self._current = f"{self._function}-{_digest_of(Path(inspect.getfile(function)).parent)}"

    def _path(self, signature: Any, codegen: Any) -> Path:
        key = repr(self._index_key(signature, codegen))  # type: ignore[no-untyped-call]
        return Path(self.cache_path, f"{self._current}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.nbc")

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Return the compiled code of a signature, or None."""
        target_context.refresh()
        with suppress(Exception):
            content = self._path(sig, target_context.codegen()).read_bytes()
            if hashlib.sha256(content[32:]).digest() == content[:32]:
                return self._impl.rebuild(target_context, pickle.loads(content[32:]))
        told_once("compiling for this processor (some seconds; later runs find the code on disk) ...")
        return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Write the compiled code of a signature, and remove the code of other versions of the source."""
        content = dumps(self._impl.reduce(data))  # type: ignore[no-untyped-call]
        with suppress(OSError):  # a full disk, or a folder that went
            path = self._path(sig, data.codegen)
            path.parent.mkdir(parents=True, exist_ok=True)
            with self._cache_file._open_for_write(str(path)) as stream:  # renamed when it is whole
                stream.write(hashlib.sha256(content).digest() + content)
            for old in path.parent.glob(f"{self._function}-*.nbc"):
                if not old.name.startswith(self._current):
                    old.unlink(missing_ok=True)


def compiled(**options: Any) -> Callable[[Function], Any]:
    """Return a decorator that has numba compile a function when it is first called, with options of `njit`.

    The interpreter's lock is released while the code runs, a division by zero raises nothing, and indices are not
    checked. `inline="always"` is for functions that only compiled functions call: that takes half as long to compile.
    """

    def compile_function(function: Function) -> Any:
        usual = {"nogil": True, "error_model": "numpy", "no_cfunc_wrapper": True}
        dispatcher: Any = numba.njit(**{**usual, **options})(function)
        with suppress(RuntimeError):  # no folder can be written: each process compiles for itself
            dispatcher._cache = _Cache(function)
        return dispatcher

    return compile_function


@cache
def _thread_team() -> Any:
    """Return the function of torch's OpenMP runtime that runs a callback on each of torch's threads, or None.

    Another pool would find no free core, because torch's threads spin for milliseconds after each operation. numba's
    threading layers can't be called from two threads at once, or end a process that forks afterwards.
    """
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
    """Note that this process was forked: it has none of its parent's threads, and would wait for them."""
    global _is_child
    _is_child = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_mark_child)


def in_parts(count: int, run: Callable[[int, int], T], *, one_thread_up_to: int = 1) -> list[T]:
    """Call run(first, last) for equal ranges of `count` items, on as many threads as torch uses; return the results.

    Args:
        run: A function that releases the interpreter's lock.
        one_thread_up_to: Up to this count, run(0, count) is called on this thread.
    """
    threads = min(torch.get_num_threads(), max(1, count))
    team = None if threads == 1 or count <= one_thread_up_to or _is_child else _thread_team()
    if team is None:
        return [run(0, count)]
    ranges = list(pairwise(count * part // threads for part in range(threads + 1)))
    results: dict[int, T] = {}
    tickets = iter(range(threads))
    errors: list[BaseException] = []

    def work(_: object) -> None:
        for ticket in tickets:  # each thread takes the ranges that no other thread has taken
            try:
                results[ticket] = run(*ranges[ticket])
            except BaseException as error:  # also Ctrl-C; it cannot pass through the OpenMP runtime
                errors.append(error)

    team(_CALLBACK(work), None, threads, 0)
    if errors:
        raise errors[0]
    return [results[ticket] for ticket in range(threads)]
