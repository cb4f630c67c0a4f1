"""Compiled code on disk: taken again by later processes, never after a change of what it was compiled from."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from numba.core.caching import CacheImpl

from hrvqvae.utils.compiled import compiled, sources_of

FILES = {
    "__init__.py": "",
    "numbers.py": "STEP = 1\n",
    "deep/__init__.py": "import small.numbers as numbers\nfrom small.deep.inner import inner\n",
    "deep/inner.py": """
from hrvqvae.utils.compiled import compiled

@compiled()
def inner(x):
    return x * 2
""",
    "outer.py": """
from hrvqvae.utils.compiled import compiled
from small import numbers
from small.deep import (
    inner,
    numbers as same_numbers,
)
from small.numbers import STEP

@compiled()
def outer(x):
    return inner(x) + STEP
""",
}
CALL = """
import json, sys
from small.outer import outer
values = [outer(value) for value in json.loads(sys.argv[1])]
print(json.dumps([values, sum(outer._cache_hits.values()), sum(outer._cache_misses.values())]))
"""


def start(folder: Path, *arguments: float) -> subprocess.Popen[str]:
    """A process that imports the small package from the folder and calls its compiled function."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    environment.pop("NUMBA_CACHE_DIR", None)
    command = [sys.executable, "-c", CALL, json.dumps(arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def values_hits_misses(process: subprocess.Popen[str]) -> tuple[list[float], int, int]:
    out, _ = process.communicate(timeout=120)
    values, hits, misses = json.loads(out)
    return values, hits, misses


def test_a_changed_callee_and_constant_of_other_files_are_compiled_in(tmp_path: Path) -> None:
    package = tmp_path / "small"
    (package / "deep").mkdir(parents=True)
    for name, text in FILES.items():
        (package / name).write_text(text)
    whole, broken = start(tmp_path, 3), start(tmp_path, 0.5)  # at once, each another signature
    assert values_hits_misses(whole) == ([7], 0, 1)
    assert values_hits_misses(broken) == ([2.0], 0, 1)
    assert values_hits_misses(start(tmp_path, 3, 0.5)) == ([7, 2.0], 2, 0), "later processes compile nothing"
    (package / "deep/inner.py").write_text(FILES["deep/inner.py"].replace("x * 2", "x * 5"))
    (package / "numbers.py").write_text("STEP = 100\n")
    assert values_hits_misses(start(tmp_path, 3)) == ([115], 0, 1)
    kept = [path.name.split("-")[0] for path in package.rglob("*.nbc")]
    assert sorted(kept) == ["small.deep.inner.inner", "small.outer.outer"], "old code goes"
    (package / "unrelated.py").write_text("")
    assert values_hits_misses(start(tmp_path, 3)) == ([115], 1, 0)


def test_what_is_imported_by_what_a_compiled_function_imports_is_watched() -> None:
    from hrvqvae.priors import pixelsnail_sampler as sampler

    source = Path(sys.modules["hrvqvae"].__path__[0])
    names = {str(path.relative_to(source)) for path in sources_of(sampler._row.py_func)}
    assert {"priors/pixelsnail_sampler.py", "priors/sampling.py", "utils/compiled.py", "priors/causal.py"} <= names
    assert not any(name.startswith(("cli/", "training/", "evaluation/")) for name in names)


def test_the_package_s_own_functions_are_all_kept_on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    from hrvqvae.priors import depth_sampler as depth
    from hrvqvae.priors import pixelsnail_sampler as pixelsnail
    from hrvqvae.priors import trunk_sampler as trunk
    from hrvqvae.priors.sampling import draw_code
    from hrvqvae.quantize.search import compiled as search
    from hrvqvae.quantize.search import compiled_beam

    own = (draw_code, trunk.add_product, trunk.elu, trunk._attend, trunk.advance, pixelsnail._row, depth._head)
    for function in (*own, depth._row, search._tree, compiled_beam._beam):
        assert type(function._cache).__module__ == "hrvqvae.utils.compiled"
    assert type(search._flat._cache).__module__ == "hrvqvae.utils.compiled"
    monkeypatch.setattr(CacheImpl, "_locator_classes", [])

    @compiled()
    def where_nothing_can_be_written(x: int) -> int:
        return x + 1

    assert where_nothing_can_be_written(2) == 3
