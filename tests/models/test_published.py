"""Published networks: got, checked, found again, and told in one line where they can't be had."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import pytest

from hrvqvae.cli import main
from hrvqvae.models import published
from hrvqvae.utils.errors import InputError

CONTENT = b"weights" * 1000
DIGEST = hashlib.sha256(CONTENT).hexdigest()[:8]


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a command refuses with."""
    assert main(arguments) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    return line


def network_of(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> published.Published:
    """A network whose publisher is a folder."""
    monkeypatch.setenv("TORCH_HOME", str(folder / "cache"))
    network = dataclasses.replace(published.LPIPS, name="small", url=(folder / name).as_uri)
    monkeypatch.setitem(published.NETWORKS, "small", network)  # type: ignore[arg-type]
    return network


def test_weights_are_got_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    network = network_of(tmp_path, monkeypatch, f"small-{DIGEST}.pth")
    (tmp_path / f"small-{DIGEST}.pth").write_bytes(CONTENT)
    assert not network.there
    assert main(["data", "get", "small"]) == 0
    assert network.there
    assert network.path == tmp_path / "cache" / "hub" / "checkpoints" / f"small-{DIGEST}.pth"
    assert network.path.read_bytes() == CONTENT
    assert main(["data", "get", "small"]) == 0
    assert [line.split(" in ")[0] for line in capsys.readouterr().out.splitlines()] == [
        "small: from its publisher, checked,", "small: already",
    ]  # fmt: skip
    assert main(["data", "list"]) == 0
    listed = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert f"in {network.path.parent}" in listed["small"]
    assert "hrvqvae data get lpips-vgg16" in listed["lpips-vgg16"]


@pytest.mark.parametrize("content", [None, CONTENT[1:]])
def test_what_is_missing_or_damaged_leaves_nothing(
    content: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    network = network_of(tmp_path, monkeypatch, f"small-{DIGEST}.pth")
    if content is not None:
        (tmp_path / f"small-{DIGEST}.pth").write_bytes(content)
    assert "small could not be got" in refused(["data", "get", "small"], capsys)
    assert list(network.path.parent.iterdir()) == []
    with pytest.raises(InputError, match="small is not on this machine: hrvqvae data get small"), network.read():
        pass


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(published.importlib.util, "find_spec", lambda name: None)
    assert not published.INCEPTION.there
    line = refused(["data", "get", "inception"], capsys)
    assert "inception needs torch_fidelity: pip install 'hrvqvae[perceptual]', then hrvqvae data get inception" in line
    with pytest.raises(InputError, match="there are lpips-vgg16, inception"):
        published.get("vgg", print)
