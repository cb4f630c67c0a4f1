"""Training an autoencoder: loss and files, restarted codewords, images."""

from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from hrvqvae.checkpoints import storage
from hrvqvae.checkpoints.folder import RunFolder
from hrvqvae.checkpoints.run import Run
from hrvqvae.config import Config
from hrvqvae.data.batches import Batch
from hrvqvae.data.loading import load_images
from hrvqvae.models.build import build
from hrvqvae.training.autoencoder import AutoencoderTask
from hrvqvae.training.drawing import draw_training
from hrvqvae.training.optimizers import compute_learning_rate
from hrvqvae.training.state import Budget, TrainState, make_budget
from tests.conftest import (
    input_error,
    same,
    with_data,
    with_quantizer,
    with_training,
    write_picture,
)
from tests.kills import at_step
from tests.trained_run import train_autoencoder
from tests.training.tasks import Case

FAR = 50.0
FIRST = "quantizer.codebooks.0.codewords"


def trained(config: Config, folder: Path, *steps: int) -> dict[str, Tensor]:
    for index, most in enumerate(steps):
        train_autoencoder(
            with_training(config, max_steps=most, schedule="constant"), folder, resume=index > 0
        )
    return Case("autoencoder", folder, config).state()


def test_training_lowers_the_loss_and_fills_the_run_folder(tiny: Config, tmp_path: Path) -> None:
    config = with_quantizer(
        with_training(tiny, max_steps=100, evaluate_every=50), restart_below=1.0
    )
    run = RunFolder(tmp_path / "run")
    train_autoencoder(config, run, callbacks=[draw_training])
    case = Case("autoencoder", run.path, tiny)
    losses = [record["reconstruction"] for record in case.records("train")]
    assert losses[-1] < 0.3 * losses[0]
    evaluations = case.records("evaluation")
    assert [record["step"] for record in evaluations] == [50, 100]
    assert evaluations[-1]["mse"] < evaluations[0]["mse"]
    assert sum(record.get("restarted", 0) for record in case.records("train")) > 0
    assert run.read_config() == config == Run(run.path).load()[1]
    assert [path.name for path in run.saved()] == [
        "step-000000100.safetensors",
        "step-000000099.safetensors",
    ]
    assert {path.name for path in run.pictures.iterdir()} == {
        "reconstructions.png",
        "curves.png",
        "usage.png",
    }
    tensors = case.state()
    for name in ("decoder.0.weight", "quantizer.codebooks.1.codewords"):
        in_file, averaged, last = (
            tensors[f"{where}.{name}"] for where in ("file", "averaged.module", "model")
        )
        assert torch.equal(*(one.flatten(0, 1).unique(dim=0) for one in (in_file, averaged))), (
            "up to its numbering"
        )
        assert not torch.equal(
            in_file.flatten(0, 1).unique(dim=0), last.flatten(0, 1).unique(dim=0)
        )


def test_budgets_and_learning_rates(tiny: Config) -> None:
    for steps, epochs, minutes, expected in (
        (10, 0, 0, (10, None)),
        (0, 3, 0, (18, None)),
        (20, 3, 0, (18, None)),
        (0, 0, 0.5, (None, 30.0)),
    ):
        training = with_training(tiny, max_steps=steps, epochs=epochs, max_minutes=minutes).training
        assert make_budget(training, 96) == expected
    cosine = with_training(tiny, learning_rate=1.0, warmup_steps=10, schedule="cosine").training
    assert compute_learning_rate(cosine, 4, 0.0) == pytest.approx(0.5)
    assert compute_learning_rate(cosine, 50, 0.5) == pytest.approx(0.5)
    assert compute_learning_rate(cosine, 99, 1.0) == pytest.approx(0.0)
    assert (
        compute_learning_rate(
            with_training(tiny, learning_rate=1.0, schedule="constant").training, 0, 0.9
        )
        == 1.0
    )


class Started:
    def __init__(self, config: Config, budget: Budget) -> None:
        torch.manual_seed(0)
        model = build(config)
        images = torch.randint(256, (8, 1, 12, 12), dtype=torch.uint8)
        model.initialize(images, torch.Generator().manual_seed(0))
        self.task = AutoencoderTask(config, RunFolder(Path()))
        self.state = TrainState.start(model, config.training, budget=budget)
        self.task.compute = self.state.compute
        self.task.build_objective()
        self.model = model
        self.batch = Batch(images, torch.zeros(8).long())

    def train(self) -> dict[str, float]:
        metrics = dict(self.task.step(self.state, self.batch))
        self.state.step += 1
        return metrics

    def codewords(self, *, averaged: bool = False) -> list[Tensor]:
        model = self.state.averaged.module if averaged else self.model
        return [codewords.clone() for codewords in model.linked_codebooks]

    def let_one_die(self) -> None:
        for model in (self.model, self.state.averaged.module):
            for name, rows in model.state_dict().items():
                if name == FIRST:
                    rows[0, 1] = FAR
                elif name.startswith("quantizer.codebooks.0."):
                    rows[0, 1] = 0


@pytest.mark.parametrize(("budget", "last"), [((20, None), 17), ((None, 30.0), 20)])
def test_nothing_is_restarted_in_the_last_tenth(budget: Budget, last: int, tiny: Config) -> None:
    """Restarts are due every third step; a step takes 1.25 seconds."""
    started = Started(with_quantizer(tiny, restart_every=3), budget)
    restarted = list[int]()
    with patch.object(
        type(started.model),
        "restart_dead_codes",
        lambda *_: restarted.append(started.state.step) or 0,
    ):
        while started.state.fraction < 1:
            started.train()
            started.state.seconds += 1.25
    assert restarted == [*range(2, last + 1, 3)]


@pytest.mark.parametrize("update", ["ema", "gradient"])
def test_a_restarted_codeword_is_no_mean_of_two_places(update: str, tiny: Config) -> None:
    """The average copies it and its subtree and averages the others; Adam's moments of it are 0."""
    config = with_training(with_quantizer(tiny, update=update, restart_every=3), polyak_decay=0.75)
    started = Started(config, (None, None))
    started.train()
    expected = started.codewords()
    started.train()
    expected = [
        0.75 * old + 0.25 * new for old, new in zip(expected, started.codewords(), strict=True)
    ]
    for average, mean in zip(started.codewords(averaged=True), expected, strict=True):
        torch.testing.assert_close(average, mean, rtol=1e-5, atol=1e-6)
    started.let_one_die()
    before = started.codewords(averaged=True)
    assert started.train()["restarted"] == 1
    current = started.codewords()
    averaged = started.codewords(averaged=True)
    assert current[0][0, 1].abs().max() < FAR / 2
    assert torch.equal(averaged[0][0, 1], current[0][0, 1])
    assert torch.equal(averaged[1][1], current[1][1])
    for level, others in ((0, (0, [0, 2])), (1, ([0, 2],))):
        mean = 0.75 * before[level][others] + 0.25 * current[level][others]
        torch.testing.assert_close(averaged[level][others], mean)
    if update == "gradient":
        moments = started.state.networks["model"].optimizer.state[
            started.model.get_parameter(FIRST)
        ]
        assert moments["exp_avg"][0, 1].abs().max() == moments["exp_avg_sq"][0, 1].abs().max() == 0
        assert moments["exp_avg"][0, 0].abs().max() > 0


def test_tensors_stay_where_they_are(tiny: Config) -> None:
    """As a CUDA graph of a step needs it; restarts are outside of the graph, and move no tensor."""
    started = Started(with_quantizer(tiny, restart_every=3), Budget(100))

    def places() -> dict[str, int]:
        tensors = started.state.tensors()
        return {name: tensor.data_ptr() for name, tensor in tensors.items() if "model." in name}

    before = places()
    for _ in range(100):
        started.train()
    assert places() == before


@pytest.fixture
def pictures(tiny: Config, picture_folder: Path) -> Config:
    return with_data(tiny, dataset="pictures", root=str(picture_folder), channels=3, crop="random")


def test_broken_images(pictures: Config, tmp_path: Path) -> None:
    """Broken images stop a run; skipped, they are counted and do not shift the data against the
    steps.
    """
    folder = Path(str(pictures.data.root))
    for path in sorted(folder.rglob("*.png"))[:3]:
        path.write_bytes(b"broken")
    with input_error("--data.on_error skip"):
        trained(pictures, tmp_path / "run", 3)
    config = with_training(with_data(pictures, on_error="skip"), batch_size=1, checkpoint_every=7)
    whole = trained(config, tmp_path / "run", 40)
    assert same(whole, trained(config, tmp_path / "parts", 23, 40))
    records = [Case("autoencoder", tmp_path / name, config).records() for name in ("run", "parts")]
    assert max(record.get("broken_images", 0) for record in records[0]) == 3
    last = [[record for record in kept if record["step"] == 40] for kept in records]
    assert last[0] == last[1], "also what was counted and averaged before the run was stopped"
    for path in folder.rglob("*.*"):
        path.write_bytes(b"broken")
    with input_error("broken"):
        trained(config, tmp_path / "none", 3)


def test_a_run_goes_on_without_a_broken_image_that_is_deleted(
    pictures: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case("autoencoder", tmp_path / "run", with_training(pictures, batch_size=2))
    images = load_images(pictures.data, "train")
    order = images.order(0, 0)
    assert images.source is not None
    broken = Path(str(pictures.data.root), images.source.name(int(images.rows[order[7]])))
    at_step(monkeypatch, AutoencoderTask, 1, lambda _: broken.write_bytes(b"broken"))
    with input_error("--data.on_error skip"):
        case.train(max_steps=10, checkpoint_every=100)
    assert case.folder.saved()[0].stem == "step-000000003", "the steps before it are kept"
    broken.unlink()
    said = list[str]()
    assert case.train(resume=True, max_steps=10, say=said.append).step == 10
    assert any(line.startswith("1 training image gone since the last checkpoint") for line in said)
    said.clear()
    case.train(resume=True, max_steps=11, say=said.append)
    assert not any("gone" in line for line in said), "it is told once"
    write_picture(broken.with_name("new.png"), 1)
    with input_error("trained on other images"):
        case.train(resume=True, max_steps=12)


def test_a_prior_goes_on_without_images_that_are_deleted(pictures: Config, tmp_path: Path) -> None:
    trained(pictures, tmp_path / "run", 3)
    case = Case("prior", tmp_path / "run", pictures)
    case.train(max_steps=3)
    images = load_images(pictures.data, "train")
    assert images.source is not None
    path = Path(images.source.where(int(images.rows[0])))
    content = path.read_bytes()
    path.unlink()
    said = list[str]()
    assert case.train(resume=True, max_steps=5, say=said.append).step == 5
    assert any(line.startswith("1 training image gone since the last checkpoint") for line in said)
    path.write_bytes(content)
    with input_error("trained on other images"):
        case.train(resume=True, max_steps=6)


def test_large_images_on_a_cpu_get_a_hint(pictures: Config, tmp_path: Path) -> None:
    for size, count in ((64, 0), ("64x256", 1)):
        said = list[str]()
        config = with_data(pictures, size=size)
        AutoencoderTask(config, RunFolder(tmp_path / "run")).open(said.append)
        assert [line[:24] for line in said] == ["hint: a CPU trains few i"] * count


def test_messages_about_broken_images_are_bounded(tiny: Config) -> None:
    state = TrainState.start(build(tiny), tiny.training)
    for start in range(0, 3_000, 500):
        state.add_broken(f"{start + index}.png is broken" for index in range(500))
    assert len(state.meta()["broken"]) == 1_000


def test_other_images_are_refused(pictures: Config, tmp_path: Path) -> None:
    folder = Path(str(pictures.data.root))
    trained(pictures, tmp_path / "run", 3)
    moved = folder.rename(tmp_path / "moved")
    config = with_data(pictures, root=str(moved))
    train_autoencoder(
        with_training(config, max_steps=4, schedule="constant"), tmp_path / "run", resume=True
    )
    for index in range(3):  # not all of which are for test
        (moved / "cats" / f"new-{index}.png").write_bytes(next(moved.rglob("*.png")).read_bytes())
    with input_error(r"trained on other images.*--init-from"):
        train_autoencoder(with_training(config, max_steps=5), tmp_path / "run", resume=True)
    for path in moved.rglob("new-*.png"):
        path.unlink()
    assert (
        train_autoencoder(with_training(config, max_steps=5), tmp_path / "run", resume=True).step
        == 5
    )
    config = with_training(config, max_steps=6)
    for path in moved.rglob("*.jpg"):  # under their old names
        write_picture(path, 1)
    with input_error(r"trained on other images.*--init-from"):
        train_autoencoder(config, tmp_path / "run", resume=True)


def test_codebooks_keep_their_counts_where_a_run_begins_with_another(
    run: Path, tiny: Config, tmp_path: Path
) -> None:
    config = with_training(tiny, learning_rate=1e-12, max_steps=1, init_from=str(run))
    train_autoencoder(config, tmp_path / "second")
    first, second = (storage.read(RunFolder(path).model)[0] for path in (run, tmp_path / "second"))
    counts = [name for name in first if name.endswith(".count")]
    assert counts
    for name in counts:  # one step adds what the batch holds
        assert (second[name] >= first[name] * config.model.quantizer.decay - 1e-3).all()
