"""docs/add-a-system.md: its package, installed as any other, and run through every command."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = (Path(__file__).parent.parent / "docs" / "add-a-system.md").read_text()
TREE = "--model.quantizer.init_vectors 512"
SMALL = "--data.size 12 --model.hidden_units 8 --model.residual_units 8 --training.batch_size 8"
CUTS = (
    (r"--max-steps 300 --prior-steps 300", f"--max-steps 2 --prior-steps 6 {TREE.replace('--', '--hrvqvae.')}"),
    (r"--max-steps 300", "--max-steps 3"),
    (r"--max-steps 400", "--max-steps 5"),
    (r"^(hrvqvae (?:train (?!.*--resume)|compare).*)", rf"\1 {SMALL}"),
    (r"^(hrvqvae compare.*)", r"\1 --prior.network.hidden_units 8"),
    (r"--samples 100", "--samples 8"),
)
MORE = (
    "hrvqvae presets",
    "hrvqvae presets binary/mnist",
    "hrvqvae train-prior runs/binary --max-steps 5 --resume",
    "hrvqvae sample runs/binary -n 1 --class 7 -o single.png --save-dir samples",
    "hrvqvae complete runs/binary samples/7-0000.png --keep left -n 2 -o completed.png",
    "hrvqvae sample exported -n 2 -o more.png",
    "hrvqvae evaluate runs/binary --json",
    f"hrvqvae train hrvqvae/mnist --prior.network.kind convolution --max-steps 2 --out runs/tree {SMALL} {TREE}",
    "hrvqvae train-prior runs/tree --max-steps 2",
    "hrvqvae sample runs/tree -n 2 --seed 1 -o tree.png",
)
REFUSED = "hrvqvae train-progressive runs/binary --max-steps 1"

# Commands of one process, from standard input: of each the exit code and what it prints, as a line of JSON.
RUN = """
import contextlib, io, json, shlex, sys
import hrvqvae.cli
for line in sys.stdin.read().splitlines():
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = hrvqvae.cli.main(shlex.split(line)[1:])
    print(json.dumps([line, code, out.getvalue(), err.getvalue()]), flush=True)
"""

CONTRACT = """
import torch, hrvqvae
from hrvqvae.config.registry import PRIORS
model = hrvqvae.load("runs/binary")
images = torch.rand(2, 1, 12, 12)
(codes,) = model.encode(images)
assert codes.shape == (2, 8, 8) and 0 <= codes.min() and codes.max() < 64
signs = model.autoencoder.latents(images) > 0
assert torch.equal(codes, sum(signs[..., bit].long() << bit for bit in range(6))), "the code is not the signs' number"
assert torch.equal(model.autoencoder.quantizer.lookup((codes,)) > 0, signs), "the code does not give its signs back"
assert model.decode((codes,)).shape == images.shape
try:
    model.decode((codes + 64,))
except hrvqvae.InputError as error:
    assert "codes lie in 0..63" in str(error)
else:
    raise AssertionError("a code out of range is decoded")

assert PRIORS.get("convolution").sampler == "hrvqvae.priors.sampling:sample_plain"
single, three = (model.draw(count, seed=3, class_name="7").codes[0] for count in (1, 3))
assert torch.equal(single, three[:1]), "a sample depends on its batch"
assert not torch.equal(three[0], three[1]), "two samples are equal"

prior, changed, label = model.priors.networks[0], codes.clone(), torch.tensor([0, 1])
changed[:, 4, 4:] = (changed[:, 4, 4:] + 1) % 64
changed[:, 5:] = (changed[:, 5:] + 1) % 64
(before,), (after,) = (prior.level_logits([maps], (), label) for maps in (codes, changed))
same = (before == after).all(1)
assert same[:, :4].all() and same[:, 4, :5].all(), "a position sees later ones"
assert not same[:, 6:].any(), "a position does not see earlier ones"
assert not torch.equal(before, prior.level_logits([codes], (), 1 - label)[0]), "the class does not matter"
"""


def files() -> dict[str, str]:
    """Path -> content of the files that the page shows, each under its name."""
    return dict(re.findall(r"^\*\*`([\w./]+)`\*\*\n\n```\w+\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))


def commands() -> list[str]:
    """The commands of the page, their budgets cut."""
    (block,) = re.findall(r"^```console\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    lines = [line.removeprefix("$ ") for line in block.splitlines()]
    for pattern, replacement in CUTS:
        lines = [re.sub(pattern, replacement, line) for line in lines]
    return lines


class Done:
    """What the page's commands left in a folder: `results` has (exit code, standard output, errors) by command."""

    def __init__(self, folder: Path, site: Path, data: Path) -> None:
        self.folder = folder
        path = os.pathsep.join([str(site), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
        self.environment = {**os.environ, "PYTHONPATH": path, "HRVQVAE_DATA": str(data), "OMP_NUM_THREADS": "1"}
        lines = self.python(RUN, "\n".join([*commands(), *MORE, REFUSED])).splitlines()
        self.results = {line: (code, out, err) for line, code, out, err in map(json.loads, lines)}

    def python(self, code: str, words: str = "") -> str:
        """Return the standard output of a Python process that has the package."""
        done = subprocess.run(
            [sys.executable, "-c", code], input=words, cwd=self.folder, env=self.environment, capture_output=True,
            text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, mnist_root: Path) -> Done:
    """The page's package, installed by pip from its pyproject.toml without a network, and run."""
    source, site = tmp_path_factory.mktemp("binary-codes"), tmp_path_factory.mktemp("site")
    for name, content in files().items():
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text(content)
    install = ["install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--no-compile", "--target"]
    subprocess.run([sys.executable, "-m", "pip", *install, str(site), str(source)], check=True, capture_output=True)
    return Done(tmp_path_factory.mktemp("work"), site, mnist_root)


def test_commands(done: Done) -> None:
    for line in (*commands(), *MORE):
        code, out, err = done.results[line]
        assert code == 0, f"{line}\n{out}\n{err}"
        for word in line.split():
            assert not word.endswith(".png") or (done.folder / word).is_file(), word
    code, _, message = done.results[REFUSED]
    assert (code, "binary codes has no progressive decoder" in message) == (2, True)
    assert re.search(r"model.stride +2 +binary-codes\n", done.results["hrvqvae presets binary/mnist"][1])
    assert "\nbinary/mnist " in done.results["hrvqvae presets"][1]
    (resumed,) = (
        out for line, (_, out, _) in done.results.items() if "train binary/mnist" in line and "--resume" in line
    )
    assert "resuming runs/binary at step 3" in resumed


def test_results(done: Done) -> None:
    assert json.loads(done.results["hrvqvae evaluate runs/binary --json"][1])["bits_per_image"] == 64 * 6
    rows = {row["system"]: row for row in json.loads((done.folder / "compared" / "results.json").read_text())}
    assert list(rows) == ["hrvqvae", "binary"]
    assert all(row["prior_bits_per_image"] > 0 for row in rows.values())
    assert (rows["hrvqvae"]["codewords_searched"], rows["binary"]["codewords_searched"]) == (12, None)


def test_the_parts_keep_their_contracts(done: Done) -> None:
    done.python(CONTRACT)
