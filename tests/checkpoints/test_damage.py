"""Damage to every kind of file that is read from a run: cut short, a bit turned, other content,
another kind of file.

It is one line that names the file, and nothing else; code maps, which are a cache, are made again.
What is whole comes back as it was written.
"""

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hrvqvae
from hrvqvae.checkpoints import codemaps, storage
from hrvqvae.checkpoints.codemaps import CodeMaps
from hrvqvae.checkpoints.export import export
from hrvqvae.checkpoints.folder import PROGRESSIVE, RunFolder, decoder_folder, prior_folder
from hrvqvae.checkpoints.run import Run
from hrvqvae.config import Config
from hrvqvae.models.build import build
from hrvqvae.utils.errors import DamagedFileError, InputError
from tests.conftest import with_data, with_quantizer
from tests.trained_run import load_stored

DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda content: content[:-3],
    "empty": lambda content: b"",
    "bit": (
        lambda content: (int.from_bytes(content) ^ 16 << len(content) // 2 * 8).to_bytes(
            len(content)
        )
    ),
    "text": lambda content: b"this is text\n",
    "binary": lambda content: b"\xff\xfe\x00" * 40,
    "nested": lambda content: b"[" * 2000,
}
Use = Callable[[Path], object]
TENSORS: dict[str, tuple[Callable[[Path], Path], Use]] = {
    "model": (lambda run: RunFolder(run).model, hrvqvae.load),
    "prior": (lambda run: prior_folder(run, 1).model, lambda run: Run(run).load_priors()),
    "progressive decoder": (lambda run: decoder_folder(run, PROGRESSIVE).model, hrvqvae.load),
}
FILES = TENSORS | {
    "entropy model": (
        lambda run: RunFolder(run).tables,
        lambda run: hrvqvae.load(run).entropy_model,
    ),
    "configuration": (lambda run: RunFolder(run).config, hrvqvae.load),
    "configuration of a prior": (
        lambda run: prior_folder(run, 1).config,
        lambda run: Run(run).load_priors(),
    ),
    "exported configuration": (lambda run: RunFolder(run).config_json, hrvqvae.load),
}


@pytest.mark.parametrize("kind", FILES)
def test_damage_is_one_line_that_names_the_file(kind: str, whole: Path, tmp_path: Path) -> None:
    """A configuration that is cut short may be one still."""
    find, use = FILES[kind]
    if kind == "exported configuration":
        export(whole, tmp_path / "exported")
        whole = tmp_path / "exported"
    path = find(whole)
    configuration = "configuration" in kind
    content = path.read_bytes()
    for damage in set(DAMAGES) - ({"cut", "bit"} if configuration else set()):
        path.write_bytes(DAMAGES[damage](content))
        with pytest.raises(
            InputError if configuration else DamagedFileError, match=path.name
        ) as caught:
            use(whole)
        assert "\n" not in str(caught.value), damage


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


@pytest.mark.parametrize("kind", TENSORS)
def test_wrong_meta_is_one_line_that_names_the_file(kind: str, whole: Path) -> None:
    find, use = TENSORS[kind]
    path = find(whole)
    tensors, meta = storage.read(path)
    for config in whole.rglob("config.yaml"):
        config.unlink()
    for how in set(METAS) - ({"of another kind"} if kind == "model" else set()):
        storage.write(path, tensors, METAS[how](meta))
        with pytest.raises(DamagedFileError, match=path.name):
            use(whole)


MAPS = CodeMaps(
    tuple(np.random.default_rng(level).integers(0, 3, (9, 7, 7), np.uint8) for level in range(2)),
    np.arange(9) % 3,
    ("one", "two", "three"),
)


@pytest.fixture
def taken(tiny: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], CodeMaps]:
    """Gives the code maps of a folder, where they are extracted if need be."""
    assert tiny.model.num_symbols == (3, 3)
    monkeypatch.setattr(codemaps, "extract_codes", lambda *_, **__: MAPS)
    model = build(tiny)
    return lambda: codemaps.load_or_extract(tmp_path, model, "digest", tiny, "train")


def array(path: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    np.save(path, change(np.load(path)))


def replace(path: Path, old: bytes, new: bytes) -> None:
    path.write_bytes(path.read_bytes().replace(old, new))


CODES = "train-level-2.npy"
LABELS = "train-labels.npy"
OF_MAPS: dict[str, Callable[[Path], object]] = {
    **{
        f"{name} of codes": (
            lambda path, how=how: (path / CODES).write_bytes(how((path / CODES).read_bytes()))
        )
        for name, how in DAMAGES.items()
    },
    "labels gone": lambda path: (path / LABELS).unlink(),
    "another code": lambda path: array(path / CODES, lambda codes: (codes + 1) % 3),
    "another label": lambda path: array(path / LABELS, lambda labels: (labels + 1) % 3),
    "another type": lambda path: array(path / CODES, lambda codes: codes.view(np.int8)),
    "another shape": lambda path: array(path / CODES, lambda codes: codes.reshape(9, 49, 1)),
    "JSON": lambda path: (path / "train.json").write_text("[1]"),
    "JSON without classes": lambda path: replace(path / "train.json", b'"classes', b'"glasses'),
    "name of a class": lambda path: replace(
        path / "train.json", b'"classes": ["', b'"classes": ["!'
    ),
    "header": lambda path: replace(path / CODES, b"}", b"{"),
}


def equal(first: CodeMaps, second: CodeMaps) -> bool:
    levels = zip(first.levels, second.levels, strict=True)
    same_levels = all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in levels)
    return (
        same_levels
        and np.array_equal(first.labels, second.labels)
        and first.classes == second.classes
    )


def test_damaged_code_maps_are_made_again(taken: Callable[[], CodeMaps], tmp_path: Path) -> None:
    for damage, how in OF_MAPS.items():
        assert equal(taken(), MAPS)
        how(tmp_path)
        assert equal(taken(), MAPS), damage


@pytest.mark.parametrize(
    ("symbols", "kind"), [(256, np.uint8), (257, np.uint16), (70_000, np.uint32)]
)
def test_every_symbol_fits(symbols: int, kind: type, tiny: Config, tmp_path: Path) -> None:
    config = with_quantizer(tiny, levels=1, codewords=symbols, dim=1)
    model = build(config)
    model.encode = lambda images: (torch.full((len(images), 7, 7), symbols - 1),)  # type: ignore[method-assign]
    maps = codemaps.load_or_extract(tmp_path, model, "digest", config, "test")
    assert maps.levels[0].dtype == kind
    assert isinstance(maps.levels[0], np.memmap)
    (codes,), _ = maps.read(np.arange(40))
    assert bool((codes == symbols - 1).all())


def test_codes_are_those_of_the_model(whole: Path) -> None:
    run = Run(whole)
    model, config = run.load()
    maps = load_stored(run.folder.codes, run.digest, config, "train")
    assert maps is not None
    assert equal(maps, codemaps.extract_codes(model, config, "train"))
    assert load_stored(run.folder.codes, run.digest, with_data(config, size=11), "train") is None
    assert load_stored(RunFolder(whole).codes, "another", config, "train") is None


STORED = {
    "weight": (
        torch.arange(24, dtype=torch.float32).view(2, 3, 2, 2).to(memory_format=torch.channels_last)
    ),
    "step": torch.tensor(7),
    "half": torch.ones(3, dtype=torch.bfloat16),
    "empty": torch.zeros(0, 4),
}
STORED["tied"] = STORED["half"]
META = {"step": 7, "name": "ünïcode"}


def same(stored: tuple[dict[str, torch.Tensor], dict[str, Any]]) -> bool:
    tensors, meta = stored
    equal = all(
        tensors[name].dtype == tensor.dtype and torch.equal(tensors[name], tensor)
        for name, tensor in STORED.items()
    )
    return meta == META and tensors.keys() == STORED.keys() and equal


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    storage.write(path, STORED, META)
    assert same(storage.read(path))
    assert [*tmp_path.iterdir()] == [path]
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    assert length % 8 == 0, "safetensors maps the data from there"
    assert (list(header), list(header["__metadata__"])) == (
        sorted(header),
        sorted(header["__metadata__"]),
    )
    path.write_bytes(content[: 8 + length])
    assert storage.read_meta(path) == META, "the header alone is read"


def test_a_copy_of_a_checkpoint_is_no_checkpoint(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    (run.checkpoints / "step-000000001 (copy).safetensors").mkdir(parents=True)
    paths = [run.save(step, {}, {}) for step in (1, 2, 3)]
    assert run.saved() == paths[:0:-1], "or it would be deleted"


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_any_damage_is_noticed(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("damage") / "x.safetensors"
    storage.write(path, STORED, META)
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans(), "cut"):
        content = content[: data.draw(st.integers(0, len(content) - 1), "length")]
    else:
        content[data.draw(st.integers(0, len(content) - 1), "place")] ^= 1 << data.draw(
            st.integers(0, 7), "bit"
        )
    path.write_bytes(content)
    with contextlib.suppress(
        DamagedFileError
    ):  # else a bit of the header that carries nothing, such as a space
        assert same(storage.read(path))


@pytest.mark.parametrize(
    "stored",
    [
        {"x": torch.zeros(1, 9, dtype=torch.int8), "x:scale": torch.zeros(9)},
        {"x": torch.zeros(3, 4, dtype=torch.int8), "x:scale": torch.zeros(5)},
        {
            "q.total:product": torch.zeros(1),
            "q.codewords": torch.zeros(1, 9, 2),
            "q.count": torch.zeros(9, 1),
        },
    ],
)
def test_compact_weights_of_shapes_that_do_not_belong_together(
    stored: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    storage.write(tmp_path / "x.safetensors", stored, META)
    with pytest.raises(DamagedFileError, match=r"x\.safetensors is damaged: .* (scales|shape)"):
        storage.read(tmp_path / "x.safetensors")


def test_a_header_that_is_too_short_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"\x02" + b"\0" * 7 + b"{}")
    with pytest.raises(DamagedFileError, match=r"x\.safetensors is damaged"):
        storage.read_meta(tmp_path / "x.safetensors")
