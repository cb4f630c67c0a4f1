"""Every script in its smallest form: its rows, and that they hold what it says; what the torture of readers sees."""

import importlib
import json
import os
from collections.abc import Mapping
from math import log2
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import collapse, processes, vectors
from benchmarks import prior_speedrun as speedrun
from benchmarks.common import as_script, read_rows
from benchmarks.search import bench_search, plot_growth
from benchmarks.torture.commands import Ended
from benchmarks.torture.readers import Parts, Reader
from hrvqvae.config import Config
from hrvqvae.data.images import read_image
from hrvqvae.utils.errors import InputError
from tests.replay import drawn_cifar10, drawn_mnist

SMALL = "--model.hidden_units 8 --training.batch_size 4 --training.device cpu --model.quantizer.init_vectors 512"


def printed(name: str, arguments: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What a script prints."""
    capsys.readouterr()
    importlib.import_module(f"benchmarks.{name}").main(arguments.split())
    return capsys.readouterr().out


SCRIPTS = {
    "search": ("--size 2 3 --vectors 300", ("method", "L", "m"), 5),
    "layer_tuned": (
        "--size 2 4 1 --steps 2 --batch 4 --seeds 2 --images 40 --trials 2",
        ("layer", "rate", "decay"), 4,
    ),
    "ids": ("--synthetic 300 --size 8 3 --passes 1", ("IDs", "by", "items"), 3),
    "train": (
        f"--rounds 1 --preset vqgan/mnist {SMALL} --model.adversarial_start 0 --model.perceptual none",
        ("method", "preset", "batch"), 2,
    ),
    "prior": ("--rounds 1 --batch 2 --presets hrvqvae/mnist treevq-deep/mnist", ("preset", "network", "codes"), 2),
    "sample": (
        "--rounds 1 --positions 1 --levels treevq-deep/mnist:1 --images treevq-deep/mnist:1",
        ("method", "drawn", "batch"), 3,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SCRIPTS)
def test_rows_and_columns(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn_mnist(tmp_path, monkeypatch, "fashion-mnist")
    arguments, heads, count = SCRIPTS[name]
    lines = printed(name, arguments, capsys).split("\n\n")[0].splitlines()
    assert tuple(lines[0].split()[:3]) == heads
    assert len(lines) == 1 + count
    column = lines[0].find("ratio")
    ratios = [line[column:].split()[0] for line in lines[1:]] if column >= 0 else []
    assert all(ratio == "-" or float(ratio) > 0 for ratio in ratios)
    assert name != "train" or "1.00" in ratios


@pytest.mark.parametrize(
    ("name", "arguments", "field"),
    [
        ("files.__main__", "emoji32 --formats gif", "invalid choice: 'gif'"),
        ("processes", "--steps 1 --systems nothing", "nothing"),
    ],
)  # fmt: skip
def test_what_can_not_be_measured_is_a_line(
    name: str, arguments: str, field: str, capsys: pytest.CaptureFixture[str]
) -> None:
    main = importlib.import_module(f"benchmarks.{name}").main
    with pytest.raises(SystemExit) as ended:
        as_script(lambda: main(arguments.split()))
    assert ended.value.code == 2
    line = capsys.readouterr().err
    assert field in line.splitlines()[-1]


def test_rows_of_the_search(tmp_path: Path) -> None:
    rows = bench_search([(1, 3), (2, 3)], vectors=600, width=5)
    assert {row["method"] for row in rows} == {"tree", "flat", "cdist", "vector_quantize", "residual_vq"}
    for row in rows:
        assert row["leaves"] == 3 ** row["levels"]
        assert row["distances"] == (3 * row["levels"] if row["method"] in ("tree", "residual_vq") else row["leaves"])
        assert row["agreement"] in (1.0, None)
        assert row["times_floor"] == pytest.approx(row["seconds"] / row["floor"])
    tree, flat = (next(row for row in rows if (row["method"], row["levels"]) == (name, 2)) for name in ("tree", "flat"))
    assert flat["ratio"] == flat["seconds"] / tree["seconds"]
    plot_growth([{**row, "codewords": 8} for row in rows], tmp_path / "growth.png")
    assert (tmp_path / "growth.png").is_file()


def test_a_speedrun_says_how_long_the_recipe_takes_to_the_bits_of_a_row(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By hand: a doubling takes 0.3 bits; a row is worth sqrt(2) of its images, each in half the time."""
    shown = {speedrun.HALF: (20, 2.5), speedrun.RECIPE: (40, 2.2), speedrun.TWICE: (80, 1.9), "4 layers": (40, 2.05)}
    rows = [{"change": change, "images": images, "bits": bits} for change, (images, bits) in shown.items()]
    best, *_ = speedrun.summarize(rows, {**dict.fromkeys(shown, 6.0), "4 layers": 3.0})
    assert (best["change"], best["minutes"]) == ("4 layers", 2)
    assert (best["equal"], best["speed"]) == pytest.approx((4 * 2**0.5, 2 * 2**0.5))
    changes = (speedrun.RECIPE, speedrun.HALF, speedrun.TWICE, "Muon's iteration in bf16")
    for _ in range(2):  # again: nothing is trained anew
        speedrun.main([str(run), "--images", "32", "--out", str(tmp_path), "--seeds", "0", "1", "--changes", *changes])
    assert len(json.loads((tmp_path / "rows.json").read_text())) == 8
    assert {line.split("  ")[0] for line in capsys.readouterr().out.splitlines()[-4:]} == {*changes}


def test_files_of_codes(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = json.loads(printed("codec", f"{run} --images 64 --archived 200 --json", capsys))
    assert row["images"] == 40, "all test images that there are"
    assert row["bytes"] == pytest.approx(sum(row["parts"]))
    assert row["raw"] == pytest.approx(3 * 49 * log2(3) / 8)
    assert 0 < row["archive"]["overhead per image"] < 3


def test_processes_beside_one(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def trained(config: Config, folder: Path, count: int) -> list[Mapping[str, Any]]:
        """Return the records of processes that differ by 0.1%, and by 10% from step 12 on."""
        assert config.training.batch_size % count == 0
        assert (folder / "mnist" / "train-images-idx3-ubyte.gz").is_file()
        off = [0.0 if count == 1 else 0.1 if step > 12 else 0.001 for step in range(1, 21)]
        return [{"loss": 2.0 * (1 + share), "restarted": count} for share in off]

    monkeypatch.setattr(processes, "_train", trained)
    lines = printed("processes", "--steps 20 --systems hrvqvae vqgan fsq", capsys).splitlines()
    assert [line.split()[:5] for line in lines[1:]] == [
        [system, "1.0e-03", "1.0e-01", "20,", "40"] for system in ("hrvqvae", "vqgan", "fsq")
    ]


@pytest.mark.usefixtures("systems")
def test_collapse(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    command = f"mnist --leaves 27 --kinds flat unlinked --max-steps 3 --model.quantizer.dim 2 --out {tmp_path / 'out'}"
    monkeypatch.setattr(collapse, "SHOWN", {"kind": ("unlinked",), "start": ("N(0, 1)",)})
    printed("collapse", command, capsys)
    rows = json.loads((tmp_path / "out" / "rows.json").read_text())
    assert [(row["kind"], row["start"], row["restarts"]) for row in rows[:7]] == [
        *(("flat", start, False) for start in collapse.STARTS), ("flat", "latents", True), ("flat", "k-means", True)
    ]  # fmt: skip
    assert [row["kind"] for row in rows[7:]] == ["unlinked"] * 7
    assert all(1 <= row["perplexity"] <= row["used"] <= 27 for row in rows)
    assert read_image(tmp_path / "out" / "collapse.png", 3).shape[0] == 3
    assert printed("collapse", command, capsys).count("unlinked") == 1, "only what is drawn is trained again"
    with pytest.raises(InputError, match="has rows with max_steps 3, not 4: choose another --out"):
        collapse.main(command.replace("--max-steps 3", "--max-steps 4").split())


def test_rows_of_another_run_are_refused(tmp_path: Path) -> None:
    assert read_rows(tmp_path / "out", {"autoencoder": "a1", "images": 100}) == []
    (tmp_path / "out" / "rows.json").write_text('[{"bits": 2.5}]')
    assert read_rows(tmp_path / "out", {"autoencoder": "a1", "images": 100}) == [{"bits": 2.5}]
    for about, message in (
        ({"autoencoder": "b2", "images": 100}, "autoencoder a1, not b2"),
        ({"images": 100}, "a1, not None"),
    ):
        with pytest.raises(InputError, match=message):
            read_rows(tmp_path / "out", about)


def test_the_speedrun_of_one_seed_has_no_p() -> None:
    """A recipe of one seed has no variance, beside a change with two."""
    bits = {speedrun.RECIPE: [2.5], speedrun.HALF: [2.6], speedrun.TWICE: [2.4], "batch 32": [2.45, 2.46]}
    images = {speedrun.HALF: 50, speedrun.TWICE: 200}
    rows = [
        {"change": change, "seed": seed, "bits": value, "images": images.get(change, 100)}
        for change, values in bits.items() for seed, value in enumerate(values)
    ]  # fmt: skip
    summary = {row["change"]: row for row in speedrun.summarize(rows, dict.fromkeys(bits, 1.0))}
    assert "p" not in summary["batch 32"]
    assert summary["batch 32"]["spread"] == pytest.approx(0.00707, rel=1e-2)


def test_vectors(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    drawn_cifar10(tmp_path, monkeypatch)
    rows = json.loads(printed("vectors", "--vectors 300 60 --seeds 1 --json", capsys))
    assert [row["side"] for row in rows] == list(vectors.sides(12, 0))
    assert all(0 < row["left"] < 1 and 1 < row["used"] <= 300 and row["fit_seconds"] > 0 for row in rows)
    tree = rows[-1]
    assert tree["against"].split(", ")[0] == f"{tree['left'] / rows[0]['left'] - 1:+.1%}"
    train, test = np.array([[0, 0], [0, 0], [0, 1], [1, 0]]), np.array([[0, 0], [0, 1], [1, 1], [1, 0]])
    classes = (np.array([2, 2, 1, 0]), np.array([2, 1, 0, 1]))
    assert vectors.purity(train, test, classes) == [0.5, 0.75], "a code that no training vector has counts for class 0"


@pytest.mark.parametrize("whole", [False, True])
def test_each_seed_draws_vectors_anew(whole: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn_cifar10(tmp_path, monkeypatch)
    fitted = list[bytes]()

    def measure(fit: object, train: np.ndarray, test: np.ndarray, classes: object) -> dict[str, Any]:
        fitted.append(train.tobytes() + test.tobytes())
        return {"left": float(len(fitted)), "fit_seconds": 1, "search_seconds": 1, "used": 1, "purity": [1.0]}

    monkeypatch.setattr(vectors, "features", lambda images: images.reshape(len(images), -1).astype(np.float32))
    monkeypatch.setattr(vectors, "sides", lambda bits, seed: {"flat k-means": None})
    monkeypatch.setattr(vectors, "measure", measure)
    for _ in range(2):
        vectors.bench_vectors(12, 3, 300, 60, whole=whole)
    assert fitted[:3] == fitted[3:], "a seed draws the same vectors in every run"
    assert len(set(fitted)) == 3, "and other vectors than the other seeds"


def read(path: Path) -> Parts:
    """A reader of JSON with every fault."""
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
            return {"": "as it was", "told": "yes"}
    return {"": "as it was" if content == b'{"a": 1234}' else "other"}


def test_each_case_is_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "a.json").write_bytes(b'{"a": 1234}')
    reader = Reader("x", read)
    expected = reader.expected(tmp_path)
    assert expected == {str(tmp_path / "x" / "a.json"): {"": "as it was"}}
    cases = list(reader.run(tmp_path, 0, range(60), expected))
    faults = {
        0: "",
        1: "crash: exit code -6",
        2: "memory",
        3: "crash: KeyError, test_scripts.py:",
        4: "",
        5: "accepted",
    }
    for index, case in enumerate(cases):
        path, content = reader.case(tmp_path, 0, index)
        assert path.read_bytes() == b'{"a": 1234}', "the file is put back"
        same, fault = content == b'{"a": 1234}', faults[len(content) % 6]
        assert case.fault.startswith("" if same else fault)
        assert bool(case.fault) == bool(fault) or same
    assert len({case.fault.partition(":")[0] for case in cases}) == 4
    big = Reader("x", lambda path: {"": str(len(bytearray(200 << 20)))})
    (folder := tmp_path / "bomb").mkdir()
    assert big.bomb(lambda folder: folder / "none", folder).fault == "memory"
    assert "KeyError" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("code", "output", "fault"),
    [(0, "done\n", ""), (2, "hrvqvae: full\n", ""), (2, "full\n", "crash"), (1, "Traceback\n", "crash"),
     (-14, "", "hang"), (-11, "", "crash")],
)  # fmt: skip
def test_how_a_command_may_end(code: int, output: str, fault: str) -> None:
    assert Ended(code, output, 0, 0).fault(refused=True) == fault
    assert Ended(code, output, 0, 2 << 30).fault(refused=True) == "memory"
