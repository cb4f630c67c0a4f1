"""Processes that train together are killed, restarted and stopped."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from hrvqvae.checkpoints.folder import RunFolder
from hrvqvae.training.loggers import read_records
from tests.conftest import with_training, write_file
from tests.trained_run import train_autoencoder

ROOT = Path(__file__).parent.parent.parent


def ranks(launcher):
    pids = []
    for children in Path(f"/proc/{launcher}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            pids += map(int, children.read_text().split())
    return sorted(pids)


def logged(folder):
    path = folder / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def wait_for(holds, launched):
    ends = time.monotonic() + 240
    while not holds():
        assert launched.poll() is None, launched.communicate()
        assert time.monotonic() < ends
        time.sleep(0.02)


def test_one_is_killed_and_one_is_stopped_and_one_process_goes_on(tiny, tmp_path):
    config = with_training(
        tiny, max_steps=100_000, log_every=1, evaluate_every=200_000, schedule="constant"
    )
    run = RunFolder(tmp_path / "run")
    file = write_file(config, tmp_path / "x.yaml")
    torchrun = "-m torch.distributed.run --standalone --nproc-per-node 2 --monitor-interval 0.5"
    options = f"{torchrun} --max-restarts 1 -m hrvqvae train {file} --out {run.path} --resume"
    command = [sys.executable, *options.split()]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True) as launched:
        wait_for(lambda: logged(run.path) >= 5, launched)
        first = ranks(launched.pid)
        assert len(first) == 2
        os.kill(first[0], signal.SIGKILL)
        wait_for(
            lambda: not set(ranks(launched.pid)) & set(first) and len(ranks(launched.pid)) == 2,
            launched,
        )
        before = logged(run.path)
        wait_for(lambda: logged(run.path) not in (0, before), launched)
        wait_for(lambda: len(run.saved()) == 2 and logged(run.path) >= 9, launched)
        os.kill(ranks(launched.pid)[1], signal.SIGTERM)
        out, errors = launched.communicate(timeout=120)
    assert launched.returncode != 0
    lines = [
        line
        for line in errors.splitlines()
        if line.startswith("hrvqvae: ") and not line.endswith(" ...")
    ]
    assert len(lines) == 1
    assert lines[0].startswith("hrvqvae: another process of this training has ended")
    assert out.count("resuming /") == 1
    assert out.count("stopped at step") == 1
    stopped = int(out.split("stopped at step ")[1].split(",")[0])
    assert run.saved()[0].stem == f"step-{stopped:09d}"
    # torchrun names the one that ends first; gloo may abort the other
    ended_first = f"exitcode  : {128 + signal.SIGTERM}", "Signal 6 (SIGABRT)"
    assert any(text in errors for text in ended_first)
    longer = with_training(config, max_steps=stopped + 3)
    train_autoencoder(longer, run, resume=True)
    steps = [record["step"] for record in read_records(run.metrics) if record["kind"] == "train"]
    assert steps == list(range(1, stopped + 4)), "each step once"
