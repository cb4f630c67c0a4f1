"""Priors by command: train, evaluate, sample, complete, export; and bad input to them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from hrvqvae import generate
from hrvqvae.bench import sample as bench_sample_module
from hrvqvae.checkpoint import RunFolder
from hrvqvae.cli import main
from hrvqvae.config import DataConfig, to_dict
from hrvqvae.data import read_image
from hrvqvae.errors import InputError
from hrvqvae.evaluation.classifier import train_judge
from hrvqvae.evaluation.rate import ContextCounts
from hrvqvae.generate import Generative, kept_parts, nearest_training_images
from hrvqvae.sampling import Draw, sample_plain
from tests.conftest import with_training, write_picture
from tests.test_cli import _tiny, refused


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, mnist_root: Path) -> Path:
    """A run folder of a tiny model with priors, trained by the command line."""
    folder = tmp_path_factory.mktemp("generate")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(to_dict(with_training(_tiny(mnist_root), max_steps=60))))
    assert main(["train", str(folder / "tiny.yaml"), "--out", str(folder / "run")]) == 0
    assert main(["train-prior", str(folder / "run"), "--max-steps", "30"]) == 0
    return folder / "run"


def test_training_level_by_level_and_resuming(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("level-*"))
    command = ["train-prior", str(tmp_path / "run"), "--level", "2", "--max-steps"]
    assert main([*command, "3"]) == 0
    assert main([*command, "5", "--resume"]) == 0
    out = capsys.readouterr().out
    assert "resuming" in out
    assert "level 2: trained 5 steps" in out
    assert [path.name for path in (tmp_path / "run" / "priors").glob("level-*")] == ["level-2"]
    assert "level-2 holds a run already" in refused([*command, "5"], capsys)


def test_evaluation_with_priors(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(run), "--json", "--device", "cpu"]) == 0
    report = json.loads(capsys.readouterr().out)
    for name in ("prior", "path", "neighbours"):
        total = sum(level[f"{name}_bits_per_code"] for level in report["levels"]) * 49
        assert report[f"{name}_bits_per_image"] == pytest.approx(total)
        assert 0 < total <= 3 * 49 * 1.6
    assert report["neighbours_bits_per_image"] <= report["path_bits_per_image"]
    assert main(["evaluate", str(run), "--device", "cpu"]) == 0
    assert "given path and neighbours" in capsys.readouterr().out
    assert main(["evaluate", str(run), "--device", "cpu", "--images", "7"]) == 0
    assert "mnist test: 7 images" in capsys.readouterr().out


def test_samples_by_command(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, single = tmp_path / "sheet.png", tmp_path / "single"
    command = ["sample", str(run), "-n", "6", "--class", "7", "--seed", "3", "--top-p", "0.9", "--temperature", "0.8"]
    assert main([*command, "-o", str(out), "--save-dir", str(single)]) == 0
    assert "6 samples" in capsys.readouterr().out
    files = sorted(single.iterdir())
    assert [path.name for path in files] == [f"7-{number:04d}.png" for number in range(6)]
    assert read_image(out, 3).shape[0] == 3
    draw = Draw(temperature=0.8, top_p=0.9)
    drawn = Generative(run).sample(6, seed=3, class_name="7", draw=draw)
    plain = Generative(run).sample(6, seed=3, class_name="7", draw=draw, sampler=sample_plain)
    assert torch.equal(drawn.images, plain.images)
    for path, image in zip(files, drawn.images, strict=True):
        assert abs(torch.from_numpy(read_image(path, 1)) / 255 - image).max() <= 0.5 / 255 + 1e-6
    again = tmp_path / "again.png"
    assert main([*command, "-o", str(again)]) == 0
    assert again.read_bytes() == out.read_bytes()


def test_without_a_class_all_come(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "SAMPLING_BATCH", 7)
    drawn = Generative(run).sample(40, seed=0)
    assert drawn.images.shape == (40, 1, 12, 12)
    assert len(set(drawn.classes)) > 5
    monkeypatch.setattr(generate, "SAMPLING_BATCH", 64)
    together = Generative(run).sample(40, seed=0)
    assert together.classes == drawn.classes
    torch.testing.assert_close(together.images, drawn.images)


@pytest.mark.parametrize(("keep", "count"), [("top", 3 * 7), ("left", 6 * 3), ("0.3", 2 * 7)])
def test_what_is_kept(keep: str, count: int) -> None:
    (where,) = kept_parts(keep, [(6, 7)])
    assert int(where.sum()) == count
    assert where[0, 0]
    assert not where[-1, -1]


@pytest.mark.parametrize("keep", ["0.03", "0.98", "left"])
def test_nothing_and_everything_can_not_be_kept(keep: str) -> None:
    with pytest.raises(InputError, match="--keep .* keeps .* codes"):
        kept_parts(keep, [(16, 1)])


def test_a_code_is_kept_where_its_parent_is() -> None:
    coarse, middle, fine = kept_parts("0.3", [(4, 4), (8, 8), (16, 16)])
    assert (int(coarse.sum()), int(middle.sum()), int(fine.sum())) == (4, 16, 64)
    assert torch.equal(fine[::4, ::4], coarse)
    assert torch.equal(fine[1::2, 1::2], middle)


def test_completion(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_picture(tmp_path / "image.png", 3, (12, 12), "L")
    out = tmp_path / "sheet.png"
    command = ["complete", str(run), str(tmp_path / "image.png"), "--class", "1", "-n", "3", "-o", str(out)]
    for keep in ("top", "left", "0.25"):
        assert main([*command, "--keep", keep]) == 0
    assert "3 completions" in capsys.readouterr().out
    assert read_image(out, 3).shape[2] > 3 * 60
    for keep in ("bottom", "1.0", "0"):
        assert "--keep is" in refused([*command, "--keep", keep], capsys)


def test_completions_keep_the_codes(run: Path, tmp_path: Path) -> None:
    generative = Generative(run)
    pixels = torch.randint(256, (1, 1, 12, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    codes = generative.model.encode(pixels)
    where = kept_parts("top", [(7, 7)] * len(codes))
    seen: list[tuple[torch.Tensor, ...]] = []
    decode = generative.model.decode

    def listening(codes: tuple[torch.Tensor, ...], **options: object) -> torch.Tensor:
        seen.append(codes)
        return decode(codes, **options)  # type: ignore[arg-type]

    generative.model.decode = listening  # type: ignore[method-assign, assignment]
    generative.sample(5, seed=0, class_name="3", known=generate.Known(codes, where))
    for drawn, given in zip(seen[0], codes, strict=True):
        assert torch.equal(drawn[:, where[0]], given.expand(5, -1, -1)[:, where[0]])
        assert not torch.equal(drawn, given.expand(5, -1, -1))


def test_an_exported_run_samples(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(run), str(tmp_path / "out")]) == 0
    assert "model.safetensors" in capsys.readouterr().out
    assert main(["sample", str(tmp_path / "out"), "-n", "2", "-o", str(tmp_path / "sheet.png")]) == 0


def test_nearest_training_images(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = RunFolder(run).read_config()
    images = torch.from_numpy(generate.data.load(config.data, "train").images[[5, 60]]) / 255  # type: ignore[attr-defined]
    found, errors = nearest_training_images(images, config)
    assert torch.equal(found, images)
    assert errors == pytest.approx([0, 0], abs=1e-6)
    assert main(["figure", "nearest", str(run), "-n", "4", "-o", str(tmp_path / "near.png")]) == 0
    assert "MSE" in capsys.readouterr().out
    _, height, width = read_image(tmp_path / "near.png", 3).shape
    assert width > 1.7 * height, "pairs side by side"


def test_a_row_of_samples_for_each_class(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "classes.png"
    assert main(["figure", "classes", str(run), "-n", "3", "-o", str(out)]) == 0
    assert "3 samples of each of 10 classes" in capsys.readouterr().out
    assert read_image(out, 3).shape[1] > 10 * 60


def test_the_classifier_learns_and_samples_are_judged(
    run: Path, mnist_root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = DataConfig(dataset="mnist", root=str(mnist_root), size=12, channels=1)
    judge = train_judge(data, epochs=120, say=lambda _: None)
    assert judge.accuracy > 0.35, "of 10 classes; each two share a bar, so half is the best there is"
    assert judge.accuracy == train_judge(data, epochs=120, say=lambda _: None).accuracy
    original = generate.train_judge
    monkeypatch.setattr(generate, "train_judge", lambda config, say: original(config, epochs=2, say=say))
    assert main(["evaluate", str(run), "--samples", "23", "--json", "--device", "cpu"]) == 0
    printed = capsys.readouterr()
    report = json.loads(printed.out)
    assert "training the classifier" in printed.err
    assert report["samples"] == 23
    assert 0 <= report["classifier_accuracy"] <= 1
    assert 0 <= report["recognized"] <= 1


@pytest.mark.parametrize("chunks", [1, 2])
def test_conditional_entropy_is_that_of_the_counts(chunks: int) -> None:
    codes = np.array([0, 1, 1, 0])

    def entropy(context: list[int]) -> float:
        counts = ContextCounts(2)
        for some, other in zip(np.split(np.array(context), chunks), np.split(codes, chunks), strict=True):
            counts.add(some, other)
        return counts.entropy()

    assert entropy([0, 0, 0, 0]) == pytest.approx(1.0)
    assert entropy([0, 1, 1, 0]) == pytest.approx(0.0)
    assert entropy([0, 0, 0, 1]) == pytest.approx(0.75 * 0.9182958, rel=1e-6)
    assert entropy([0, 0, 0, 2**40]) == pytest.approx(0.75 * 0.9182958, rel=1e-6), "too many to be counted in a table"


def test_bench_sample(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    rows = bench_sample_module.bench_sample(
        rounds=1, plain_positions=1, batches=(1,), grids=(4,), ffhq="hrvqvae/cifar10"
    )
    assert [row["method"] for row in rows[:4]] == ["plain", "cached", "plain", "cached"]
    for row in rows:
        assert {"method", "grid", "levels", "batch", "parameters", "seconds_per_image"} <= set(row)
        assert row["seconds_per_image"] > 0
    assert rows[1]["ratio"] == rows[0]["seconds_per_image"] / rows[1]["seconds_per_image"]
    assert rows[4]["parameters"] > 2.65e6
    assert [row["levels"] for row in rows[5:7]] == [3, 3]
    monkeypatch.setattr(bench_sample_module, "bench_sample", lambda rounds: rows)
    assert main(["bench", "sample"]) == 0
    assert "from 1 positions" in capsys.readouterr().out


def test_bench_prior_is_of_a_pixelsnail(capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(["bench", "prior", "--preset", "vqgan/mnist"], capsys)
    assert "the parts of a PixelSNAIL; vqgan/mnist has a transformer" in line


def test_bench_prior(capsys: pytest.CaptureFixture[str]) -> None:
    fields = ["--prior.network.hidden_units", "8", "--prior.network.residual_blocks", "4", "--level", "2"]
    assert main(["bench", "prior", "--rounds", "1", "--json", "--prior.training.batch_size", "2", *fields]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows[0]["method"] == "plain"
    assert len({row["parameters"] for row in rows}) == 1
    assert all(row["images_per_second"] > 0 for row in rows)
    assert main(["bench", "prior", "--rounds", "1", "--prior.training.batch_size", "2", *fields]) == 0
    assert "cropped kernels" in capsys.readouterr().out


def test_bad_sampling(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "sheet.png"

    def sample(*arguments: object) -> str:
        return refused(["sample", run, "-o", out, *arguments], capsys)

    assert "class '11' is not one of 0, 1, 2, 3, 4, 5, 6, 7, 8, 9" in sample("--class", "11")
    assert "temperature is 0; it must be above 0" in sample("--temperature", "0")
    assert "top-k is 4, but a code has only 3 symbols" in sample("--top-k", "4")
    assert "--top-k is 0; it must be at least 1" in sample("--top-k", "0")
    assert "top-p is 2" in sample("--top-p", "2")
    assert "number of samples is 0" in sample("-n", "0")
    assert "seed is -1" in sample("--seed", "-1")
    assert "must end in .png" in refused(["sample", run, "-o", tmp_path / "sheet.gif"], capsys)
    assert "there is no folder" in refused(["sample", run, "-o", tmp_path / "nowhere" / "sheet.png"], capsys)
    (tmp_path / "file").write_text("")
    assert "can't be made" in sample("--save-dir", tmp_path / "file")
    assert not out.exists(), "said before anything is drawn"
    bare = tmp_path / "bare"
    shutil.copytree(run, bare, ignore=shutil.ignore_patterns("priors"))
    line = refused(["sample", bare, "-o", out], capsys)
    assert f"{bare} has no prior of level 1; train it: hrvqvae train-prior {bare}" in line
    assert "there is no such run folder" in refused(["sample", tmp_path / "none", "-o", out], capsys)
    assert not out.exists()
    assert "no such image" in refused(["complete", run, tmp_path / "none.png", "-o", out], capsys)


def test_bad_prior_training(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--level is 4; this model has levels 1 to 3" in refused(["train-prior", run, "--level", "4"], capsys)
    assert "is not a field of the priors" in refused(["train-prior", run, "--training.seed", "4"], capsys)
    assert "is not a run folder" in refused(["train-prior", tmp_path], capsys)
    wide = ["train-prior", run, "--prior.network.hidden_units", "12"]
    assert "it must divide hidden_units (12)" in refused(wide, capsys)
    assert "holds a run already" in refused(["train-prior", run], capsys)
    uneven = ["train-prior", run, "--prior.network.dropout", "[0.1,0.2]", "--resume"]
    shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("level-*"))
    uneven[1] = tmp_path / "run"
    assert "prior.network.dropout has 2 values; give one, or one for each of the 3 levels" in refused(uneven, capsys)


def test_damaged_priors_are_not_passed_over(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(run, tmp_path / "run")
    path = tmp_path / "run" / "priors" / "level-2" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-2])
    assert "is damaged" in refused(["evaluate", tmp_path / "run", "--device", "cpu"], capsys)


def test_other_classes_are_noticed(
    picture_folder: Path, mnist_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = to_dict(_tiny(mnist_root))
    config["data"] |= {"dataset": "pictures", "root": str(picture_folder), "channels": 3}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(config))
    run = str(tmp_path / "run")
    assert main(["train", str(tmp_path / "tiny.yaml"), "--out", run, "--max-steps", "3"]) == 0
    assert main(["train-prior", run, "--max-steps", "2"]) == 0
    assert main(["evaluate", run, "--device", "cpu"]) == 0
    (picture_folder / "dogs").rename(picture_folder / "wolves")
    line = refused(["evaluate", run, "--device", "cpu", "--split", "test", "--data", str(picture_folder)], capsys)
    assert "know other classes than the data has: cats, dogs" in line
    assert "class 'wolves' is not one of cats, dogs" in refused(
        ["sample", run, "--class", "wolves", "-o", tmp_path / "x.png"], capsys
    )


def test_a_folder_without_classes_knows_none(
    picture_folder: Path, mnist_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = to_dict(_tiny(mnist_root))
    config["data"] |= {"dataset": "pictures", "root": str(picture_folder), "channels": 3, "labels": False}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(config))
    run = str(tmp_path / "run")
    assert main(["train", str(tmp_path / "tiny.yaml"), "--out", run, "--max-steps", "3"]) == 0
    assert main(["train-prior", run, "--max-steps", "2"]) == 0
    assert main(["sample", run, "-n", "2", "-o", str(tmp_path / "sheet.png"), "--save-dir", run + "/s"]) == 0
    assert sorted(path.name for path in (tmp_path / "run" / "s").iterdir()) == ["0000.png", "0001.png"]
    assert "know no classes" in refused(["sample", run, "--class", "cats", "-o", tmp_path / "x.png"], capsys)
    with pytest.raises(InputError, match="know no classes"):
        generate.recognize(run, RunFolder(Path(run)).read_config().data, 2)
