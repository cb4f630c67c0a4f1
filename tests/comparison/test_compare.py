"""The comparison: every system trained alike, measured alike, resumed, shared by processes, and put
into a table.
"""

import importlib.util
import json
import shutil
import signal
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from hrvqvae.checkpoints.folder import RunFolder
from hrvqvae.cli import main
from hrvqvae.comparison import instruments
from hrvqvae.comparison.report import COLUMNS, compare
from hrvqvae.comparison.report import table as table_of
from hrvqvae.comparison.systems import Comparison, codewords_searched
from hrvqvae.config import QuantizerConfig, SingleGridConfig, presets
from hrvqvae.config.parsing import override
from hrvqvae.data.images import read_image
from hrvqvae.evaluation import samples
from hrvqvae.evaluation.samples import Features
from hrvqvae.training.autoencoder import AutoencoderTask
from hrvqvae.training.prior import PriorTask
from hrvqvae.utils.errors import InputError
from hrvqvae.utils.outputs import TEMPORARY
from tests.conftest import do, refused, write_picture
from tests.kills import at_step, in_another_process

MNIST = ["compare", "mnist", "--max-steps", "4", "--out"]


@pytest.mark.usefixtures("systems")
def test_systems_with_priors(tmp_path: Path) -> None:
    out = tmp_path / "out"
    systems = ("vqvae", "vqgan", "fsq")
    command = [*MNIST, str(out), "--systems", ",".join(systems), "--prior-steps", "4"]
    rows = json.loads(do(*command, "--json"))
    assert rows == json.loads((out / "results.json").read_text())
    assert [(row["system"], row["seed"]) for row in rows] == [(system, 0) for system in systems]
    others = {"perceptual", "frechet", "kernel", "leaves_used", "prior", "test_errors", "digests"}
    for row in rows:
        assert set(row) == {"system", "seed", *others, *COLUMNS}
        assert row["frechet"] == "Frechet distance of 40 images, features of a classifier of mnist"
        frechet = [
            "frechet_reconstructions",
            "frechet_samples",
        ]  # 40 images are fewer than 128 features
        missing = frechet + ["adversarial_steps"] * (row["system"] != "vqgan")
        assert [name for name in COLUMNS if row[name] is None] == missing
        assert 0 < row["usage"] <= 1
    assert rows[1]["adversarial_steps"] == 2
    table = (out / "results.md").read_text()
    assert all(f"| {system} | 1 |" in table for system in systems)
    assert read_image(out / "reconstructions.png", 3).shape[1] > 4 * 60
    assert read_image(out / "samples.png", 3).shape[1] > 6 * 60
    assert read_image(out / "curves.png", 3).shape[2] > 800
    before = {path: path.stat().st_mtime_ns for path in (out / "runs").rglob("*.safetensors")}
    shutil.rmtree(out / "runs" / "vqvae-0")
    (out / "rows" / "vqvae-0.json").unlink()
    assert main(command) == 0
    again = json.loads((out / "results.json").read_text())
    assert [row for row in again if row["system"] != "vqvae"] == [
        row for row in rows if row["system"] != "vqvae"
    ]
    assert [row["mse"] for row in again] == [row["mse"] for row in rows], "the same run again"
    assert all(
        path.stat().st_mtime_ns == time
        for path, time in before.items()
        if "vqvae-0" not in str(path)
    )
    for option, value, what in (
        ("--max-steps", "7", "max_steps is 4 there, 7 here"),
        ("--data", tmp_path, "root is"),
        ("--training.batch_size", "5", "fields is"),
    ):
        assert what in refused([*command, option, value])


@pytest.mark.usefixtures("systems")
def test_systems_seeds_and_priors_are_added_to_a_folder(tmp_path: Path) -> None:
    def rows_of(**fields: Any) -> list[dict[str, Any]]:
        return compare(
            Comparison(dataset="mnist", max_steps=2, **fields), tmp_path, lambda _: None
        )[0]

    first = rows_of(systems=("vqvae",), seeds=2)
    assert [row["prior_bits_per_image"] for row in first] == [None, None]
    assert "±" in (tmp_path / "results.md").read_text()
    run = (tmp_path / "runs" / "vqvae-0" / "model.safetensors").read_bytes()
    assert rows_of(systems=("hrvqvae",))[1:] == first
    with_priors = rows_of(systems=("vqvae",), prior_steps=4)
    assert json.loads((tmp_path / "results.json").read_text()) == with_priors
    assert [(row["system"], row["seed"]) for row in with_priors] == [
        ("hrvqvae", 0),
        ("vqvae", 0),
        ("vqvae", 1),
    ]
    assert [row["prior_bits_per_image"] is not None for row in with_priors] == [False, True, False]
    assert with_priors[1]["mse"] == first[0]["mse"]
    assert (tmp_path / "runs" / "vqvae-0" / "model.safetensors").read_bytes() == run
    assert rows_of(systems=("vqvae",), seeds=2) == with_priors, "priors that are there stay"
    with pytest.raises(
        InputError, match="priors is .*'max_steps': 4.* there"
    ):  # priors of 4 steps beside 9
        rows_of(systems=("hrvqvae",), prior_steps=9)
    with pytest.raises(
        InputError, match="autoencoder of vqvae-2 has another configuration than the row of seed 0"
    ):
        rows_of(systems=("vqvae",), first_seed=2, fields={"vqvae.model.quantizer.codewords": "5"})
    one_more = rows_of(systems=("rqvae",), first_seed=2)
    assert [(row["system"], row["seed"]) for row in one_more if row not in with_priors] == [
        ("rqvae", 2)
    ]


def test_the_budget_of_priors() -> None:
    for system, settings, expected in (
        ("hrvqvae", {"max_steps": 90}, {}),
        (
            "hrvqvae",
            {"max_steps": 1, "prior_steps": 90},
            {"epochs": "0", "max_steps": "30", "max_minutes": "0.0"},
        ),
        (
            "hrvqvae",
            {"max_steps": 1, "prior_steps": 90, "fields": {"prior.network.kind": "gpt"}},
            {"max_steps": "90"},
        ),
        (
            "hrvqvae",
            {"max_minutes": 6, "prior_steps": 33, "first_seed": 3},
            {"max_steps": "11", "seed": "3"},
        ),
        (
            "vqvae2",
            {"max_steps": 9, "prior_steps": 9, "fields": {"prior.training.batch_size": "8"}},
            {"batch_size": "8"},
        ),
    ):
        (case,) = Comparison(dataset="mnist", systems=(system,), **settings).cases()
        fields = {name.removeprefix("prior.training."): value for name, value in case.prior.items()}
        assert bool(fields) == bool(expected)
        assert fields | expected == fields


@pytest.mark.usefixtures("systems")
def test_a_stopped_comparison_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = [
        "compare",
        "mnist",
        "--systems",
        "vqvae",
        "--max-steps",
        "4",
        "--prior-steps",
        "4",
        "--out",
    ]
    assert main([*command, str(tmp_path / "whole")]) == 0

    for task in (AutoencoderTask, PriorTask):
        at_step(monkeypatch, task, 2, lambda _: signal.raise_signal(signal.SIGTERM))
    stops = 0
    while main([*command, str(tmp_path / "parts")]) == 128 + signal.SIGTERM:
        stops += 1
        assert not (tmp_path / "parts" / "results.md").exists()
    assert stops == 2
    whole, parts = (
        json.loads((tmp_path / name / "results.json").read_text()) for name in ("whole", "parts")
    )
    for name in ("mse", "prior_bits_per_image", "kernel_samples"):
        assert [row[name] for row in whole] == [row[name] for row in parts]


@pytest.mark.usefixtures("systems")
def test_what_a_killed_writer_left_is_no_row(tmp_path: Path, mnist_root: Path) -> None:
    command = [*MNIST, str(tmp_path), "--systems", "vqvae"]
    refused([*command, "--data", tmp_path / "nowhere"])
    assert main([*command, "--data", str(mnist_root)]) == 0, (
        "data that is not there claims no folder"
    )
    command += ["--data", str(mnist_root)]
    row = tmp_path / "rows" / "vqvae-0.json"
    for name, content in (("abc", row.read_bytes()), ("abd", b"")):
        (row.parent / f"{TEMPORARY}{name}-vqvae-1.json").write_bytes(content)
    assert main(command) == 0
    assert "| vqvae | 1 |" in (tmp_path / "results.md").read_text()
    assert main([*command, "--seeds", "2"]) == 0
    assert sorted(path.name for path in row.parent.glob("*.json")) == [
        "vqvae-0.json",
        "vqvae-1.json",
    ]
    for damaged in (row, tmp_path / "comparison.json"):
        content = damaged.read_bytes()
        damaged.write_bytes(content[: len(content) // 2])
        assert f"{damaged} is damaged" in refused(command)
        damaged.write_bytes(content)
    claim = tmp_path / "comparison.json"
    for path, old, new, told in (
        (claim, b'"about"', b'"above"', f"{claim} does not say what is compared"),
        (row, b'"mse"', b'"nse"', f"{row} has no mse; delete it"),
        (row, b'"system"', b'"sysyem"', f"{row} has no system; delete it"),
        (row, b'"psnr": ', b'"psnr": "high", "other": ', "a file in rows/ is damaged"),
    ):
        content = path.read_bytes()
        path.write_bytes(content.replace(old, new))
        assert told in refused(command)
        path.write_bytes(content)


@pytest.mark.usefixtures("systems")
def test_rows_do_not_mix_precisions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fields = {
        "training.precision": "auto",
        "prior.training.precision": "auto",
        "training.device": "auto",
    }
    tiny = override(presets.get("vqvae/mnist").config, fields)
    monkeypatch.setattr(
        presets, "get", lambda name: presets.Preset(config=tiny, sources={}, about="")
    )
    for bf16, seed in ((True, 0), (False, 1)):
        monkeypatch.setattr("hrvqvae.utils.device.computes_bf16", lambda device, bf16=bf16: bf16)
        comparison = Comparison(
            dataset="mnist", systems=("vqvae",), first_seed=seed, max_steps=3, prior_steps=3
        )
        compare(comparison, tmp_path, lambda _: None)
        config = RunFolder(tmp_path / "runs" / f"vqvae-{seed}").read_config()
        assert (config.training.precision, config.prior.training.precision) == ("bf16", "bf16")


def test_a_discriminator_that_will_not_begin_is_remarked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hrvqvae.comparison.report.run_cases", lambda *_: 0)
    fields = {"vqgan.model.adversarial_start": "1000"}
    said = list[str]()
    for steps in (1001, 1000):
        comparison = Comparison(
            dataset="mnist", systems=("vqvae", "vqgan"), max_steps=steps, fields=fields
        )
        compare(comparison, tmp_path / str(steps), said.append)
        assert ["vqgan's discriminator begins at step 1,000" in line for line in said] == [True] * (
            steps == 1000
        )


def test_what_can_not_be_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "samples.png").touch()
    line = refused([*MNIST, tmp_path])
    assert (
        f"{tmp_path / 'samples.png'} exists, but {tmp_path} holds no comparison; choose another"
        " --out" in line
    )
    for fields, message in (
        ({"max_steps": 0}, "--max-steps or --max-minutes"),
        ({"seeds": 0}, "--seeds is below 1"),
        ({"first_seed": -1}, "--first-seed is below 0"),
        ({"systems": ()}, "--systems names none"),
        ({"systems": ("vqgam",)}, "--systems names vqgam; there are hrvqvae, treevq"),
        ({"fields": {"training.seed": "7"}}, "--training.seed .*: give --seeds"),
        (
            {"fields": {"prior.training.max_steps": "7"}},
            "--prior.training.max_steps .*: give --prior-steps",
        ),
        (
            {"fields": {"vqgan.model.beta": "2"}},
            "--vqgan.model.beta must be a field of the model or training",
        ),
        (
            {"fields": {"hrvqvae.data.size": "64"}},
            "--hrvqvae.data.size must be a field of the model or training",
        ),
        ({"fields": {"hrvqvae.model.strid": "2"}}, "did you mean stride"),
        (
            {"fields": {"model.adversarial_start": "2"}, "systems": ("hrvqvae", "vqgan")},
            "unknown field",
        ),
        ({"dataset": "mnits"}, "hrvqvae/mnits"),
    ):
        with pytest.raises(InputError, match=message):
            Comparison(**{"dataset": "mnist", "systems": ("hrvqvae",), "max_steps": 1, **fields})  # type: ignore[arg-type]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None)
    with pytest.raises(InputError, match="needs vector_quantize_pytorch"):
        Comparison(dataset="mnist", systems=("hrvqvae", "fsq"), max_steps=1)


def test_a_joint_beam_searches_below_every_branch() -> None:
    quantizer = QuantizerConfig(levels=3, codewords=8, linked=1, beam=4, joint_beam=True)
    assert codewords_searched(SingleGridConfig(quantizer=quantizer)) == 8 + 4 * 8 + 4 * 8
    assert (
        codewords_searched(presets.get("vqvae2/cifar10").config.model) == 512 + 512 // 4 + 512 // 16
    )


def test_a_table_of_means() -> None:
    rows = [
        {
            "system": "vqvae",
            "seed": seed,
            "mse": mse,
            "psnr": 20.0,
            "ssim": None,
            "frechet": "FID",
            "perceptual": None,
        }
        for seed, mse in enumerate((1e-3, 3e-3))
    ]
    table = table_of(rows).splitlines()
    assert table[0] == "| system | seeds | MSE | PSNR, dB |"
    assert table[2] == "| vqvae | 2 | 2.000e-03 ± 1.414e-03 | 20.00 |"
    rows[0]["ssim"] = 0.5
    assert table_of(rows).splitlines()[2].endswith("| 0.5000 (n=1) |")


def test_colour_needs_a_published_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "has_efficientnet", lambda: False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None)
    for index in range(12):
        write_picture(tmp_path / "photos" / f"{index}.png", index, (40, 40))
    comparison = Comparison(
        dataset="photos", systems=("vqvae",), max_steps=1, root=str(tmp_path / "photos")
    )
    with pytest.raises(InputError, match="colour images, and images without classes"):
        compare(comparison, tmp_path / "out", lambda _: None)
    assert not (tmp_path / "out" / "runs").exists(), "refused before anything is trained"


@pytest.mark.usefixtures("systems")
def test_a_comparison_goes_on_elsewhere_from_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is small is taken along, the runs are not: nothing is trained again, and the pictures
    are the same.
    """
    here = tmp_path / "here"
    there = tmp_path / "there"
    command = ["compare", "mnist", "--max-steps", "2", "--systems", "vqvae", "--prior-steps", "1"]
    assert main([*command, "--out", str(here)]) == 0
    shutil.copytree(here, there, ignore=shutil.ignore_patterns("runs", "results.*", "*s.png"))
    shutil.copytree(here / "rows", there / "rows", dirs_exist_ok=True)
    assert main([*command, "--out", str(there)]) == 0
    assert not (there / "runs").exists()
    for name in ("results.json", "results.md", "reconstructions.png", "samples.png", "curves.png"):
        assert (there / name).read_bytes() == (here / name).read_bytes(), name
    changed = [*command, "--vqvae.model.quantizer.beta", "0.5", "--out", str(there)]
    assert "the autoencoder of vqvae-0 has another configuration" in refused(changed)
    row = json.loads((there / "rows" / "vqvae-0.json").read_text())
    (there / "rows" / "theirs-0.json").write_text(json.dumps(row | {"system": "theirs"}))
    assert "the sheets leave out theirs" in do(*command, "--out", there)
    assert "| theirs | 1 |" in (there / "results.md").read_text(), (
        "a system that is not on this machine"
    )
    model = (here / "runs" / "vqvae-0" / "model.safetensors").stat().st_mtime_ns
    monkeypatch.setattr(
        instruments, "choose_features", lambda *_: Features("", lambda images: images.flatten(1))
    )
    line = refused([*command, "--seeds", "2", "--out", here])
    assert "FID of 40 images" in line
    assert f"delete {here / 'rows'}" in line
    shutil.rmtree(here / "rows")
    assert main([*command, "--out", str(here)]) == 0
    assert "| samples: KID of 40 images |" in (here / "results.md").read_text()
    assert (here / "runs" / "vqvae-0" / "model.safetensors").stat().st_mtime_ns == model, (
        "not trained again"
    )


@pytest.mark.usefixtures("systems")
def test_what_another_process_makes_is_passed_over_and_taken_up(tmp_path: Path) -> None:
    said = list[str]()

    def of(seed: int) -> Comparison:
        return Comparison(
            dataset="mnist", systems=("vqvae", "vqvae2"), max_steps=2, first_seed=seed
        )

    run = tmp_path / "runs" / "vqvae-0"
    with in_another_process(run) as pid:
        rows, stopped = compare(of(0), tmp_path, said.append)
    assert ([row["system"] for row in rows], stopped) == (["vqvae2"], 0)
    assert f"{run} is in use by another process (pid {pid})" in said
    assert said[-1].startswith("still being made elsewhere: 1 of 2 cases")
    assert not RunFolder(run).begun()
    with ExitStack() as other:
        other.enter_context(in_another_process(tmp_path / "runs" / "vqvae-1"))

        def say(line: str) -> None:
            if line.startswith("--- system vqvae2"):
                other.close()

        rows, _ = compare(of(1), tmp_path, say)
    assert [(row["system"], row["seed"]) for row in rows] == [
        ("vqvae2", 0),
        ("vqvae", 1),
        ("vqvae2", 1),
    ]

    def measured_elsewhere(line: str) -> None:
        if line.startswith("--- system vqvae,"):
            (tmp_path / "rows" / "vqvae2-2.json").write_text(json.dumps({**rows[0], "seed": 2}))

    rows, _ = compare(of(2), tmp_path, measured_elsewhere)
    assert [(row["system"], row["seed"]) for row in rows[-2:]] == [("vqvae", 2), ("vqvae2", 2)]
    assert not (tmp_path / "runs" / "vqvae2-2" / "model.safetensors").exists(), "made once"
