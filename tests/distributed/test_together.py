"""Two processes train as a single process does, for every objective; four do, for two of them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from hrvqvae.checkpoints.folder import RunFolder, open_run, prior_folders
from hrvqvae.codes.store import read_codes
from hrvqvae.config import to_dict
from hrvqvae.training.loggers import read_records
from tests.conftest import approx, parametrize, run_python, with_training
from tests.distributed import together
from tests.trained_run import tiny_systems

ROOT = Path(__file__).parent.parent.parent
EVERY = ("hrvqvae", "treevq", "vqvae", "vqvae2", "vqgan", "rqvae")
OF_FOUR = ("hrvqvae", "treevq")  # one searches with a beam
SYSTEMS = {2: EVERY, 4: OF_FOUR}  # by the number of processes
every_size = parametrize("size", SYSTEMS)
every_training = parametrize(
    "system, size", [(system, size) for size, systems in SYSTEMS.items() for system in systems]
)
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
        (folder / f"{system}.yaml").write_text(yaml.safe_dump(plain))
    seen = together.train_all(folder, list(EVERY))
    (folder / "seen-1-0.json").write_text(json.dumps(seen))
    for size in (1, *SYSTEMS):
        for name in ("priors", "gpt"):
            shutil.copytree(folder / "hrvqvae-1", folder / f"{name}-{size}")
    together.train_all(folder, [])
    for size, systems in SYSTEMS.items():
        launch = f"-m torch.distributed.run --standalone --nproc-per-node {size}".split()
        program = ("-m", "tests.distributed.together", folder, *systems)
        run_python(*launch, *program, cwd=ROOT, timeout=600)
    return folder


def seen(folder, size):
    return [json.loads((folder / f"seen-{size}-{rank}.json").read_text()) for rank in range(size)]


def logged(run, name, kind="train"):
    return [
        record.get(name, 0.0)
        for record in read_records(run / "metrics.jsonl")
        if record["kind"] == kind
    ]


@every_training
def test_several_processes_train_as_one_does(folder, system, size):
    (alone,), ranks = ([each[system] for each in seen(folder, count)] for count in (1, size))
    steps = zip(*(each["images"] for each in ranks), strict=True)
    together = [[image for images in parts for image in images] for parts in steps]
    assert together == alone["images"], "the same images at each step, in the same order"
    assert len({each["end"] for each in ranks}) == 1, "weights, codebooks and moments, to the bit"
    assert {each["start"] for each in ranks} == {alone["start"]}
    runs = [folder / f"{system}-{count}" for count in (1, size)]
    losses = [logged(run, "loss") for run in runs]
    assert len(losses[0]) == STEPS
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
    norms = [logged(run, "gradient_norm")[0] for run in runs]
    assert norms[1] == approx(norms[0], rel=1e-6), "the gradients of one process"
    restarted = [logged(run, "restarted") for run in runs]
    assert restarted[0] == restarted[1]
    for name in ("mse", "psnr", "ssim"):
        measures = [logged(run, name, "evaluation") for run in runs]
        np.testing.assert_allclose(measures[1], measures[0], rtol=1e-4)
    assert [logged(run, "images", "evaluation") for run in runs] == [[40]] * 2


def test_something_is_revived_on_the_way(folder):
    assert any(sum(logged(folder / f"{system}-1", "restarted")) for system in EVERY)


@every_size
def test_priors_and_the_extraction_of_codes_are_shared_out(folder, size):
    for network in ("priors", "gpt"):
        single, several = (RunFolder(folder / f"{network}-{count}") for count in (1, size))
        maps = [read_codes(run.codes, open_run(run.path).digest) for run in (single, several)]
        for codes, other in zip(maps[0].levels, maps[1].levels, strict=True):
            assert np.array_equal(codes, other)
        folders = [prior_folders(run.path) for run in (single, several)]
        assert list(folders[0]) == list(folders[1])
        for levels in folders[0]:
            for name, kind in (
                ("loss", "train"),
                ("bits_per_code", "evaluation"),
                ("bits_per_image", "evaluation"),
            ):
                alone, shared = (logged(run[levels].path, name, kind) for run in folders)
                assert alone
                np.testing.assert_allclose(shared, alone, rtol=1e-5)


@every_size
@parametrize("name", ["prefixes", "generation"])
def test_a_decoder_of_prefixes_or_samples_is_trained_as_by_one_process(folder, name, size):
    alone, shared = (logged(folder / f"priors-{count}" / name, "loss") for count in (1, size))
    assert len(alone) == 5
    # from the third step of a decoder of samples on, the discriminator's small gradients amplify
    # rounding errors
    tight = 2 if name == "generation" else 5
    np.testing.assert_allclose(shared[:tight], alone[:tight], rtol=1e-5)
    np.testing.assert_allclose(shared, alone, rtol=2e-3)
    if name == "generation":
        norms = "discriminator_gradient_norm"
        alone, shared = (logged(folder / f"priors-{count}" / name, norms) for count in (1, size))
        assert alone[2] > 0
        np.testing.assert_allclose(shared[2], alone[2], rtol=1e-5)


def test_one_process_works_alone_while_the_other_waits(folder):
    assert [each["fitted"] for each in seen(folder, 2)] == [3] * 2


def test_what_goes_wrong_in_one_process_ends_both_with_the_same_line(folder):
    first, second = (each["failures"] for each in seen(folder, 2))
    assert first == second
    assert first["nan"].startswith("step 4: loss is nan")
    assert first["broken"] == "x.png is broken"
    assert RunFolder(folder / "broken").saved()[0].stem == "step-000000004"
    assert "choose a size that is a multiple of 2" in first["odd"]
    assert not (folder / "odd" / "config.yaml").exists()
    assert "training images: give every machine the same data" in first["fewer"]
