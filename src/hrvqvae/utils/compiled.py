"""Compiled functions, kept on disk until the source that they were compiled from changes.

numba's cache watches the file of a function alone, though what it calls and the constants that it reads in other files
are compiled into it: after a change of those the old code would run on, and no test would tell. Here the name of a
cached file holds a digest of all source files of the function's folder, and **what a compiled function calls and reads
lies in its own folder** (a test holds this).
"""

from __future__ import annotations

import hashlib
import inspect
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import llvmlite
import numba
from numba.core.caching import FunctionCache, IndexDataCacheFile

from hrvqvae.utils.progress import waiting

Function = Callable[..., Any]


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
