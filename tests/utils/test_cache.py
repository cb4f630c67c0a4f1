"""Compiled code on disk, never taken after a change of what it was compiled from; work in parts on
threads.
"""

import ast
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import pytest
from numba.core.caching import CacheImpl

import hrvqvae
from hrvqvae.utils.compiled import _Cache, compiled, in_parts
from tests.conftest import threads

FILES = {
    "__init__.py": "",
    "numbers.py": "STEP = 1\n",
    "inner.py": (
        """
from hrvqvae.utils.compiled import compiled, in_parts

@compiled()
def inner(x):
    return x * 2
"""
    ),
    "outer.py": (
        """
from hrvqvae.utils.compiled import compiled
from small.inner import inner
from small.numbers import STEP

@compiled()
def outer(x):
    return inner(x) + STEP
"""
    ),
}
CALL = """
import json, sys
from small.outer import outer
values = [outer(value) for value in json.loads(sys.argv[1])]
print(json.dumps([values, sum(outer._cache_hits.values()), sum(outer._cache_misses.values())]))
"""


def start(folder, *arguments):
    environment = {**os.environ, "PYTHONPATH": f"{folder}:{Path(hrvqvae.__path__[0]).parent}"}
    environment.pop("NUMBA_CACHE_DIR", None)
    command = [sys.executable, "-Bc", CALL, json.dumps(arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def values_hits_misses(process):
    return tuple(json.loads(process.communicate(timeout=120)[0]))


def test_a_changed_callee_and_constant_of_other_files_are_compiled_in(tmp_path):
    package = tmp_path / "small"
    package.mkdir()
    for name, text in FILES.items():
        (package / name).write_text(text)
    # at once, each another signature
    first = start(tmp_path, 3)
    second = start(tmp_path, 0.5)
    assert values_hits_misses(first) == ([7], 0, 1)
    assert values_hits_misses(second) == ([2.0], 0, 1)
    # later processes compile nothing
    assert values_hits_misses(start(tmp_path, 3, 0.5)) == ([7, 2.0], 2, 0)
    (package / "inner.py").write_text(FILES["inner.py"].replace("x * 2", "x * 5"))
    (package / "numbers.py").write_text("STEP = 100\n")
    assert values_hits_misses(start(tmp_path, 3)) == ([115], 0, 1)


def test_what_compiled_functions_call_and_read_lies_in_their_folder():
    """And all of them are kept on disk."""
    root = Path(hrvqvae.__path__[0])
    seen = 0
    for path in root.rglob("*.py"):
        if "utils.compiled import" not in path.read_text(encoding="utf-8"):
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        package = ".".join(("hrvqvae", *path.relative_to(root).parent.parts))
        module = importlib.import_module(f"{package}.{path.stem}")
        elsewhere = {
            alias.asname or alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("hrvqvae.")
            for alias in node.names
            if node.module != package and (node.module or "").rpartition(".")[0] != package
        }
        for function in vars(module).values():
            if hasattr(function, "py_func") and function.py_func.__module__ == module.__name__:
                assert isinstance(function._cache, _Cache), function
                assert not elsewhere & set(function.py_func.__code__.co_names), function
                seen += 1
    assert seen > 20


def add_one(x):
    return x + 1


def add_two(x):
    return x + 2


def files_of(function):
    """Return the files of compiled code of a function."""
    return [*Path(function._cache.cache_path).glob(f"*{function.__name__}-*.nb?")]


def test_a_damaged_file_stops_nothing():
    assert compiled()(add_two)(2) == 4
    paths = files_of(compiled()(add_two))
    assert len(paths) == 2
    for path in paths:
        content = path.read_bytes()
        for damaged in (b"", content[:-9]):
            path.write_bytes(damaged)
            assert compiled()(add_two)(2) == 4
        path.unlink()


def test_without_a_folder_a_process_compiles_for_itself():
    with patch.object(CacheImpl, "_locator_classes", []):
        assert compiled()(add_one)(2) == 3


def test_every_part_once_and_in_order_and_an_interruption_comes_out(capfd):
    def interrupted(first, last):
        raise KeyboardInterrupt

    with threads(2):
        for count in (1, 2, 7):
            parts = in_parts(count, lambda first, last: list(range(first, last)))
            assert [item for part in parts for item in part] == list(range(count))
        with pytest.raises(KeyboardInterrupt):
            in_parts(4, interrupted)
    assert capfd.readouterr().err == ""
