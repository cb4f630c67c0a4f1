"""The report of a comparison: tables with p-values, a sheet of images, and curves."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from statistics import mean, stdev

from matplotlib.figure import Figure
from scipy import stats

from benchmarks.laboratory.folder import Folder, format_markdown, run_cases, write_json
from benchmarks.laboratory.instruments import COLUMNS, Instruments, Row, Say, shown_images
from benchmarks.laboratory.systems import Comparison
from hrvqvae.data.images import write_image
from hrvqvae.plots import sheets
from hrvqvae.plots.curves import save_figure
from hrvqvae.utils.errors import InputError
from hrvqvae.utils.locks import lock_folder
from hrvqvae.utils.outputs import write_atomic

_RESULTS = ("results.json", "results.md", "curves.png", "reconstructions.png")


def compare(comparison: Comparison, out: Path, say: Say = print) -> tuple[list[Row], int]:
    """Train and measure all cases, and write the report; return all rows, and the signal that
    stopped the work, or 0.

    Raises InputError as `run_cases`, or if a file in `out` would be replaced that is not of a
    comparison.
    """
    folder = Folder(out)
    existing = [out / name for name in _RESULTS if (out / name).exists()]
    if existing and not folder.claim_path.is_file():
        raise InputError(
            f"{existing[0]} exists, but {out} holds no comparison; choose another --out"
        )

    # all that is missing, then the report of all that is there
    signal = run_cases(comparison.cases(), comparison.about(), folder, say, Instruments)
    with lock_folder(out, wait=say):
        rows = sorted(folder.rows(), key=lambda row: row["seed"])
        if rows and not signal:
            text = f"{table(rows)}\n{compare_pairs(rows)}".rstrip()
            write_json(out / "results.json", rows)
            write_atomic(out / "results.md", f"{text}\n".encode())
            _draw_sheet(comparison, rows, folder)
            draw_curves(rows, out / "curves.png")
    return rows, signal


def group_rows(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Return the rows of each system, in the order of their first rows."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["system"], []).append(row)
    return groups


def table(rows: Sequence[Row]) -> str:
    """Return a row per system as Markdown: means over its seeds with standard deviations."""
    shown = [name for name in COLUMNS if any(row.get(name) is not None for row in rows)]
    lines = [["system", "seeds", *(COLUMNS[name][0].format(**rows[0]) for name in shown)]]
    for system, of_system in group_rows(rows).items():
        cells = [_format_cell(name, of_system) for name in shown]
        lines.append([system, str(len(of_system)), *cells])
    return format_markdown(lines)


def _format_cell(name: str, rows: Sequence[Row]) -> str:
    form = COLUMNS[name][1]
    values = [row[name] for row in rows if row.get(name) is not None]
    if not values:
        return ""
    text = form.format(mean(values))
    if len(values) > 1 and stdev(values) > 0:
        text += f" ± {form.format(stdev(values))}"
    return text if len(values) == len(rows) else f"{text} (n={len(values)})"


def compare_pairs(rows: Sequence[Row]) -> str:
    """Return a table of all pairs of systems with several seeds: difference of the MSE, and p.

    The p-values are two-sided, of Welch's t-test, without and with Holm's correction for the number
    of pairs.
    """
    errors = {name: [row["mse"] for row in group] for name, group in group_rows(rows).items()}
    repeated = [name for name, values in errors.items() if len(values) > 1]

    # Holm: the k-th smallest of n p-values times n - k + 1, and never below one before it
    tested = sorted((welch(errors[a], errors[b]), a, b) for a, b in combinations(repeated, 2))
    lines = [("MSE of", "against", "n", "difference", "p", "p, Holm")]
    corrected = 0.0
    for rank, (p, a, b) in enumerate(tested):
        corrected = max(corrected, min(1.0, p * (len(tested) - rank)))
        counts = f"{len(errors[a])}, {len(errors[b])}"
        difference = mean(errors[a]) / mean(errors[b]) - 1
        lines.append((a, b, counts, f"{difference:+.1%}", _format_p(p), _format_p(corrected)))
    return format_markdown(lines) if tested else ""


def _format_p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else "< 0.001"


def welch(first: Sequence[float], second: Sequence[float]) -> float:
    """Return the two-sided p-value of Welch's t-test. Each sample has at least two values."""
    if stdev(first) == stdev(second) == 0:
        return float(mean(first) == mean(second))
    return float(stats.ttest_ind(first, second, equal_var=False).pvalue)


def _draw_sheet(comparison: Comparison, rows: Sequence[Row], folder: Folder) -> None:
    """Draw reconstructions of each system, from its first seed whose images are stored."""
    original = shown_images(comparison.config(next(iter(comparison.systems)), 0))
    lines = [sheets.SheetRow("original", list(original))]
    for system, of_system in group_rows(rows).items():
        for row in of_system:
            if images := folder.read_images(f"{system}-{row['seed']}"):
                title = f"{system}: MSE {row['mse']:.2e}, all test images"
                lines.append(sheets.SheetRow(title, images))
                break
    write_image(sheets.draw(lines), folder.path / "reconstructions.png")


def mean_errors(rows: Sequence[Row]) -> Mapping[int, float]:
    """Return the mean over seeds of the test error by step, on the way of the trainings."""
    by_step: dict[int, list[float]] = {}
    for row in rows:
        for step, error in row["test_errors"]:
            by_step.setdefault(step, []).append(error)
    return {step: mean(errors) for step, errors in sorted(by_step.items())}


def draw_curves(rows: Sequence[Row], path: Path) -> None:
    """Draw the test error against steps and, if systems differ in bits per image, the final error
    against bits.
    """
    all_bits = {row["bits_per_image"] for row in rows}
    num_panels = min(len(all_bits), 2)
    figure = Figure(figsize=(5.5 * num_panels, 3.8), layout="constrained")
    over_steps, *over_bits = figure.subplots(1, num_panels, squeeze=False)[0]
    for system, of_system in group_rows(rows).items():
        errors = mean_errors(of_system)
        over_steps.plot(list(errors), list(errors.values()), "o-", markersize=2, label=system)
        bits = [row["bits_per_image"] for row in of_system]
        for axes in over_bits:
            axes.plot(bits, [row["mse"] for row in of_system], "o", label=system)
    over_steps.set(title="test MSE during training", xlabel="step", xscale="log", yscale="log")
    for axes in over_bits:
        axes.set(title="test MSE", xlabel="bits per image", yscale="log")
        axes.set_xlim(0, 1.05 * max(all_bits))
    for axes in (over_steps, *over_bits):
        axes.grid(alpha=0.3, which="both", linewidth=0.5)
        axes.legend(frameon=False, fontsize=8)
    save_figure(figure, path)
