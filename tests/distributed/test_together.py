"""Two processes train as a single process does, for every system."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from hrvqvae.checkpoints.folder import RunFolder, prior_folder
from hrvqvae.config import to_dict
from hrvqvae.training.loggers import read_records
from tests.conftest import parametrize, with_training
from tests.distributed import together
from tests.trained_run import tiny_systems

ROOT = Path(__file__).parent.parent.parent
EVERY = ("hrvqvae", "treevq", "vqvae2", "vqgan", "rqvae")
STEPS = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory, mnist_root):
    folder = tmp_path_factory.mktemp("together")
    changes = {
        "batch_size": 12,
        "max_steps": STEPS,
        "log_every": 1,
        "evaluate_every": STEPS,
        "warmup_steps": 4,
    }
    for system in EVERY:
        config = with_training(tiny_systems(mnist_root)[system], precision="fp32", **changes)
        plain = to_dict(config)
        if "restart_every" in plain["model"].get("quantizer", {}):
            plain["model"]["quantizer"] |= {"restart_every": 4, "restart_below": 0.4}
        if system == "treevq":  # a process has fewer images than there are levels
            plain["model"]["train_prefixes"] = True
            plain["training"]["batch_size"] = 4
        (folder / f"{system}.yaml").write_text(yaml.safe_dump(plain))
    seen = together.train_all(folder, list(EVERY))
    (folder / "seen-1-0.json").write_text(json.dumps(seen))
    for size in (1, 2):
        shutil.copytree(folder / "hrvqvae-1", folder / f"priors-{size}")
    together.train_all(folder, [])
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
    ]
    done = subprocess.run(
        [*command, "tests.distributed.together", str(folder), *EVERY],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


def seen(folder, size):
    return [json.loads((folder / f"seen-{size}-{rank}.json").read_text()) for rank in range(size)]


def logged(run, name, kind="train"):
    return [
        record.get(name, 0.0)
        for record in read_records(run / "metrics.jsonl")
        if record["kind"] == kind
    ]


@parametrize("system", EVERY)
def test_two_processes_train_as_one_does(folder, system):
    (alone,), (first, second) = ([each[system] for each in seen(folder, size)] for size in (1, 2))
    together = [left + right for left, right in zip(first["images"], second["images"], strict=True)]
    assert together == alone["images"], "the same images at each step, in the same order"
    assert first["start"] == second["start"], "the start is the same in both"
    assert first["end"] == second["end"], "weights, codebooks and moments are the same to the bit"
    assert first["start"] == alone["start"]
    losses = [logged(folder / f"{system}-{size}", "loss") for size in (1, 2)]
    assert len(losses[0]) == STEPS
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
    norms = [logged(folder / f"{system}-{size}", "gradient_norm")[0] for size in (1, 2)]
    assert norms[1] == pytest.approx(norms[0], rel=1e-6), "the gradients of one process"
    restarted = [logged(folder / f"{system}-{size}", "restarted") for size in (1, 2)]
    assert restarted[0] == restarted[1]
    for name in ("mse", "psnr", "ssim"):
        measures = [logged(folder / f"{system}-{size}", name, "evaluation") for size in (1, 2)]
        np.testing.assert_allclose(measures[1], measures[0], rtol=1e-4)
    assert [logged(folder / f"{system}-{size}", "images", "evaluation") for size in (1, 2)] == [
        [40]
    ] * 2


def test_something_is_revived_on_the_way(folder):
    assert any(sum(logged(folder / f"{system}-1", "restarted")) for system in EVERY)


def test_priors_and_the_extraction_of_codes_are_shared_out(folder):
    one, two = (RunFolder(folder / f"priors-{size}") for size in (1, 2))
    names = sorted(path.name for path in one.codes.glob("*.npy"))
    assert names
    for name in names:
        assert np.array_equal(np.load(one.codes / name), np.load(two.codes / name)), name
    for level in range(3):
        runs = [prior_folder(run.path, level).path for run in (one, two)]
        for name, kind in (
            ("loss", "train"),
            ("bits_per_code", "evaluation"),
            ("bits_per_image", "evaluation"),
        ):
            alone, shared = (logged(run, name, kind) for run in runs)
            assert alone
            np.testing.assert_allclose(shared, alone, rtol=1e-5)


def test_a_progressive_decoder_is_trained_on_the_same_prefixes(folder):
    alone, shared = (logged(folder / f"priors-{size}" / "prefixes", "loss") for size in (1, 2))
    assert len(alone) == 5
    np.testing.assert_allclose(shared, alone, rtol=1e-5)


def test_what_goes_wrong_in_one_process_ends_both_with_the_same_line(folder):
    first, second = (each["failures"] for each in seen(folder, 2))
    assert first == second
    assert first["nan"].startswith("step 4: the loss is not finite")
    assert "it was not saved, the last good checkpoint is" in first["nan"]
    assert "drifted apart at step 5: averaged." in first["drift"]
    assert first["broken"] == "x.png is broken"
    assert RunFolder(folder / "broken").saved()[0].stem == "step-000000004"
    assert "choose a batch size that is a multiple of 2" in first["odd"]
    assert not (folder / "odd" / "config.yaml").exists()
