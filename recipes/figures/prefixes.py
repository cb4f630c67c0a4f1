"""Plot the error of images decoded from the first levels against bits, for each system of a
comparison.

It prints mean, deviation and n, and Welch's p against the first system where that has as many bits.

python recipes/figures/prefixes.py DIR -o FIG.png [-n IMAGES]
DIR: of python -m benchmarks.compare, with runs/NAME-SEED
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy import stats

from hrvqvae.checkpoints.folder import RunFolder
from hrvqvae.evaluation.report import evaluate_run
from hrvqvae.plots.curves import save_figure
from hrvqvae.utils.errors import InputError
from hrvqvae.utils.outputs import check_output

Errors = Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]]
"""By system: bits per image of each prefix of the levels (levels,), and their MSE (seeds, levels).
"""


def measure(folder: Path, images: int | None) -> Errors:
    """Return the errors of all runs. Raise InputError if there are none."""
    errors: dict[str, list[list[float]]] = {}
    bits = dict[str, NDArray[np.float64]]()
    for run in sorted((folder / "runs").glob("*-*")):
        report, name = (
            evaluate_run(run, limit=images, rate=False).report,
            run.name.rpartition("-")[0],
        )
        errors.setdefault(name, []).append([level.mse or np.nan for level in report.levels])
        config = RunFolder(run).read_config()
        positions = np.prod(config.model.geometry.grids(*config.data.image_size), axis=1)
        bits[name] = np.cumsum(positions * np.log2(config.model.num_symbols))
    if not errors:
        raise InputError(f"{folder} has no runs: give the folder of a comparison")
    return {name: (bits[name], np.array(runs)) for name, runs in errors.items()}


def spread(runs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the standard deviation over the seeds, 0 of a single seed."""
    return runs.std(axis=0, ddof=1) if len(runs) > 1 else np.zeros(runs.shape[1])


def draw(errors: Errors, out: Path) -> None:
    """Draw one line per system, with a band of one standard deviation."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for name, (bits, runs) in errors.items():
        mean, around = runs.mean(axis=0), spread(runs)
        (line,) = axes.plot(bits, mean, marker="o", markersize=3, label=name)
        axes.fill_between(bits, mean - around, mean + around, color=line.get_color(), alpha=0.2)
    axes.set(xlabel="bits per image", ylabel="MSE", yscale="log")
    axes.legend()
    save_figure(figure, out)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("-o", "--out", required=True, type=Path, metavar="FIG.png")
    parser.add_argument(
        "-n",
        dest="images",
        type=int,
        metavar="IMAGES",
        help="measure so many test images (default: all)",
    )
    arguments = parser.parse_args(argv)
    try:
        check_output(arguments.out, force=True, suffix=".png")
        errors = measure(arguments.folder, arguments.images)
    except InputError as error:
        parser.error(str(error))
    of_first = next(iter(errors.values()))
    first = {round(bits): runs for bits, runs in zip(of_first[0], of_first[1].T, strict=True)}
    for name, (all_bits, runs) in errors.items():
        for level, (bits, mean, around) in enumerate(
            zip(all_bits, runs.mean(axis=0), spread(runs), strict=True)
        ):
            if np.isnan(mean):
                continue  # levels that have no image of their own
            line = f"{name}, levels 1 to {level + 1}, {bits:.0f} bits: {mean:.3e}"
            if len(runs) > 1:
                line += f" ± {around:.1e} (n = {len(runs)}"
                first_runs = first.get(round(bits), ())
                if len(first_runs) > 1:
                    p = stats.ttest_ind(runs[:, level], first_runs, equal_var=False).pvalue
                    if np.isnan(p):  # sets of one and the same value
                        p = 1.0
                    line += f", p {p:.2g}"
                line += ")"
            print(line)
    draw(errors, arguments.out)


if __name__ == "__main__":
    main()
