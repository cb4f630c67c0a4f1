"""What lies beside a model and was made for another state of it: named with one command, never used, never deleted."""

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import hrvqvae
from hrvqvae.checkpoints import storage
from hrvqvae.checkpoints.folder import RunFolder, list_models, prior_folder, progressive_folder
from hrvqvae.checkpoints.run import Run, stale_notice
from hrvqvae.training.autoencoder import AutoencoderTask
from hrvqvae.utils.errors import InputError
from tests.checkpoints.conftest import change
from tests.conftest import done
from tests.kills import at_step
from tests.trained_run import tiny_run_with_priors, undrawn

PRIORS = ["priors/level-1", "priors/level-2", "priors/level-3"]


def stale(run: str | Path) -> list[str]:
    return [str(artifact) for artifact in Run(run).stale_artifacts()]


def test_only_what_is_of_another_state_is_stale(whole: Path) -> None:
    folder, decoder = RunFolder(whole), progressive_folder(whole)
    assert stale(whole) == [] == stale_notice(whole)
    change(whole)
    assert stale(whole) == [*PRIORS, "prefixes", "tables.hrvt"]
    weights, about = storage.read(prior_folder(whole, 0).model)
    storage.write(prior_folder(whole, 0).model, weights, {**about, "autoencoder": storage.digest(folder.model)})
    prior_folder(whole, 1).model.unlink()  # it has begun, and no more
    folder.tables.unlink()
    decoder.model.unlink()
    assert stale(whole) == PRIORS[1:]


def test_nothing_beside_a_model_inside_the_package_is_stale() -> None:
    assert [artifact for name in list_models() for artifact in stale(name)] == []


@pytest.mark.parametrize(
    ("part", "use"),
    [
        ("level-1", lambda run: Run(run).load_priors()),
        ("tables.hrvt", lambda run: hrvqvae.load(run).entropy_model),
    ],
)
def test_what_is_stale_is_not_used_and_stays(part: str, use: Callable[[Path], object], changed: Path) -> None:
    before = {path: path.read_bytes() for path in changed.rglob("*.safetensors")}
    with pytest.raises(InputError, match=rf"{part}.* was made for another state of the model.*hrvqvae refresh .*run"):
        use(changed)
    assert {path: path.read_bytes() for path in changed.rglob("*.safetensors")} == before


def test_prefixes_fall_back_to_the_decoder_of_all_levels(whole: Path, caplog: pytest.LogCaptureFixture) -> None:
    codes = tuple(torch.zeros(1, 7, 7, dtype=torch.int64) for _ in range(3))
    progressive = hrvqvae.load(whole).decode(codes[:1], 1)
    change(whole)
    fallen_back = hrvqvae.load(whole).decode(codes[:1], 1)
    assert f"{whole / 'prefixes'} was made for another state" in caplog.text
    assert f"hrvqvae refresh {whole}" in caplog.text
    shutil.rmtree(whole / "prefixes")
    assert torch.equal(fallen_back, hrvqvae.load(whole).decode(codes[:1], 1))
    assert not torch.equal(fallen_back, progressive)


def test_training_that_goes_on_tells_it(whole: Path, mnist_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(whole.parent)
    file = tiny_run_with_priors(mnist_root).parent / "tiny.yaml"
    at_step(monkeypatch, AutoencoderTask, 60, lambda _: signal.raise_signal(signal.SIGTERM))
    parts = "priors/level-1, priors/level-2, priors/level-3, prefixes, tables.hrvt"
    for steps, code, stale in (("60", 0, False), ("62", 128 + signal.SIGTERM, True)):
        with undrawn():
            ended, printed, _ = done("train", file, "--out", "run", "--resume", "--max-steps", steps)
        assert ended == code
        last = printed.splitlines()[-1]
        assert (last == f"{parts}: made for another state of the model; renew with: hrvqvae refresh run") == stale


def test_what_can_not_be_read_is_left_to_who_uses_it(changed: Path) -> None:
    decoder = progressive_folder(changed).model
    RunFolder(changed).tables.unlink()
    RunFolder(changed).tables.mkdir()
    decoder.write_bytes(decoder.read_bytes()[:20])
    assert stale(changed) == PRIORS
    save_file({"any": torch.zeros(1)}, decoder, {"format": "pt", "meta": json.dumps([]), "digest": ""})
    assert stale(changed) == PRIORS
    RunFolder(changed).model.unlink()
    assert stale_notice(changed) == []
