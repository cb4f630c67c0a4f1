"""The rate-distortion study: the same number of leaves as trees of different depth, and as a flat codebook."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from matplotlib.figure import Figure

from benchmarks.common import Row, as_script
from benchmarks.study import Study, with_leaves
from hrvqvae.checkpoints.folder import RunFolder
from hrvqvae.comparison.systems import Case, Comparison, style
from hrvqvae.config import ModelConfig
from hrvqvae.plots.curves import save_figure
from hrvqvae.training.loggers import read_records

SHAPES = ((8, 2), (4, 3), (2, 6), (8, 3), (2, 9), (64, 2), (16, 3), (8, 4), (4, 6), (2, 12))
"""(m, L) of trees of 64, 512 and 4,096 leaves. A flat codebook has m^L codewords, whatever m and L are."""


def cases(comparison: Comparison) -> list[Case]:
    """Each system with each shape, for each seed; shapes that are the same model for a system count once."""
    found: dict[tuple[ModelConfig, int], Case] = {}
    for seed in comparison.seed_numbers:
        for branching, depth in SHAPES:
            for system in comparison.systems:
                config = with_leaves(comparison.config(system, seed), branching, depth)
                levels, codewords = len(config.model.num_symbols), config.model.num_symbols[-1]
                labels = {"system": system, "leaves": branching**depth, "levels": levels, "codewords": codewords}
                name = f"{system}-{codewords}x{levels}-{seed}"
                found[config.model, seed] = Case(name=name, labels={**labels, "seed": seed}, config=config)
    return list(found.values())


def _prefixes(run: RunFolder) -> Row:
    """Test MSE of each prefix of the levels after training, None for one that a system does not decode."""
    evaluations = [one for one in read_records(run.metrics) if one["kind"] == "evaluation"]
    return {"level_mse": evaluations[-1]["level_mse"]}


def draw(rows: Sequence[Row], path: Path) -> None:
    """Test MSE against bits per image, a line for each depth, with prefixes dotted; and what a tree's error is of that
    of one level with as many leaves.
    """
    figure = Figure(figsize=(12, 4.4), layout="constrained")
    over_bits, over_depth = figure.subplots(1, 2)
    found: dict[tuple[int, str], dict[int, list[float]]] = {}
    for row in rows:
        found.setdefault((row["levels"], row["system"]), {}).setdefault(row["leaves"], []).append(row["mse"])
    rates = {row["leaves"]: row["bits_per_image"] for row in rows}
    for place, (levels, system) in enumerate(sorted(found)):
        errors = found[levels, system]
        leaves, colour, form = sorted(errors), f"C{place}", style(system)[0] + "-"
        bits, means = [rates[number] for number in leaves], [mean(errors[number]) for number in leaves]
        over_bits.plot(bits, means, form, color=colour, label=f"{system}, L = {levels}", markersize=5)
        for row in rows:
            if (row["levels"], row["system"]) == (levels, system):
                prefixes = [
                    (row["bits_per_image"] * level / levels, error)
                    for level, error in enumerate(row["level_mse"], start=1)
                    if error is not None
                ]
                over_bits.plot(*zip(*prefixes, strict=True), ".:", color=colour, linewidth=0.8, markersize=3)
    for place, number in enumerate(sorted(rates)):
        flat = [error for (levels, _), errors in found.items() if levels == 1 for error in errors.get(number, ())]
        points = [
            (levels, mean(errors[number]) / mean(flat) * 100 - 100)
            for (levels, _), errors in sorted(found.items())
            if flat and levels > 1 and number in errors
        ]
        if points:
            over_depth.plot(*zip(*points, strict=True), "o-", color=f"C{place}", label=f"{number:,} leaves")
    over_depth.axhline(0, color="black", linewidth=0.8)
    title = "test MSE; dotted: prefixes of the same model"
    over_bits.set(title=title, xlabel="bits per image", xlim=(0, None), yscale="log")
    over_depth.set(title="test MSE above that of one level with as many leaves, %", xlabel="levels (L)")
    for axes in (over_bits, over_depth):
        axes.grid(alpha=0.3, which="both", linewidth=0.5)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, fontsize=8)
    save_figure(figure, path)


STUDY = Study(
    name="rate",
    varied=("model.quantizer.levels", "model.quantizer.codewords"),
    cases=cases,
    more=_prefixes,
    labels=("system", "leaves", "levels", "codewords"),
    columns={
        "bits_per_image": ("bits per image", "{:,.0f}"),
        "codewords_searched": ("searched per position", "{:,.0f}"),
        "mse": ("MSE", "{:.3e}"),
        "psnr": ("PSNR, dB", "{:.2f}"),
        "frechet_reconstructions": ("{frechet}", "{:.2f}"),
        "leaves_used": ("leaves used", "{:,.0f}"),
        "perplexity": ("perplexity", "{:.1f}"),
        "training_seconds": ("training, s", "{:,.0f}"),
    },
    order=lambda row: (row["leaves"], row["levels"], row["system"]),
    draw=draw,
)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the study."""
    STUDY.main(__doc__, argv)


if __name__ == "__main__":
    as_script(main)
