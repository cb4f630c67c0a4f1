"""A comparison by several processes: every case is made once, rows are alike, the table is whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from hrvqvae.checkpoints.folder import RunFolder
from hrvqvae.comparison.report import compare
from hrvqvae.comparison.systems import Comparison
from hrvqvae.config import presets
from hrvqvae.config.parsing import override
from hrvqvae.utils.files import TEMPORARY, locked
from tests.checkpoints.other_process import in_another_process


def test_two_processes_make_every_case_once(mnist_root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = [str(mnist_root), "mnist", "--systems", "vqvae", "--seeds", "3", "--max-steps", "4"]
    command = [sys.executable, "-u", "-m", "tests.comparison.tiny_compare", *arguments, "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    with locked(out):  # until both wait for it, so that they begin together
        processes = [
            subprocess.Popen(command, env=environment, stdout=pipe, stderr=subprocess.STDOUT, text=True)
            for _ in range(2)
        ]
        first = [process.stdout.readline() for process in processes if process.stdout]
    said = "".join(process.communicate()[0] for process in processes)
    assert all(f"(pid {os.getpid()}); waiting for it" in line for line in first), said
    assert [process.returncode for process in processes] == [0, 0], said
    names = {f"vqvae-{seed}" for seed in range(3)}
    assert [said.count(f"--- system vqvae, seed {seed}\n") for seed in range(3)] == [1, 1, 1]
    assert {path.stem for path in (out / "rows").glob("*.json")} == names
    rows = json.loads((out / "results.json").read_text())
    assert {f"{row['system']}-{row['seed']}" for row in rows} == names
    assert "| vqvae | 3 |" in (out / "results.md").read_text()
    assert not list(out.rglob(f"{TEMPORARY}*"))


@pytest.mark.usefixtures("systems")
def test_what_another_process_makes_is_passed_over_and_counted(tmp_path: Path) -> None:
    said = list[str]()
    comparison = Comparison(dataset="mnist", systems=("vqvae", "vqvae2"), max_steps=4)
    run = tmp_path / "runs" / "vqvae-0"
    with in_another_process(run) as pid:
        rows, signal = compare(comparison, tmp_path, said.append)
    assert ([row["system"] for row in rows], signal) == (["vqvae2"], 0)
    assert f"{run} is in use by another process (pid {pid})" in said
    assert said[-1] == "still being made elsewhere: 1 of 2 cases; whoever ends last completes the table"
    assert not RunFolder(run).begun()
    rows, _ = compare(comparison, tmp_path, said.append)
    assert [row["system"] for row in rows] == ["vqvae", "vqvae2"]
    with in_another_process(tmp_path / "runs" / "vqvae-0"):
        assert compare(comparison, tmp_path, said.append)[0] == rows, "nothing is left to be made"


@pytest.mark.usefixtures("systems")
def test_all_of_it_may_be_made_elsewhere(tmp_path: Path) -> None:
    comparison = Comparison(dataset="mnist", systems=("vqvae",), max_steps=4)
    with in_another_process(tmp_path / "runs" / "vqvae-0"):
        assert compare(comparison, tmp_path, lambda _: None) == ([], 0)
    assert not (tmp_path / "results.md").exists()


@pytest.mark.usefixtures("systems")
def test_a_case_is_taken_up_when_the_process_that_made_it_stops(tmp_path: Path) -> None:
    with ExitStack() as other:
        other.enter_context(in_another_process(tmp_path / "runs" / "vqvae-0"))

        def say(line: str) -> None:
            if line.startswith("--- system vqvae2"):
                other.close()

        rows, _ = compare(Comparison(dataset="mnist", systems=("vqvae", "vqvae2"), max_steps=4), tmp_path, say)
    assert [row["system"] for row in rows] == ["vqvae", "vqvae2"]


@pytest.mark.usefixtures("systems")
def test_rows_do_not_mix_precisions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a folder's first run leaves to the machine is what later ones are made with, wherever they run."""
    open_fields = {"training.precision": "auto", "prior.training.precision": "auto", "training.device": "auto"}
    tiny = override(presets.get("vqvae/mnist").config, open_fields)
    monkeypatch.setattr(presets, "get", lambda name: presets.Preset(config=tiny, sources={}, printed={}, about=""))
    for bf16, seed in ((True, 0), (False, 1)):
        monkeypatch.setattr("hrvqvae.utils.device.computes_bf16", lambda device, bf16=bf16: bf16)
        comparison = Comparison(dataset="mnist", systems=("vqvae",), first_seed=seed, max_steps=3, prior_steps=3)
        compare(comparison, tmp_path, lambda _: None)
        config = RunFolder(tmp_path / "runs" / f"vqvae-{seed}").read_config()
        assert (config.training.precision, config.prior.training.precision) == ("bf16", "bf16")
    chosen = json.loads((tmp_path / "comparison.json").read_text())["chosen"]
    assert (chosen["training.precision"], chosen["training.device"]) == ("bf16", "cpu")
