"""The README and the pages: commands and code run with small budgets; links lead somewhere; the
site is built.
"""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml
from torch.distributed.run import get_args_parser

from hrvqvae.cli import _parser
from hrvqvae.cli.console import split_fields
from hrvqvae.config import presets
from tests.conftest import cells_of, do, parametrize, run_python, write_picture
from tests.replay import blocks, cut, drawn_mnist, replay

ROOT = Path(__file__).parent.parent
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
SMALL = (
    "--model.stride 8 --model.hidden_units 8 --model.residual_units 8 --training.batch_size 8"
    " --model.quantizer.init_vectors 4096"
)
SMALL_PRIOR = (
    "--prior.network.hidden_units 8 --prior.training.evaluation_images 50"
    " --prior.training.batch_size 8"
)
CUTS = cells_of(rf"""
    --max-(minutes|steps) [^\0]+ | --max-steps 2
    ^(hrvqvae train (?!.*--(?:resume|init-from)).*) | \1 {SMALL}
    --training.batch_size 16 | --training.batch_size 2 --training.evaluation_images 2
    ^(hrvqvae train-prior (?!.*--resume)[^\0]+ ).* | \1--max-steps 2 {SMALL_PRIOR}
""")
TINY = {"model.stride": 8, "model.hidden_units": 8, "training.batch_size": 8}
TINY_PRIOR = {"prior.network.hidden_units": 8, "prior.training.batch_size": 8}
FEWER = cells_of(r"""
    ^(hrvqvae train \w+/photos (?!.*--data.size).*) | \1 --data.size 32
    ^(hrvqvae train .*) | \1 --data.workers 0
    ^(hrvqvae train treevq/photos (?!.*--resume).*) | \1 --model.quantizer.levels 4
    ^(hrvqvae sample mnist) -n 64 | \1 -n 2
    ^(hrvqvae sample treevq-cifar10) -n 16 | \1 -n 1
    ^(hrvqvae sample mnist) -n 20 | \1 -n 10
    ^(hrvqvae sample runs/photos) -n 16 | \1 -n 1
    ^(hrvqvae complete .*) -n 8 | \1 -n 1
    ^(hrvqvae (sample|complete) mnist .*) | \1 --levels 1
    \{000000..000099\} | {000000..000000}
""")


def commands(page):
    for language, block in blocks(page):
        if language == "console":
            for command, shown in re.findall(
                r"^\$ ([^#\n]*).*\n((?:[^$].*\n|\n)*)", block, re.MULTILINE
            ):
                yield shlex.split(command), shown


def run(words, cuts):
    end = words.index(">") if ">" in words else len(words)
    printed = replay(cut(words[:end], cuts))
    if end < len(words):
        Path(words[end + 1]).write_text(printed)
        assert yaml.safe_load(printed)["name"] in presets.names()
    assert not [word for word in words if word.endswith(".png") and not Path(word).is_file()], words
    return printed


def execute(block, names):
    block = block.replace(", max_steps=2000", f", max_steps=1, **{TINY}")
    block = block.replace("(max_steps=2000", f"(max_steps=1, **{TINY_PRIOR}")
    exec(block.replace("seed=0", "seed=0, levels=1"), names)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Enter a folder with the images that pages name, and drawn digits for MNIST."""
    for index in range(12):
        write_picture(tmp_path / "my-photos" / f"{index:02d}.jpg", index, (100, 80))
    write_picture(tmp_path / "x.png", 1, (28, 28), "L")
    write_picture(tmp_path / "photo.jpg", 1, (120, 90))
    write_picture(tmp_path / "docs" / "pictures" / "web.jpg", 2, (120, 90))
    drawn_mnist(tmp_path / "data", monkeypatch)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_readme(folder):
    compared = 0
    for words, shown in commands("README.md"):
        if words[0] == "hrvqvae":
            printed = run(words, (*CUTS, *FEWER))
            if shown:
                assert printed == shown.replace("16 samples", "1 sample")
                compared += 1
    assert compared == 1
    names = {}
    for language, block in blocks("README.md"):
        if language == "python":
            execute(block, names)
    assert names["indices"].shape == (1, 1024, 3)
    assert names["coarse"].shape == (16, 1, 28, 28)
    assert names["images"].mean() > 0.02  # digits are drawn
    assert len(names["files"]) == 16
    assert Path("runs/mine/model.safetensors").is_file()


@parametrize("page", ["docs/index.md", "docs/own-data.md"])
@pytest.mark.usefixtures("folder")
def test_a_guide(page):
    names = {}
    for language, block in blocks(page):
        if language == "python":
            execute(block, names)
        for words in [
            shlex.split(line[2:])
            for line in block.replace("\\\n", "").splitlines()
            if line.startswith(("$ tar ", "$ hrv"))
        ]:
            subprocess.run(words, check=True) if words[0] == "tar" else run(words, (*CUTS, *FEWER))
    if page == "docs/index.md":
        shapes = {names[name].shape for name in ("digits", "images", "coarse")}
        assert shapes == {(4, 1, 28, 28)}


def test_the_page_of_the_layer():
    names = {}
    for _, block in blocks("docs/layer.md"):
        exec(block, names)
    assert names["coarse"].shape == (4, 64, 14, 14)
    assert names["leaf"].shape == (4, 14, 14)


def test_commands_for_several_processes():
    """torchrun takes them, this package takes what follows, and the processes can share the
    batch.
    """
    page = (ROOT / "docs/scale.md").read_text().replace("\\\n", "")
    lines = [line.removeprefix("$ ").removeprefix("srun ") for line in page.splitlines()]
    for line in [line for line in lines if line.startswith("torchrun ")]:
        words = shlex.split(line.replace("$head", "node1").replace("$SLURM_JOB_ID", "7"))
        options = get_args_parser().parse_args(words[1:])
        assert options.training_script == "hrvqvae"
        arguments = options.training_script_args
        if arguments[0] == "train":
            config = yaml.safe_load(do(*arguments, "--print-config"))
            batch = config["training"]["batch_size"]
            nodes = options.nnodes.split(":")
            for machines in range(int(nodes[0]), int(nodes[-1]) + 1):
                assert batch % (machines * int(options.nproc_per_node)) == 0
        else:
            _parser().parse_args(split_fields(arguments)[0])


@parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_names_is_there(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    links = [link for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text) if "://" not in link]
    assert not [link for link in links if not (page.parent / link).exists()]
    for line in re.findall(
        r"^(?:\$ )?hrvqvae ([a-z].*)", page.read_text().replace("\\\n", " "), re.MULTILINE
    ):
        # prose and tables
        if page.parent.name == "docs" and not line.startswith(("turns ", "needs ", "cifar10 ")):
            _parser().parse_args(
                split_fields(shlex.split(line.partition(" > ")[0], comments=True))[0]
            )
    for name in re.findall(r"`([a-z_]+/[\w/]*\w\.py)`", text):
        places = (ROOT / "src" / "hrvqvae" / name, ROOT / name)
        assert "binary_codes" in name or any(place.exists() for place in places), name


def test_figures_are_those_of_the_rows():
    run_python("-m", "benchmarks.pages", cwd=ROOT)


def test_the_site_is_built_without_a_warning_and_loads_nothing_from_the_internet(tmp_path):
    options = ["-m", "sphinx", "--fail-on-warning", "--keep-going", "--quiet", "-b", "html"]
    run_python(*options, ROOT / "docs", tmp_path)
    assert "class_name" in (tmp_path / "api.html").read_text()  # signatures are read from the code
    loads = r"<(?:script|img|iframe)[^>]*\ssrc=\"(?:https?:)?//|<link[^>]*\shref=\"(?:https?:)?//"
    pages = [page.read_text() for page in tmp_path.rglob("*.html")]
    assert len(pages) > len(list((ROOT / "docs").glob("*.md")))
    assert not [match for page in pages for match in re.findall(loads, page)]
    sheets = [path.read_text() for path in tmp_path.rglob("*.css")]
    assert not [
        sheet for sheet in sheets if re.search(r"(?:url\(|@import)\s*['\"]?(?:https?:)?//", sheet)
    ]
