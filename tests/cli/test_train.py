"""Training by command: configurations, resumption, signals, the demo; commands for a trained run,
and their errors.
"""

import json
import re
import shutil
import signal

import pyarrow.parquet as pq
import pytest
import torch

import hrvqvae
from hrvqvae.checkpoints.entropy import bare_entropy_model
from hrvqvae.checkpoints.folder import RunFolder, prior_folder
from hrvqvae.config import presets
from hrvqvae.config.parsing import from_file
from hrvqvae.data import fetch
from hrvqvae.data.images import read_image
from hrvqvae.plots import curves
from hrvqvae.training.autoencoder import AutoencoderTask
from tests.conftest import (
    approx,
    check_refusals,
    do,
    done,
    ended,
    refused,
    same,
    shared_fixture,
    write_file,
    write_picture,
)
from tests.data.stored import folder_of
from tests.kills import stop_at_step
from tests.trained_run import tiny_run, tiny_run_with_priors


@pytest.fixture
def tiny_file(mnist_root, tmp_path):
    """A configuration file of a small model, in the folder of the test."""
    return str(write_file(tiny_run(mnist_root), tmp_path / "tiny.yaml"))


def test_print_config_is_a_file_that_trains(tmp_path):
    path = tmp_path / "printed.yaml"
    fields = "--model.quantizer.codewords 8 --prior.network.dropout 0.3"
    printed = do(f"train hrvqvae/mnist {fields} --max-steps 5 --print-config")
    path.write_text(printed)
    config = from_file(path)
    assert config.model.num_symbols == (8, 8, 8)
    assert config.training.max_steps == 5
    assert do(f"train {path} --print-config") == printed


def test_a_training_without_data_leaves_no_folder(mnist_root, tmp_path):
    run = shutil.copytree(tiny_run_with_priors(mnist_root), tmp_path / "run")
    (tmp_path / "empty").mkdir()
    train = f"train treevq/photos --out {tmp_path}/new --max-steps 1 --data {tmp_path}"
    decoder = f"train-decoder {run} --max-steps 1 --data {tmp_path}"
    priors = f"train-prior {run} --resume --level 3 --max-steps 1"
    shutil.rmtree(prior_folder(run, 2).path)
    check_refusals(f"""
        {train}/nope | nope does not exist: give --data
        {train}/empty | empty has no image
        {decoder}/nope --decoder progressive | is not in {tmp_path}/nope
        {priors} --codes {tmp_path}/nope | nope is no folder of codes
        {priors} --data {tmp_path}/nope | is not in {tmp_path}/nope
    """)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "run"]
    assert not (run / "prefixes").exists()
    assert not prior_folder(run, 2).path.exists()


def test_resuming(tiny_file, tmp_path):
    run = tmp_path / "run"
    command = f"train {tiny_file} --out {run} --max-steps"
    printed = do(f"{command} 10") + do(f"{command} 14 --resume")
    assert "resuming" in printed
    # a run folder says itself what it is
    assert "trained 15 steps" in do(f"train --resume {run} --max-steps 15")
    check_refusals(f"train --resume {run} --data {tmp_path}/typo | {tmp_path}/typo")
    assert "trained 15 steps" in do(f"train --resume {run}")
    assert "trained" in do(f"train {tiny_file} --out {tmp_path}/short --max-minutes 0.0001")
    other = tmp_path / "mine"
    other.mkdir()
    config = shutil.copy(tiny_file, other / "config.yaml")
    there = "--model.quantizer.codewords is 3 there, 5 here"
    check_refusals(f"""
        {command} 14 --resume --model.quantizer.codewords 5 | {there}
        train {config} --out {other} --max-steps 1 | of no run: choose another --out
        train hrvqvae/mnist --out {run} --resume | holds a run of tiny, not of hrvqvae/mnist
    """)


def test_weights_that_made_files_stay(tiny_file, tmp_path):
    folder = tmp_path / "my run"
    run = RunFolder(folder)
    do(f"train {tiny_file} --out '{folder}' --max-steps 4")
    model = hrvqvae.load(folder)
    content = bare_entropy_model(model.run).content
    run.tables.write_bytes(content)
    (file,) = model.compress(torch.rand(1, 12, 12))
    weights = run.model.read_bytes()
    assert "trained 4 steps" in do(f"train '{folder}' --resume")  # its budget is spent

    longer = f"train '{folder}' --resume --max-steps 6"
    told = refused(longer)
    assert "tables.hrvt void" in told
    assert run.model.read_bytes() == weights
    assert hrvqvae.load(folder).decompress(file)

    # the advice of the message
    command = re.search("hrvqvae (train .* --out )NEW", told)[1]
    assert "beginning with the weights" in do(f"{command} {tmp_path}/new --max-steps 6")
    assert "trained 6 steps" in do(f"{longer} --force")
    write_picture(tmp_path / "x.png", 1, (12, 12), "L")
    compress = f"compress '{folder}' {tmp_path}/x.png -o {tmp_path}/x.hrv"
    check_refusals(f"{compress} | made for another state of the autoencoder")
    assert run.tables.read_bytes() == content


def test_weights_of_priors_and_decoders_stay(mnist_root, tmp_path):
    folder = shutil.copytree(tiny_run_with_priors(mnist_root), tmp_path / "run")
    before = folder_of(folder)
    for name in ("prefixes", "generation"):
        shutil.copytree(prior_folder(folder, 0).path, folder / name)
    made = [f"{name}/model.safetensors" for name in ("generation", "prefixes", "priors/level-1")]
    told = refused(f"train {folder} --resume --max-steps 61")
    assert all(name in told for name in made)
    assert folder_of(folder).items() >= before.items()


def test_the_prior_of_a_level(tiny_file, tmp_path):
    run = tmp_path / "run"
    do(f"train {tiny_file} --max-steps 2 --out {run}")
    field = "--prior.training.batch_size"
    command = f"train-prior {field} 8,6,4 {run} --level 3 --max-steps 2"
    assert f"priors in {run}/priors" in do(command)
    prior = prior_folder(run, 2).read_config().prior
    assert prior.training_of(2).batch_size == 4
    assert prior.network.kind == "pixelsnail"
    values = "is (8, 6); it must be one value, or one for each of the 3 levels"
    check_refusals(f"""
        {command} --resume --prior.network.kind gpt | kind is pixelsnail there, gpt here
        train-prior {run} {field} 8,6 | prior.training.batch_size {values}
        train-prior {run} --training.seed 1 | --training.seed is no field of this
        train-prior {run} --level 4 | --level is 4; this model has levels 1 to 3
    """)


def test_a_signal_leaves_with_a_message(tiny_file, tmp_path, monkeypatch):
    run = tmp_path / "run"
    stop_at_step(monkeypatch, AutoencoderTask, 3)
    code, out, err = done(f"train {tiny_file} --out {run} --max-steps 1000000")
    assert code == 128 + signal.SIGTERM
    assert "continue with --resume" in out
    assert not [line for line in err.splitlines() if "compiling for this processor" not in line]
    assert RunFolder(run).model.is_file()


def test_the_demo(mnist_root, tmp_path, monkeypatch):
    """Drawn digits are MNIST here, and the demo's preset is a small model."""
    monkeypatch.setattr("hrvqvae.training.autoencoder.curves", curves)
    monkeypatch.setattr("hrvqvae.training.prior.curves", curves)
    monkeypatch.setattr(fetch, "check", lambda dataset, folder: None)
    preset = presets.Preset(config=tiny_run(mnist_root), sources={}, about="")
    monkeypatch.setattr(presets, "get", lambda name: preset)
    out = tmp_path / "demo"
    monkeypatch.setenv("HRVQVAE_DATA", str(mnist_root))
    command = f"demo --out {out} --max-steps 12"
    for _ in range(2):  # the second time all is there already
        printed = do(command)
        assert printed.count("$ hrvqvae ") == 6
        assert "mnist test: 40 images" in printed
        assert printed.count("trained 12 steps") == 4  # the autoencoder and three priors
        assert "bits per code" in printed
    for name in ("reconstructions", "curves", "usage", "samples", "samples-of-the-shipped-model"):
        assert f"{name}.png" in printed.splitlines()[-2]
        assert read_image(out / "pictures" / f"{name}.png", 3).shape[2] > 100
    hint = printed.splitlines()[-1].partition("hrvqvae ")[2]
    assert "trained 12 steps" in do(f"{hint} --max-steps 12")
    assert (tmp_path / "demo-longer" / "priors").is_dir()
    check_refusals("demo --max-minutes 0 | --max-minutes is 0; it must be above 0")
    monkeypatch.undo()
    monkeypatch.setattr(fetch, "get", lambda name, root, say: root)
    assert "holds a run of tiny, not of treevq-deep/mnist" in ended(2, command)


@shared_fixture
def run(tmp_path_factory, mnist_root):
    """A run without priors."""
    folder = tmp_path_factory.mktemp("cli") / "run"
    ignore = shutil.ignore_patterns("priors")
    return shutil.copytree(tiny_run_with_priors(mnist_root), folder, ignore=ignore)


def test_evaluation_for_programs_and_people(run):
    report = json.loads(do(f"evaluate {run} --json --device cpu"))
    told = f"train them: hrvqvae train-prior {run}"
    about = {"dataset": "mnist", "split": "test", "images": 40, "no_priors": told}
    assert report.items() >= (about | {"prior_bits_per_image": None}).items()
    assert [level["codewords"] for level in report["levels"]] == [3, 9, 27]
    assert report["mse"] == report["levels"][-1]["mse"]
    out = do(f"evaluate {run} --split train --device cpu")
    assert "mnist train: 96 images" in out
    assert re.findall(r"^[123] +(\d+)", out, re.MULTILINE) == ["3", "9", "27"]
    assert f"no priors: {told}" in out


def test_a_run_by_its_weights_file(mnist_root):
    """Only a training reads a checkpoint."""
    run = tiny_run_with_priors(mnist_root)
    command = "evaluate {} --json --device cpu -n 10"
    assert do(command.format(run / "model.safetensors")) == do(command.format(run))
    checkpoint = run / "checkpoints/step-000000060.safetensors"
    check_refusals(f"evaluate {checkpoint} | for a checkpoint, give its run")


def test_a_beam_encodes_whatever_the_model_was_trained_with(run, tmp_path):
    """By all commands that encode."""
    folder = tmp_path / "images"
    for index in range(3):
        write_picture(folder / f"{index}.png", index, (12, 12), "L")
    paths = sorted(folder.iterdir())
    images = torch.stack([read_image(path, 1) for path in paths])
    model = hrvqvae.load(run, beam=9)
    codes = model.encode(images)
    assert not same(codes, hrvqvae.load(run).encode(images))
    printed = do(f"reconstruct {run} -o {tmp_path}/sheet.png --beam 9", *paths)
    told = [float(error) for error in re.findall("MSE (.*?),", printed)[:3]]
    errors = (model.decode(codes, size=(12, 12)) - images / 255).square().mean((1, 2, 3))
    assert told == approx(errors.tolist(), rel=1e-3)
    do(f"compress {run} {folder} -o {tmp_path}/codes --beam 9")
    assert [*folder_of(tmp_path / "codes").values()] == model.compress(images)
    shards = tmp_path / "shards"
    tokenize = f"tokenize {run} {folder} {shards}"
    do(f"{tokenize} --beam 9")
    rows = pq.read_table(shards / "part-000000.parquet")
    for level, code in enumerate(codes, start=1):
        assert rows.column(f"codes_{level}").to_pylist() == code.flatten(1).tolist()
    check_refusals(f"""
        {tokenize} | {shards} was begun with another value of beam
    """)


def test_bad_runs_and_images(run, tmp_path):
    write_picture(tmp_path / "grey.png", 1, mode="L")
    sheet = f"reconstruct {run} {tmp_path}/grey.png -o {tmp_path}/sheet.png --levels"
    check_refusals(f"""
        {sheet} 0 | --levels: it must be at least 1
        {sheet} 4 | levels is 4; this model decodes 1, 2, 3
        evaluate {run} --split dev | --split: invalid choice: 'dev'
        evaluate {run} --data {tmp_path}/nowhere | nowhere
        evaluate {run} -n 0 | -n: it must be at least 1
    """)
    assert not (tmp_path / "sheet.png").exists()


def test_commands_in_messages_quote_paths(run, tmp_path):
    spaced = shutil.copytree(run, tmp_path / "my run")
    photos = tmp_path / "my photos"
    photos.mkdir()
    check_refusals(f"""
        train {spaced.parent} | folder of images as --data {spaced.parent}
        train '{photos}' | as --data '{photos}'
        sample '{spaced}' -o {tmp_path}/sheet.png | hrvqvae train-prior '{spaced}'
    """)
    RunFolder(spaced).model.unlink()
    shutil.rmtree(RunFolder(spaced).checkpoints, ignore_errors=True)
    check_refusals(f"evaluate '{spaced}' | hrvqvae train '{spaced}' --resume")
