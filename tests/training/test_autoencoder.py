"""Training an autoencoder: loss and files, restarted codewords, images."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

import hrvqvae
from hrvqvae.checkpoints.folder import RunFolder, open_run
from hrvqvae.data.batches import Batch, make_rng
from hrvqvae.data.loading import load_images
from hrvqvae.models.build import build
from hrvqvae.training.autoencoder import AutoencoderTask
from hrvqvae.training.optimizers import compute_learning_rate
from hrvqvae.training.state import MovingAverage, TrainState
from tests.conftest import (
    approx,
    generator,
    input_error,
    names_in,
    parametrize,
    random_images,
    same,
    with_data,
    with_quantizer,
    with_training,
)
from tests.data.stored import paths_of
from tests.kills import at_step
from tests.trained_run import tiny_systems
from tests.training.tasks import Case

FAR = 50.0
FIRST = "quantizer.codebooks.0.codewords"


def test_training_lowers_the_loss_and_fills_the_run_folder(tiny, tmp_path):
    config = with_training(tiny, max_steps=100, evaluate_every=50)
    case = Case("autoencoder", tmp_path / "run", config)
    case.train(config=config)
    records = case.records("train")
    assert records[-1]["reconstruction"] < 0.3 * records[0]["reconstruction"]
    first, last = case.records("evaluation")
    assert last["mse"] < first["mse"]
    run = case.folder
    assert run.read_config() == config == open_run(run.path).load()[1]
    assert names_in(run.pictures) == ["curves.png", "reconstructions.png", "usage.png"]
    tensors = case.state()
    for name in ("decoder.0.weight", "quantizer.codebooks.1.codewords"):
        in_file, averaged, last = (
            tensors[f"{where}.{name}"].flatten(0, 1).unique(dim=0)  # codewords are numbered anew
            for where in ("file", "averaged.module", "model")
        )
        assert same(in_file, averaged)
        assert not same(in_file, last)


def test_learning_rates(tiny):
    cosine = with_training(tiny, learning_rate=1.0, warmup_steps=10, schedule="cosine").training
    for step, fraction, rate in ((4, 0.0, 0.5), (50, 0.5, 0.5), (99, 1.0, 0.0)):
        assert compute_learning_rate(cosine, step, fraction) == approx(rate)
    constant = with_training(tiny, learning_rate=1.0, schedule="constant").training
    assert compute_learning_rate(constant, 0, 0.9) == 1


class Started:
    def __init__(self, config):
        torch.manual_seed(0)
        model = build(config)
        images = random_images(8, 1, 12, 12)
        model.initialize(images, generator())
        self.task = AutoencoderTask(config, RunFolder(Path()))
        auxiliary = self.task.build_objective()
        self.state = TrainState.start(model, config.training, auxiliary)
        self.model = model
        self.batch = Batch(images, torch.zeros(8).long())

    def train(self):
        metrics = dict(self.task.step(self.state, self.batch))
        self.state.step += 1
        return metrics

    def codewords(self, *, averaged=False):
        model = self.state.averaged.module if averaged else self.model
        return [level.codewords.clone() for level in model.quantizer.levels]

    def let_one_die(self):
        for model in (self.model, self.state.averaged.module):
            for name, rows in model.state_dict().items():
                if name == FIRST:
                    rows[0, 1] = FAR
                elif name.startswith("quantizer.codebooks.0."):
                    rows[0, 1] = 0


@parametrize("budget, last", [({"max_steps": 20}, 17), ({"max_steps": 0, "max_minutes": 0.5}, 20)])
def test_nothing_is_restarted_in_the_last_tenth(budget, last, tiny):
    """Restarts are due every third step; a step takes 1.25 seconds."""
    started = Started(with_training(with_quantizer(tiny, restart_every=3), **budget))
    restarted = []

    def restart(*_):
        restarted.append(started.state.step)
        return 0

    started.model.restart_dead_codes = restart
    while started.state.fraction < 1:
        started.train()
        started.state.seconds += 1.25
    assert restarted == [*range(2, last + 1, 3)]


def test_a_restarted_codeword_is_no_mean_of_two_places(tiny):
    """The average copies it and its subtree and averages the others."""
    config = with_training(with_quantizer(tiny, restart_every=3), polyak_decay=0.75)
    started = Started(config)
    for _ in range(2):
        started.train()
    started.let_one_die()
    before = started.codewords(averaged=True)
    assert started.train()["restarted"] == 1
    current = started.codewords()
    averaged = started.codewords(averaged=True)
    assert current[0][0, 1].abs().max() < FAR / 2
    assert same(averaged[0][0, 1], current[0][0, 1])
    assert same(averaged[1][1], current[1][1])
    for level, others in ((0, (0, [0, 2])), (1, ([0, 2],))):
        # the decay of the third update, (1 + 2) / (10 + 2)
        mean = 0.25 * before[level][others] + 0.75 * current[level][others]
        assert_close(averaged[level][others], mean)


@parametrize("system", ["treevq", "vqgan"])
def test_tensors_stay_where_they_are(system, mnist_root):
    """A CUDA graph is captured with addresses: weights, codebooks, moments and averages stay, also
    at a restart.
    """
    config = with_quantizer(tiny_systems(mnist_root)[system], restart_every=3)
    started = Started(config)
    places = []
    for _ in range(6):
        started.let_one_die()
        started.train()
        places.append({name: tensor.data_ptr() for name, tensor in started.state.tensors().items()})
    assert places[2] == places[-1]  # the discriminator begins at step 2


def test_groups_with_a_joint_beam_are_trained_one_by_one(mnist_root, tmp_path):
    quantizer = {"levels": 4, "linked": 2, "planted": False, "beam": 6}
    base = with_quantizer(tiny_systems(mnist_root)["treevq"], **quantizer)
    cases = {}
    for joint, beam in ((True, 6), (False, 4)):
        config = with_quantizer(base, joint_beam=joint, beam=beam)
        cases[joint] = Case("autoencoder", tmp_path / str(joint), config)
        cases[joint].train(max_steps=5)
    assert same(cases[True].state(), cases[False].state())
    assert hrvqvae.load(cases[True].path).config.model.quantizer.joint_beam


@parametrize("linked", [0, 2])
def test_a_planted_training(linked, mnist_root, tmp_path):
    """Flat codebooks are trained, and the run is a tree with their codewords as leaves."""
    tree = {"levels": 4, "linked": linked, "coarse_weight": 0.0}
    base = with_quantizer(tiny_systems(mnist_root)["treevq"], planted=True, beam=81, **tree)
    base = with_training(base, schedule="constant")
    case = Case("autoencoder", tmp_path / "run", base)
    case.train()
    parts = case.at(tmp_path / "parts")
    for steps in (5, 12):
        parts.train(max_steps=steps, resume=steps > 5)
    assert same(case.state(), parts.state())

    # the trained flat codebooks, and the images that they give
    flat = build(replace(base, model=base.model.trained))
    stages = 2 if linked else 1
    assert flat.config.num_codewords == (81 if stages == 1 else 9,) * stages
    average = "averaged.module."
    weights = {
        name.removeprefix(average): tensor
        for name, tensor in case.state().items()
        if name.startswith(average)
    }
    flat.load_state_dict(weights)
    model = hrvqvae.load(case.path)
    images = random_images(4, 1, 28, 28)
    codes = model.encode(images)
    assert len(codes) == 4
    if stages == 1:
        expected = flat.eval().decode(flat.encode(images))
        assert_close(model.decode(codes), expected, rtol=0, atol=1e-5)
    files = model.compress(images)
    assert same(model.decompress(files)[0], model.decode(codes)[0])

    # another training begins with the leaves
    still = with_quantizer(base, decay=0.9999)
    longer = Case("autoencoder", tmp_path / "longer", still)
    longer.train(max_steps=1, learning_rate=1e-9, init_from=case.path)
    again = hrvqvae.load(longer.path)
    assert_close(again.decode(again.encode(images)), model.decode(codes), rtol=0, atol=5e-3)


@pytest.fixture
def pictures(tiny, picture_folder):
    return with_data(tiny, dataset="pictures", root=str(picture_folder), channels=3, crop="random")


def test_broken_images_are_counted_and_do_not_shift_the_data(pictures, picture_folder, tmp_path):
    for path in sorted(picture_folder.rglob("*.png"))[:3]:
        path.write_bytes(b"broken")
    options = {"batch_size": 1, "checkpoint_every": 7, "schedule": "constant"}
    unstopped = Case("autoencoder", tmp_path / "run", with_data(pictures, on_error="skip"))
    unstopped.train(**options, max_steps=40)
    parts = unstopped.at(tmp_path / "parts")
    for steps in (23, 40):
        parts.train(**options, max_steps=steps, resume=steps > 23)
    assert same(unstopped.state(), parts.state())
    records = unstopped.records()
    assert any(record.get("broken_images") for record in records)
    # also what was counted and averaged before the run was stopped
    last = [record for record in parts.records() if record["step"] == 40]
    assert last == [record for record in records if record["step"] == 40]


def test_a_checkpoint_is_written_before_a_broken_image(pictures, tmp_path, monkeypatch):
    case = Case("autoencoder", tmp_path / "run", with_training(pictures, batch_size=2))
    images = load_images(pictures.data, "train")
    broken = paths_of(images)[make_rng("order", 0, 0).permutation(len(images))[7]]
    at_step(monkeypatch, AutoencoderTask, 1, lambda _: broken.write_bytes(b"broken"))
    with input_error("--on-error skip"):
        case.train(max_steps=10, checkpoint_every=100)
    assert case.last_step == 3


def test_a_long_average_forgets_the_first_weights():
    """Also in a training that is shorter than the average."""
    network = torch.nn.Linear(2, 2)
    average = MovingAverage(network, 0.9999)
    for value in range(401):
        network.weight.data.fill_(value)
        average.update_parameters(network)
    assert 350 < average.module.weight.min() < 400
    short = MovingAverage(network, 0.5)
    for value in (100, 200, 300):
        network.weight.data.fill_(value)
        short.update_parameters(network)
    # the first update copies, the next have the decays 2 / 11 and 3 / 12
    expected = (100 * 2 / 11 + 200 * 9 / 11) / 4 + 300 * 3 / 4
    assert_close(short.module.weight.detach(), torch.full((2, 2), expected))
