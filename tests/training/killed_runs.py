"""Run as a program: train in forked children, kill each with SIGKILL at a random moment, resume until one ends.

Whenever a run ends it goes on with a new one, until enough were killed; prints the folders.
Arguments: configuration file, run folder, kills, seed.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

from hrvqvae.config.parsing import from_file
from tests.trained_run import train_autoencoder


def child(config_path: Path, folder: Path) -> int:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            train_autoencoder(from_file(config_path), folder, resume=True)
            code = 0
        finally:
            os._exit(code)
    return pid


def main() -> None:
    config_path, folder, kills, seed = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    draw = random.Random(seed)
    for warm in ("warm-1", "warm-2"):
        began = time.monotonic()
        os.waitpid(child(config_path, folder / warm), 0)
        usual = time.monotonic() - began
    killed, run = 0, 0
    while killed < kills:
        pid = child(config_path, folder / f"run-{run}")
        time.sleep(draw.uniform(0, usual * 0.7))
        ended, status = os.waitpid(pid, os.WNOHANG)
        if not ended:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            killed += 1
        elif status == 0:
            run += 1
        else:
            sys.exit(f"a child failed with status {status}")
    _, status = os.waitpid(child(config_path, folder / f"run-{run}"), 0)
    if status:
        sys.exit(f"the last child failed with status {status}")
    print(*(folder / f"run-{number}" for number in range(run + 1)), sep="\n")


if __name__ == "__main__":
    main()
