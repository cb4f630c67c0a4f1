"""Training on each device of this machine: it runs, goes on where it stopped, and ends at NaN before an update."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hrvqvae.checkpoints import storage
from hrvqvae.checkpoints.folder import RunFolder
from hrvqvae.checkpoints.loading import load_with_config
from hrvqvae.config import Config
from hrvqvae.data.batches import Batch
from hrvqvae.models.build import build, build_objective
from hrvqvae.training.autoencoder import AutoencoderTask
from hrvqvae.training.loggers import read_records
from hrvqvae.training.state import Budget, TrainState
from hrvqvae.utils.device import Compute, computes_bf16
from hrvqvae.utils.errors import NonFiniteError
from tests.conftest import with_training
from tests.devices import on_each_device
from tests.trained_run import train_autoencoder


@on_each_device
def test_a_run_goes_on_where_it_stopped(device: str, tiny: Config, tmp_path: Path) -> None:
    run, said = RunFolder(tmp_path / "run"), list[str]()
    config = with_training(tiny, device=device, max_steps=12, precision="auto", log_every=1)
    train_autoencoder(config, run, resume=False, say=said.append)
    outcome = train_autoencoder(with_training(config, max_steps=20), run, resume=True, say=said.append)
    assert outcome.step == 20
    tensors, meta = storage.read(run.saved()[0])
    assert meta["device"] == device
    assert all(bool(torch.isfinite(values).all()) for values in tensors.values() if values.is_floating_point())
    steps = [record["step"] for record in read_records(run.metrics) if record["kind"] == "train"]
    assert steps == list(range(1, 21)), "no step twice, none left out"
    model, _ = load_with_config(run.path)
    assert next(model.parameters()).device.type == "cpu"
    codes = model.encode(torch.zeros(1, 1, 12, 12))
    assert model.decode(codes, size=(12, 12)).shape == (1, 1, 12, 12)


@on_each_device
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_nan_ends_a_step_before_the_update(device: str, precision: str, tiny: Config) -> None:
    if precision == "bf16" and not computes_bf16(torch.device(device)):
        precision = "fp32"
    config = with_training(tiny, device=device, precision=precision)
    compute = Compute.of(config.training)
    torch.manual_seed(0)
    model = compute.place_model(build(config))
    objective = build_objective(model, config, compute.place_model)
    state = TrainState.start(model, config.training, objective.auxiliary)
    step = AutoencoderTask(model, objective, config, compute, Budget(None, None))
    images = torch.randint(256, (4, 1, 12, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    batch = Batch(images, torch.zeros(4, dtype=torch.long))
    assert torch.isfinite(torch.tensor(step(state, batch)["loss"]))
    spoiled = next(model.parameters())
    with torch.no_grad():
        spoiled.view(-1)[0] = torch.nan
    before = [parameter.clone() for parameter in model.parameters()]
    with pytest.raises(NonFiniteError):
        step(state, batch)
    for parameter, kept in zip(model.parameters(), before, strict=True):
        assert torch.equal(parameter.nan_to_num(), kept.nan_to_num())
        assert int(parameter.isnan().sum()) == int(parameter is spoiled)
