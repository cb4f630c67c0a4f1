"""docs/add-a-system.md: its package, installed as any other, and run through every command."""

import json
import re
import shlex
import shutil
from pathlib import Path

import torch

import hrvqvae
from benchmarks import compare
from hrvqvae import config
from tests.conftest import (
    cells_of,
    check_refusals,
    do,
    input_error,
    read_json,
    run_python,
    same,
    shared_fixture,
)

PAGE = (Path(__file__).parent.parent / "docs" / "add-a-system.md").read_text()
OF_TREE = "hrvqvae/mnist --prior.network.kind convolution"
TREE = "--model.quantizer.init_vectors 512"
SMALL = "--data.size 12 --model.hidden_units 8 --model.residual_units 8 --training.batch_size 8"
CUTS = cells_of(rf"""
    --max-steps 300 | --max-steps 3
    --max-steps 400 | --max-steps 5
    ^(hrvqvae train (?!.*--resume).*|python .*) | \1 {SMALL}
    ^(python .*) | \1 {TREE.replace("--", "--hrvqvae.")}
    --samples 100 | --samples 8
""")
MORE = f"""
hrvqvae presets
hrvqvae presets binary/mnist
hrvqvae train-prior runs/binary --max-steps 5 --resume
hrvqvae sample runs/binary -n 1 --class 7 -o single.png --save-dir samples
hrvqvae complete runs/binary samples/7-0000.png --keep left -n 2 -o completed.png
hrvqvae sample exported -n 2 -o more.png
hrvqvae evaluate runs/binary --json
hrvqvae export runs/binary graphs --onnx
hrvqvae train {OF_TREE} --max-steps 2 --out runs/tree {SMALL} {TREE}
hrvqvae train-prior runs/tree --max-steps 2
hrvqvae sample runs/tree -n 2 --seed 1 -o tree.png
"""
REFUSED = "train-decoder runs/binary --for prefixes | binary codes has no progressive decoder"


def test_a_configuration_in_a_sentence_is_valid():
    (call,) = re.findall(r"`(SingleGridConfig\(.*?\))`", PAGE)
    assert eval(call, vars(config)).quantizer.levels == 3


def files():
    return dict(
        re.findall(r"^\*\*`([\w./]+)`\*\*\n\n```\w+\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    )


def commands():
    blocks = re.findall(r"^```console\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    lines = [line.removeprefix("$ ") for block in blocks for line in block.splitlines()]
    for pattern, replacement in CUTS:
        lines = [re.sub(pattern, replacement, line) for line in lines]
    return lines


@shared_fixture
def installed(tmp_path_factory):
    """The page's package, installed by pip from its pyproject.toml without a network."""
    source = tmp_path_factory.mktemp("binary-codes")
    site = tmp_path_factory.mktemp("site")
    for name, content in files().items():
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text(content)
    options = "--quiet --no-index --no-deps --no-build-isolation --no-compile --target"
    run_python("-m", "pip", "install", *options.split(), site, source)
    return site


def test_page(installed, site, mnist_root, tmp_path, monkeypatch):
    shutil.copytree(installed, site, dirs_exist_ok=True)
    monkeypatch.setenv("HRVQVAE_DATA", str(mnist_root))
    monkeypatch.chdir(tmp_path)
    results = {}
    for line in (*commands(), *MORE.strip().splitlines()):
        words = shlex.split(line)
        if words[0] == "python":
            compare.main(words[3:])
        else:
            results[line] = do(*words[1:])
        assert not [
            word for word in line.split() if word.endswith(".png") and not Path(word).is_file()
        ], line
    check_refusals(REFUSED)
    assert re.search(r"model.stride +2 +binary-codes\n", results["hrvqvae presets binary/mnist"])
    assert "\nbinary/mnist " in results["hrvqvae presets"]
    assert "resuming runs/binary at step 3" in "".join(results.values())
    assert json.loads(results["hrvqvae evaluate runs/binary --json"])["bits_per_image"] == 64 * 6
    rows = {row["system"]: row for row in read_json(Path("compared", "results.json"))}
    searched = {name: row["codewords_searched"] for name, row in rows.items()}
    assert searched == {"hrvqvae": 12, "binary": None}
    check_contract()


def check_contract():
    model = hrvqvae.load("runs/binary")
    images = torch.rand(2, 1, 12, 12)
    (codes,) = model.encode(images)
    signs = model.autoencoder.latents(images) > 0
    signed = sum(signs[..., bit].long() << bit for bit in range(6))
    assert same(codes, signed)  # the code is not the signs' number
    # the code does not give its signs back
    assert same(model.autoencoder.quantizer.lookup((codes,)) > 0, signs)
    assert model.decode((codes,)).shape == images.shape
    with input_error(r"codes lie in 0\.\.63"):
        model.decode((codes + 64,))

    single, three = (model.draw(count, seed=3, class_name="7").codes[0] for count in (1, 3))
    assert same(single, three[:1])  # a sample depends on its batch
    assert not same(three[0], three[1])  # two samples are equal

    prior = model.priors.networks[0]
    label = torch.tensor([0, 1])
    positions = torch.arange(64).view(8, 8)
    changed = torch.where(positions < 8 * 4 + 4, codes, (codes + 1) % 64)
    (before,), (after,) = (prior.level_logits([maps], (), label) for maps in (codes, changed))
    equal = (before == after).all(1).flatten(1)
    assert equal[:, : 8 * 4 + 5].all()  # a position sees itself or later ones
    assert not equal[:, 8 * 6 :].any()  # a position does not see earlier ones
    # the class does not matter
    assert not same(before, prior.level_logits([codes], (), 1 - label)[0])
