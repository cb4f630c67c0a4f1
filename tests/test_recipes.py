"""The recipes, with small budgets: their commands from data to sheet, and resumption."""

import os
import re
import runpy
import subprocess
from pathlib import Path

import pytest
import torch
from torch.nn.functional import adaptive_avg_pool2d

import hrvqvae
from hrvqvae.checkpoints.folder import RunFolder, open_run
from hrvqvae.config import presets
from hrvqvae.data.images import read_image
from hrvqvae.data.loading import load_images
from hrvqvae.evaluation import classifier
from hrvqvae.evaluation.samples import CLASSIFIER, Features
from tests.conftest import approx, cells_of, names_in, normal, parametrize, write_picture
from tests.replay import cut, drawn_cifar10, drawn_mnist, replay
from tests.trained_run import write_untrained_classifier

RECIPES = Path(__file__).parent.parent / "recipes"
FIGURES = RECIPES / "figures"
SMALL = (
    "--model.stride 8 --model.hidden_units 8 --model.residual_units 8 --training.batch_size 4"
    " --model.quantizer.init_vectors 1000"
)
SMALL_PRIOR = (
    "--prior.network.hidden_units 40 --prior.training.batch_size 4"
    " --prior.training.evaluation_images 8"
)
SMALL_DECODER = "--generation.training.batch_size 4"
PIXELSNAIL = "--prior.network.residual_blocks 1 --prior.network.attention_layers 1"
RECORDER = '#!/usr/bin/env bash\n(IFS=$\'\\t\'; echo "${0##*/}\t$*") >> "$RECORD"\n'


def recipe(name, folder, *arguments, fields=""):
    (folder / "bin").mkdir(exist_ok=True)
    for command in ("hrvqvae", "python"):
        file = folder / "bin" / command
        file.write_text(RECORDER)
        file.chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "RECORD": str(folder / "record"),
        "HRVQVAE_FIELDS": fields,
    }
    return subprocess.run(
        [RECIPES / name, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )


def recorded(folder):
    return [line.split("\t") for line in (folder / "record").read_text().splitlines()]


@parametrize(
    "figure_name, arguments, sheet",
    cells_of("""
        11 | images | figure-11/figure-11
        14 | images birds | figure-14-images/figure-14-birds
        15 |  | figure-15/figure-15
    """),
)
def test_a_figure_from_data_to_its_sheet(figure_name, arguments, sheet, tmp_path, monkeypatch):
    for index in range(24):
        kind = tmp_path / "images" / ("birds" if index % 2 else "cats")
        write_picture(kind / f"{index}.png", index, (40, 36))
    drawn_mnist(tmp_path / "data", monkeypatch)
    monkeypatch.chdir(tmp_path)
    small = "--data.size 32 --data.split hash" if arguments else ""
    fields = f"{SMALL} {SMALL_PRIOR} {PIXELSNAIL} --data.workers 0 {small}"
    done = recipe("figure", tmp_path, figure_name, *arguments.split(), "0.02", fields=fields)
    assert done.returncode == 0, done.stderr
    commands = recorded(tmp_path)
    stopped = [words for words in commands if words[1] in ("data", "train")]
    # it goes on, and draws the sheet again
    for steps, several in ((1, stopped), (2, commands), (3, commands[-1:])):
        for words in several:
            replay(cut(words, [("--max-minutes 0.02", f"--max-steps {steps}")]))
    assert done.stdout == f"figure {figure_name}: runs/{sheet}.png\n"
    assert read_image(Path(f"runs/{sheet}.png"), 3).shape[2] > 4 * 28


def test_other_figures_and_usage(tmp_path):
    usage = "recipes/figure 11 DATA"
    for arguments, told in cells_of(f"""
        10 | {usage}
        11 | {usage}
        14 images | {usage}
        14 images birdd | there is no class birdd
    """):
        done = recipe("figure", tmp_path, *arguments.split())
        assert done.returncode == 2
        assert told in done.stderr
        assert not (tmp_path / "record").exists()
    for name in ("12", "13"):
        assert recipe("figure", tmp_path, name, "images").returncode == 0
    presets_used = [words[2] for words in recorded(tmp_path) if words[1] == "train"]
    assert presets_used == ["vqvae2/ffhq", "vqgan/ffhq"]


@parametrize("name", ["mnist", "cifar10", "treevq-cifar10", "treevq-mnist"])
def test_a_shipped_model(name, tmp_path, monkeypatch):
    (drawn_mnist if "mnist" in name else drawn_cifar10)(tmp_path / "data", monkeypatch)
    monkeypatch.chdir(tmp_path)
    assert recipe(name, tmp_path, "out").returncode == 0
    defaults = Path("out", "sampling.json")
    sampling = defaults.read_text() if defaults.is_file() else ""
    defaults.unlink(missing_ok=True)  # the run that is replayed does not exist yet
    fields = PIXELSNAIL if name in ("mnist", "cifar10") else "--prior.network.layers 1"
    cuts = cells_of(rf"""
        --max-(steps|minutes) [^\0]+ | --max-steps 2
        --samples 2000 | --samples 4
        1.0 1.1 1.2 1.3 1.5 | 1.0 1.3
        -n 64 | -n 4
        ^(python .*/nearest.py .*) | \1 -n 4
        ^(python .*/fit_entropy_model.py .*) | \1 --duration 0.01
        ^(hrvqvae train-decoder out --decoder progressive) --resume$ | \1 --resume --max-steps 2
        ^(hrvqvae train-decoder (?!.*progressive).*) | \1 --generation.samples 4 {SMALL_DECODER}
        ^(hrvqvae train .*) | \1 {SMALL}
        ^(hrvqvae train treevq-deep/cifar10 .*) | \1 --model.residual_blocks 1
    """)
    # a field may be given once
    cuts += [
        (r" --prior.training.batch_size [^\0]+", ""),
        (r" --prior.network.(hidden_units|layers|residual_blocks|dropout) [^\0]+", ""),
        (r"^(hrvqvae train-prior .*)", rf"\1 {SMALL_PRIOR} {fields}"),
    ]
    exported = tmp_path / "out" / "export"
    for words in recorded(tmp_path):
        if words[1] == "export" and sampling:
            defaults.write_text(sampling)
        if words[1] == "evaluate":
            write_untrained_classifier(open_run(exported).read_config().data, exported / CLASSIFIER)
        replay([word for word in cut(words, cuts) if word])
    parts = {
        "treevq-cifar10": ("priors/levels-1-4/", "prefixes/", "generation/"),
        "treevq-mnist": ("priors/levels-1-5/", "prefixes/"),
    }.get(name, [f"priors/level-{level}/" for level in (1, 2, 3)])
    files = {f"{part}model.safetensors" for part in ("", *parts)}
    files |= {"tables.hrvt", "config.json", "README.md"}
    if sampling:
        files.add("sampling.json")
    exported_files = {path.relative_to(exported).as_posix() for path in exported.rglob("*.*")}
    assert exported_files - {CLASSIFIER, ".lock"} == files
    assert {"samples.png", "nearest.png"} <= {*names_in(tmp_path / "out")}


def test_a_model_of_own_photographs(tmp_path, monkeypatch):
    for index in range(24):
        kind = tmp_path / "photos" / ("train", "test")[index % 2] / ("hat", "shoes")[index % 3 % 2]
        write_picture(kind / f"{index}.jpg", index, (80, 70))
    monkeypatch.chdir(tmp_path)
    assert recipe("clothes", tmp_path, "photos", "out").returncode == 0
    cuts = cells_of(rf"""
        --max-minutes [^\0]+ | --max-steps 2
        ^(hrvqvae train treevq-deep/photos64 .*) | \1 {SMALL}
        ^(hrvqvae train-prior .*) | \1 {SMALL_PRIOR} --prior.network.layers 1
        ^(hrvqvae train-decoder .*) | \1 --generation.samples 4 {SMALL_DECODER}
        -n 10 | -n 2
    """)
    for words in recorded(tmp_path):
        if words[1].endswith("judge.py"):
            judge_by_pictures()["main"]([*words[2:], "-n", "1"])
        else:
            replay(cut(words, cuts))
    exported = hrvqvae.load("out/export")
    assert exported.classes == ("hat", "shoes")
    assert exported.run.sampling_options() == {"guidance": 2, "levels": 4}
    # samples of two classes, each above its nearest training images
    assert read_image(Path("out/samples.png"), 3).shape[1] > 4 * 64


def test_the_pictures_of_the_readme(tmp_path, monkeypatch):
    drawn_cifar10(tmp_path / "data", monkeypatch)
    runpy.run_path(str(RECIPES / "front"))["main"](str(tmp_path))
    assert read_image(tmp_path / "tree.png", 3).shape[1] > 400
    assert read_image(tmp_path / "samples.png", 3).shape[2] > 700


def test_the_classifier(tmp_path, monkeypatch):
    drawn_cifar10(tmp_path / "data", monkeypatch)
    monkeypatch.chdir(tmp_path)
    assert recipe("classifier", tmp_path).returncode == 0
    for words in recorded(tmp_path):
        replay([*words, "--epochs", "1"] if words[0] == "python" else words)
    data = presets.get("hrvqvae/cifar10").config.data
    trained = classifier.read_classifier(Path("runs/classifier-cifar10.safetensors"), data)
    assert trained.classes[2] == "bird"


def figure(line):
    name, *words = line.split()
    return replay(["python", str(FIGURES / f"{name}.py"), *words])


def test_figures_of_a_run(run, tmp_path, capsys):
    out = tmp_path / "figure.png"
    for line, drawn in cells_of(f"""
            hierarchy --path 2,1,3 | 3 levels of 4 codewords, synthetic
            hierarchy {run} --position 3 2 | tiny, position (3, 2) of the first test image
            classes {run} -n 3 --nearest | 3 samples per class, 10 classes
            nearest {run} -n 4 | 4 samples, MSE
        """):
        assert drawn in figure(f"{line} -o {out}")
        assert read_image(out, 3).shape[2] > 100
        out.unlink()
    for line, message in cells_of(f"""
            hierarchy --position 1 1 | name a RUN
            hierarchy {run} --position 9 0 | latent grid of 7x7
            classes {run} --guidance 2 | class_dropout
            prefixes {tmp_path} | no runs
        """):
        with pytest.raises(SystemExit):
            figure(f"{line} -o {out}")
        assert message in capsys.readouterr().err


def judge_by_pictures():
    """Return the judge, with small pictures in place of a large network's features."""
    judge = runpy.run_path(str(RECIPES / "judge.py"))
    pictures = Features("pixels", lambda images: adaptive_avg_pool2d(images, 7).flatten(1))
    judge["main"].__globals__["load_features"] = lambda: pictures
    return judge


def test_the_judge_of_samples(run, capsys):
    judge = judge_by_pictures()
    labels = torch.arange(200) % 4
    features = torch.eye(4)[labels] + normal(200, 4) / 10
    assert judge["fit_judge"](features, labels, 4)(features).argmax(1).equal(labels)

    # all that it prints, by small pictures
    judge["main"]([str(run), "-n", "2", "--levels", "1"])
    assert re.fullmatch(
        r"test images recognized: [\d.]+%\nreconstructions recognized: [\d.]+%\n"
        r"20 samples recognized: [\d.]+%\nrecall of samples: [\d.]+; of training images: [\d.]+\n",
        capsys.readouterr().out,
    )


def test_nearest_training_images(run):
    config = RunFolder(run).read_config()
    images = torch.from_numpy(load_images(config.data, "train").pixels[[5, 60]]) / 255
    moved = (images * 0.9 + 0.01).clamp(0, 1)
    nearest = runpy.run_path(str(FIGURES / "nearest.py"))["nearest_training_images"]
    neighbours, errors = nearest(moved, config)
    assert torch.equal(neighbours, images)
    assert errors == approx((moved - images).square().flatten(1).mean(1).tolist(), rel=1e-3)
