"""The JavaScript module in node: pixels and files of a bundle as Python has them, and what it
refuses.
"""

import base64
import gzip
import json
import os
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import interpolate

from benchmarks.common import fields
from benchmarks.torture.bombs import BOMBS, write_bomb
from hrvqvae.checkpoints.folder import RunFolder, run_folder
from hrvqvae.compression import hrv
from hrvqvae.compression.images import decode_images
from hrvqvae.compression.levels import flat_codes
from hrvqvae.config.parsing import override
from hrvqvae.export.web import export_web
from hrvqvae.model import Model
from tests.compression.made import files_of, flip_bit, made_entropy_model, random_codes
from tests.conftest import do, parametrize, read_json, refused, shared_fixture
from tests.export import test_graphs
from tests.format.test_javascript import DECODER, run_node
from tests.web.bundle import read_bundle

WEB_TESTS = Path(__file__).parent
CONSTRUCTED = [case for case in BOMBS if case[0] in ("file of codes", "tables")]
MODEL = "treevq-mnist"  # with padding, a beam and a refiner of prefixes
FILES = int(os.environ.get("HRVQVAE_WEB_FILES", "30"))


@shared_fixture
def bundle(tmp_path_factory):
    model = os.environ.get("HRVQVAE_WEB_MODEL", MODEL)
    return write_bundle(model, tmp_path_factory.mktemp("web") / "bundle")


def write_bundle(model, folder):
    export_web(model, folder)
    (bundle,) = folder.glob("*.hrvw")
    return bundle


def run_module(task, bundle, entries, folder):
    """Let the module do a task with files, whose bytes become base64, or images as `rgba`."""
    (folder / "in.json").write_text(
        json.dumps([text_of(entry) if isinstance(entry, bytes) else entry for entry in entries])
    )
    (folder / "out.json").unlink(missing_ok=True)
    run_node(WEB_TESTS / "pictures.mjs", task, bundle, "in.json", "out.json", cwd=folder)
    return read_json(folder / "out.json")


def text_of(content):
    return base64.b64encode(content).decode()


def codes_file(model, entropy_model, image, levels=None):
    codes = flat_codes(model.encode(image))
    return hrv.write(entropy_model, codes, tuple(image.shape[2:]), levels)[0]


def rgb(image):
    """An image (1 or 3, Y, X) as an array (Y, X, 3)."""
    return image.expand(3, -1, -1).permute(1, 2, 0).numpy()


def decoded(model, entropy_model, file):
    images = decode_images(model, hrv.read(entropy_model, [file]), torch.device("cpu"))
    return (rgb(images[0]) * 255).round().astype(int)


def check_pixels(model, entropy_model, files, results):
    for file, result in zip(files, results, strict=True):
        pixels = pixels_of(result)
        assert np.abs(pixels[..., :3] - decoded(model, entropy_model, file)).max() <= 1
        assert (pixels[..., 3] == 255).all()


def rgba(image, alpha=255):
    height, width = image.shape[2:]
    pixels = np.empty((height, width, 4), np.uint8)
    pixels[..., :3] = rgb(image[0])
    pixels[..., 3] = alpha
    return {"width": width, "height": height, "data": text_of(pixels.tobytes())}


def pixels_of(result):
    data = np.frombuffer(base64.b64decode(result["data"]), np.uint8)
    return data.reshape(result["height"], result["width"], 4)


def images_of_many_sizes(count, channels):
    sizes = dict(enumerate([(32, 32), (1, 1), (5, 64), (33, 31)]))
    images = []
    for index in range(count):
        noise = np.random.default_rng(index).integers(0, 256, (1, channels, 4, 4), np.uint8)
        size = sizes.get(index, (20 + 7 * index % 29, 10 + 11 * index % 37))
        large = interpolate(torch.from_numpy(noise).float(), size=size, mode="bilinear")
        images.append(large.round().to(torch.uint8))
    return images


def files_of_many_sizes(model, entropy_model):
    """Return files of each prefix in turn."""
    images = images_of_many_sizes(FILES, model.channels)
    return [
        codes_file(model, entropy_model, image, index % model.prefixes[-1] + 1)
        for index, image in enumerate(images)
    ]


@torch.inference_mode()
def test_pixels_are_those_of_python_for_all_prefixes_and_sizes(bundle, tmp_path):
    model, entropy_model = read_bundle(bundle)
    files = files_of_many_sizes(model, entropy_model)
    results = run_module("decode", bundle, files, tmp_path)
    check_pixels(model, entropy_model, files, results)


@torch.inference_mode()
def test_encodes_to_files_that_python_reads_with_the_same_error(bundle, tmp_path):
    check_encoding(bundle, *read_bundle(bundle), FILES, tmp_path)


def check_encoding(bundle, model, entropy_model, count, tmp_path):
    images = images_of_many_sizes(count, model.channels)
    results = run_module("encode", bundle, [*map(rgba, images)], tmp_path)
    for image, result in zip(images, results, strict=True):
        files = (base64.b64decode(result), codes_file(model, entropy_model, image))
        if files[0] != files[1]:
            differences = [decoded(model, entropy_model, file) - rgb(image[0]) for file in files]
            errors = [np.square(difference).mean() for difference in differences]
            assert abs(10 * np.log10(errors[0] / errors[1])) < 0.05


@torch.inference_mode()
def test_bytes_choose_the_prefix(bundle, tmp_path):
    model, entropy_model = read_bundle(bundle)
    image = images_of_many_sizes(1, model.channels)[0]
    files = [codes_file(model, entropy_model, image, levels) for levels in model.prefixes]
    assert all(longer.startswith(shorter) for shorter, longer in pairwise(files))
    limits = [1, *(len(file) + more for file in files for more in (-1, 0))]
    results = run_module(
        "encode", bundle, [rgba(image) | {"bytes": most} for most in limits], tmp_path
    )
    for most, result in zip(limits, results, strict=True):
        fitting = [file for file in files if len(file) <= most] or files[:1]
        assert base64.b64decode(result) == fitting[-1]


@torch.inference_mode()
def test_what_is_transparent_becomes_white_in_a_file_that_python_reads(bundle, tmp_path):
    model, entropy_model = read_bundle(bundle)
    image = images_of_many_sizes(1, model.channels)[0]
    hidden = rgba(image, 0)
    white = hidden | {"data": text_of(b"\xff" * (4 * hidden["width"] * hidden["height"]))}
    files = run_module("encode", bundle, [hidden, white], tmp_path)
    assert files[0] == files[1]
    (codes,) = hrv.read(entropy_model, [base64.b64decode(files[0])])
    assert not codes.fault


def test_image_data_of_a_wrong_length_is_refused(bundle, tmp_path):
    fitting = {"width": 3, "height": 2}
    images = [fitting | {"data": text_of(b"\xff" * count)} for count in (24, 0, 23, 25, 18)]
    file, *others = run_module("encode", bundle, images, tmp_path)
    assert isinstance(file, str)
    assert all("refused" in other for other in others)


@torch.inference_mode()
def test_damaged_and_foreign_files_and_bundles_are_refused(bundle, tmp_path):
    model, entropy_model = read_bundle(bundle)
    file = codes_file(model, entropy_model, images_of_many_sizes(1, model.channels)[0], 1)
    flips = [flip_bit(file, index) for index in range(8 * len(file))]
    bad = [b"", b"\x89PNG", file[:-1], b"\xd5\0\0\0" + file[4:], *flips]
    assert all("refused" in result for result in run_module("decode", bundle, bad, tmp_path))
    content = bundle.read_bytes()
    damaged = [content[:length] for length in (0, 11, 1000, -1)]
    damaged += [content + b"x", b"HRVQWEB2" + content[8:]]
    damaged += [flip_bit(content, 8 * place) for place in (9, 30, 200, 5000, len(content) - 1)]
    name, *answers = run_module("bundles", bundle, [content, *damaged], tmp_path)
    assert name == bundle.stem
    assert all("refused" in answer for answer in answers)


@parametrize("case", CONSTRUCTED, ids=" ".join)
def test_constructed_files_are_refused_in_node(case, tmp_path):
    """Files that ask for much memory or time, and hold no image that is whole."""
    path = write_bomb(case, tmp_path)
    tables = tmp_path / "model.hrvt"
    tables.write_bytes(Model(MODEL).entropy_model.content)
    out = run_node(DECODER, *([tables] if case[0] == "file of codes" else []), path).stdout
    assert '"levels":[[' not in out
    assert '"refused"' in out or '"fault":"' in out or case[0] == "tables"


def test_the_command_writes_a_bundle_of_the_model(tmp_path, monkeypatch):
    assert "treevq-mnist.hrvw" in do(f"export --web {MODEL} {tmp_path}/out")
    monkeypatch.chdir(run_folder(MODEL))
    assert "treevq-mnist.hrvw" in do("export", "--web", ".", tmp_path / "of here")
    model, entropy_model = read_bundle(tmp_path / "out" / "treevq-mnist.hrvw")
    original = Model(MODEL)
    assert entropy_model.content == original.entropy_model.content
    image = images_of_many_sizes(1, 1)[0]
    assert (model(image).images - original.autoencoder(image).images).abs().mean() < 0.01
    assert "exists already" in refused(f"export --web {MODEL} {tmp_path}/out")


@parametrize(
    "system, changes, levels",
    [
        ("hrvqvae", fields("model.quantizer", "levels=5 beam=3 linked=2 joint_beam=true"), None),
        ("treevq", {"progressive.network.residual_blocks": "0"}, 1),
    ],
    ids=["a joint beam", "a refiner without blocks"],
)
@torch.inference_mode()
def test_models_of_other_shapes(system, changes, levels, tmp_path, monkeypatch):
    config = override(test_graphs.config_of(system), changes)
    monkeypatch.setattr(test_graphs, "config_of", lambda _: config)
    bundle = write_bundle(test_graphs.saved(system, tmp_path), tmp_path / "web")
    model, entropy_model = read_bundle(bundle)
    check_encoding(bundle, model, entropy_model.bare, 4, tmp_path)
    file = codes_file(model, entropy_model.bare, images_of_many_sizes(1, 1)[0], levels)
    results = run_module("decode", bundle, [file], tmp_path)
    check_pixels(model, entropy_model.bare, [file], results)


@torch.inference_mode()
def test_positions_that_stop_have_the_pixels_of_python(tmp_path):
    run = RunFolder(test_graphs.saved("treevq", tmp_path))
    config = run.read_config().model
    made = made_entropy_model(config.num_symbols, config.geometry, with_stops=True)
    run.tables.write_bytes(replace(made, model=run.digest).content)
    bundle = write_bundle(run.path, tmp_path / "web")
    model, entropy_model = read_bundle(bundle)
    size = (21, 30)
    files = files_of(entropy_model, size, 8)
    assert all(image.codes[-1].min() < 0 for image in hrv.read(entropy_model, files))

    # all levels everywhere
    codes = random_codes(entropy_model, size, 1)
    files += hrv.write(entropy_model, codes.clip(0), size, qualities=[7])
    results = run_module("decode", bundle, files, tmp_path)
    check_pixels(model, entropy_model, files, results)


def test_the_module_beside_the_bundle_reads_it_and_is_small(bundle):
    script = f"""
        import {{ readFileSync }} from "node:fs";
        import {{ readBundle }} from "./hrvqvae.js";
        const model = await readBundle(readFileSync("{bundle.name}"));
        console.log(typeof model);
    """
    done = run_node("--input-type=module", "-e", script, cwd=bundle.parent)
    assert done.stdout == "object\n"
    modules = [path.read_bytes() for path in sorted(bundle.parent.glob("*.js"))]
    assert len(gzip.compress(b"".join(modules), 9)) <= 40_000
