"""Damage to every kind of file that is read from a run: cut short, a bit turned, other content,
another kind of file.

It is one line that names the file, and nothing else. What is whole comes back as it was written.
"""

import contextlib
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hrvqvae
from hrvqvae.checkpoints import storage
from hrvqvae.checkpoints.export import export
from hrvqvae.checkpoints.folder import open_run
from hrvqvae.utils.errors import DamagedFileError, InputError
from tests.conftest import damage_error, parametrize, same


def turn_a_bit(content):
    turned = bytearray(content)
    turned[len(content) // 2] ^= 16
    return bytes(turned)


DAMAGES = {
    "cut": lambda content: content[:-3],
    "bit": turn_a_bit,
    "empty": lambda _: b"",
    "text": lambda _: b"this is text\n",
    "binary": lambda _: b"\xff\xfe\x00" * 40,
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
