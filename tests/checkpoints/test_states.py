"""Files of codes outlive the weights that made them: their run keeps what reads them. Networks cost what they fill."""

import json
import resource
import subprocess
import sys
from functools import partialmethod
from pathlib import Path

import pytest
import torch

import hrvqvae
from hrvqvae.checkpoints import storage
from hrvqvae.checkpoints.export import export
from hrvqvae.checkpoints.folder import RunFolder
from hrvqvae.checkpoints.run import EntropyModelArtifact, Run
from hrvqvae.compression.learning import fit
from hrvqvae.model import models_of_files
from hrvqvae.utils.errors import DamagedFileError, InputError
from tests.checkpoints.conftest import change
from tests.conftest import do, refused, with_training, write_picture
from tests.trained_run import train_autoencoder


def silent(_: str) -> None:
    pass


def test_files_are_read_after_resume_refresh_and_export(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EntropyModelArtifact, "fit", partialmethod(EntropyModelArtifact.fit, effort=0.05))
    for number in range(2):
        write_picture(tmp_path / "images" / f"{number}.png", number, (12, 12), "L")
    archive, files = tmp_path / "old.hrva", tmp_path / "files"

    def decompressed(model: Path, levels: int) -> list[bytes]:
        out = tmp_path / f"out-{levels}-{sum(1 for _ in tmp_path.iterdir())}"
        do("decompress", *sorted(files.glob("*.hrv")), "-o", out / "files", "--model", model, "--levels", levels)
        do("decompress", archive, "-o", out / "archive", "--model", model, "--levels", levels)
        return [path.read_bytes() for path in sorted(out.rglob("*.png"))]

    for out in (files, archive):
        do("compress", whole, tmp_path / "images", "-o", out, "--device", "cpu")
    before = [decompressed(whole, levels) for levels in (1, 3)]
    assert len(before[0]) == 4
    train_autoencoder(with_training(RunFolder(whole).read_config(), max_steps=62), whole, resume=True)
    assert [decompressed(whole, levels) for levels in (1, 3)] == before, "by the progressive decoder of that state, too"
    assert "was made for another state" in refused(["compress", whole, tmp_path / "images", "-o", tmp_path / "new"])
    do("refresh", whole)
    assert [decompressed(whole, levels) for levels in (1, 3)] == before
    export(whole, tmp_path / "exported")
    assert [decompressed(tmp_path / "exported", levels) for levels in (1, 3)] == before
    model, contents = hrvqvae.load(whole), [path.read_bytes() for path in sorted(files.glob("*.hrv"))]
    mixed = model.decompress([contents[0], *model.compress(torch.zeros(1, 1, 12, 12)), contents[1]])
    assert torch.equal(mixed[2], hrvqvae.load(tmp_path / "exported").decompress(contents)[1])
    assert len(Run(whole).earlier_states()) == 2


def test_a_state_is_kept_once_and_only_where_training_may_go_on(whole: Path, tmp_path: Path) -> None:
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
    (tmp_path / "x.hrv").write_bytes(file)
    (model,) = models_of_files([tmp_path / "x.hrv"], str(whole))
    assert model.run.folder.path == state
    export(whole, tmp_path / "compact", compact=True)
    assert not (tmp_path / "compact" / "states").exists()
    (state / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(InputError):
        hrvqvae.load(whole).decompress([file])


def test_an_entropy_model_is_fitted_once(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two that fit at once one is refused; a fitted one that was deleted is put back from where files need it."""
    code = "import sys; from hrvqvae.checkpoints.run import Run; Run(sys.argv[1]).entropy_model.fit(effort=0.01)"
    processes = [
        subprocess.Popen([sys.executable, "-c", code, run], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    told = [process.communicate()[1] for process in processes]
    assert any(process.returncode == 0 for process in processes)
    assert all(process.returncode == 0 or "is in use" in line for process, line in zip(processes, told, strict=True))
    fitted = RunFolder(run).tables.read_bytes()
    hrvqvae.load(run).compress(torch.zeros(1, 1, 12, 12))
    RunFolder(run).tables.unlink()
    Run(run).entropy_model.fit(effort=0.02, say=silent)
    assert RunFolder(run).tables.read_bytes() == fitted
    RunFolder(run).tables.unlink()
    (run / "states").rename(run / "elsewhere")
    monkeypatch.setattr("hrvqvae.checkpoints.run.fit", lambda *arguments: (change(run), fit(*arguments))[1])
    with pytest.raises(InputError, match="was replaced while its entropy model was fitted"):
        Run(run).entropy_model.fit(effort=0.01, say=silent)


@pytest.mark.parametrize("kind", ["model", "prior", "deep"])
def test_a_small_file_makes_no_large_network(kind: str, whole: Path) -> None:
    path = whole / "priors" / "level-1" / "model.safetensors" if kind == "prior" else RunFolder(whole).model
    _, meta = storage.read(path)
    config = json.loads(json.dumps(meta["config"]))
    if kind == "deep":
        config["model"]["residual_blocks"] = 100_000
    else:
        config["model"]["hidden_units"] = config["prior"]["network"]["hidden_units"] = 1 << 14
    storage.write(path, {"x": torch.zeros(1)}, {**meta, "config": config})
    for file in whole.rglob("config.yaml"):
        file.unlink()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DamagedFileError, match="the weights do not fit their configuration"):
        Run(whole).load_priors() if kind == "prior" else hrvqvae.load(whole)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10
