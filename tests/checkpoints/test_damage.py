"""Damage to every kind of file that is read from a run: cut short, a bit turned, other content, another kind of file.

It is one line that names the file, and nothing else; code maps, which are a cache, are made again.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hrvqvae
from hrvqvae.checkpoints import codemaps, storage
from hrvqvae.checkpoints.codemaps import CodeMaps
from hrvqvae.checkpoints.export import export
from hrvqvae.checkpoints.folder import RunFolder, prior_folder, progressive_folder
from hrvqvae.checkpoints.loading import load_priors
from hrvqvae.config import Config
from hrvqvae.models.build import build
from hrvqvae.utils.errors import DamagedFileError, InputError

DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda content: content[:-3],
    "empty": lambda content: b"",
    "bit": lambda content: (
        content[: len(content) // 2] + bytes([content[len(content) // 2] ^ 16]) + content[len(content) // 2 + 1 :]
    ),
    "text": lambda content: b"this is text\n",
    "binary": lambda content: b"\xff\xfe\x00" * 40,
    "nested": lambda content: b"[" * 2000,
}
Use = Callable[[Path], object]
TENSORS: dict[str, tuple[Callable[[Path], Path], Use]] = {
    "model": (lambda run: RunFolder(run).model, hrvqvae.load),
    "prior": (lambda run: prior_folder(run, 1).model, load_priors),
    "progressive decoder": (lambda run: progressive_folder(run).model, hrvqvae.load),
}
FILES = TENSORS | {
    "entropy model": (lambda run: RunFolder(run).tables, lambda run: hrvqvae.load(run).codec),
    "configuration": (lambda run: RunFolder(run).config, hrvqvae.load),
    "configuration of a prior": (lambda run: prior_folder(run, 1).config, load_priors),
    "exported configuration": (lambda run: RunFolder(run).config_json, hrvqvae.load),
}


# A configuration that is cut short may be one still; another model in it is refused, which is tested for itself.
PAIRS = [
    (kind, damage) for kind in FILES for damage in DAMAGES
    if "configuration" not in kind or damage in ("empty", "text", "binary", "nested")
]  # fmt: skip


@pytest.mark.parametrize(("kind", "damage"), PAIRS)
def test_damage_is_one_line_that_names_the_file(kind: str, damage: str, whole: Path, tmp_path: Path) -> None:
    find, use = FILES[kind]
    if kind == "exported configuration":
        export(whole, tmp_path / "exported")
        whole = tmp_path / "exported"
    path = find(whole)
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    with pytest.raises(InputError, match=path.name) as caught:
        use(whole)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, DamagedFileError) or "configuration" in kind


def of_another_shape(meta: dict[str, Any]) -> dict[str, Any]:
    config = json.loads(json.dumps(meta["config"]))
    config["model"]["hidden_units"] = 16
    config["prior"]["network"]["residual_blocks"] = 9
    config["progressive"]["network"]["hidden_units"] = 6
    return {**meta, "config": config}


METAS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "of another kind": lambda meta: {**meta, "kind": "another"},
    "without keys": lambda meta: {"kind": meta["kind"]},
    "of another shape": of_another_shape,
}


@pytest.mark.parametrize(
    ("kind", "how"), [(kind, how) for kind in TENSORS for how in METAS if (kind, how) != ("model", "of another kind")]
)
def test_wrong_meta_is_one_line_that_names_the_file(kind: str, how: str, whole: Path) -> None:
    find, use = TENSORS[kind]
    path = find(whole)
    tensors, meta = storage.read(path)
    storage.write(path, tensors, METAS[how](meta))
    for config in whole.rglob("config.yaml"):
        config.unlink()
    with pytest.raises(DamagedFileError, match=path.name):
        use(whole)


MAPS = CodeMaps(
    tuple(np.random.default_rng(level).integers(0, 3, (9, 7, 7), np.uint8) for level in range(2)),
    np.arange(9) % 3, ("one", "two", "three"),
)  # fmt: skip


@pytest.fixture
def taken(tiny: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], CodeMaps]:
    """Gives the code maps of a folder, where they are extracted if need be."""
    assert tiny.model.num_symbols == (3, 3)
    monkeypatch.setattr(codemaps, "extract", lambda *_, **__: MAPS)
    model = build(tiny)
    return lambda: codemaps.stored_or_extracted(tmp_path, model, "digest", tiny, "train")


def array(path: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    np.save(path, change(np.load(path)))


CODES, LABELS = "train-level-2.npy", "train-labels.npy"
OF_MAPS: dict[str, Callable[[Path], object]] = {
    **{f"{name} of codes": lambda path, how=how: (path / CODES).write_bytes(how((path / CODES).read_bytes()))
       for name, how in DAMAGES.items()},
    "labels cut": lambda path: (path / LABELS).write_bytes((path / LABELS).read_bytes()[:-1]),
    "labels gone": lambda path: (path / LABELS).unlink(),
    "another code": lambda path: array(path / CODES, lambda codes: (codes + 1) % 3),
    "another label": lambda path: array(path / LABELS, lambda labels: (labels + 1) % 3),
    "another type": lambda path: array(path / CODES, lambda codes: codes.view(np.int8)),
    "another shape": lambda path: array(path / CODES, lambda codes: codes.reshape(9, 49, 1)),
    "JSON": lambda path: (path / "train.json").write_text("[1]"),
    "JSON without classes": lambda path: (path / "train.json").write_bytes(
        (path / "train.json").read_bytes().replace(b'"classes', b'"glasses')
    ),
    "header": lambda path: (path / CODES).write_bytes((path / CODES).read_bytes().replace(b"}", b"{")),
}  # fmt: skip


def equal(one: CodeMaps, other: CodeMaps) -> bool:
    pairs = zip((*one.levels, one.labels), (*other.levels, other.labels), strict=True)
    return one.classes == other.classes and all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("damage", OF_MAPS)
def test_damaged_code_maps_are_made_again(damage: str, taken: Callable[[], CodeMaps], tmp_path: Path) -> None:
    assert equal(taken(), MAPS)
    OF_MAPS[damage](tmp_path)
    assert equal(taken(), MAPS)
