"""The demo on drawn digits: from nothing, again where all is there, and where it can't begin."""

from __future__ import annotations

from pathlib import Path

import pytest

from hrvqvae.cli import main
from hrvqvae.config import presets
from hrvqvae.data import fetch
from hrvqvae.data.images import read_image
from tests.cli.helpers import refused
from tests.tiny_systems import tiny_run


def test_the_demo(
    mnist_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fetch, "check", lambda dataset, folder: None)  # drawn digits are MNIST,
    preset = presets.Preset(config=tiny_run(mnist_root), sources={}, about="")
    monkeypatch.setattr(presets, "get", lambda name: preset)  # and the demo's preset is a small model
    out = tmp_path / "demo"
    command = ["demo", "--out", str(out), "--root", str(mnist_root), "--max-steps", "12"]
    for _ in range(2):  # the second time all is there already
        assert main(command) == 0
        printed = capsys.readouterr().out
        assert printed.count("$ hrvqvae ") == 6
        assert "mnist test: 40 images" in printed
        assert printed.count("trained 12 steps") == 4, "the autoencoder and three priors"
        assert "bits a code" in printed
    for name in ("reconstructions", "curves", "usage", "samples", "samples-of-the-shipped-model"):
        assert f"{name}.png" in printed.splitlines()[-1]
        assert read_image(out / "pictures" / f"{name}.png", 3).shape[2] > 100
    assert "--max-minutes is 0; it must be above 0" in refused(["demo", "--max-minutes", "0"], capsys)
    monkeypatch.undo()
    monkeypatch.setattr(fetch, "get", lambda name, root, say: root)
    assert main(command) == 2
    assert "holds a run of tiny, not of treevq-deep/mnist" in capsys.readouterr().err
