"""What others need of a run: small, without paths, whole or not at all, with a card that says what
it is.
"""

import json
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
import yaml
from torch.testing import assert_close

from hrvqvae import Model, load
from hrvqvae.checkpoints.export import export
from hrvqvae.checkpoints.folder import RunFolder, open_run, prior_folder
from hrvqvae.checkpoints.storage import compact_weights, restore_weights
from tests.conftest import (
    check_refusals,
    do,
    generator,
    input_error,
    read_json,
    same,
)

IMAGES = torch.rand(3, 1, 12, 12, generator=generator())


def front_matter(card):
    return yaml.safe_load(card.split("---\n")[1])


def prior_tensors(exported, original):
    """Yield the name of each tensor of the priors of two runs, and the tensor in each run."""
    networks = (open_run(run).load_priors().networks for run in (exported, original))
    for pair in zip(*networks, strict=True):
        first, second = (network.state_dict() for network in pair)
        yield from ((name, tensor, second[name]) for name, tensor in first.items())


def test_an_exported_run_is_small_knows_no_paths_and_gives_the_same(full_run, tmp_path):
    out = tmp_path / "out"
    files = export(full_run, out)
    assert files == sorted(path for path in out.rglob("*") if path.is_file())
    parts = ["", "prefixes/", *(f"priors/level-{level}/" for level in (1, 2, 3))]
    weights = {f"{part}model.safetensors" for part in parts}
    names = {str(path.relative_to(out)) for path in files}
    assert names == weights | {"README.md", "config.json", "tables.hrvt"}
    assert share_of_size(full_run, out, prior_folder(full_run, 1).model) < 0.7
    assert not any(str(tmp_path.parent).encode() in path.read_bytes() for path in files)
    for name, exported, original in prior_tensors(out, full_run):
        assert_close(exported, original, rtol=1e-3, atol=1e-5, msg=name)
    there, here = (load(run) for run in (out, full_run))
    coarse = (model.decode(model.encode(IMAGES)[:1], 1) for model in (there, here))
    assert same(*coarse)
    assert there.compress(IMAGES) == here.compress(IMAGES)
    with input_error("exists already"):
        export(full_run, out)


def share_of_size(run, exported, file):
    """Return the size of a file that was exported, in sizes of the file of the run."""
    return (exported / file.relative_to(run)).stat().st_size / file.stat().st_size


def test_a_compact_export_is_half_the_size(full_run, tmp_path):
    """And nearly the same."""
    out = tmp_path / "out"
    export(full_run, out, compact=True)
    assert not RunFolder(out).tables.exists()
    for path in (RunFolder(full_run).model, prior_folder(full_run, 1).model):
        assert share_of_size(full_run, out, path) < 0.7
    there, here = (load(run).autoencoder for run in (out, full_run))
    originals = here.state_dict()
    for name, tensor in there.state_dict().items():
        if not name.endswith(".total"):  # the moving average, which is roughly codewords * count
            assert_close(tensor, originals[name], rtol=2e-3, atol=1e-5)
    codes = zip(there.encode(IMAGES), here.encode(IMAGES), strict=True)
    assert sum(int((exported == original).sum()) for exported, original in codes) > 300
    for name, exported, original in prior_tensors(out, full_run):
        assert (exported - original).abs().max() <= original.abs().max() / 250, name


def restored(weights):
    return restore_weights(compact_weights(weights, matrices=False))


def test_a_number_too_large_for_half_precision_stays():
    large = torch.tensor([7e4, 0.1])
    stored = restored({"large": large, "small": torch.tensor([0.5])})
    assert same(stored["large"], large)
    assert stored["small"].dtype == torch.float16


def test_a_card_is_short_and_runs(full_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    do("export run my-model --license cc-by-4.0")
    card = Path("my-model/README.md").read_text()
    about = front_matter(card)
    assert about["license"] == "cc-by-4.0"
    assert about["tags"][-2:] == ["hrvqvae", "mnist"]
    assert len(card.split()) < 200
    assert "7x7 of 3, 7x7 of 3" in card
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    names = {"images": IMAGES}
    exec(code, names)
    assert names["decoded"].shape == IMAGES.shape

    # a card that is there is kept
    Path("run/README.md").write_text("# Mine\n")
    export("run", Path("second"))
    assert Path("second/README.md").read_text() == "# Mine\n"
    check_refusals("export run third --license mit | state the license there")


def test_nothing_is_left_of_an_export_that_fails(changed, tmp_path):
    check_refusals(f"export {changed} {tmp_path}/out | was made for another state")
    assert not (tmp_path / "out").exists()


def test_a_model_goes_to_the_hub_and_comes_back(full_run, tmp_path, monkeypatch):
    """The library is replaced by a folder."""
    hub = tmp_path / "hub"

    class Api:
        def __init__(self, **_):
            pass

        def create_repo(self, name, *, private, exist_ok):
            assert (name, private, exist_ok) == ("someone/digits", True, True)

        def upload_folder(self, *, repo_id, folder_path, delete_patterns, token):
            assert "*.safetensors" in delete_patterns
            shutil.copytree(folder_path, hub / repo_id)
            return SimpleNamespace(pr_url=None, commit_url=f"hub/{repo_id}")

    library = SimpleNamespace(HfApi=Api, snapshot_download=lambda name, **_: hub / name)
    monkeypatch.setitem(sys.modules, "huggingface_hub", library)
    model = load(full_run)
    assert model.push_to_hub("someone/digits", private=True, token="t") == "hub/someone/digits"
    fetched = Model.from_pretrained("someone/digits", revision="main")
    assert same(fetched.encode(IMAGES), model.encode(IMAGES))
    assert same(fetched.sample(1), load(hub / "someone/digits").sample(1))


def test_the_configuration_beside_the_weights_is_theirs(run, tmp_path):
    saved = tmp_path / "saved"
    load(run).save_pretrained(saved)
    file = RunFolder(saved).config_json
    config = read_json(file)
    assert config["data"]["root"] is None
    file.write_text(json.dumps({**config, "name": "another"}))
    load(saved)
    config["model"]["padding"] = 2
    file.write_text(json.dumps(config))
    with input_error("config.json describes another model than model.safetensors"):
        load(saved)


def test_samples_are_drawn_as_suits_the_model_unless_an_option_is_given(full_run, tmp_path):
    model = load(full_run)
    plain = model.sample(2)
    coarse = model.sample(2, levels=2)
    RunFolder(full_run).sampling.write_text('{"guidance": [1, 1], "levels": 2}')
    model = load(full_run)
    for drawn in (model.sample(2), model.draw(2).images):
        assert same(drawn, coarse)
    assert same(model.sample(2, guidance=1), plain)  # the prior itself
    export(full_run, tmp_path / "out")
    exported = open_run(tmp_path / "out")
    assert exported.sampling_options() == {"guidance": [1, 1], "levels": 2}
