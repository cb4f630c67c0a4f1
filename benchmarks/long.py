"""The long comparison: CIFAR10, 10,000 and 50,000 steps (docs/data/long-cifar10/protocol.md).

python -m benchmarks.long --out docs/data/long-cifar10

One queue on one thread; the same command goes on where it stopped. For each group of systems it
makes the trials (DIR/trials), then the rows (DIR/rows), and encodes with every search
(DIR/beams.jsonl) and with leaves that are moved (DIR/leaves.jsonl); then the depth study
(DIR/depth) and the longest trainings (DIR/longest).
DIR/curves.png, and DIR/steps.png with the longest trainings, draw the error against steps.
"""

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import Row, Rows, as_script, fields, options, read_images
from benchmarks.laboratory.folder import Folder, run_cases
from benchmarks.laboratory.instruments import Validation
from benchmarks.laboratory.report import compare, draw_curves, group_rows
from benchmarks.laboratory.settings import make_trial
from benchmarks.laboratory.systems import Case, Comparison
from hrvqvae.checkpoints.folder import open_run
from hrvqvae.config.parsing import override
from hrvqvae.models.build import build
from hrvqvae.quantize import functional as vq
from hrvqvae.quantize.search import search as search_codebooks

Fields = dict[str, str]

DATASET = "cifar10"
STEPS = 10_000
DEPTH_STEPS = 2_000
LONGEST_STEPS = 50_000
SEEDS = 3
COMMON: Fields = fields(
    "training", "threads=1 evaluate_every=500 checkpoint_every=500 evaluation_images=2000"
)
IMAGES = 2_000
"""Test images that the depth study encodes."""

_RATE = "training.learning_rate"


def _quantizer(values: str) -> Fields:
    return fields("model.quantizer", values)


def _searched(rate: str, quantizer: str) -> Fields:
    return {"training.optimizer": "muon", _RATE: rate, **_quantizer(quantizer)}


# trained as a tree, as all trees of these rows were
_GROWING = "planted=false joint_beam=false beam=4 coarse_weight=0.1 level_beta=0.05"

SEARCHED: Mapping[str, Fields] = {
    "hrvqvae": _searched("0.003", "decay=0.5 beta=0.25"),
    "treevq": _searched("0.003", f"decay=0.8 beta=1.0 {_GROWING}"),
    "vqvae": _searched("0.003", "decay=0.8 beta=0.25"),
    "rqvae": _searched("0.003", "decay=0.95 beta=1.0"),
    "vqvae2": _searched("0.003", "decay=0.8 beta=0.25"),
}
"""The best settings of docs/data/decides-cifar10."""
FURTHER: Mapping[str, Sequence[Fields]] = {
    "hrvqvae": (_quantizer("decay=0.75"), _quantizer("decay=0.2"), _quantizer("decay=0.05")),
    "rqvae": (_quantizer("beta=4.0"), _quantizer("decay=0.99"), _quantizer("beta=16.0")),
    "vqvae2": (_quantizer("beta=0.06"),),
}
"""Neighbours of an optimum that was the last value tried."""
_AT_3000 = _quantizer("codewords=15")
_PLAIN_LOSS = _quantizer("coarse_weight=0 level_beta=0")

System = tuple[str, str, Fields]
"""Preset, the system whose settings it takes ("": as printed), fields of its own."""
GROUPS: Sequence[Mapping[str, System]] = (
    {
        "hrvqvae": ("hrvqvae", "hrvqvae", {}),
        "treevq": ("treevq", "treevq", {}),
        "vqvae": ("vqvae", "vqvae", {}),
        "rqvae": ("rqvae", "rqvae", _quantizer("beam=4 joint_beam=true coarse_weight=0.1")),
        "printed": ("hrvqvae", "", {}),
        "vqvae-printed": ("vqvae", "", {}),
        "treevq-plain": ("treevq", "treevq", _PLAIN_LOSS),
    },
    {
        "vqvae2": ("vqvae2", "vqvae2", {}),
        "hrvqvae15": ("hrvqvae", "hrvqvae", _AT_3000),
        "treevq15": ("treevq", "treevq", _AT_3000),
        "treevq15size": ("treevq", "treevq", _AT_3000 | fields("model", "hidden_units=212")),
        "treevq15time": ("treevq", "treevq", _AT_3000 | fields("model", "hidden_units=120")),
    },
)
LONGEST = ("hrvqvae", "vqvae", "treevq")
"""Systems that also have the longest trainings."""
TREES = ("hrvqvae", "treevq")
"""Systems of 2,304 bits that also encode with every search."""
LEAVES = ("vqvae", "treevq-plain", *TREES)
"""Systems of 2,304 bits whose leaves are also fitted to their latents."""

_UNLINKED = "levels=3 codewords=4096 linked=1 beam=1"
_JOINT = "beam=4 joint_beam=true"
DEPTH: Mapping[str, Fields] = {
    "groups4": {},
    "rq3x4096": _quantizer(_UNLINKED),
    "groups4joint": _quantizer(_JOINT),
    "groups4joint16": _quantizer("beam=16 joint_beam=true"),
    "groups4plain": _PLAIN_LOSS,
    "rq3x4096plain": _quantizer(_UNLINKED) | _PLAIN_LOSS,
    "rq3x4096joint": _quantizer(f"{_UNLINKED} {_JOINT}"),
}
"""Variants of treevq-deep, 36 bits for each of 8x8 positions."""
SEARCHED_DEPTH = ("groups4", "rq3x4096")
"""Variants that also encode with every search."""
WIDE_DEPTH = ("groups4joint16", "groups4plain")
"""Variants that also encode with a joint beam of 16."""
COARSE_WEIGHTS = ("0", "0.1")
PASSES = (0, 8)
"""Passes of Lloyd's algorithm over the latents of training images."""
_WIDTHS = ("1", "4", "16")
SEARCHES: Mapping[str, Fields] = {
    **{f"by group, beam {n}": _quantizer(f"beam={n} joint_beam=false") for n in _WIDTHS},
    **{f"joint, beam {n}": _quantizer(f"beam={n} joint_beam=true") for n in _WIDTHS},
    # 512 kept sums times 8 codewords are all 4,096 leaves of a group of four levels
    "every leaf of a group": _quantizer("beam=512 joint_beam=false"),
}


def make_comparison(
    systems: Mapping[str, System], chosen: Mapping[str, Fields], steps: int, seeds: int
) -> Comparison:
    """Return the comparison of systems, at the settings that were chosen for them."""
    return Comparison(
        dataset=DATASET,
        systems={name: preset for name, (preset, _, _) in systems.items()},
        max_steps=steps,
        seeds=seeds,
        fields=COMMON,
        settings={
            name: {**chosen.get(base, {}), **fields} for name, (_, base, fields) in systems.items()
        },
    )


def trials_of(system: str) -> list[Fields]:
    """Return the settings to try: as searched, half the learning rate, and neighbours of an optimum
    that was the last value tried.
    """
    searched = SEARCHED[system]
    rate = f"{float(searched[_RATE]) / 2:g}"
    changes = [{}, {_RATE: rate}, *FURTHER.get(system, ())]
    return [{**searched, **change} for change in changes]


def choose(systems: Mapping[str, System], folder: Folder) -> dict[str, Fields]:
    """Make the missing trials of systems; return the settings with the least validation error."""
    comparison = make_comparison(systems, {}, STEPS, 1)
    searched = [name for name, (_, base, _) in systems.items() if name == base]
    most = max(len(trials_of(name)) for name in searched)

    # the first trial of every system, then the second one of each
    cases = [
        make_trial(comparison, name, tuple(trials_of(name)[number].items()))
        for number in range(most)
        for name in searched
        if number < len(trials_of(name))
    ]
    _stop(run_cases(cases, comparison.about(), folder, _say, Validation))
    _require_rows(cases, folder)
    return read_chosen(folder)


def read_chosen(folder: Folder) -> dict[str, Fields]:
    """Return the settings with the least validation error of each system that has trials."""
    chosen = {}
    for system, rows in group_rows(folder.rows()).items():
        measured = [row for row in rows if row["validation_mse"] is not None]
        best = min(measured, key=lambda row: row["validation_mse"])
        chosen[system] = {name: best[name.rpartition(".")[2]] for name in SEARCHED[system]}
        _say(f"{system}: {', '.join(f'{name} {value}' for name, value in chosen[system].items())}")
    return chosen


def study_depth(folder: Path) -> None:
    """Train the variants of 36 bits per position, then encode with every search."""
    settings = {_RATE: "0.003", **_quantizer("decay=0.95 beta=1.0"), **_quantizer(_GROWING)}
    systems = {name: ("treevq-deep", "", {**settings, **fields}) for name, fields in DEPTH.items()}
    _make_rows(make_comparison(systems, {}, DEPTH_STEPS, SEEDS), folder)
    searched = {name: systems[name] for name in SEARCHED_DEPTH}
    comparison = make_comparison(searched, {}, DEPTH_STEPS, SEEDS)
    measure_searches(comparison, folder)
    measure_leaves(comparison, folder)
    wide = {name: systems[name] for name in WIDE_DEPTH}
    measure_searches(make_comparison(wide, {}, DEPTH_STEPS, SEEDS), folder, ["joint, beam 16"])


def measure_searches(comparison: Comparison, folder: Path, searches: Sequence[str] = ()) -> None:
    """Encode test images by each trained model with searches, by default with all that it has
    (folder/beams.jsonl).
    """
    beams = Rows(folder / "beams.jsonl")
    for case in comparison.cases():
        run = folder / "runs" / case.name
        for search in searches or searches_of(case.config.model.linked):
            for weight in COARSE_WEIGHTS:
                fields = {**SEARCHES[search], **_quantizer(f"coarse_weight={weight}")}
                labels = {**case.labels, "search": search, "coarse_weight": weight}
                beams.get(labels, partial(encode_error, run, fields))


def measure_leaves(comparison: Comparison, folder: Path) -> None:
    """Move the leaves of each trained model nearer to its latents (folder/leaves.jsonl)."""
    rows = Rows(folder / "leaves.jsonl")
    for case in comparison.cases():
        run = folder / "runs" / case.name
        for passes in PASSES:
            rows.get({**case.labels, "passes": passes}, partial(leaf_error, run, passes))


def searches_of(linked: Sequence[bool]) -> list[str]:
    """Return the searches of a quantizer. Without links there is no beam within a group, and with
    one group a joint search is that by group.
    """
    if not any(linked):
        return [name for name in SEARCHES if "joint" in name or name == "by group, beam 1"]
    is_one_group = all(linked[1:])
    return [name for name in SEARCHES if not (is_one_group and "joint" in name)]


@torch.inference_mode()
def encode_error(run: Path, fields: Fields) -> Row:
    """Return the error of test images that a run encodes with another search."""
    trained, config = open_run(run).load()
    model = build(override(config, fields))
    model.load_state_dict(trained.state_dict())
    model.eval()
    size = config.data.image_size
    squared = 0.0
    images = read_images(config.data, IMAGES)
    for batch in torch.split(images, 50):
        pixels = batch.float() / 255
        decoded = model.decode(model.encode(pixels), size=size)
        squared += float((decoded - pixels).double().square().sum())
    return {"mse": squared / images.numel()}


@torch.inference_mode()
def leaf_error(run: Path, passes: int) -> Row:
    """Return the error of test images whose latents take the nearest of a run's leaves, group by
    group of linked levels, in images and as a share of the latents' variance.

    First `passes` of Lloyd's algorithm fit the leaves to the latents of training images; encoder
    and decoder stay.
    """
    model: Any
    model, config = open_run(run).load()
    model.eval()

    def read_latents(split: str) -> tuple[Tensor, Tensor]:
        images = read_images(config.data, IMAGES, split).float() / 255
        latents = torch.cat([model.latents(batch) for batch in torch.split(images, 50)])
        return images, latents

    # all leaves of each group of linked levels, as a flat codebook
    groups = _leaves_of(model.quantizer)
    if passes:
        vectors = read_latents("train")[1].flatten(0, -2)
    for _ in range(passes):
        residual = vectors
        for number, leaves in enumerate(groups):
            (index,) = search_codebooks(residual, [leaves.unsqueeze(0)])
            count = vq.counts(index, len(leaves)).float()
            total = torch.zeros_like(leaves).index_add_(0, index, residual)
            groups[number] = vq.means_or_kept(count, total, leaves)
            residual = residual - groups[number][index]

    images, latents = read_latents("test")
    residual = latents.flatten(0, -2)
    for leaves in groups:
        (index,) = search_codebooks(residual, [leaves.unsqueeze(0)])
        residual = residual - leaves[index]
    quantized = latents - residual.view_as(latents)
    decoded = (model.pixels(quantized, config.data.image_size) + 1) / 2
    error = decoded.clamp(0, 1) - images
    variance = latents.flatten(0, -2).var(0).sum()
    lost = (latents - quantized).square().sum(-1).mean() / variance
    return {"mse": float(error.double().square().mean()), "lost_variance": float(lost)}


def _make_rows(comparison: Comparison, folder: Path) -> list[Row]:
    """Make the missing rows; return all rows of the folder."""
    rows, signal = compare(comparison, folder, _say)
    _stop(signal)
    _require_rows(comparison.cases(), Folder(folder))
    return rows


def _require_rows(cases: Sequence[Case], folder: Folder) -> None:
    """Exit if a case has no row yet, since another process trains it."""
    if not all(folder.row_path(case.name).is_file() for case in cases):
        _say("another process makes the last trainings; give the same command after them")
        sys.exit()


def _leaves_of(quantizer: Any) -> list[Tensor]:
    """Return the leaves (M, D) of each group of linked levels: the sums of their codewords."""
    step = quantizer.config.group_size
    groups = []
    for start in range(0, len(quantizer.levels), step):
        levels = quantizer.levels[start : start + step]
        index = torch.zeros(1, dtype=torch.long)
        leaves = torch.zeros(1, 1)
        for level in levels:
            # the children of each codeword, in the order of their numbers
            index = (index[:, None] * level.size + torch.arange(level.size)).flatten()
            leaves = leaves.repeat_interleave(level.size, 0) + level.lookup(index)
        groups.append(leaves)
    return groups


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _stop(signal: int) -> None:
    if signal:
        _say("stopped, saved; the same command continues")
        sys.exit(128 + signal)


def main(argv: Sequence[str] | None = None) -> None:
    """Work through the queue."""
    parser = options(__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    out = parser.parse_args(argv).out
    torch.set_num_threads(1)

    # trials, then rows: first at 2,304 bits, then at the bits of VQVAE-2
    for systems in GROUPS:
        chosen = choose(systems, Folder(out / "trials"))
        rows = _make_rows(make_comparison(systems, chosen, STEPS, SEEDS), out)
        trees = {name: systems[name] for name in TREES if name in systems}
        if trees:
            measure_searches(make_comparison(trees, chosen, STEPS, SEEDS), out)
            part = {name: systems[name] for name in LEAVES}
            measure_leaves(make_comparison(part, chosen, STEPS, SEEDS), out)

    study_depth(out / "depth")

    # the longest trainings
    longest = {name: GROUPS[0][name] for name in LONGEST}
    more = _make_rows(make_comparison(longest, chosen, LONGEST_STEPS, 1), out / "longest")
    longer = [{**row, "system": f"{row['system']}, {LONGEST_STEPS:,} steps"} for row in more]
    draw_curves([*rows, *longer], out / "steps.png")


if __name__ == "__main__":
    as_script(main)
