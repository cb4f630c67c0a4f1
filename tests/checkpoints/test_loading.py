"""Models and priors from disk, a trained model as one object, codes and samples of the shipped
MNIST model.
"""

import pickle
import shutil
from pathlib import Path

import pytest
import torch

from hrvqvae import load
from hrvqvae.checkpoints import storage
from hrvqvae.checkpoints.folder import (
    PROGRESSIVE,
    RunFolder,
    decoder_folder,
    open_run,
    prior_folder,
    require_trainable,
)
from hrvqvae.data.images import as_images, read_image
from hrvqvae.models.build import build
from hrvqvae.plots.sheets import draw_grid
from hrvqvae.priors.base import LogitSteps
from hrvqvae.priors.sampling import SamplingParams
from hrvqvae.training.autoencoder import AutoencoderTask
from tests.conftest import (
    cells_of,
    do,
    drawn_digits,
    generator,
    input_error,
    parametrize,
    random_images,
    read_json,
    refused,
    same,
    shared_fixture,
    with_quantizer,
    with_training,
)


def test_loading_from_anywhere(run, monkeypatch):
    monkeypatch.chdir(run.parent)
    state = torch.get_rng_state()
    model = load(run.name)
    assert same(torch.get_rng_state(), state)
    file = load(run / "model.safetensors")
    monkeypatch.chdir("/")
    images = torch.rand(2, 1, 12, 12)
    model.compress(images)
    assert (run / "states").is_dir()  # it is found when the process has gone elsewhere
    assert not model.autoencoder.training
    assert same(*(each.decode(each.encode(images), levels=1) for each in (model, file)))
    with input_error("there are [0-9]+ GPUs here"):
        load(run, device="cuda:99")
    with input_error("must be auto"):
        load(run, device="gpu")


@pytest.mark.usefixtures("in_tmp_path")
def test_runs_that_are_none():
    Path("empty").mkdir()
    Path("begun").mkdir()
    Path("begun/config.yaml").touch()
    storage.write(Path("file"), {}, {})
    for name, message in cells_of("""
            none | there is no such run folder
            empty | is not a run folder
            begun | has no model.safetensors yet.* train begun --resume$
            file | is no model: give a run folder
            vqvae/mnist | is a preset.* mnist .*hrvqvae train vqvae/mnist --out runs/vqvae-mnist$
        """):
        with input_error(message):
            load(name)


@pytest.mark.usefixtures("in_tmp_path")
def test_models_of_the_package_are_not_trained(run):
    require_trainable("run")
    Path("mnist").mkdir()
    for name in ("mnist", "cifar10", "run/model.safetensors"):
        with input_error(f"hrvqvae export {name} DIR"):
            require_trainable(name)
    with input_error("there is no such run folder"):
        require_trainable("runs/none")
    shutil.copytree(run, "mnist", dirs_exist_ok=True)
    require_trainable("mnist")


def test_a_configuration_that_was_edited_is_refused(run):
    folder = RunFolder(run)
    before = folder.read_config()
    # what a run that goes on may change
    folder.write_config(with_training(before, max_steps=7, device="cpu"))
    assert open_run(run).load()[1].model == before.model
    folder.write_config(with_quantizer(before, beta=0.5))
    with input_error("run/config.yaml describes another model than model.safetensors"):
        load(run)
    folder.config.unlink()
    assert open_run(run).load()[1] == before  # the weights know their configuration


def test_a_run_of_version_1_0_0_with_large_levels(run, monkeypatch):
    """Its file has sums, which levels of such a size no longer keep."""
    images = torch.rand(2, 1, 12, 12)
    files = load(run).compress(images)
    monkeypatch.setattr("hrvqvae.quantize.codebook._LARGE", 0)
    assert load(run).compress(images) == files

    # a run that begins with its weights has none of these sums
    config = with_training(open_run(run).load()[1], init_from=str(run))
    model = build(config)
    AutoencoderTask(config, RunFolder(run)).init_from(model)
    assert not any(name.endswith("total") for name in model.state_dict())


def test_priors_that_are_missing(full_run):
    """They are known without reading weights, and what trains them is named."""
    levels = [prior_folder(full_run, level) for level in range(3)]
    for folder in (RunFolder(full_run), *levels):
        content = folder.model.read_bytes()
        folder.model.with_suffix(".kept").write_bytes(content)
        folder.model.write_bytes(content[: 8 + int.from_bytes(content[:8], "little")])
    assert open_run(full_run).missing_priors() == ""
    for path in list(full_run.rglob("*.kept")):
        path.replace(path.with_suffix(".safetensors"))
    levels[1].model.unlink()
    for option, folder in (
        (" --resume", levels[1].path),
        (" --level 2", full_run / "priors"),
        ("", full_run),
    ):
        lacking = f"hrvqvae train-prior {full_run}{option}"
        assert open_run(full_run).missing_priors() == lacking
        instead = "" if folder == full_run else ", or draw level 1 alone"
        with input_error(f"{full_run} lacks priors; train them: {lacking}{instead}$"):
            open_run(full_run).load_priors()
        shutil.rmtree(folder)


def test_priors_of_other_classes_are_refused(full_run):
    path = prior_folder(full_run, 1).model
    tensors, meta = storage.read(path)
    # of more images is no fault
    counts = [count + 1 for count in meta["class_counts"]]
    storage.write(path, tensors, {**meta, "class_counts": counts})
    assert open_run(full_run).load_priors().class_counts == tuple(meta["class_counts"])
    # version 1.0.0 gave numbers to some classes that have names now
    names = [f"a {name}" for name in meta["classes"]]
    storage.write(path, tensors, {**meta, "classes": names})
    assert open_run(full_run).load_priors().classes == tuple(meta["classes"])
    storage.write(path, tensors, {**meta, "classes": meta["classes"][::-1]})
    with input_error(r"level-2.* trained on other classes than level 1"):
        open_run(full_run).load_priors()


def test_a_digest_is_of_the_weights_that_were_read(run, monkeypatch):
    path = RunFolder(run).model
    read = Path.read_bytes
    before = storage.digest(path)
    tensors, meta = storage.read(path)
    zeros = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}

    def read_and_replace(self):
        content = read(self)
        if self == path:
            storage.write(path, zeros, meta)
        return content

    monkeypatch.setattr(Path, "read_bytes", read_and_replace)
    trained = open_run(run)
    model, _ = trained.load()
    monkeypatch.undo()
    assert any(bool(parameter.any()) for parameter in model.parameters())
    assert trained.digest == before != storage.digest(path)


def test_codes_as_one_tensor(run):
    model = load(run)
    images = torch.rand(2, 1, 12, 12)
    codes = model.encode(images)
    stacked = model.encode(images, stacked=True)
    assert same(stacked, torch.stack(codes, 1))
    assert same(model.decode(stacked[:, :1], 1), model.decode(codes[:1], 1))
    for output in (stacked, model.decode(codes), *model.decompress(model.compress(images))):
        (output * torch.ones((), requires_grad=True)).sum().backward()  # they train another network


def test_samples_are_those_of_the_command_and_of_the_plain_sampler(full_run, tmp_path):
    model = load(full_run)
    options = {"temperature": 0.8, "top_k": 2, "top_p": 0.9}
    images = model.sample(6, class_name="7", seed=3, **options)
    assert images.shape == (6, 1, 12, 12)
    assert images.dtype == torch.float32
    params = SamplingParams(**options)
    for network in model.priors.networks:
        network.steps = LogitSteps
    plain = model.draw(6, seed=3, class_name="7", params=params)
    assert same(images, plain.images)
    assert plain.classes == ("7",) * 6
    sheet = tmp_path / "sheet.png"
    single = tmp_path / "single"
    drawing = "--class 7 --seed 3 --temperature 0.8 --top-k 2 --top-p 0.9"
    do(f"sample {full_run} -n 6 {drawing} -o {sheet} --save-dir {single}")
    assert same(read_image(sheet, 3), as_images(draw_grid(list(images)), 3)[0])
    for number, image in enumerate(images):
        written = read_image(single / f"7-{number:04d}.png", 1)
        assert same(written, (image * 255).round().byte())


def test_samples_of_two_decoders_are_not_mixed(full_run, tmp_path):
    draw = f"sample {full_run} -n 1 --save-dir {tmp_path}/single --force -o {tmp_path}/sheet.png"
    unforced = draw.replace("--force -o", "-o").replace("sheet.png", "new.png")

    def change_default():
        RunFolder(full_run).sampling.write_text('{"decoder": "progressive"}')

    for change in (change_default, decoder_folder(full_run, PROGRESSIVE).model.unlink):
        do(draw)
        change()
        assert "has other images already" in refused(unforced)


def test_a_mask_lies_over_the_codes_as_the_image_does(full_run):
    mask = torch.ones(12, 12, dtype=torch.bool)
    mask[1, 2] = mask[0, 11] = False  # the image has a margin of a pixel, and a code has two
    for where in load(full_run).keep_part(torch.zeros(1, 12, 12), mask).masks:
        assert (~where).nonzero().tolist() == [[0, 6], [1, 1]]


@parametrize("keep, rows, columns", [("top", 4, 7), ("left", 7, 3), ("0.25", 2, 7)])
def test_completions_keep_the_codes_of_that_part(full_run, keep, rows, columns):
    model = load(full_run)
    image = random_images(1, 12, 12, rng=generator())
    drawn = model.draw(5, seed=2, class_name="3", kept=model.keep_part(image, keep))
    for codes, original in zip(drawn.codes, model.encode(image[None]), strict=True):
        expected = original.expand(5, -1, -1)
        assert same(codes[:, :rows, :columns], expected[:, :rows, :columns])
        assert not same(codes, expected)
    assert same(model.complete(image, 5, keep=keep, class_name="3", seed=2), drawn.images)


def test_what_can_not_be_completed(full_run):
    model = load(full_run)
    image = random_images(1, 12, 12)
    for wrong, part, message in (
        (image[:, 2:], "top", "the image has 10x12 pixels; this model completes 12x12"),
        (image, torch.ones(3, 12, 12), r"the mask has shape \(3, 12, 12\); expected \(12, 12\)"),
        (image + 2.0, "top", "2"),
    ):
        with input_error(message):
            model.complete(wrong, keep=part)


GOLDEN = Path(__file__).parents[1] / "golden" / "mnist_codes.json"
CODES = read_json(GOLDEN)


@shared_fixture
def model():
    return load("mnist")


def test_codes_of_images(model):
    images = torch.from_numpy(drawn_digits(4, CODES["image_seed"], 28)[0]).unsqueeze(1)
    codes = model.encode(images)
    assert [code.tolist() for code in codes] == CODES["image_codes"]
    assert same(pickle.loads(pickle.dumps(model)).encode(images), codes)
    decoded = model.decode(codes, size=(28, 28))
    assert (decoded - images / 255).square().mean() < 0.01


def test_codes_of_samples(model):
    sampled = model.draw(2, seed=CODES["sample_seed"], class_name=str(CODES["class"]))
    assert [code.tolist() for code in sampled.codes] == CODES["sample_codes"]
    assert sampled.images.shape == (2, 1, 28, 28)
