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


@pytest.fixture(autouse=True)
def small(mnist_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawn digits are MNIST, and the demo's preset is a small model."""
    monkeypatch.setattr(fetch, "check", lambda dataset, folder: None)
    preset = presets.Preset(config=tiny_run(mnist_root), sources={}, about="")
    monkeypatch.setattr(presets, "get", lambda name: preset)


def test_the_demo(mnist_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["demo", "--out", str(tmp_path / "demo"), "--root", str(mnist_root), "--max-steps", "12"]
    for _ in range(2):  # the second time all is there already
        assert main(command) == 0
        out = capsys.readouterr().out
        assert "40 test images: MSE" in out
        assert "trained 12 steps" in out
        assert "priors 12, 12, 12 steps" in out
        pictures = [Path(line.strip()) for line in out.splitlines() if line.endswith(".png")]
        assert len(pictures) == 6
        assert all(read_image(path, 3).shape[2] > 100 for path in pictures)


def test_the_demo_refuses(
    mnist_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "--max-minutes is 0; it must be above 0" in refused(["demo", "--max-minutes", "0"], capsys)
    out = str(tmp_path / "run")
    assert main(["train", "tiny", "--max-steps", "1", "--out", out]) == 0
    monkeypatch.undo()
    monkeypatch.setattr(fetch, "get", lambda name, root, say: root)
    monkeypatch.setattr("hrvqvae.cli.demo.get", fetch.get)
    assert "holds a run of tiny, not of hrvqvae/mnist" in refused(["demo", "--out", out, "--root", mnist_root], capsys)
