"""One prior for all levels of a run: trained, resumed, loaded, exported, begun from, and beside priors a level."""

from __future__ import annotations

import math
import shlex
import shutil
from pathlib import Path

import pytest
import torch

from hrvqvae.checkpoints import storage
from hrvqvae.checkpoints.export import export
from hrvqvae.checkpoints.folder import prior_folder, prior_folders
from hrvqvae.checkpoints.loading import has_priors, load_priors
from hrvqvae.checkpoints.trained import load
from hrvqvae.cli import main
from hrvqvae.config import Config
from hrvqvae.evaluation.report import evaluate_run
from hrvqvae.priors.generative import sample_cached
from hrvqvae.priors.sampling import sample_plain
from hrvqvae.training.prior import resolve_priors, train_priors
from hrvqvae.utils.errors import InputError
from tests.tiny_priors import GIVEN, train_levels
from tests.training.test_prior import records, same

DEPTH = {"network__kind": "depth", "network__head_units": "8"}
FOLDER = "levels-1-2"


@pytest.mark.usefixtures("drawn")
def test_it_learns_all_levels_and_does_all_that_priors_do(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train_levels(run, **DEPTH, training__max_steps="60", training__learning_rate="0.01", training__evaluate_every="20")
    assert list(prior_folders(run)) == [range(2)]
    folder = prior_folder(run, 0, 1)
    assert folder.path.name == FOLDER
    assert (folder.pictures / "curves.png").is_file()
    _, about = storage.read(folder.model)
    assert about["bits_per_code"] < math.log2(3) - 0.1
    assert sum(about["level_bits_per_code"]) / 2 == pytest.approx(about["bits_per_code"])

    priors = load_priors(run)
    assert [len(prior.levels) for prior in priors.networks] == [2]
    rate = evaluate_run(run).rate
    assert rate is not None
    assert [level.prior < math.log2(3) for level in rate.levels] == [True, True]
    assert rate.prior_bits_per_image == pytest.approx(49 * sum(level.prior for level in rate.levels))

    model = load(run)
    cached, plain = (model.draw(3, seed=1, sampler=sampler).codes for sampler in (sample_cached, sample_plain))
    assert all(torch.equal(one, other) for one, other in zip(cached, plain, strict=True))
    known = model.known_part(torch.zeros(1, 12, 12), "top")
    completed = model.draw(2, seed=1, known=known).codes
    for codes, given, where in zip(completed, known.codes, known.where, strict=True):
        assert torch.equal(codes[:, where], given[:, where].expand(2, -1))

    export(run, tmp_path / "out")
    assert (tmp_path / "out" / "priors" / FOLDER / "model.safetensors").is_file()
    card = (tmp_path / "out" / "README.md").read_text()
    bits = ", ".join(f"{one:.3f}" for one in about["level_bits_per_code"])
    assert f"one of levels 1 to 2, in half precision; {bits} bits a code" in card
    assert load(tmp_path / "out").sample(1).shape == (1, 1, 12, 12)

    other = shutil.copytree(run, tmp_path / "other", ignore=shutil.ignore_patterns("priors"))
    still = ["--prior.training.learning_rate", "1e-12", "--max-steps", "1", "--init-from", str(run)]
    fields = [text for name, value in GIVEN.items() if "max_steps" not in name for text in (f"--{name}", value)]
    fields += ["--prior.network.kind", "depth", "--prior.network.head_units", "8"]
    assert main(["train-prior", str(other), *fields, *still]) == 0
    told = capsys.readouterr().out
    assert f"beginning with the prior of levels 1 to 2 of {run}" in told
    assert "levels 1 to 2: trained 1 step" in told
    assert main(["train-prior", str(other), "--resume", "--max-steps", "2"]) == 0, "it knows its network"
    begun = storage.read(prior_folder(other, 0, 1).model)[0]
    for name, tensor in storage.read(folder.model)[0].items():
        torch.testing.assert_close(begun[name], tensor, msg=name, atol=1e-4, rtol=1e-4)


def test_stopping_and_resuming_changes_nothing(run: Path, tmp_path: Path) -> None:
    parts = shutil.copytree(run, tmp_path / "parts")
    common = {**DEPTH, "training__precision": "bf16", "training__schedule": "constant"}
    train_levels(run, **common)
    for steps in ("5", "7", "12"):
        train_levels(parts, resume=steps != "5", **{**common, "training__max_steps": steps})
    one, other = (
        storage.read(prior_folder(path, 0, 1).saved()[0])[0] | storage.read(prior_folder(path, 0, 1).model)[0]
        for path in (run, parts)
    )
    assert same(one, other)


def test_a_level_has_one_prior(run: Path) -> None:
    train_levels(run, training__max_steps="1")
    told = r"there is a prior of level 1, level 2: delete \S+/level-1, \S+/level-2 to train one of levels 1 to 2"
    with pytest.raises(InputError, match=told):
        train_levels(run, **DEPTH)
    assert not prior_folder(run, 0, 1).path.joinpath("config.yaml").exists()
    shutil.move(prior_folder(run, 0).path, run / "aside")
    shutil.rmtree(prior_folder(run, 1).path)
    train_levels(run, **DEPTH, training__max_steps="1")
    assert has_priors(run)
    with pytest.raises(InputError, match=r"there is a prior of levels 1 to 2: delete \S+/levels-1-2 to train"):
        train_levels(run, 2)
    shutil.move(run / "aside", prior_folder(run, 0).path)
    with pytest.raises(InputError, match=r"level-1 and levels-1-2 both hold a prior of level 1; delete one"):
        load_priors(run)


def test_a_prior_of_another_autoencoder_names_the_command_that_trains_its_like(run: Path) -> None:
    train_levels(run, **DEPTH, training__max_steps="1", class_dropout="0.25")
    path = prior_folder(run, 0, 1).model
    tensors, about = storage.read(path)
    storage.write(path, tensors, about | {"autoencoder": "another"})
    with pytest.raises(InputError, match=r"levels-1-2.*hrvqvae refresh") as told:
        load_priors(run)
    stored = prior_folder(run, 0, 1).read_config().prior
    command, where, _, level, *fields = shlex.split(str(told.value).partition(": hrvqvae ")[2])
    assert (command, where) == ("train-prior", str(run))
    given = {name.removeprefix("--"): value for name, value in zip(fields[::2], fields[1::2], strict=True)}
    ((levels, config),) = resolve_priors(run, int(level), given, resume=False).items()
    assert (levels, config.prior.network, config.prior.class_dropout) == (range(2), stored.network, 0.25)


def test_levels_that_are_left_get_priors_of_their_own(run: Path) -> None:
    train_levels(run, 2, training__max_steps="1")
    configs = resolve_priors(run, None, GIVEN, resume=True)
    assert list(configs) == [range(1), range(1, 2)]
    train_priors(run, configs, resume=True, say=lambda _: None)
    assert [record["step"] for record in records(run, 0, "evaluation")] == [4, 8, 12]


def test_a_comparison_gives_one_prior_the_whole_budget(tiny: Config) -> None:
    from hrvqvae.comparison.compare import Comparison

    fields = {"prior.network.kind": "depth"}
    whole, shared = (
        Comparison(dataset="mnist", systems=("hrvqvae",), max_steps=30, prior_steps=30, fields=some).cases()[0].prior
        for some in (fields, {})
    )
    assert (whole["prior.training.max_steps"], shared["prior.training.max_steps"]) == ("30", "10")
