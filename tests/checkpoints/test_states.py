"""What was made for another state of a model is never used or deleted; files of codes outlive the
weights.
"""

import resource
import shutil
import signal
from functools import partialmethod
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import save_file

from hrvqvae import load
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
from hrvqvae.model import find_models
from hrvqvae.training.autoencoder import AutoencoderTask
from hrvqvae.utils.errors import InputError
from tests.checkpoints.conftest import change, fit_entropy_model
from tests.conftest import (
    cells_of,
    check_refusals,
    damage_error,
    do,
    done,
    input_error,
    parametrize,
    same,
    with_training,
    write_picture,
)
from tests.data.stored import folder_of
from tests.kills import in_another_process, stop_at_step
from tests.trained_run import tiny_run_with_priors, train_autoencoder


@patch.object(EntropyModelArtifact, "fit", partialmethod(EntropyModelArtifact.fit, effort=0.05))
def test_files_are_read_after_resume_refresh_and_export(full_run, tmp_path):
    images = tmp_path / "images"
    exported = tmp_path / "exported"
    zipped = tmp_path / "old.zip"
    files = tmp_path / "files"
    for number in range(2):
        write_picture(images / f"{number}.png", number, (12, 12), "L")

    def decompressed(model):
        out = tmp_path / "out"
        shutil.rmtree(out, ignore_errors=True)
        do(f"decompress {files} -o {out}/files --model {model}")
        do(f"decompress {zipped} -o {out}/zip --model {model} --levels 1")
        return folder_of(out)

    for out in (files, zipped):
        do(f"compress {full_run} {images} -o {out} --device cpu")
    before = decompressed(full_run)
    assert len(before) == 4
    longer = with_training(RunFolder(full_run).read_config(), max_steps=62)
    train_autoencoder(longer, full_run, resume=True)
    assert decompressed(full_run) == before  # by the progressive decoder of that state, too
    check_refusals(f"compress {full_run} {images} -o {tmp_path}/new | was made for another state")
    # an entropy model for web pages stays one
    with patch.object(EntropyModelArtifact, "is_small", lambda _: True):
        do(f"refresh {full_run}")
    assert Run(full_run).entropy_model.is_small()
    assert decompressed(full_run) == before
    export(full_run, exported)
    assert decompressed(exported) == before
    folder = RunFolder(full_run).read_config().data.root
    assert not any(folder.encode() in content for content in folder_of(exported).values())
    model = load(full_run)
    contents = [*folder_of(files).values()]
    mixed = model.decompress([contents[0], *model.compress(IMAGE), contents[1]])
    assert same(mixed[2], load(exported).decompress(contents)[1])
    with damage_error("^file 2 is not a file of codes"):
        model.decompress([contents[0], b"of no model"])
    assert len(Run(full_run).earlier_states()) == 2


def test_a_state_is_kept_once_and_only_where_training_may_go_on(full_run, tmp_path):
    exported = tmp_path / "exported"
    export(full_run, exported)
    load(exported).compress(IMAGE)
    assert not (exported / "states").exists()  # nothing is trained there
    for _ in range(2):
        (file,) = load(full_run).compress(IMAGE)
    (state,) = (full_run / "states").iterdir()
    assert state.name == Run(full_run).weights_digest

    # weights that are changed in memory write no files, and read those of the run
    model = load(full_run)
    model.compress(IMAGE)
    with torch.no_grad():
        next(model.autoencoder.parameters()).add_(1)
    with input_error("was made for another state"):
        model.compress(IMAGE)
    model.save_pretrained(tmp_path / "changed")
    assert same(load(tmp_path / "changed").decompress(file), load(full_run).decompress(file))
    change(full_run)
    fingerprint = read_header(file).fingerprint
    ((model,), _) = find_models([("x.hrv", fingerprint)], str(full_run))
    assert model.run.folder.path == state
    export(full_run, tmp_path / "compact", compact=True)
    assert not (tmp_path / "compact" / "states").exists()
    model = load(full_run)
    change(full_run)
    with input_error("was replaced since it was loaded: load it again"):
        model.compress(IMAGE)
    (state / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(InputError):
        load(full_run).decompress([file])


def test_an_entropy_model_is_fitted_once(run, monkeypatch):
    """Of two that fit at once one is refused; a fitted one that was deleted is put back from where
    files need it.
    """
    tables = RunFolder(run).tables
    with in_another_process(tables, "lock_file"), input_error("is in use"):
        fit_entropy_model(run)
    fit_entropy_model(run)
    fitted = tables.read_bytes()
    load(run).compress(IMAGE)
    tables.unlink()
    fit_entropy_model(run, 0.02)
    assert tables.read_bytes() == fitted
    tables.unlink()
    (run / "states").rename(run / "elsewhere")

    def fit_meanwhile(*arguments):
        change(run)
        return fit(*arguments)

    monkeypatch.setattr("hrvqvae.checkpoints.run.fit", fit_meanwhile)
    with input_error("was replaced while its entropy model was fitted"):
        fit_entropy_model(run)


def test_an_entropy_model_of_other_weights_in_the_folder_is_kept(run, tmp_path):
    tensors, meta = storage.read(RunFolder(run).model)
    tables = tmp_path / "tables.hrvt"
    contents = []
    for name, factor, effort in (("a", 1, 0.01), ("b", 1.01, 0.01), ("a", 1, 0.02)):
        file = tmp_path / f"{name}.safetensors"
        storage.write(file, {key: tensor * factor for key, tensor in tensors.items()}, meta)
        fit_entropy_model(file, effort)
        contents.append(tables.read_bytes())
    first, second, again = contents
    assert second != first == again


@parametrize(
    "field, name, value",
    cells_of(f"""
        model | hidden_units | {1 << 14}
        prior | hidden_units | {1 << 14}
        model | residual_blocks | 100000
        model | hidden_units | {1 << 30}
    """),
)
def test_a_small_file_makes_no_large_network(field, name, value, full_run):
    """Nor one whose weights torch can't even count."""
    folder = prior_folder(full_run, 0) if field == "prior" else RunFolder(full_run)
    meta = storage.read_meta(folder.model)
    section = meta["config"][field]
    section.get("network", section)[name] = int(value)
    storage.write(folder.model, {"x": torch.zeros(1)}, meta)
    for file in full_run.rglob("config.yaml"):
        file.unlink()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with damage_error("the weights do not fit their configuration"):
        Run(full_run).load_priors() if field == "prior" else load(full_run)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10


PRIORS = [f"priors/level-{level}" for level in (1, 2, 3)]
IMAGE = torch.zeros(1, 1, 12, 12)


def stale(run):
    return [str(artifact) for artifact in Run(run).stale_artifacts()]


def test_only_what_is_of_another_state_is_stale(full_run):
    folder = RunFolder(full_run)
    decoder = decoder_folder(full_run, PROGRESSIVE)
    assert stale(full_run) == [] == stale_notice(full_run)
    change(full_run)
    assert stale(full_run) == [*PRIORS, "prefixes", "tables.hrvt"]
    first = prior_folder(full_run, 0).model
    weights, meta = storage.read(first)
    storage.write(first, weights, {**meta, "autoencoder": storage.digest(folder.model)})
    prior_folder(full_run, 1).model.unlink()  # it has begun, and no more
    folder.tables.unlink()
    decoder.model.unlink()
    assert stale(full_run) == PRIORS[1:]


def test_entropy_models_of_two_states_are_both_kept(full_run, tmp_path):
    """Files that were written with either stay readable, whichever state comes back."""
    folder = RunFolder(full_run)
    contents = {}
    for state in ("first", "second"):
        fit_entropy_model(full_run, 0.02)
        contents[state] = folder.tables.read_bytes()
        shutil.copy(folder.model, tmp_path / state)
        change(full_run)
    for state in (*contents, *contents):
        shutil.copy(tmp_path / state, folder.model)
        fit_entropy_model(full_run, 0.02)
        assert folder.tables.read_bytes() == contents[state]


def test_nothing_beside_a_model_inside_the_package_is_stale():
    assert [artifact for name in list_models() for artifact in stale(name)] == []


def test_what_is_stale_is_not_used_and_stays(changed):
    before = folder_of(changed)
    told = " was made for another state of the model.*hrvqvae refresh .*run"
    with input_error(f"level-1.*{told}"):
        Run(changed).load_priors()
    with input_error(f"tables.hrvt.*{told}"):
        load(changed).entropy_model  # noqa: B018
    assert folder_of(changed) == before


@pytest.mark.usefixtures("full_run", "in_tmp_path")
def test_training_that_goes_on_tells_it(mnist_root, monkeypatch):
    file = tiny_run_with_priors(mnist_root).parent / "tiny.yaml"
    stop_at_step(monkeypatch, AutoencoderTask, 60)
    parts = "priors/level-1, priors/level-2, priors/level-3, prefixes, tables.hrvt"
    told = f"{parts}: made for another state of the model; renew with: hrvqvae refresh run"
    for steps, code in ((60, 0), (62, 128 + signal.SIGTERM)):
        ended, out, _ = done(f"train {file} --out run --resume --max-steps {steps}")
        assert ended == code
        assert (out.splitlines()[-1] == told) == bool(code)


def test_what_can_not_be_read_is_left_to_who_uses_it(changed):
    folder = RunFolder(changed)
    decoder = decoder_folder(changed, PROGRESSIVE).model
    folder.tables.unlink()
    folder.tables.mkdir()
    decoder.write_bytes(decoder.read_bytes()[:20])
    assert stale(changed) == PRIORS
    about = {"format": "pt", "meta": "[]", "digest": ""}
    save_file({"any": torch.zeros(1)}, decoder, about)
    assert stale(changed) == PRIORS
    folder.model.unlink()
    assert stale_notice(changed) == []
