"""docs/add-a-system.md: its package, installed as any other, and run through every command."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = (Path(__file__).parent.parent / "docs" / "add-a-system.md").read_text()
SMALL = "--model.hidden_units 8 --model.residual_units 8 --training.batch_size 8"
TREE = "--model.quantizer.init_vectors 512"
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
    "hrvqvae evaluate runs/binary --json",
    f"hrvqvae train hrvqvae/stripes --prior.network.kind convolution --max-steps 2 --out runs/tree {SMALL} {TREE}",
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
images = torch.rand(2, 1, 16, 16)
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
one, three = (model.draw(count, seed=3, class_name="vertical").codes[0] for count in (1, 3))
assert torch.equal(one, three[:1]), "a sample depends on the batch that it is drawn in"
assert not torch.equal(three[0], three[1]), "two samples are one"

prior, changed, label = model.priors.networks[0], codes.clone(), torch.tensor([0, 1])
changed[:, 4, 4:] = (changed[:, 4, 4:] + 1) % 64
changed[:, 5:] = (changed[:, 5:] + 1) % 64
(before,), (after,) = (prior.level_logits([some], (), label) for some in (codes, changed))
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
    found = [line.removeprefix("$ ") for line in block.splitlines()]
    for pattern, replacement in CUTS:
        found = [re.sub(pattern, replacement, line) for line in found]
    return found


class Done:
    """What the page's commands left.

    Attributes:
        folder: where they ran.
        environment: in which they ran.
        results: command -> exit code, standard output, standard error.
    """

    def __init__(self, folder: Path, site: Path) -> None:
        self.folder = folder
        path = os.pathsep.join([str(site), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
        places = {"PYTHONPATH": path, "HRVQVAE_DATA": str(folder / "data"), "OMP_NUM_THREADS": "1"}
        self.environment = {**os.environ, **places}
        lines = self.python(RUN, given="\n".join([*commands(), *MORE, REFUSED])).splitlines()
        self.results = {line: (code, out, err) for line, code, out, err in map(json.loads, lines)}

    def python(self, code: str, given: str = "") -> str:
        """Standard output of a Python process that has the package, and succeeds."""
        done = subprocess.run(
            [sys.executable, "-c", code], input=given, cwd=self.folder, env=self.environment, capture_output=True,
            text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    def shown(self, begin: str) -> str:
        """What the last command that begins so printed."""
        return next(out for line, (_, out, _) in reversed(self.results.items()) if line.startswith(begin))


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    """The page's package, installed by pip from its pyproject.toml without a network, and run."""
    source, site = tmp_path_factory.mktemp("binary-codes"), tmp_path_factory.mktemp("site")
    for name, content in files().items():
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text(content)
    install = ["install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--target", str(site)]
    subprocess.run([sys.executable, "-m", "pip", *install, str(source)], check=True, capture_output=True)
    return Done(tmp_path_factory.mktemp("work"), site)


@pytest.mark.parametrize("line", [*commands(), *MORE])
def test_command(done: Done, line: str) -> None:
    code, out, err = done.results[line]
    assert code == 0, f"{out}\n{err}"
    for word in line.split():
        if word.endswith(".png"):
            assert (done.folder / word).is_file(), word


def test_what_a_system_has_not_is_refused(done: Done) -> None:
    code, _, message = done.results[REFUSED]
    assert code == 2
    assert "binary codes has no progressive decoder" in message


def test_lists_know_the_package(done: Done) -> None:
    assert re.search(r"model.stride +2 +binary-codes \(mnist\)\n", done.shown("hrvqvae presets binary/stripes"))
    listed = done.results["hrvqvae presets"][1]
    for name in ("binary/stripes", "binary/mnist", "hrvqvae/stripes", "vqgan/stripes"):
        assert f"\n{name} " in listed
    assert "\nstripes " in done.shown("hrvqvae data list")


def test_results(done: Done) -> None:
    assert "resuming runs/binary at step 3" in done.shown("hrvqvae train binary/stripes")
    assert json.loads(done.shown("hrvqvae evaluate"))["bits_per_image"] == 64 * 6
    rows = {row["system"]: row for row in json.loads((done.folder / "comparison" / "results.json").read_text())}
    assert list(rows) == ["hrvqvae", "binary"]
    assert all(row["prior_bits_per_image"] > 0 for row in rows.values())
    assert (rows["hrvqvae"]["codewords_searched"], rows["binary"]["codewords_searched"]) == (12, None)


def test_the_parts_keep_their_contracts(done: Done) -> None:
    done.python(CONTRACT)
