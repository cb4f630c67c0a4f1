"""What others need of a run: small, without paths, whole or not at all, with a card that says what
it is.
"""

import json
import math
import re
import shutil
from pathlib import Path

import torch
import yaml
from torch.testing import assert_close

from hrvqvae import load
from hrvqvae.checkpoints import storage
from hrvqvae.checkpoints.export import export, without_paths
from hrvqvae.checkpoints.folder import RunFolder, open_run, prior_folder
from hrvqvae.checkpoints.storage import compact_weights, restore_weights
from hrvqvae.config import flatten
from hrvqvae.config.parsing import override
from hrvqvae.training.loggers import read_records
from tests.conftest import (
    cells_of,
    check_refusals,
    do,
    generator,
    input_error,
    parametrize,
    read_json,
    same,
    write_picture,
)

IMAGES = torch.rand(3, 1, 12, 12, generator=generator())


def front_matter(card):
    return yaml.safe_load(card.split("---\n")[1])


def commands(text):
    """Return what follows hrvqvae in the commands of a page."""
    return re.findall(r"^\$ hrvqvae (.*)$", text, re.MULTILINE)


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


def test_the_card_of_a_run_with_priors_of_its_first_levels(full_run, tmp_path):
    shutil.rmtree(prior_folder(full_run, 2).path)
    path = prior_folder(full_run, 0).model
    weights, about = storage.read(path)
    storage.write(path, weights, about | {"bits_per_code": math.nan})  # stopped early
    export(full_run, tmp_path / "out")
    card = RunFolder(tmp_path / "out").card.read_text()
    assert "model.sample(16, seed=0, levels=2)" in card
    assert "drawn by default with guidance 1 and levels 1 to 2 |" in card
    assert "; unmeasured, " in card


def share_of_size(run, exported, file):
    """Return the size of a file that was exported, in sizes of the file of the run."""
    return (exported / file.relative_to(run)).stat().st_size / file.stat().st_size


def test_a_compact_export_is_half_the_size(full_run, tmp_path, caplog):
    """And nearly the same."""
    out = tmp_path / "out"
    export(full_run, out, compact=True)
    assert not RunFolder(out).tables.exists()
    assert f"hrvqvae fit-entropy-model {out}" in caplog.text
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


def test_moving_averages_are_left_out():
    weights = {
        "book.count": torch.tensor([[0.5]]),
        "book.codewords": torch.tensor([[[2.0]]]),
        "book.total": torch.tensor([[[1.0]]]),
    }
    assert same(restored(weights), weights)


def test_where_it_began_is_left_out_unless_all_have_it(tiny):
    begun = [f"{part}training.init_from" for part in ("", "prior.", "progressive.")]
    of_data = ("data.root", "prior.codes")
    for name, kept in (("/home/me/run", ""), ("runs/mine", ""), ("mnist", "mnist")):
        config = override(tiny, dict.fromkeys((*of_data, *begun), name))
        left = flatten(without_paths(config))
        assert [left[field] for field in of_data] == [None, None]
        assert [left[field] for field in begun] == [kept] * 3


def test_what_is_stale_is_left_out_with_a_line(changed, tmp_path, caplog):
    files = export(changed, tmp_path / "out")
    assert [path.name for path in files] == ["README.md", "config.json", "model.safetensors"]
    assert "priors/level-1, priors/level-2, priors/level-3, prefixes, tables.hrvt" in caplog.text
    assert "| priors | none |" in RunFolder(tmp_path / "out").card.read_text()


def test_the_card_and_what_it_shows(full_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = full_run.rename("exp.v1")
    do("export exp.v1")
    assert Path("exp.v1-exported/model.safetensors").is_file()  # names keep their dots
    export(run, Path("my model"), license="cc-by-4.0")
    card = Path("my model/README.md").read_text()
    about = front_matter(card)
    assert about["license"] == "cc-by-4.0"
    assert about["tags"][-2:] == ["hrvqvae", "mnist"]
    records = read_records(run / "metrics.jsonl")
    last = [record for record in records if record["kind"] == "evaluation"][-1]
    metas = [storage.read_meta(prior_folder(run, level).model) for level in range(3)]
    for said in (
        "# Model card: my model",
        "| data | MNIST",
        "12x12 pixels, greyscale",
        "batches of 16",
        "60 steps",
        "7x7 of 3, 7x7 of 3",
        ", ".join(f"{meta['bits_per_code']:.3f}" for meta in metas),
        "PixelSNAIL of level 1; ",
        "trained 5 steps",
        "| license | cc-by-4.0 |",
        f"MSE {last['mse']:.4e}, PSNR {last['psnr']:.2f} dB",
    ):
        assert said in card
    assert set(re.findall(r"(\d+x\d+) pixels", card)) == {"12x12"}
    (line,) = commands(card)
    write_picture(Path("x.png"), 1, (12, 12), "L")
    do(line)
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    names = {"images": IMAGES}
    exec(code, names)
    assert names["new"].shape == (16, 1, 12, 12)
    assert names["decoded"].shape == IMAGES.shape


@parametrize(
    "dataset, root, title",
    cells_of("""
        ffhq | /home/me/mix | images of one's own
        ffhq | /data/ffhq | FFHQ
        cifar10 | python:/runs/mine | images of one's own
    """),
)
def test_a_card_says_which_images_were_used(run, tmp_path, dataset, root, title):
    weights, meta = storage.read(RunFolder(run).model)
    meta["config"]["data"] |= {"dataset": dataset, "root": root}
    storage.write(RunFolder(run).model, weights, meta)
    export(run, tmp_path / "out")
    assert f"| data | {title}" in RunFolder(tmp_path / "out").card.read_text()


def test_a_damaged_entropy_model_and_a_name_that_is_no_text(run, tmp_path):
    do("export", run, tmp_path / "out\udcff")
    RunFolder(run).tables.write_bytes(b"x")
    check_refusals(f"export {run} {tmp_path}/out | tables.hrvt")
    assert not (tmp_path / "out").exists()


def test_a_card_that_is_there_is_kept(run, tmp_path):
    (run / "README.md").write_text("# Mine\n")
    first, second, third = (tmp_path / name for name in ("one", "two", "three"))
    for source, target, license in ((run, first, None), (first, second, "mit")):
        export(source, target, license=license)
        card = RunFolder(target).card.read_text()
        assert card.endswith("---\n\n# Mine\n")
        assert front_matter(card).get("license") == license
    for text, told in (("---\nlicense: [\n---\n", "not YAML"), ("# Größe\n", "is not UTF-8")):
        RunFolder(second).card.write_text(text, "latin-1")
        with input_error(told):
            export(second, third, license="mit")


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
    told = "guidance 1,1 and levels 1 to 2; `--guidance 1` draws from the prior itself"
    assert told in exported.folder.card.read_text()
    assert exported.sampling_options() == {"guidance": [1, 1], "levels": 2}
