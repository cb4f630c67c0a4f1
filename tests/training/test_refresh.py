"""Stale networks are refused and renewed."""

import shutil
import signal
from functools import partialmethod
from pathlib import Path

import pytest

from hrvqvae import load
from hrvqvae.checkpoints.folder import RunFolder, prior_folder, progressive_folder
from hrvqvae.checkpoints.run import EntropyModelArtifact, Run
from hrvqvae.config import Config
from hrvqvae.training.prior import PriorTask
from hrvqvae.training.progressive import ProgressiveTask
from hrvqvae.training.stages import refresh
from hrvqvae.utils.errors import InputError
from tests.conftest import do, same, with_training
from tests.kills import at_step
from tests.trained_run import silent, train_autoencoder, train_levels
from tests.training.tasks import Case


@pytest.fixture
def stale(run: Path, tiny: Config, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run whose autoencoder was trained further after its priors, progressive decoder and entropy model."""
    monkeypatch.chdir(run.parent)
    monkeypatch.setattr(EntropyModelArtifact, "fit", partialmethod(EntropyModelArtifact.fit, effort=0.05))
    with pytest.raises(InputError, match="nowhere"):
        refresh("nowhere", say=silent)
    assert refresh("run", say=silent) is None, "nothing is to be done"
    Case("progressive", run, tiny).train()
    train_levels(run)
    Run(run).entropy_model.fit(effort=0.05, say=silent)
    train_autoencoder(with_training(tiny, max_steps=62), run, resume=True)
    stale = ["priors/level-1", "priors/level-2", "prefixes", "tables.hrvt"]
    assert [str(artifact) for artifact in Run(run).stale_artifacts()] == stale
    return Path("run")


def test_what_is_stale_is_neither_trained_on_nor_deleted_and_is_renewed(
    stale: Path, tiny: Config, tmp_path: Path
) -> None:
    cases = [Case(name, stale, tiny) for name in ("prior", "progressive")]
    for case in cases:
        kept = case.state()
        for resume in (False, True):
            with pytest.raises(InputError, match=r"another state of the model; renew with: hrvqvae refresh run"):
                case.train(resume=resume)
        with pytest.raises(InputError):
            case.train(renew=True, init_from="nowhere")
        assert same(case.state(), kept), "it makes way when the next one begins, and not before"
    anew = shutil.copytree(stale, tmp_path / "anew", ignore=shutil.ignore_patterns("priors", "prefixes", "tables*"))
    assert do("refresh", "run").splitlines()[-1].startswith("everything in run")
    assert Run(stale).stale_artifacts() == []
    model = load(stale)
    model.compress(model.sample(1))
    train_levels(anew)
    for case in cases:
        if case.name == "progressive":
            case.at(anew).train()
        assert same(case.state(), case.at(anew).state()), "with the fields of before, and nothing that was learned"
        assert (case.folder.pictures / "curves.png").is_file()


def test_it_goes_on_where_it_was_stopped(stale: Path, tiny: Config, tmp_path: Path) -> None:
    whole = shutil.copytree(stale, tmp_path / "whole")
    assert refresh(whole, say=silent) is None
    said = list[str]()
    for task in (PriorTask, ProgressiveTask):
        with pytest.MonkeyPatch.context() as patched:
            at_step(patched, task, 5, lambda _: signal.raise_signal(signal.SIGTERM))
            assert refresh(stale, say=said.append) == signal.SIGTERM
    assert refresh(stale, say=said.append) is None
    assert sum("resuming" in line for line in said) == 2
    assert Run(stale).stale_artifacts() == []
    for name in ("prior", "progressive"):
        assert same(Case(name, stale, tiny).state(), Case(name, whole, tiny).state())


def test_what_was_exported_is_renewed_by_what_its_weights_say(run: Path, tiny: Config, tmp_path: Path) -> None:
    Case("progressive", run, tiny).train()
    train_levels(run)
    load(run).save_pretrained(tmp_path / "exported")
    train_autoencoder(with_training(tiny, max_steps=62), run, resume=True)
    shutil.copy2(RunFolder(run).model, RunFolder(tmp_path / "exported").model)
    assert refresh(tmp_path / "exported", str(tiny.data.root), say=silent) is None
    assert Run(tmp_path / "exported").stale_artifacts() == []
    for folder in (prior_folder(tmp_path / "exported", 1), progressive_folder(tmp_path / "exported")):
        assert folder.saved()[0].stem == "step-000000012"
    load(tmp_path / "exported").sample(1)
