"""Run as a program: train under torchrun with restarts, and kill a random process of it with SIGKILL, again and again.

Arguments: configuration file, run folder, processes, kills, seed. Prints how many were killed; ends as torchrun does.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path


def torchrun(count: int, *options: str) -> list[str]:
    """The command line that starts so many processes of this package on this machine; what they run comes after it."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    return [*command, "--monitor-interval", "0.1", *options, "-m", "hrvqvae"]


def ranks(launcher: int) -> list[int]:
    """Numbers of the processes that torchrun has started, in the order of their ranks."""
    found: list[int] = []
    for children in Path(f"/proc/{launcher}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += map(int, children.read_text().split())
    return sorted(found)


def logged(folder: Path) -> int:
    """Lines of the run's log."""
    path = folder / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def main() -> None:
    config, folder = sys.argv[1], Path(sys.argv[2])
    count, kills, seed = map(int, sys.argv[3:6])
    draw = random.Random(seed)
    command = [*torchrun(count, "--max-restarts", str(kills)), "train", config, "--out", str(folder)]
    killed, before, seen = 0, list[int](), 0
    with subprocess.Popen(command) as launched:
        while launched.poll() is None:
            now = ranks(launched.pid)
            if killed < kills and len(now) == count and not set(now) & set(before) and logged(folder) != seen:
                time.sleep(draw.uniform(0, 0.5))
                with contextlib.suppress(ProcessLookupError):
                    os.kill(draw.choice(now), signal.SIGKILL)
                    killed += 1
                before, seen = now, logged(folder)
            time.sleep(0.02)
    print(f"killed {killed}")
    sys.exit(launched.returncode)


if __name__ == "__main__":
    main()
