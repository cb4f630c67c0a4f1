"""Damage to every kind of file that is read from a run: cut short, a bit turned, other content,
another kind of file.

It is one line that names the file, and nothing else; code maps, which are a cache, are made again.
What is whole comes back as it was written.
"""

import contextlib
import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hrvqvae
from hrvqvae.checkpoints import codemaps, storage
from hrvqvae.checkpoints.export import export
from hrvqvae.checkpoints.folder import RunFolder, open_run
from hrvqvae.codes.maps import CodeMaps
from hrvqvae.models.build import build
from hrvqvae.utils.errors import DamagedFileError, InputError
from tests.conftest import damage_error, parametrize, same, with_data, with_quantizer
from tests.trained_run import load_stored


def turn_a_bit(content):
    turned = bytearray(content)
    turned[len(content) // 2] ^= 16
    return bytes(turned)


DAMAGES = {
    "cut": lambda content: content[:-3],
    "empty": lambda _: b"",
    "bit": turn_a_bit,
    "text": lambda _: b"this is text\n",
    "binary": lambda _: b"\xff\xfe\x00" * 40,
    "nested": lambda _: b"[" * 2000,
}


def load_priors(run):
    return open_run(run).load_priors()


TENSORS = {
    "model": ("model.safetensors", hrvqvae.load),
    "prior": ("priors/level-2/model.safetensors", load_priors),
    "progressive decoder": ("prefixes/model.safetensors", hrvqvae.load),
}
FILES = TENSORS | {
    "entropy model": ("tables.hrvt", lambda run: hrvqvae.load(run).entropy_model),
    "configuration": ("config.yaml", hrvqvae.load),
    "configuration of a prior": ("priors/level-2/config.yaml", load_priors),
    "exported configuration": ("config.json", hrvqvae.load),
}


@parametrize("kind", FILES)
def test_damage_is_one_line_that_names_the_file(kind, full_run, tmp_path):
    """A configuration that is cut short may be one still."""
    name, use = FILES[kind]
    if kind == "exported configuration":
        export(full_run, tmp_path / "exported")
        full_run = tmp_path / "exported"
    path = full_run / name
    content = path.read_bytes()
    error = InputError if "configuration" in kind else DamagedFileError
    for damage in set(DAMAGES) - ({"cut", "bit"} if error is InputError else set()):
        path.write_bytes(DAMAGES[damage](content))
        with pytest.raises(error, match=path.name) as caught:
            use(full_run)
        assert "\n" not in str(caught.value), damage


def of_another_shape(meta):
    config = json.loads(json.dumps(meta["config"]))
    config["model"]["hidden_units"] = 16
    config["prior"]["network"]["residual_blocks"] = 9
    config["progressive"]["network"]["hidden_units"] = 6
    return {**meta, "config": config}


METAS = {
    "of another kind": lambda meta: {**meta, "kind": "another"},
    "without keys": lambda meta: {"kind": meta["kind"]},
    "of another shape": of_another_shape,
}


@parametrize("kind", TENSORS)
def test_wrong_meta_is_one_line_that_names_the_file(kind, full_run):
    name, use = TENSORS[kind]
    path = full_run / name
    tensors, meta = storage.read(path)
    for config in full_run.rglob("config.yaml"):
        config.unlink()
    for how in set(METAS) - ({"of another kind"} if kind == "model" else set()):
        storage.write(path, tensors, METAS[how](meta))
        with damage_error(path.name):
            use(full_run)


MAPS = CodeMaps(
    tuple(np.random.default_rng(level).integers(0, 3, (9, 7, 7), np.uint8) for level in range(2)),
    np.arange(9) % 3,
    ("one", "two", "three"),
)


@pytest.fixture
def taken(tiny, tmp_path, monkeypatch):
    """Gives the code maps of a folder, where they are extracted if need be."""
    assert tiny.model.num_symbols == (3, 3)
    monkeypatch.setattr(codemaps, "extract_codes", lambda *_, **__: MAPS)
    model = build(tiny)
    return lambda: codemaps.load_or_extract(tmp_path, model, "digest", tiny, "train")


def array(path, change):
    np.save(path, change(np.load(path)))


def content(path, change):
    path.write_bytes(change(path.read_bytes()))


CODES = Path("train-level-2.npy")
LABELS = Path("train-labels.npy")
ABOUT = Path("train.json")
# damages of code maps, in their folder
OF_MAPS = {
    **{f"{name} of codes": partial(content, CODES, how) for name, how in DAMAGES.items()},
    "header": lambda: content(CODES, lambda text: text.replace(b"}", b"{")),
    "another code": lambda: array(CODES, lambda codes: (codes + 1) % 3),
    "another type": lambda: array(CODES, lambda codes: codes.view(np.int8)),
    "another shape": lambda: array(CODES, lambda codes: codes.reshape(9, 49, 1)),
    "another label": lambda: array(LABELS, lambda labels: (labels + 1) % 3),
    "labels gone": LABELS.unlink,
    "JSON": lambda: ABOUT.write_text("[1]"),
    "JSON without classes": lambda: content(ABOUT, lambda text: text.replace(b"cla", b"gla")),
    "name of a class": lambda: content(ABOUT, lambda text: text.replace(b'"one"', b'"!"')),
}


def equal(first, second):
    pairs = [*zip(first.levels, second.levels, strict=True), (first.labels, second.labels)]
    alike = all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in pairs)
    return alike and first.classes == second.classes


def test_damaged_code_maps_are_made_again(taken, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for damage, how in OF_MAPS.items():
        assert equal(taken(), MAPS)
        how()
        assert equal(taken(), MAPS), damage


@parametrize("symbols, kind", [(256, np.uint8), (257, np.uint16), (70_000, np.uint32)])
def test_every_symbol_fits(symbols, kind, tiny, tmp_path):
    config = with_quantizer(tiny, levels=1, codewords=symbols, dim=1)
    model = build(config)
    model.encode = lambda images: (torch.full((len(images), 7, 7), symbols - 1),)
    maps = codemaps.load_or_extract(tmp_path, model, "digest", config, "test")
    assert maps.levels[0].dtype == kind
    assert isinstance(maps.levels[0], np.memmap)
    (codes,), _ = maps.read(np.arange(40))
    assert bool((codes == symbols - 1).all())


def test_codes_are_those_of_the_model(full_run):
    run = open_run(full_run)
    model, config = run.load()
    load = partial(load_stored, run.folder.codes, split="train")
    assert equal(load(run.digest, config), codemaps.extract_codes(model, config, "train"))
    assert load(run.digest, with_data(config, size=11)) is None
    assert load("another", config) is None


STORED = {
    "weight": torch.arange(24.0).view(2, 3, 2, 2).to(memory_format=torch.channels_last),
    "step": torch.tensor(7),
    "half": torch.ones(3, dtype=torch.bfloat16),
    "empty": torch.zeros(0, 4),
}
STORED["tied"] = STORED["half"]
META = {"step": 7, "name": "ünïcode"}


def as_stored(stored):
    tensors, meta = stored
    types = all(tensors[name].dtype == tensor.dtype for name, tensor in STORED.items())
    return types and same(tensors, STORED) and meta == META


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "x.safetensors"
    storage.write(path, STORED, META)
    assert as_stored(storage.read(path))
    assert [*tmp_path.iterdir()] == [path]
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    assert length % 8 == 0  # safetensors maps the data from there
    header = json.loads(content[8 : 8 + length])
    for fields in (header, header["__metadata__"]):
        assert list(fields) == sorted(fields)
    path.write_bytes(content[: 8 + length])
    assert storage.read_meta(path) == META


def test_a_copy_of_a_checkpoint_is_no_checkpoint(tmp_path):
    run = RunFolder(tmp_path)
    (run.checkpoints / "step-000000001 (copy).safetensors").mkdir(parents=True)
    paths = [run.save(step, {}, {}) for step in (1, 2, 3)]
    assert run.saved() == paths[:0:-1]  # or the copy would be deleted


@settings(max_examples=100)
@given(data=st.data())
def test_any_damage_is_noticed(data, tmp_path_factory):
    path = tmp_path_factory.mktemp("damage") / "x.safetensors"
    storage.write(path, STORED, META)
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1), "place")
    if data.draw(st.booleans(), "cut"):
        content = content[:place]
    else:
        content[place] ^= 1 << data.draw(st.integers(0, 7), "bit")
    path.write_bytes(content)
    # a bit of the header may carry nothing, such as a space
    with contextlib.suppress(DamagedFileError):
        assert as_stored(storage.read(path))


@parametrize(
    "name, shape, of_shape",
    [("x:scale", [9], [1, 9]), ("x:scale", [5], [3, 4]), ("x.total:product", [1], [1, 9, 2])],
)
def test_compact_weights_of_shapes_that_do_not_belong_together(name, shape, of_shape, tmp_path):
    path = tmp_path / "x.safetensors"
    stored = {
        name: torch.zeros(shape),
        "x": torch.zeros(of_shape, dtype=torch.int8),
        "x.codewords": torch.zeros(of_shape),
        "x.count": torch.zeros(9, 1),
    }
    storage.write(path, stored, META)
    with damage_error(r"x\.safetensors is damaged: .* (scales|shape)"):
        storage.read(path)


def test_a_header_that_is_too_short_is_named(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"\x02" + b"\0" * 7 + b"{}")
    with damage_error(r"x\.safetensors is damaged"):
        storage.read_meta(path)
