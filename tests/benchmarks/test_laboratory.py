"""The laboratory: systems trained and measured alike, resumed, shared by processes, searched, and
put into tables.
"""

import json
import shutil
import signal
from itertools import count
from math import inf, log2
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import compare
from benchmarks.laboratory.instruments import COLUMNS
from benchmarks.laboratory.report import compare_pairs, mean_errors, table, welch
from benchmarks.laboratory.settings import LADDERS, open_trials
from benchmarks.laboratory.systems import codewords_searched, digest_of
from hrvqvae.checkpoints.folder import RunFolder
from hrvqvae.config import QuantizerConfig, SingleGridConfig, presets
from hrvqvae.config.parsing import override
from hrvqvae.data.images import read_image
from hrvqvae.training.autoencoder import AutoencoderTask
from hrvqvae.utils.errors import NonFiniteError
from tests.conftest import approx, cells_of, input_error, parametrize, read_json
from tests.kills import before_steps

SECTIONS = ["data", "model", "training", "prior"]
DEEP = "treevq-deep"
RATE, DECAY, BETA = LADDERS
START = (("training.optimizer", "adam"), (RATE, "0.003"), (DECAY, "0.99"), (BETA, "0.25"))


with_systems = pytest.mark.usefixtures("systems", "in_tmp_path")
HERE = Path()


def run(words, out=HERE):
    """Compare on MNIST, in the folder of the test; return the rows."""
    compare.main(["mnist", *words.split(), "--out", str(out)])
    return read_json(out / "results.json")


def check_refusals(table, out=HERE):
    """Check that each comparison of a table "words | message" is refused with its message."""
    for words, message in cells_of(table):
        with input_error(None) as error:
            run(words, out)
        assert message in str(error.value)


def stops(words):
    """Compare until nothing stops it; return how often it was stopped."""
    stopped = 0
    while True:
        assert not Path("results.md").exists(), "a stopped comparison has written its results"
        try:
            run(words)
            return stopped
        except SystemExit:
            stopped += 1


def names(rows):
    return [(row["system"], row["seed"]) for row in rows]


def model_time(name, out=HERE):
    return (out / "runs" / name / "model.safetensors").stat().st_mtime_ns


@with_systems
def test_every_system_is_measured_by_every_instrument(capsys):
    words = "--max-steps 4 --systems vqvae,wide=vqgan --wide.model.hidden_units 10"
    rows = run(words)
    assert names(rows) == [("vqvae", 0), ("wide", 0)]
    for row in rows:
        assert row.keys() > {"machine", "commit", "test_errors", "leaves_used", *COLUMNS}
        assert row["frechet"] == "Frechet distance of 40 images, features of a classifier of mnist"
        missing = {name for name in COLUMNS if row[name] is None}
        assert missing == {"frechet_reconstructions"}  # 40 images are fewer than 128 features
        assert row["steps_per_second"] == approx(4 / row["training_seconds"])
        assert 0 < row["usage"] <= 1
    assert rows[0]["parameters"] < rows[1]["parameters"]
    assert "| wide | 1 |" in capsys.readouterr().out
    assert read_image(Path("reconstructions.png"), 3).shape[1] > 3 * 60
    assert Path("curves.png").is_file()


@with_systems
def test_systems_and_seeds_are_added_to_a_folder():
    words = "--max-steps 2 --systems vqvae"
    first = run(f"{words} --seeds 2")
    trained = model_time("vqvae-0")
    rows = run("--max-steps 2 --systems rqvae")
    assert names(rows) == [("rqvae", 0), ("vqvae", 0), ("vqvae", 1)]
    assert rows[1:] == first
    shutil.rmtree("runs/vqvae-1")
    Path("rows/vqvae-1.json").unlink()
    row = read_json(Path("rows/vqvae-0.json"))
    del row["digests"]  # as in rows of earlier versions
    Path("rows/vqvae-0.json").write_text(json.dumps(row))
    again = run(f"{words} --seeds 2")
    assert [row["mse"] for row in again] == [row["mse"] for row in rows]  # the same run again
    assert model_time("vqvae-0") == trained
    more = "--seeds 3 --vqvae.model.quantizer.codewords 5"
    check_refusals(
        f"""
        --max-steps 7 --systems vqvae | max_steps is 2 there, 7 here
        {words} --training.batch_size 5 | fields is
        {words} {more} | vqvae-0 was trained with another configuration
        """,
    )


@with_systems
def test_what_can_not_be_compared():
    Path("results.md").touch()
    once = "--max-steps 1 --systems"
    check_refusals(
        f"""
        {once} vqvae | results.md exists, but
        {once} vqgam | did you mean vqgan/mnist
        {once} model=vqvae | the name 'model'
        {once} hrvqvae --training.seed 7 | --training.seed is decided by --seeds
        {once} hrvqvae --hrvqvae.training.epochs 7 | is decided by --max-steps
        {once} hrvqvae --hrvqvae.data.size 64 | must be a field of the data
        {once} hrvqvae --vqgan.model.kernel 5 | must be a field of the data
        {once} hrvqvae --hrvqvae.model.strid 2 | did you mean model.stride
        """,
    )


def test_distances_of_a_search():
    quantizer = QuantizerConfig(levels=3, codewords=8, linked=1, beam=4, joint_beam=True)
    assert codewords_searched(SingleGridConfig(quantizer=quantizer)) == 8 + 4 * 8 + 4 * 8
    vqvae2, deep = (presets.get(f"{name}/cifar10").config.model for name in ("vqvae2", DEEP))
    assert codewords_searched(vqvae2) == 512 + 512 // 4 + 512 // 16
    assert codewords_searched(deep) == 8 + 8 * 8 + 10 * 16 * 8
    assert sum(map(log2, deep.num_symbols)) == 36


def test_tables_by_hand():
    common = {"system": "vqvae", "psnr": 20.0, "ssim": None, "frechet": "FID", "perceptual": None}
    rows = [common | {"seed": seed, "mse": mse} for seed, mse in enumerate((1e-3, 3e-3))]
    lines = table(rows).splitlines()
    assert lines[0] == "| system | seeds | MSE | PSNR, dB |"
    assert lines[2] == "| vqvae | 2 | 2.000e-03 ± 1.414e-03 | 20.00 |"
    rows[0]["ssim"] = 0.5
    assert table(rows).splitlines()[2].endswith("| 0.5000 (n=1) |")
    on_the_way = [{"test_errors": [(5, 0.2), (10, 0.1)]}, {"test_errors": [(5, 0.4)]}]
    assert mean_errors(on_the_way) == approx({5: 0.3, 10: 0.1})


def test_comparisons_of_pairs_by_hand():
    """P-values of scipy's manual for Welch's test; Holm's correction by hand."""
    values = {"a": range(1, 6), "b": range(2, 12, 2), "c": range(1, 6), "d": [9]}
    assert welch(values["a"], values["b"]) == approx(0.1075312, abs=1e-6)
    assert welch([1.0, 1.0], [1.0, 1.0]) == 1
    assert welch([1.0, 1.0], [2.0, 2.0]) == 0
    errors = [{"system": name, "mse": mse} for name, of_name in values.items() for mse in of_name]
    assert compare_pairs(errors).splitlines()[2:] == [
        "| a | b | 5, 5 | -50.0% | 0.108 | 0.323 |",
        "| b | c | 5, 5 | +100.0% | 0.108 | 0.323 |",
        "| a | c | 5, 5 | +0.0% | 1.000 | 1.000 |",
    ]


def searched(start, error, most=99):
    tried = {}
    while wave := open_trials(start, tried, most):
        assert not tried.keys() & set(wave)
        tried |= {trial: error(dict(trial)) for trial in wave}
    return tried


@given(seed=st.integers(0, 10**9))
def test_a_search_ends_at_the_best_of_each_line(seed):
    def error(fields):
        return hash((seed, *fields.values()))

    tried = searched(START, error)
    best = dict(min(tried, key=tried.__getitem__))
    assert len(tried) <= 2 * 6 + 5 + 5
    assert list(searched(START, error, 9)) == list(tried)[:9]
    for name, ladder in LADDERS.items():
        place = ladder.index(best[name])
        line = [{**best, name: value} for value in ladder[max(0, place - 1) : place + 2]]
        neighbours = [fields for fields in line if tuple(fields.items()) in tried]
        assert min(neighbours, key=error) == best
        assert name != BETA or neighbours == line  # the neighbours on the last ladder were tried


def test_a_search_goes_on_beyond_an_end():
    def error(fields):
        return -float(fields[RATE]) - float(fields[DECAY]) + float(fields[BETA])

    tried = searched(START, error)
    best = dict(START) | {RATE: "0.1", DECAY: "0.995", BETA: "0.06"}
    assert dict(min(tried, key=tried.__getitem__)) == best


@with_systems
def test_a_stopped_search_goes_on(monkeypatch):
    """The rows are trained with the settings of the trial of least error; one trial diverges."""
    steps = count(1)

    def fail(task, _):
        if task.training.optimizer == "muon" and task.training.learning_rate == 0.003:
            raise NonFiniteError("diverged")
        if next(steps) % 11 == 0:
            signal.raise_signal(signal.SIGTERM)

    words = "--max-steps 3 --systems rqvae,adam=vqvae --adam.training.optimizer adam --tune 5"
    with monkeypatch.context() as patched:
        before_steps(patched, AutoencoderTask, fail)
        assert stops(words) > 1
    tuning = Path("tuning")
    trials = [read_json(path) for path in (tuning / "rows").glob("*.json")]
    diverged = [row for row in trials if row["validation_mse"] is None]
    assert [(row["optimizer"], row["learning_rate"]) for row in diverged] == [("muon", "0.003")]
    for name in ("rqvae", "adam"):
        of_system = [row for row in trials if row["system"] == name]
        assert len(of_system) == 5
        best = min(of_system, key=lambda row: row["validation_mse"] or inf)
        config = RunFolder(Path(f"runs/{name}-0")).read_config()
        assert config.training.optimizer == best.get("optimizer", "adam")
        assert str(config.training.learning_rate) == best["learning_rate"]
        assert config.data.validation == 0
        trial = next((tuning / "runs").glob(f"{name}-*"))
        assert RunFolder(trial).read_config().data.validation == 0.1

    # where all ladders are fixed there is nothing to search
    fixed = " ".join(f"--fixed.{name} {value}" for name, value in START[1:])
    words = f"--max-steps 2 --systems rqvae,fixed=vqvae --tune 1 {fixed}"
    assert names(run(words, Path("some"))) == [("fixed", 0), ("rqvae", 0)]

    # an earlier search serves a longer comparison of the same systems and fields
    longer = "--max-steps 6 --tuned-in . --systems"
    assert names(run(f"{longer} rqvae", Path("longer"))) == [("rqvae", 0)]
    check_refusals(
        f"""
        {longer} rqvae --training.batch_size 3 | fields is
        {longer} vqvae | the search for vqvae has not ended well
        {longer} rqvae --rqvae.model.padding 2 | trials of rqvae are of another configuration
        --max-steps 6 --tuned-in nowhere --systems rqvae | has no search
        """,
        Path("new"),
    )


SAME = """
training.device=cuda:1 training.threads=3 training.loggers=tensorboard data.root=/elsewhere
data.workers=0 prior.training.checkpoint_every=7 progressive.training.max_steps=7
"""
OTHER = """
training.seed=7 data.size=32 training.max_steps=7 training.precision=bf16 prior.network.kind=gpt
model.quantizer.level_codewords=2,3,4 prior.training.evaluate_every=7
"""


@parametrize("field", (SAME + OTHER).split())
def test_what_decides_the_result_changes_the_digest(field):
    config = presets.get("hrvqvae/mnist").config
    name, value = field.split("=")
    changed = override(config, {name: value})
    same = digest_of(changed, *SECTIONS) == digest_of(config, *SECTIONS)
    assert same == (field in SAME.split())
    unchanged = [section for section in SECTIONS if not name.startswith(f"{section}.")]
    assert digest_of(changed, *unchanged) == digest_of(config, *unchanged)
