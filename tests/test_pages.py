"""The README and the pages: commands and code run with small budgets; links lead somewhere; the
site is built.
"""

import re
import shlex
from pathlib import Path

import pytest
from torch.distributed.run import get_args_parser

from hrvqvae.cli import _parser
from hrvqvae.cli.console import split_fields
from hrvqvae.config import flatten, presets
from hrvqvae.utils.errors import InputError
from tests.conftest import cells_of, parametrize, run_python, write_picture
from tests.replay import blocks, cut, drawn_mnist, replay

ROOT = Path(__file__).parent.parent
CARDS = sorted(ROOT.glob("src/hrvqvae/weights/*/README.md"))
FIELDS = {name for preset in presets.names() for name in flatten(presets.get(preset).config)}
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md")), *CARDS]
COMMANDS = _parser()._actions[-1].choices
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
    ^(hrvqvae train-prior (?!.*--resume)[^\0]+ (--level 1 )?).* | \1--max-steps 2 {SMALL_PRIOR}
    ^(hrvqvae train-decoder .*) | \1 --generation.samples 4 --generation.training.batch_size 4
""")
WIDE = (r" --model\.(stride|hidden_units) [^\0]+", "")  # a field may be given once
TINY = {"model.stride": 8, "model.hidden_units": 8, "training.batch_size": 8}
TINY_PRIOR = {"prior.network.hidden_units": 8, "prior.training.batch_size": 8}
FEWER = cells_of(r"""
    ^(hrvqvae train \w+/photos (?!.*--data.size).*) | \1 --data.size 32
    ^(hrvqvae train .*) | \1 --data.workers 0
    ^(hrvqvae train treevq/photos (?!.*--resume).*) | \1 --model.quantizer.levels 4
    ^(hrvqvae sample mnist) -n 64 | \1 -n 2
    ^(hrvqvae sample treevq-cifar10) -n 16 | \1 -n 1
    ^(hrvqvae sample mnist) -n 20 | \1 -n 10
    ^(hrvqvae sample runs/.*) -n 16 | \1 -n 1
    ^(hrvqvae complete .*) -n 8 | \1 -n 1
    ^(hrvqvae (sample|complete) mnist .*) | \1 --levels 1
""")


def commands(page):
    """Yield the words of each command of a page, and what the page shows of its output."""
    for language, block in blocks(page):
        if language == "console":
            lines = block.replace("\\\n", "")
            for command, shown in re.findall(r"^\$ (.*)\n((?:[^$].*\n)*)", lines, re.MULTILINE):
                yield shlex.split(command, comments=True), shown


def mentions(page):
    """Yield the words of each code in a sentence that names a command or an option."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for code in re.findall(r"`([^`]+)`", text):
        code = code.removesuffix(" --help")
        words = re.sub(r"\b[Nwab]\b", "1", code.removeprefix("hrvqvae ")).split()
        if code.startswith(("hrvqvae ", "--")) or (words[0] in COMMANDS and " -" in code):
            yield words


def is_accepted(command, words):
    """Return whether a command knows the options and takes their values. Other arguments may be
    missing, and the value of a last option.
    """
    if command not in COMMANDS:
        return False
    options = {*COMMANDS[command]._option_string_actions}
    words, given = split_fields(words)
    if {*given} - FIELDS or {word for word in words if re.match("--?[a-z]", word)} - options:
        return False
    try:
        _parser().parse_args([command, *words])
    except InputError as error:
        return bool(re.search("are required|expected one argument", str(error)))
    return True


def run(words):
    printed = replay(cut(words, (WIDE, *CUTS, *FEWER)))
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
        folder = (
            tmp_path / "clothes" / ("train", "test")[index % 2] / ("shoes", "hat")[index % 3 % 2]
        )
        write_picture(folder / f"{index:02d}.jpg", index, (100, 80))
    write_picture(tmp_path / "x.png", 1, (28, 28), "L")
    write_picture(tmp_path / "photo.jpg", 1, (120, 90))
    write_picture(tmp_path / "docs" / "pictures" / "web.jpg", 2, (120, 90))
    drawn_mnist(tmp_path / "data", monkeypatch)
    monkeypatch.chdir(tmp_path)


@parametrize("page", ["README.md", "docs/index.md", "docs/own-data.md", "docs/layer.md"])
@pytest.mark.usefixtures("folder")
def test_commands_and_code_of_a_page(page):
    for words, shown in commands(page):
        if words[0] == "hrvqvae":
            printed = run(words)
            if shown and page == "README.md":
                assert printed == shown.replace("16 samples", "1 sample")
    names = {}
    for language, block in blocks(page):
        if language == "python":
            execute(block, names)
    if "images" in names:
        assert names["images"].float().mean() > 0.02  # something is drawn


def test_commands_for_several_processes():
    """torchrun takes them, this package takes what follows."""
    for words, _ in commands("docs/scale.md"):
        options = get_args_parser().parse_args(words[1:])
        assert options.training_script == "hrvqvae"
        _parser().parse_args(split_fields(options.training_script_args)[0])


@parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_names_is_there(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    links = [link for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text) if "://" not in link]
    assert not [link for link in links if not (page.parent / link).exists()]
    for words, _ in commands(page):
        if words[0] == "hrvqvae":
            _parser().parse_args(split_fields(words[1:])[0])
    for name in re.findall(r"`([a-z_]+/[\w/]*\w\.py)`", text):
        assert (ROOT / "src" / "hrvqvae" / name).exists() or (ROOT / name).exists(), name


@parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=str)
def test_a_sentence_names_commands_and_options_that_there_are(page):
    """An option without a command is one of any command. The changelog names what is gone."""
    for words in mentions(page):
        alone = words[0].startswith("--")
        if alone and len(words) == 1 and "." in words[0]:
            words = [*words, "1"]
        names = [*COMMANDS] if alone else [words.pop(0)]
        assert any(is_accepted(name, words) for name in names), words


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
