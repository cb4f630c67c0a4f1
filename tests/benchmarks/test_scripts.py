"""Every script in its smallest form: its rows, and that they hold what it says; what is compared
and counted.
"""

import dataclasses
import importlib
import json
import os
import re
from importlib.util import find_spec
from math import log2
from pathlib import Path

import pytest
import torch

from benchmarks import common, gpu, trips
from benchmarks.common import fields
from benchmarks.gpu import SEARCHES
from benchmarks.search import TOLERANCE, exact_search, make_problem, measure_agreement
from benchmarks.torture.readers import Reader
from hrvqvae.cli import GROUPS
from hrvqvae.utils.errors import InputError
from tests.conftest import approx, cells_of, parametrize
from tests.quantize import oracle
from tests.replay import drawn_mnist

SMALL = "--model.hidden_units 8 --training.batch_size 4 --model.quantizer.init_vectors 512"
ADVERSARIAL = "--training.device cpu --model.adversarial_start 0 --model.perceptual none"
DEEP = "treevq-deep/mnist"


def figures_of(row, *names):
    return tuple(row[name] for name in names)


def printed(name, arguments, capsys):
    importlib.import_module(f"benchmarks.{name}").main(arguments.split())
    return capsys.readouterr().out


SCRIPTS = cells_of(f"""
    search | --size 2 3 --vectors 300 | method L m | 5
    effort | mnist --models mnist --images 3 --bytes 60 | model coding MSE | 4
    train | --rounds 1 --preset vqgan/mnist {SMALL} {ADVERSARIAL} | method preset batch | 2
    prior | --rounds 1 --batch 2 --presets hrvqvae/mnist {DEEP} | preset network codes | 2
    sample | --rounds 1 --images {DEEP}:1 {DEEP}:2 | drawn batch parameters | 2
""")


@parametrize("name, arguments, heads, count", SCRIPTS)
def test_rows(name, arguments, heads, count, tmp_path, monkeypatch, capsys):
    drawn_mnist(tmp_path, monkeypatch)
    head, *rows = printed(name, arguments, capsys).split("\n\n")[0].splitlines()
    assert head.split()[:3] == heads.split()
    assert len(rows) == int(count)
    if "ratio" in head:
        ratios = [row[head.find("ratio") :].split()[0] for row in rows]
        assert all(ratio == "-" or float(ratio) > 0 for ratio in ratios)
        assert name != "train" or "1.00" in ratios


ROOT = Path(__file__).parents[2]


def test_commands_that_texts_name_exist():
    """In pages, and in docstrings of scripts."""
    commands = {name for names in GROUPS.values() for name in names.split()}
    texts = "*.md docs/**/*.md benchmarks/**/*.py recipes/**/*.py"
    for path in [path for pattern in texts.split() for path in ROOT.glob(pattern)]:
        text = path.read_text()
        for name in re.findall(r"python -m (benchmarks(?:\.\w+)*)", text):
            assert find_spec(name), path
        assert {*re.findall(r"`hrvqvae ([a-z][a-z-]+)[ `]", text)} <= commands, path


def test_a_trip_that_fails_is_not_counted(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HRVQVAE_DATA", str(tmp_path))
    with pytest.raises(SystemExit):
        trips.report()
    printed = capsys.readouterr()
    assert "hrvqvae data get mnist" in printed.err
    assert "train to backward" not in printed.out


def test_files_of_codes(run, capsys):
    row = json.loads(printed("codec", f"{run} --images 64 --zipped 200 --json", capsys))
    assert row["images"] == 40  # all test images that there are
    assert row["bytes"] == approx(sum(row["parts"]))
    assert row["raw"] == approx(3 * 49 * log2(3) / 8)
    assert row["zip"]["overhead per image"] == approx(76 + 2 * len("000000.hrv") + 22 / 200)


INTACT = b'{"a": 1234}'
# by the length of a damaged file, modulo 6
CRASH = "crash: KeyError, test_scripts.py:"
FAULTS = ("", "crash: exit code -6", "memory", CRASH, "", "accepted")


def read(path):
    content = path.read_bytes()
    match len(content) % 6:
        case 0:
            raise InputError("refused")
        case 1:
            os.abort()
        case 2:
            raise MemoryError
        case 3:
            raise KeyError(0)
        case 4:
            return {"": "as it was", "fault": "yes"}
    return {"": "as it was" if content == INTACT else "other"}


def test_each_case_is_told(tmp_path, capfd):
    file = tmp_path / "x" / "a.json"
    file.parent.mkdir()
    file.write_bytes(INTACT)
    reader = Reader("x", read)
    expected = reader.read_undamaged(tmp_path)
    assert expected == {str(file): {"": "as it was"}}
    cases = [reader.run_case(tmp_path, 0, number, expected) for number in range(60)]
    for number, case in enumerate(cases):
        path, content = reader.make_case(tmp_path, 0, number)
        assert path.read_bytes() == INTACT  # the file is put back
        fault = "" if content == INTACT else FAULTS[len(content) % 6]
        assert case.fault.startswith(fault)
        assert bool(case.fault) == bool(fault)
    assert len({case.fault.partition(":")[0] for case in cases}) == 4
    assert "KeyError" in capfd.readouterr().err


@parametrize("width, weight", [(1, 0.0), (3, 0.0), (4, 0.3)])
def test_the_oracle_of_searches_by_all_paths(width, weight):
    case = make_problem(3, 4, vectors=40, width=5)
    books = [book.double().numpy() for book in case.books]
    expected = [
        oracle.beam(vector, books, width, weight)[-1] for vector in case.latents.double().numpy()
    ]
    assert exact_search(case.latents, case.books, width, weight)[0].tolist() == expected


@parametrize(
    "second, vector, tie",
    [(1 - 0.05 * TOLERANCE, 2, True), (1 - 5 * TOLERANCE, 2, False), (1, 1, True), (3, 1, False)],
)
def test_vectors_that_rounding_decides_are_not_judged(second, vector, tie):
    """Codewords are 1 and `second`; code 1 is compared with code 0."""
    right = torch.zeros(1, 3, dtype=torch.long)
    vectors = torch.full((3, 1), float(vector))
    books = [torch.tensor([[[1.0], [second]]])]
    difference = gpu.compare(vectors, books, right, right + 1, SEARCHES["greedy"])
    counts = figures_of(difference, "equal", "ties", "errors")
    assert counts == (0, 3 * tie, 3 * (not tie))
    assert (difference["worst"] > TOLERANCE) != tie
    same = gpu.compare(vectors, books, right, right, SEARCHES["greedy"])
    assert figures_of(same, "equal", "ties", "errors", "worst") == (1, 0, 0, 0)
    if not tie:
        agreements = [measure_agreement(vectors, books, leaf) for leaf in (right[0], right[0] + 1)]
        assert agreements == [1, 0]


TINY = dataclasses.replace(
    gpu.SMALL,
    matrix=64,
    trees=((2, 3, 4),),
    compared=300,
    searched=300,
    rounds=1,
    steps=1,
    trained={"hrvqvae/cifar10": common.TINY | {"training.batch_size": "2", "data.size": "32"}},
    prior=fields("prior", "training.batch_size=2 network.residual_blocks=1")
    | fields("prior.network", "attention_layers=1"),
    prior_levels=(2,),
)


@pytest.fixture
def small_gpu(monkeypatch):
    """Makes the small form of the report on GPUs smaller, and the machine one without a GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(gpu, "SMALL", TINY)


def test_the_gpu_report_in_its_small_form(small_gpu, capsys):
    gpu.main(["--json"])
    report = json.loads(capsys.readouterr().out)
    assert figures_of(report, "device", "form", "faults") == ("cpu", "small", [])
    sizes = [figures_of(row, "search", "levels", "codewords") for row in report["codes"]]
    assert sizes == [("greedy", 2, 3), ("beam of 4", 2, 3), ("flat", 1, 9)]
    for row in report["search"]:
        assert row["bytes"] == 300 * (4 * 4 + 8 * row["levels"])  # latents in, codes out
        assert row["ratio"] == approx(row["seconds"] / row["copy_seconds"])
    (sampling,) = report["sampling"]
    assert sampling["images_per_second"] == approx(2 / sampling["seconds"])
    assert len(report["training"]) == 2  # an autoencoder and a prior
    for row in report["training"]:
        rate = row["flop"] / row["step_seconds"]
        assert rate > 0
        assert row["images_per_second"] == approx(2 / row["step_seconds"])
        assert row["matrix_share"] == approx(rate / report["matrix_rate"])
