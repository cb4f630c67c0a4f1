"""The first search of a process: compiled where the cache is cold, loaded from it later."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence

from benchmarks.common import Row, as_script, finish, options, positive

_FIRST_CALL = """
import time
import torch
from hrvqvae.quantize.search.compiled import search_compiled
books = [torch.randn(8**level, 8, 32) for level in range(3)]
calls = {
    "tree": lambda: search_compiled(torch.randn(100, 32), books),
    "flat": lambda: search_compiled(torch.randn(100, 32), [books[2][:1]]),
}
for name, call in calls.items():
    begun = time.perf_counter()
    call()
    print(name, time.perf_counter() - begun)
"""


def bench_start(later: int = 3) -> list[Row]:
    """Rows with cache (cold, warm), method and seconds of the first call, imports left out; warm: the slowest process.

    Args:
        later: processes that start with the cache that the first one has left.
    """
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "NUMBA_CACHE_DIR": cache}
        command = [sys.executable, "-c", _FIRST_CALL]
        outputs = [
            subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()
            for _ in range(1 + later)
        ]
    cold, *warm = [dict(zip(words[::2], map(float, words[1::2]), strict=True)) for words in outputs]
    rows = [{"cache": "cold", "method": name, "seconds": seconds} for name, seconds in cold.items()]
    return rows + [{"cache": "warm", "method": name, "seconds": max(one[name] for one in warm)} for name in cold]


def main(argv: Sequence[str] | None = None) -> None:
    """Time the first search in new processes."""
    parser = options(__doc__)
    parser.add_argument("--later", type=positive, default=3, metavar="N", help="processes with a warm cache")
    arguments = parser.parse_args(argv)
    columns = {"cache": "{cache}", "method": "{method}", "s": "{seconds:.2f}"}
    finish(bench_start(arguments.later), columns, arguments.json)


if __name__ == "__main__":
    as_script(main)
