"""Compiled functions, kept on disk until the source that they were compiled from changes.

numba's own cache of a function watches the file of that function alone. What it calls in other files is compiled into
it, and so are the constants it reads there: after a change of those the old code would run on. Here the name of a
cached file holds a digest of the function's file and of all that it imports from its own package and from this one,
file after file, so that other source finds no compiled code and is compiled.
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


_IMPORT = re.compile(r"^[ \t]*(?:from|import)[ \t]+([\w.]+)(?:[ \t]+import[ \t]+(\([^)]*\)|.+))?", re.MULTILINE)


@cache
def _file_of(module: str) -> Path | None:
    """The source file of a module whose package is imported."""
    package, *names = module.split(".")
    for folder in getattr(sys.modules.get(package), "__path__", ()):
        place = Path(folder, *names)
        for path in (place.with_suffix(".py"), place / "__init__.py"):
            if path.is_file():
                return path
    return None


@cache
def _imports_of(path: Path, packages: tuple[str, ...]) -> list[Path]:
    """Files of those packages that a source file imports from. Import statements are written with whole names."""
    found = set[Path]()
    for module, names in _IMPORT.findall(path.read_text(encoding="utf-8")):
        if module.partition(".")[0] in packages:
            candidates = [module, *(f"{module}.{name}" for name in re.findall(r"\w+", names))]
            found.update(file for file in map(_file_of, candidates) if file is not None)
    return sorted(found)


def sources_of(function: Function) -> list[Path]:
    """The file of a function and all that it imports, directly or not, from its package or from this one."""
    packages = (function.__module__.partition(".")[0], __name__.partition(".")[0])
    found, left = set[Path](), [Path(inspect.getfile(function))]
    while left:
        path = left.pop()
        if path not in found:
            found.add(path)
            left += _imports_of(path, packages)
    return sorted(found)


def _digest_of(function: Function) -> str:
    """Of all that its compiled code depends on, but for the types of what it is called with and the processor."""
    found = hashlib.sha256(f"{numba.__version__} {llvmlite.__version__}".encode())
    for path in sources_of(function):
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
        module = re.sub(r"[<>]", "", f"{function.__module__}.{function.__qualname__}")
        self._function, self._digest = f"{module}-{sys.implementation.cache_tag}", _digest_of(function)
        super().__init__(folder, f"{self._function}-{self._digest}", self._digest)  # type: ignore[no-untyped-call]

    def _name(self, key: object) -> str:
        return f"{self._function}-{self._digest}-{hashlib.sha256(repr(key).encode()).hexdigest()[:16]}.nbc"

    def load(self, key: object) -> Any:
        try:
            return self._load_data(self._name(key))  # type: ignore[no-untyped-call]
        except FileNotFoundError:
            _say_once()
            return None

    def save(self, key: object, data: Any) -> None:
        self._save_data(self._name(key), data)  # type: ignore[no-untyped-call]  # to a temporary name, then renamed
        for path in self._of_function():
            if not path.name.startswith(f"{self._function}-{self._digest}-"):
                path.unlink(missing_ok=True)

    def flush(self) -> None:
        for path in self._of_function():
            path.unlink(missing_ok=True)

    def _of_function(self) -> list[Path]:
        return list(Path(self._cache_path).glob(f"{self._function}-*.nbc"))


class _Cache(FunctionCache):
    """numba's cache of a function, with files as above."""

    def __init__(self, function: Function) -> None:
        super().__init__(function)  # type: ignore[no-untyped-call]
        self._cache_file = _Files(self._cache_path, function)


def cache_folder(dispatcher: Any) -> Path | None:
    """Where the code of a compiled function is kept; None where no folder can be written."""
    return Path(dispatcher._cache.cache_path) if isinstance(dispatcher._cache, _Cache) else None


def compiled(**options: Any) -> Callable[[Function], Any]:
    """Have numba compile a function when it is first called, and keep the code on disk for later processes.

    Args:
        options: as numba's `njit`, without `cache`. The interpreter's lock is released while the code runs.
    """

    def compile_function(function: Function) -> Any:
        dispatcher: Any = numba.njit(nogil=True, **options)(function)
        with suppress(RuntimeError):  # no folder can be written: each process compiles for itself
            dispatcher._cache = _Cache(function)
        return dispatcher

    return compile_function
