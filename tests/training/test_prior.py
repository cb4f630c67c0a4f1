"""Training priors: the best state, several levels, class dropout."""

import dataclasses
import json
import math
import shutil
import signal
from functools import partial

import numpy as np
import torch

from hrvqvae.checkpoints import storage
from hrvqvae.checkpoints.export import export
from hrvqvae.checkpoints.folder import RunFolder, open_run, prior_folder, prior_folders
from hrvqvae.codes.maps import encode_images
from hrvqvae.config.parsing import override
from hrvqvae.data.loading import open_images
from hrvqvae.distributed import RankSlice
from hrvqvae.evaluation.report import evaluate_run
from hrvqvae.model import Model, load
from hrvqvae.priors.base import Level, compute_nats
from hrvqvae.priors.configs import GPTConfig
from hrvqvae.priors.gpt import GPT
from hrvqvae.priors.sampling import SamplingParams
from hrvqvae.training import prior as prior_training
from hrvqvae.training.loggers import read_records
from hrvqvae.training.prior import (
    CodeBatch,
    PriorTask,
    drop_classes,
    read_batch,
    resolve_priors,
)
from hrvqvae.training.state import TrainState
from tests.conftest import (
    approx,
    do,
    generator,
    input_error,
    same,
    with_data,
    with_training,
    write_picture,
)
from tests.kills import in_another_process, stop_at_step
from tests.trained_run import (
    GIVEN,
    GIVEN_GPT,
    fields,
    train_autoencoder,
    train_levels,
    write_untrained_classifier,
)

LONGER = fields("prior.training", "learning_rate=0.01 max_steps=60 evaluate_every=20")
KEPT = ("step", "bits_per_code")


def encode_split(model, config):
    images = open_images(config.data, "train")
    return encode_images(model.encode, images, config.model.num_symbols)


def evaluations(path, *levels):
    records = read_records(prior_folder(path, *levels).metrics)
    return [record for record in records if record["kind"] == "evaluation"]


def read_meta(path, *levels):
    """Return what the file of a prior says of it."""
    return storage.read_meta(prior_folder(path, *levels).model)


def test_every_level_learns_and_can_be_loaded(run):
    train_levels(run, of=GIVEN | LONGER)
    for level in range(2):
        record = evaluations(run, level)[-1]
        assert record["bits_per_code"] < math.log2(3) - 0.1
        assert record["bits_per_image"] == approx(record["bits_per_code"] * 49)
    priors = open_run(run).load_priors()
    assert [len(prior.level.coarser) for prior in priors.networks] == [0, 1]
    assert priors.classes == tuple("0123456789")
    assert sum(priors.class_counts) == 96
    assert not any(prior.training for prior in priors.networks)


def test_replaced_images(tiny, picture_folder, tmp_path, caplog):
    config = with_data(tiny, dataset="pictures", root=str(picture_folder), channels=3)
    run = tmp_path / "run"
    train_autoencoder(with_training(config, max_steps=3), run)
    train_levels(run, 1, "training.max_steps=2")
    codes = RunFolder(run).codes / "part-000000.parquet"
    before = codes.read_bytes()
    for path in picture_folder.rglob("*.png"):  # under their old names
        write_picture(path, 1)
    with input_error("trained on other images"):
        train_levels(run, 1, "training.max_steps=4", resume=True)
    assert codes.read_bytes() != before


def test_the_best_held_out_state_is_kept_and_ends_the_training(run, monkeypatch, capsys):
    train_levels(run, 1)
    model, config = open_run(run).load()
    maps = encode_split(model, config)
    noise = np.random.default_rng(0).integers(0, 3, (96, 7, 7)).astype(np.uint8)
    # what can only be learned by heart
    maps = dataclasses.replace(maps, levels=(maps.levels[0], noise))
    monkeypatch.setattr("hrvqvae.training.prior.load_or_make", lambda *_: maps)
    longer = fields("prior.training", "max_steps=900 evaluate_every=10 learning_rate=0.02")
    given = GIVEN | longer | fields("prior", "network.dropout=0.0 patience=4")
    (outcome,) = prior_training.train(run, given, level=2).values()
    measured = evaluations(run, 1)
    best = min(measured, key=lambda record: record["bits_per_code"])
    assert outcome.step == best["step"] + 40 < 900
    assert read_meta(run, 1).items() >= {name: best[name] for name in KEPT}.items()
    assert "no better than guessing" in capsys.readouterr().out
    held_out = prior_training.split_held_out(len(maps), 0.05, 0)[1]
    batch = read_batch(maps, model, range(1, 2), held_out)
    prior = open_run(run).load_priors().networks[1]
    with torch.inference_mode():
        nats = torch.cat(compute_nats(prior, batch.codes, batch.coarser, batch.label)).double()
    assert float(nats.mean()) / 49 / math.log(2) == approx(best["bits_per_code"], rel=1e-5)

    # to resume it changes nothing
    train_levels(run, 2, of={}, resume=True)
    assert evaluations(run, 1) == measured


def test_few_images_have_copies_unless_a_field_says_otherwise(run, tiny):
    def copies(given):
        (config,) = resolve_priors(run, None, given, resume=False).values()
        return config.prior.shifts, config.prior.variants

    without = {name: value for name, value in GIVEN_GPT.items() if name != "prior.shifts"}
    assert copies(without) == (8, 3)
    assert copies(without | {"prior.variants": "1"}) == (0, 1)
    assert copies(GIVEN_GPT) == (0, 0)


def test_held_out_images_are_never_trained_on():
    kept, held_out = prior_training.split_held_out(97, 0.1, 5)
    assert len(held_out) == 10
    assert sorted([*kept, *held_out]) == list(range(97))
    assert not np.array_equal(held_out, prior_training.split_held_out(97, 0.1, 6)[1])
    assert [len(part) for part in prior_training.split_held_out(2, 0.01, 0)] == [1, 1]
    with input_error("at least 2"):
        prior_training.split_held_out(1, 0.1, 0)


def test_nothing_is_begun_that_can_not_be_finished(run):
    with in_another_process(prior_folder(run, 1).path), input_error("level-2 is in use"):
        train_levels(run)
    train_levels(run, 2)
    with input_error("level-2 holds a run already"):
        train_levels(run)
    assert not prior_folder(run, 0).begun()
    with input_error("--prior.network.hidden_units is 8 there, 16 here"):
        train_levels(run, 2, "network.hidden_units=16", resume=True)
    # the level that was left has begun
    train_levels(run, changes="training.max_steps=13", resume=True)
    assert [record["step"] for record in evaluations(run, 0)] == [4, 8, 12, 13]
    assert evaluations(run, 1)[-1]["step"] == 13


def interrupt(monkeypatch, step):
    stop_at_step(monkeypatch, PriorTask, step, signal.SIGINT)


def test_levels_that_a_signal_kept_from_beginning_keep_their_fields(run, monkeypatch):
    interrupt(monkeypatch, 3)
    train_levels(run, changes="training.batch_size=7")
    assert evaluations(run, 0)[-1]["step"] == 4
    monkeypatch.undo()
    train_levels(run, of={}, resume=True)
    for level in range(2):
        assert prior_folder(run, level).read_config().prior.training.batch_size == (7,)
        assert evaluations(run, level)[-1]["step"] == 12


def test_one_prior_of_all_levels_does_all_that_priors_do(run, tmp_path):
    train_levels(run, of=GIVEN_GPT | LONGER)
    assert list(prior_folders(run)) == [range(2)]
    about = read_meta(run, 0, 1)
    assert about["bits_per_code"] < math.log2(3) - 0.1
    best = min(evaluations(run, 0, 1), key=lambda record: record["bits_per_code"])
    assert sum(best["level_bits_per_code"]) / 2 == approx(about["bits_per_code"])
    assert all(bits < 49 * math.log2(3) for bits in evaluate_run(run).rate.prior)
    model = load(run)
    drawn = model.draw(3)
    coarse = model.draw(3, params=SamplingParams(levels=1))
    assert same(coarse.codes, drawn.codes[:1])
    assert same(coarse.images, model.decode(drawn.codes, 1, (12, 12)))
    export(run, tmp_path / "out")
    assert load(tmp_path / "out").sample(1).shape == (1, 1, 12, 12)
    (again,) = resolve_priors(run, None, {}, resume=True).values()
    assert again.prior.network.kind == "gpt"


def test_a_level_has_one_prior(run):
    train_levels(run, changes="training.max_steps=1")
    with input_error(r"delete \S+/level-1, \S+/level-2 to train levels 1 to 2"):
        train_levels(run, of=GIVEN_GPT)
    shutil.rmtree(prior_folder(run, 1).path)
    assert not prior_folder(run, 0, 1).config.exists()
    aside = shutil.move(prior_folder(run, 0).path, run / "aside")
    train_levels(run, changes="training.max_steps=1", of=GIVEN_GPT)
    assert open_run(run).count_prior_levels() == 2
    with input_error(r"delete \S+/levels-1-2 to train"):
        train_levels(run, 2)
    shutil.move(aside, prior_folder(run, 0).path)
    with input_error("level-1 and levels-1-2 both hold a prior of level 1; delete one"):
        open_run(run).load_priors()


_LEVEL = Level(grid=(1, 1), symbols=3, classes=4, unconditional=True)


def test_which_classes_are_withheld_depends_on_seed_and_step_alone(monkeypatch):
    label = torch.arange(64) % 4
    drop = partial(drop_classes, level=_LEVEL, share=0.25, seed=3)
    drawn = torch.stack([drop(label, step=step) for step in range(200)])
    gone = drawn == 4
    assert float(gone.double().mean()) == approx(0.25, abs=0.02)
    assert same(drawn[~gone], label.expand_as(drawn)[~gone])
    assert len(gone.unique(dim=0)) == 200  # other images at every step

    # two processes, one batch
    halves = []
    for rank, part in enumerate(label.chunk(2)):
        monkeypatch.setattr("hrvqvae.distributed.rank_slice", lambda rank=rank: RankSlice(rank, 2))
        halves.append(drop(part, step=7))
    assert same(torch.cat(halves) == 4, gone[7])
    assert drop_classes(None, _LEVEL, 0.5, 0, 0) is None


def test_without_a_class_the_marginal_is_learned(tiny):
    torch.manual_seed(0)
    prior = GPT(GPTConfig(hidden_units=8, layers=1, heads=1), _LEVEL)
    learning = "learning_rate=0.02 warmup_steps=1 schedule=constant polyak_decay=0.95 device=cpu"
    config = override(tiny, fields("prior.training", f"{learning} precision=fp32 batch_size=256"))
    config = config.replace(**{"prior.class_dropout": 0.5})
    task = PriorTask("", range(1), config, (prior, config, ""))
    state = TrainState.start(prior, task.training)
    rng = generator(1)
    shares = torch.tensor([0.1, 0.2, 0.3, 0.4])
    for state.step in range(150):
        label = torch.multinomial(shares, 256, replacement=True, generator=rng)
        codes = torch.where(label == 3, 2, label % 2)  # the class says it: 0, 1, 0, 2
        task.step(state, CodeBatch((codes[:, None, None],), (), label))
    learned = state.averaged.module.eval()
    (logits,) = learned.level_logits([torch.zeros(5, 1, 1, dtype=torch.long)], [], torch.arange(5))
    shares = logits.softmax(1)[:, :, 0, 0]
    assert (shares[range(4), (0, 1, 0, 2)] > 0.95).all()
    assert shares[4].tolist() == approx([0.4, 0.2, 0.4], abs=0.05)


def test_guidance_needs_class_dropout(run, tmp_path):
    guided = shutil.copytree(run, tmp_path / "guided")
    train_levels(guided, changes="class_dropout=0.3")
    model = Model(guided)
    weak, strong = (model.sample(6, guidance=guidance) for guidance in (1.0, (4.0, 1.0)))
    assert not same(weak, strong)
    do(f"sample {guided} -n 2 --guidance 1.5,1 -o {tmp_path}/sheet.png")
    write_untrained_classifier(model.config.data, guided / "classifier.safetensors")
    evaluate = f"evaluate {guided} --samples 6 --guidance 1 3,1 --device cpu --json"
    first, second = json.loads(do(evaluate))["by_guidance"]
    assert first.pop("guidance") == 1
    assert second.pop("guidance") == [3, 1]
    assert first != second
    train_levels(run)
    with input_error("was trained without class dropout"):
        Model(run).sample(2, guidance=1.5)
