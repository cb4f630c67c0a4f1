"""Models as graphs: run by onnxruntime itself and by torch, beside the model that they are of."""

import json
import sys
from pathlib import Path
from unittest.mock import Mock

import onnxruntime
import pytest
import torch
from torch.testing import assert_close

from hrvqvae.checkpoints import storage
from hrvqvae.checkpoints.folder import PROGRESSIVE, RunFolder, decoder_folder, open_run, save_model
from hrvqvae.config.parsing import from_dict, override
from hrvqvae.export import graphs as export
from hrvqvae.export.graphs import OnnxModel, count_errors
from hrvqvae.models.build import build, build_progressive_decoder, require_several_levels
from tests.conftest import cells_of, do, generator, names_in, parametrize, refused, same
from tests.replay import blocks
from tests.trained_run import tiny_systems

SIZES = ((3, 12, 12), (1, 1, 1), (2, 13, 22))


def config_of(system):
    """The tiny system without what only makes graphs longer; "treevq" searches with a beam."""
    shorter = {"model.quantizer.levels": "2"} if system in ("hrvqvae", "treevq") else {}
    return override(tiny_systems(Path())[system], {"model.residual_blocks": "0"} | shorter)


def model_of(config):
    torch.manual_seed(0)
    model = build(config)
    model.initialize(torch.rand(20, 1, 12, 12), generator())
    return model.eval().requires_grad_(False)


def saved(system, folder):
    config = config_of(system)
    (folder / system).mkdir()
    model = model_of(config)
    run = RunFolder(folder / system)
    save_model(run.model, config, model.state_dict(), 0)
    if system == "treevq":
        decoder = build_progressive_decoder(require_several_levels(model, config), config)
        for weights in decoder.requires_grad_(False).parameters():
            weights += 0.05 * torch.randn_like(weights)
        prefixes = decoder_folder(run.path, PROGRESSIVE)
        prefixes.path.mkdir()
        digest = storage.digest(run.model)
        save_model(prefixes.model, config, decoder.state_dict(), 0, "prefixes", autoencoder=digest)
    return run.path


def check(model, graphs, refusal):
    for count, height, width in SIZES:
        images = torch.rand(count, 1, height, width, generator=generator(height))
        codes = model.encode(images)
        assert same(codes, graphs.encode(images))
        for levels in model.prefixes:
            expected = model.decode(codes[:levels], levels, (height, width))
            decoded = graphs.decode(codes, levels)[..., :height, :width]
            assert_close(decoded, expected, rtol=0, atol=1e-5)
    for levels in (model.prefixes[0] - 1, model.prefixes[-1] + 1, -1):
        with pytest.raises(Exception, match=refusal):
            graphs.decode(codes, levels)


@parametrize("system, beam", [("treevq", 4), ("vqvae2", None)])
def test_graphs_do_what_the_model_does(system, beam, tmp_path):
    run = saved(system, tmp_path)
    printed = do(f"export {run} {tmp_path}/out --onnx {f'--beam {beam}' if beam else ''}")
    assert "codes equal, 0 tied; decoded images differ by at most" in printed
    check(open_run(run).load(beam=beam)[0], OnnxModel(tmp_path / "out"), "out of")
    check_paths(tmp_path / "out")


def test_onnx_of_the_shipped_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "mnist-onnx/encoder.onnx" in do("export --onnx mnist")
    model, config = open_run("mnist").load()
    check(model, OnnxModel(Path("mnist-onnx")), "out of data bounds")
    session = onnxruntime.InferenceSession("mnist-onnx/encoder.onnx")
    assert session.get_inputs()[0].shape == ["batch", 1, "height", "width"]
    about = json.loads(session.get_modelmeta().custom_metadata_map["hrvqvae"])
    assert from_dict(about["config"], "the graph").model == config.model
    assert about["prefixes"] == [1, 2, 3]
    check_paths(Path("mnist-onnx"))
    check_page(model)
    assert "mnist-onnx exists already; choose another folder" in refused("export --onnx mnist")


def check_paths(folder):
    for path in folder.iterdir():
        # no path of this machine
        assert str(Path(export.__file__).parent.parent).encode() not in path.read_bytes()


def check_page(model):
    """The code of docs/graphs.md, in the folder where the shipped model has been exported."""
    names = {}
    exec(dict(blocks("docs/graphs.md"))["python"], names)
    expected = model.decode(model.encode(torch.from_numpy(names["images"])), 2, (28, 28))
    assert_close(torch.from_numpy(names["coarse"]), expected, rtol=0, atol=1e-5)


@parametrize("system", ["hrvqvae", "treevq", "vqvae2"])
def test_a_code_that_rounding_decides_is_no_error_and_any_other_is(system):
    """Between two images with different codes lie two that are next to each other; the finer codes
    follow.
    """
    model = model_of(config_of(system))
    left, right = torch.rand(2, 1, 1, 12, 12)
    while (left - right).abs().max() > 1e-6:
        middle = (left + right) / 2
        is_left = same(model.encode(left), model.encode(middle))
        left, right = (middle, right) if is_left else (left, middle)
    ours = model.encode(left)
    theirs = model.encode(right)
    assert not same(ours, theirs)
    assert count_errors(model, left, ours, theirs) == 0
    for level, symbols in enumerate(model.config.num_symbols):
        wrong = [codes.clone() for codes in theirs]
        place = tuple((ours[level] == theirs[level]).nonzero()[0])
        wrong[level][place] = (wrong[level][place] + 1) % symbols
        assert count_errors(model, left, ours, wrong) == 1


def test_graphs_that_do_not_agree_or_fail_are_not_written(tmp_path, monkeypatch):
    run = saved("vqvae", tmp_path)
    model = open_run(run).load()[0]

    def other_codes(images):
        return tuple((code + 1) % 27 for code in model.encode(images))

    def traced_for_three(images):
        if len(images) != 3:
            raise RuntimeError("The input tensor cannot be reshaped\nto the requested shape")
        return model.encode(images)

    graphs = Mock(decode=model.decode)
    monkeypatch.setattr(export, "trace", lambda *_: (b"", b"", 1))
    monkeypatch.setattr(export, "OnnxModel", lambda _: graphs)
    failure = "fail on images of another number or size (The input tensor cannot be reshaped to the"
    for wrong, line in (
        (other_codes, "do not agree with the model (4 images: 0 of "),
        (traced_for_three, failure),
    ):
        graphs.encode = wrong
        assert line in refused(f"export {run} {tmp_path}/out --onnx")
    assert names_in(tmp_path) == ["vqvae"]


def test_what_can_not_be_exported_is_refused(tmp_path, monkeypatch):
    run = saved("vqvae", tmp_path)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    for options, line in cells_of("""
        --beam 2 | --beam needs --onnx
        --onnx --compact | not allowed with argument
        --web --license mit | --license is for the model card, which --web
        OUT --onnx | this needs onnxscript: pip install 'hrvqvae[onnx]'
    """):
        assert line in refused(f"export {run} {options.replace('OUT', f'{tmp_path}/out')}")
    assert names_in(tmp_path) == ["vqvae"]
