"""From images to files of codes and back, for every system."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch

import hrvqvae
from hrvqvae.checkpoints import storage
from hrvqvae.checkpoints.entropy_model import fit_entropy_model, load_entropy_model
from hrvqvae.checkpoints.folder import RunFolder
from hrvqvae.checkpoints.loading import load_with_config, save_model
from hrvqvae.cli import main
from hrvqvae.compression.entropy_model import EntropyModel, geometry_of
from hrvqvae.compression.hrv import read, read_header
from hrvqvae.compression.images import compress, decode_images
from hrvqvae.config.parsing import override
from hrvqvae.models.build import build
from hrvqvae.utils.errors import DamagedFileError, InputError
from tests.tiny_systems import tiny_systems
from tests.trained_run import tiny_run_with_entropy_model

NAMES = ("hrvqvae", "vqvae", "vqvae2", "vqgan", "rqvae", "fsq", "vqpytorch")
CPU = torch.device("cpu")


@pytest.fixture
def run(mnist_root: Path) -> Path:
    """A trained run with tables."""
    return tiny_run_with_entropy_model(mnist_root)


def pictures(count: int, size: tuple[int, int]) -> torch.Tensor:
    return torch.randint(256, (count, 1, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", NAMES)
def test_every_system_compresses_images_of_any_size(name: str, mnist_root: Path) -> None:
    config = tiny_systems(mnist_root)[name]
    torch.manual_seed(0)
    model = build(config).eval()
    codec = EntropyModel(name, "ab" * 16, geometry_of(config.model.latent_grids), config.model.num_symbols)
    for size in ((12, 12), (5, 21)):
        images = pictures(3, size)
        files = compress(model, codec, images, CPU)
        with torch.inference_mode():
            expected = model.decode(model.encode(images), size=size)
        read_again = read(codec, files)
        found = decode_images(model, read_again, CPU)
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
        assert not any(one.fault for one in read_again)
        lengths = [len(one) for one in files]
        assert max(lengths) - min(lengths) <= len(codec.symbols), "a byte at the end of each level"


def test_a_run_with_tables_writes_fewer_bytes_and_the_same_images(run: Path) -> None:
    model = hrvqvae.load(run)
    with_tables = model.compress(digits := pictures(4, (12, 12)) // 64)
    plain = compress(model.autoencoder, dataclasses.replace(model.codec, networks=()), digits, CPU)
    assert sum(map(len, with_tables)) < sum(map(len, plain))
    assert {read_header(one).by_tables for one in with_tables} == {True}
    expected = model.decode(model.encode(digits), size=(12, 12))
    assert all(torch.equal(one, other) for one, other in zip(model.decompress(with_tables), expected, strict=True))
    coarse = model.decode(model.encode(digits), levels=1, size=(12, 12))
    for files in (model.compress(digits, levels=1), with_tables):
        found = model.decompress(files, levels=1)
        assert all(torch.equal(one, other) for one, other in zip(found, coarse, strict=True))


def test_images_of_several_sizes_keep_their_order(run: Path) -> None:
    model = hrvqvae.load(run)
    images = [pictures(1, size)[0] for size in ((12, 12), (3, 40), (12, 12), (1, 1))]
    found = model.decompress(model.compress(images))
    for image, decoded in zip(images, found, strict=True):
        size = (image.shape[-2], image.shape[-1])
        torch.testing.assert_close(decoded, model.decode(model.encode(image[None]), size=size)[0])


@pytest.mark.parametrize("names", [[], ["one"], ["one", "two", "three"]])
def test_each_image_has_a_name_or_none_has(names: list[str], run: Path) -> None:
    model, images = hrvqvae.load(run), pictures(2, (12, 12))
    with pytest.raises(InputError, match=f"^there are 2 images and {len(names)} names?; give one each$"):
        model.compress(images, max_bytes=1, names=names)
    assert model.compress(images, names=["one", "two"]) == model.compress(images)


def test_levels_are_prefixes_of_a_file(run: Path) -> None:
    model, image = hrvqvae.load(run), pictures(1, (12, 12))
    by_levels = [model.compress(image, levels)[0] for levels in (1, 2, 3)]
    assert all(by_levels[2].startswith(content) for content in by_levels)
    with pytest.raises(InputError, match="levels is 4; this model decodes 1, 2, 3"):
        model.compress(image, levels=4)
    with pytest.raises(InputError, match="levels is 0"):
        model.decompress(by_levels, levels=0)


def test_a_system_that_needs_all_levels_says_so(mnist_root: Path) -> None:
    config = tiny_systems(mnist_root)["vqvae2"]
    model = build(config).eval()
    codec = EntropyModel("vqvae2", "ab" * 16, geometry_of(config.model.latent_grids), config.model.num_symbols)
    content = compress(model, codec, pictures(1, (12, 12)), CPU)[0]
    with pytest.raises(DamagedFileError, match="file 1 has 1 whole level; this model decodes 2 or more together"):
        decode_images(model, read(codec, [content[:-1]]), CPU)
    with pytest.raises(InputError, match="bytes at the least"):
        compress(model, codec, pictures(1, (12, 12)), CPU, max_bytes=len(content) - 1)


def test_exported_tables_read_the_files_of_the_run(run: Path, tmp_path: Path) -> None:
    files = hrvqvae.load(run).compress(pictures(2, (12, 12)))
    assert main(["export", str(run), str(tmp_path / "out")]) == 0
    exported = hrvqvae.load(tmp_path / "out")
    assert exported.compress(pictures(2, (12, 12))) == files
    assert len(exported.decompress(files)) == 2


def test_tables_of_other_weights_are_refused(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    model, config = load_with_config(run)
    weights = {name: one + 1 if one.is_floating_point() else one for name, one in model.state_dict().items()}
    save_model(RunFolder(tmp_path / "run").model, config, weights, 1)
    with pytest.raises(InputError, match="hrvqvae refresh"):
        _ = hrvqvae.load(tmp_path / "run").codec
    RunFolder(tmp_path / "run").tables.write_bytes(b"HRVQTAB1")
    with pytest.raises(DamagedFileError, match="tables.hrvt is damaged"):
        _ = hrvqvae.load(tmp_path / "run").codec


def test_the_name_of_weights_does_not_depend_on_their_configuration(run: Path) -> None:
    model, config = load_with_config(run)
    moved = override(config, {"data.root": "/elsewhere"})
    assert load_entropy_model(run, model, config).model == load_entropy_model(run, model, moved).model
    weights = dict(model.state_dict())
    assert storage.weights_digest(weights) == load_entropy_model(run, model, config).model
    name = next(iter(weights))
    assert storage.weights_digest({**weights, name: weights[name] + 1}) != load_entropy_model(run, model, config).model


def test_levels_with_too_many_symbols_for_tables_are_coded_alike(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hrvqvae.compression import learning

    monkeypatch.setattr(learning, "MOST_SYMBOLS", 2)
    said: list[str] = []
    run = shutil.copytree(run, tmp_path / "run")
    kept = RunFolder(run).tables.read_bytes()
    assert fit_entropy_model(run, say=said.append) == RunFolder(run).tables
    assert "tables.hrvt is of these weights already" in said[0], "files that were made by it are read by no other"
    assert RunFolder(run).tables.read_bytes() == kept
    RunFolder(run).tables.unlink()
    said.clear()
    assert fit_entropy_model(run, say=said.append) == RunFolder(run).tables
    assert said[0] == "level 1 has 3 symbols, more than 2: coded in log2 3 bits a code"
