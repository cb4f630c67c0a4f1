"""The error of images from the first levels, for each system of a comparison: mean and spread over its seeds.

For each it prints the p-value against the first system (Welch).

python recipes/figures/prefixes.py DIR -o FIG.png [-n IMAGES]        DIR: of hrvqvae compare
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from hrvqvae.comparison.report import welch
from hrvqvae.data.images import check_writable
from hrvqvae.evaluation.report import evaluate_run
from hrvqvae.plots.curves import save_figure
from hrvqvae.utils.errors import InputError

Errors = Mapping[str, NDArray[np.float64]]
"""System -> MSE of the images from levels 1, 1 to 2, and so on: (seeds, levels)."""


def measure(folder: Path, images: int | None) -> Errors:
    """The errors of each run. Raises InputError where there is none, or as `evaluate_run`."""
    found: dict[str, list[list[float]]] = {}
    for run in sorted((folder / "runs").glob("*-*")):
        levels = evaluate_run(run, limit=images, rate=False).report.levels
        found.setdefault(run.name.rpartition("-")[0], []).append([level.mse or np.nan for level in levels])
    if not found:
        raise InputError(f"{folder} has no runs: give the folder of a comparison")
    return {name: np.array(runs) for name, runs in found.items()}


def spread(runs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Standard deviation over the seeds; 0 of a single one."""
    return runs.std(axis=0, ddof=1) if len(runs) > 1 else np.zeros(runs.shape[1])


def draw(errors: Errors, out: Path) -> None:
    """One line a system, with a band of one standard deviation."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for name, runs in errors.items():
        levels, mean, around = np.arange(1, 1 + runs.shape[1]), runs.mean(axis=0), spread(runs)
        (line,) = axes.plot(levels, mean, marker="o", markersize=3, label=name)
        axes.fill_between(levels, mean - around, mean + around, color=line.get_color(), alpha=0.2)
    axes.set(xlabel="levels decoded", ylabel="MSE", yscale="log")
    axes.legend()
    save_figure(figure, out)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("-o", "--out", required=True, type=Path, metavar="FIG.png")
    parser.add_argument("-n", dest="images", type=int, metavar="IMAGES", help="of the test split (default: all)")
    arguments = parser.parse_args(argv)
    try:
        check_writable(arguments.out)
        errors = measure(arguments.folder, arguments.images)
    except InputError as error:
        parser.error(str(error))
    first = next(iter(errors.values()))
    for name, runs in errors.items():
        for level, (mean, around) in enumerate(zip(runs.mean(axis=0), spread(runs), strict=True)):
            told = f"{name}, levels 1 to {level + 1}: {mean:.3e}"
            if len(runs) > 1 < len(first):
                p = welch(runs[:, level].tolist(), first[:, level].tolist())
                told += f" ± {around:.1e} (n = {len(runs)}, p {p:.2g})"
            print(told)
    draw(errors, arguments.out)


if __name__ == "__main__":
    main()
