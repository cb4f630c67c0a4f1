"""What was made for another state of a model is never used or deleted; files of codes outlive the
weights.
"""

import json
import resource
import shutil
import signal
from functools import partialmethod
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import save_file

import hrvqvae
from hrvqvae.checkpoints import storage
from hrvqvae.checkpoints.export import export
from hrvqvae.checkpoints.folder import (
    PROGRESSIVE,
    RunFolder,
    decoder_folder,
    list_models,
    prior_folder,
)
from hrvqvae.checkpoints.run import EntropyModelArtifact, Run, stale_notice
from hrvqvae.compression.hrv import read_header
from hrvqvae.compression.learning import fit
from hrvqvae.model import find_makers
from hrvqvae.training.autoencoder import AutoencoderTask
from hrvqvae.utils.errors import DamagedFileError, InputError
from tests.checkpoints.conftest import change
from tests.conftest import do, done, input_error, refused, with_training, write_picture
from tests.kills import at_step, in_another_process
from tests.trained_run import silent, tiny_run_with_priors, train_autoencoder, undrawn


@patch.object(EntropyModelArtifact, "fit", partialmethod(EntropyModelArtifact.fit, effort=0.05))
def test_files_are_read_after_resume_refresh_and_export(whole: Path, tmp_path: Path) -> None:
    for number in range(2):
        write_picture(tmp_path / "images" / f"{number}.png", number, (12, 12), "L")
    zipped = tmp_path / "old.zip"
    files = tmp_path / "files"

    def decompressed(model: Path) -> list[bytes]:
        out = tmp_path / f"out-{sum(1 for _ in tmp_path.iterdir())}"
        do("decompress", *sorted(files.glob("*.hrv")), "-o", out / "files", "--model", model)
        do("decompress", zipped, "-o", out / "zip", "--model", model, "--levels", 1)
        return [path.read_bytes() for path in sorted(out.rglob("*.png"))]

    for out in (files, zipped):
        do("compress", whole, tmp_path / "images", "-o", out, "--device", "cpu")
    before = decompressed(whole)
    assert len(before) == 4
    train_autoencoder(
        with_training(RunFolder(whole).read_config(), max_steps=62), whole, resume=True
    )
    assert decompressed(whole) == before, "by the progressive decoder of that state, too"
    assert "was made for another state" in refused(
        ["compress", whole, tmp_path / "images", "-o", tmp_path / "new"]
    )
    with undrawn():
        do("refresh", whole)
    assert decompressed(whole) == before
    export(whole, tmp_path / "exported")
    assert decompressed(tmp_path / "exported") == before
    model = hrvqvae.load(whole)
    contents = [path.read_bytes() for path in sorted(files.glob("*.hrv"))]
    mixed = model.decompress([contents[0], *model.compress(torch.zeros(1, 1, 12, 12)), contents[1]])
    assert torch.equal(mixed[2], hrvqvae.load(tmp_path / "exported").decompress(contents)[1])
    with pytest.raises(DamagedFileError, match="^file 2 is not a file of codes"):
        model.decompress([contents[0], b"of no model"])
    assert len(Run(whole).earlier_states()) == 2


def test_a_state_is_kept_once_and_only_where_training_may_go_on(
    whole: Path, tmp_path: Path
) -> None:
    images = torch.zeros(1, 1, 12, 12)
    for _ in range(2):
        (file,) = hrvqvae.load(whole).compress(images)
    (state,) = (whole / "states").iterdir()
    assert state.name == Run(whole).weights_digest
    export(whole, tmp_path / "exported")
    assert not (tmp_path / "exported" / "states").exists(), "they are the weights that are exported"
    hrvqvae.load(tmp_path / "exported").compress(images)
    assert not (tmp_path / "exported" / "states").exists(), "nothing is trained there"
    change(whole)
    fingerprint = read_header(file).fingerprint
    (model,) = find_makers([("x.hrv", fingerprint)], str(whole))
    assert model.run.folder.path == state
    export(whole, tmp_path / "compact", compact=True)
    assert not (tmp_path / "compact" / "states").exists()
    model = hrvqvae.load(whole)
    change(whole)
    with input_error("was replaced since it was loaded: load it again"):
        model.compress(images)
    (state / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(InputError):
        hrvqvae.load(whole).decompress([file])


def test_an_entropy_model_is_fitted_once(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two that fit at once one is refused; a fitted one that was deleted is put back from where
    files need it.
    """
    with (
        in_another_process(RunFolder(run).tables, "lock_file"),
        input_error("is in use"),
    ):
        Run(run).entropy_model.fit(effort=0.01, say=silent)
    Run(run).entropy_model.fit(effort=0.01, say=silent)
    fitted = RunFolder(run).tables.read_bytes()
    hrvqvae.load(run).compress(torch.zeros(1, 1, 12, 12))
    RunFolder(run).tables.unlink()
    Run(run).entropy_model.fit(effort=0.02, say=silent)
    assert RunFolder(run).tables.read_bytes() == fitted
    RunFolder(run).tables.unlink()
    (run / "states").rename(run / "elsewhere")
    monkeypatch.setattr(
        "hrvqvae.checkpoints.run.fit", lambda *arguments: (change(run), fit(*arguments))[1]
    )
    with input_error("was replaced while its entropy model was fitted"):
        Run(run).entropy_model.fit(effort=0.01, say=silent)


def test_an_entropy_model_of_other_weights_in_the_folder_is_kept(run: Path, tmp_path: Path) -> None:
    tensors, meta = storage.read(RunFolder(run).model)
    first = tmp_path / "a.safetensors"
    second = tmp_path / "b.safetensors"
    storage.write(first, tensors, meta)
    storage.write(second, {name: tensor * 1.01 for name, tensor in tensors.items()}, meta)
    Run(first).entropy_model.fit(effort=0.01, say=silent)
    before = (tmp_path / "tables.hrvt").read_bytes()
    Run(second).entropy_model.fit(effort=0.01, say=silent)
    assert (tmp_path / "tables.hrvt").read_bytes() != before
    Run(first).entropy_model.fit(effort=0.02, say=silent)
    assert (tmp_path / "tables.hrvt").read_bytes() == before


@pytest.mark.parametrize("kind", ["model", "prior", "deep", "vast"])
def test_a_small_file_makes_no_large_network(kind: str, whole: Path) -> None:
    path = (
        whole / "priors" / "level-1" / "model.safetensors"
        if kind == "prior"
        else RunFolder(whole).model
    )
    _, meta = storage.read(path)
    config = json.loads(json.dumps(meta["config"]))
    if kind == "deep":
        config["model"]["residual_blocks"] = 100_000
    else:
        width = 1 << (
            30 if kind == "vast" else 14
        )  # of 2^30 channels torch can't even count the weights
        config["model"]["hidden_units"] = config["prior"]["network"]["hidden_units"] = width
    storage.write(path, {"x": torch.zeros(1)}, {**meta, "config": config})
    for file in whole.rglob("config.yaml"):
        file.unlink()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DamagedFileError, match="the weights do not fit their configuration"):
        Run(whole).load_priors() if kind == "prior" else hrvqvae.load(whole)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10


PRIORS = ["priors/level-1", "priors/level-2", "priors/level-3"]


def stale(run: str | Path) -> list[str]:
    return [str(artifact) for artifact in Run(run).stale_artifacts()]


def test_only_what_is_of_another_state_is_stale(whole: Path) -> None:
    folder = RunFolder(whole)
    decoder = decoder_folder(whole, PROGRESSIVE)
    assert stale(whole) == [] == stale_notice(whole)
    change(whole)
    assert stale(whole) == [*PRIORS, "prefixes", "tables.hrvt"]
    weights, about = storage.read(prior_folder(whole, 0).model)
    storage.write(
        prior_folder(whole, 0).model,
        weights,
        {**about, "autoencoder": storage.digest(folder.model)},
    )
    prior_folder(whole, 1).model.unlink()  # it has begun, and no more
    folder.tables.unlink()
    decoder.model.unlink()
    assert stale(whole) == PRIORS[1:]


def test_nothing_beside_a_model_inside_the_package_is_stale() -> None:
    assert [artifact for name in list_models() for artifact in stale(name)] == []


def test_what_is_stale_is_not_used_and_stays(changed: Path) -> None:
    before = {path: path.read_bytes() for path in changed.rglob("*.safetensors")}
    told = " was made for another state of the model.*hrvqvae refresh .*run"
    with input_error(f"level-1.*{told}"):
        Run(changed).load_priors()
    with input_error(f"tables.hrvt.*{told}"):
        hrvqvae.load(changed).entropy_model  # noqa: B018
    assert {path: path.read_bytes() for path in changed.rglob("*.safetensors")} == before


def test_prefixes_fall_back_to_the_decoder_of_all_levels(
    whole: Path, caplog: pytest.LogCaptureFixture
) -> None:
    codes = tuple(torch.zeros(1, 7, 7, dtype=torch.int64) for _ in range(3))
    progressive = hrvqvae.load(whole).decode(codes[:1], 1)
    change(whole)
    fallen_back = hrvqvae.load(whole).decode(codes[:1], 1)
    assert f"{whole / 'prefixes'} was made for another state" in caplog.text
    assert f"hrvqvae refresh {whole}" in caplog.text
    shutil.rmtree(whole / "prefixes")
    assert torch.equal(fallen_back, hrvqvae.load(whole).decode(codes[:1], 1))
    assert not torch.equal(fallen_back, progressive)


def test_training_that_goes_on_tells_it(
    whole: Path, mnist_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(whole.parent)
    file = tiny_run_with_priors(mnist_root).parent / "tiny.yaml"
    at_step(monkeypatch, AutoencoderTask, 60, lambda _: signal.raise_signal(signal.SIGTERM))
    parts = "priors/level-1, priors/level-2, priors/level-3, prefixes, tables.hrvt"
    for steps, code, stale in (("60", 0, False), ("62", 128 + signal.SIGTERM, True)):
        with undrawn():
            ended, printed, _ = done(
                "train", file, "--out", "run", "--resume", "--max-steps", steps
            )
        assert ended == code
        last = printed.splitlines()[-1]
        assert (
            last == f"{parts}: made for another state of the model; renew with: hrvqvae refresh run"
        ) == stale


def test_what_can_not_be_read_is_left_to_who_uses_it(changed: Path) -> None:
    decoder = decoder_folder(changed, PROGRESSIVE).model
    RunFolder(changed).tables.unlink()
    RunFolder(changed).tables.mkdir()
    decoder.write_bytes(decoder.read_bytes()[:20])
    assert stale(changed) == PRIORS
    save_file(
        {"any": torch.zeros(1)}, decoder, {"format": "pt", "meta": json.dumps([]), "digest": ""}
    )
    assert stale(changed) == PRIORS
    RunFolder(changed).model.unlink()
    assert stale_notice(changed) == []
