"""Models as graphs: run by onnxruntime itself and by torch, beside the model that they are of."""

from pathlib import Path

import onnxruntime
import torch
from torch.testing import assert_close

from hrvqvae.checkpoints.folder import PROGRESSIVE, RunFolder, decoder_folder, open_run, save_model
from hrvqvae.config.parsing import override
from hrvqvae.models.build import build, build_progressive_decoder, require_several_levels
from tests.conftest import do, generator, parametrize, refused, same
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
        digest = run.digest
        save_model(prefixes.model, config, decoder.state_dict(), 0, "prefixes", autoencoder=digest)
    return run.path


@parametrize("system, beam", [("treevq", 4), ("vqvae2", None)])
def test_graphs_do_what_the_model_does(system, beam, tmp_path):
    run = saved(system, tmp_path)
    out = tmp_path / "out"
    do(f"export {run} {out} --onnx {f'--beam {beam}' if beam else ''}")
    model = open_run(run).load(beam=beam)[0]
    encoder = onnxruntime.InferenceSession(out / "encoder.onnx")
    decoder = onnxruntime.InferenceSession(out / "decoder.onnx")
    names = [node.name for node in decoder.get_inputs()]
    for count, height, width in SIZES:
        images = torch.rand(count, 1, height, width, generator=generator(height))
        expected = model.encode(images)
        codes = encoder.run(None, {"images": images.numpy()})
        assert same(expected, tuple(map(torch.from_numpy, codes)))
        (decoded,) = decoder.run(None, dict(zip(names, codes, strict=True)))
        assert_close(torch.from_numpy(decoded), model.decode(expected), rtol=0, atol=1e-5)
    assert "exists already" in refused(f"export {run} {out} --onnx")
    assert "--beam needs --onnx" in refused(f"export {run} --beam 2")
