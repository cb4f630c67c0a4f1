"""The report of a comparison: tables, sheets of images and curves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from statistics import mean, stdev, variance

import numpy as np
from matplotlib.figure import Figure

from hrvqvae.comparison.folder import Folder, format_markdown, run_cases, write_json
from hrvqvae.comparison.instruments import Measured, Say, shown_images
from hrvqvae.comparison.systems import Comparison, plot_style
from hrvqvae.config.registry import SYSTEMS
from hrvqvae.data.images import write_image
from hrvqvae.plots import sheets
from hrvqvae.plots.curves import save_figure
from hrvqvae.utils.errors import DamagedFileError, InputError
from hrvqvae.utils.locks import lock_folder
from hrvqvae.utils.outputs import write_atomic

_SHOWN_SIZE = 96  # approximate side of an image on the sheets, in pixels
_LINE_STYLES = ("-", "--", ":", "-.")  # of the seeds
_RESULTS = ("results.json", "results.md", "curves.png", "reconstructions.png", "samples.png")

# column of results.json -> (header in results.md, format); a name in braces is replaced by its
# value in the rows
COLUMNS: Mapping[str, tuple[str, str]] = {
    "parameters": ("parameters", "{:,.0f}"),
    "bits_per_image": ("bits per image", "{:,.0f}"),
    "compression_ratio": ("compression", "{:.2f}"),
    "mse": ("MSE", "{:.3e}"),
    "psnr": ("PSNR, dB", "{:.2f}"),
    "ssim": ("SSIM", "{:.4f}"),
    "perceptual_distance": ("{perceptual}", "{:.4f}"),
    "frechet_reconstructions": ("{frechet}", "{:.3f}"),
    "usage": ("codewords used", "{:.1%}"),
    "perplexity": ("perplexity, finest", "{:.1f}"),
    "codewords_searched": ("searched per position", "{:,.0f}"),
    "training_seconds": ("training, s", "{:,.0f}"),
    "encode_images_per_second": ("encode, images/s", "{:,.0f}"),
    "decode_images_per_second": ("decode, images/s", "{:,.0f}"),
    "prior_bits_per_image": ("prior, bits per image", "{:.1f}"),
    "frechet_samples": ("samples: {frechet}", "{:.3f}"),
    "kernel_samples": ("samples: {kernel}", "{:.4f}"),
    "precision_samples": ("samples: precision", "{:.3f}"),
    "recall_samples": ("samples: recall", "{:.3f}"),
    "seconds_per_sample": ("s per sample", "{:.3f}"),
    "adversarial_steps": ("steps with a discriminator", "{:,.0f}"),
}


def compare(comparison: Comparison, out: Path, say: Say = print) -> tuple[list[Measured], int]:
    """Train, measure and draw every system and seed; return all rows, and the signal that stopped
    the work, or 0.

    Raises InputError as `run_cases`, or if a file in `out` would be replaced that is not of a
    comparison.
    """
    folder = Folder(out)
    existing = [out / name for name in _RESULTS if (out / name).exists()]
    if existing and not (out / "comparison.json").is_file():
        raise InputError(
            f"{existing[0]} exists, but {out} holds no comparison; choose another --out"
        )
    for system in comparison.systems:
        start = getattr(comparison.config(system, 0).model, "adversarial_start", 0)
        if 0 < comparison.max_steps <= start:
            late = (
                f"{system}'s discriminator begins at step {start:,}, after the end of this budget"
            )
            say(f"note: {late}; set model.adversarial_start to begin earlier")
    signal = run_cases(comparison.cases(), comparison.about(), folder, say)
    with lock_folder(out, wait=say):
        rows = sorted(
            folder.rows(),
            key=lambda row: (row["seed"], (*SYSTEMS, row["system"]).index(row["system"])),
        )
        if rows and not signal:
            write_json(out / "results.json", rows)
            write_atomic(
                out / "results.md",
                f"{table(rows)}\n{compare_pairs(rows)}".rstrip().encode() + b"\n",
            )
            _draw_sheets(comparison, rows, folder, say)
            _draw_curves(rows, out / "curves.png")
    return rows, signal


def table(rows: Sequence[Measured]) -> str:
    """Return the comparison as Markdown, a row per system: means over its seeds with standard
    deviations.

    Raises DamagedFileError if a value does not fit its column.
    """
    try:
        shown = {
            name: column
            for name, column in COLUMNS.items()
            if any(row.get(name) is not None for row in rows)
        }
        lines = [["system", "seeds", *(head.format(**rows[0]) for head, _ in shown.values())]]
        for system in dict.fromkeys(row["system"] for row in rows):
            system_rows = [row for row in rows if row["system"] == system]
            lines.append([system, str(len(system_rows))])
            for name, (_, form) in shown.items():
                values = [row[name] for row in system_rows if row.get(name) is not None]
                cell = form.format(mean(values)) if values else "-"
                if len(values) > 1 and not math.isclose(stdev(values), 0, abs_tol=1e-12):
                    cell += f" ± {form.format(stdev(values))}"
                if 0 < len(values) < len(system_rows):
                    cell += f" (n={len(values)})"
                lines[-1].append(cell)
    except (TypeError, ValueError) as error:
        raise DamagedFileError(
            f"a file in rows/ is damaged ({error}); delete it to have it made again"
        ) from error
    return format_markdown(lines)


def compare_pairs(rows: Sequence[Measured], column: str = "mse") -> str:
    """Return a table of all pairs of systems with several seeds: relative difference of a column's
    means, p-values.

    The p-values are two-sided, of Welch's t-test, without and with Holm's correction for the number
    of pairs.
    """
    values: dict[str, list[float]] = {}
    for row in rows:
        values.setdefault(row["system"], []).append(row[column])
    pairs = combinations([system for system, errors in values.items() if len(errors) > 1], 2)
    tested = sorted((welch(values[a], values[b]), a, b) for a, b in pairs)
    lines = [(f"{column.upper()} of", "against", "n", "difference", "p", "p, Holm")]
    corrected = 0.0
    for rank, (p, a, b) in enumerate(tested):
        corrected = max(corrected, min(1.0, p * (len(tested) - rank)))
        counts = f"{len(values[a])}, {len(values[b])}"
        difference = mean(values[a]) / mean(values[b]) - 1
        lines.append((a, b, counts, f"{difference:+.1%}", _format_p(p), _format_p(corrected)))
    return format_markdown(lines) if tested else ""


def _format_p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else "< 0.001"


def welch(first: Sequence[float], second: Sequence[float]) -> float:
    """Return the two-sided p-value of Welch's t-test (1947) for equal means. Each sample has at
    least two values.
    """
    samples = (first, second)
    squared = [variance(sample) / len(sample) for sample in samples]
    if not sum(squared):
        return float(mean(first) == mean(second))
    t = abs(mean(first) - mean(second)) / math.sqrt(sum(squared))
    freedom = sum(squared) ** 2 / sum(
        a**2 / (len(sample) - 1) for a, sample in zip(squared, samples, strict=True)
    )
    # With x = sqrt(freedom) * tan(angle), the angles from 0 to pi / 2 cover half of Student's
    # distribution.
    end = math.atan(t / math.sqrt(freedom))
    angles = (np.arange(20_000) + 0.5) * end / 20_000
    scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(math.pi)
    area = end * float(np.mean(np.cos(angles) ** (freedom - 1)))
    return float(max(0.0, 1 - 2 * scale * area))


def _draw_sheets(
    comparison: Comparison, rows: Sequence[Measured], folder: Folder, say: Say
) -> None:
    """Draw reconstructions and samples of each system, from its first seed whose images are
    stored.
    """
    original = shown_images(comparison.config(comparison.systems[0], 0))
    zoom = max(1, round(_SHOWN_SIZE / original.shape[-1]))
    reconstructions = [sheets.SheetRow("original", list(original))]
    samples = []
    for system in dict.fromkeys(row["system"] for row in rows):
        cases = [(row, f"{system}-{row['seed']}") for row in rows if row["system"] == system]
        row, name = next(
            (case for case in cases if folder.read_images(case[1], "reconstructions")), cases[0]
        )
        decoded, drawn = (folder.read_images(name, kind) for kind in ("reconstructions", "samples"))
        if not decoded:
            say(f"the sheets leave out {system}: no images are stored in {folder.path / 'rows'}")
            continue
        reconstructions.append(
            sheets.SheetRow(f"{system}: MSE {row['mse']:.2e}, all test images", decoded)
        )
        if drawn:
            half = len(drawn) // 2
            samples += [sheets.SheetRow(system, drawn[:half]), sheets.SheetRow("", drawn[half:])]
    write_image(sheets.draw(reconstructions, zoom), folder.path / "reconstructions.png")
    if samples:
        write_image(sheets.draw(samples, zoom), folder.path / "samples.png")


def _draw_curves(rows: Sequence[Measured], path: Path) -> None:
    """Draw the test MSE against steps, and the final MSE against bits per image."""
    figure = Figure(figsize=(11, 3.8), layout="constrained")
    over_steps, over_bits = figure.subplots(1, 2)
    first_seeds = {row["system"]: row["seed"] for row in reversed(rows)}
    for row in rows:
        marker, colour = plot_style(row["system"])
        label = row["system"] if row["seed"] == first_seeds[row["system"]] else None
        steps, errors = zip(*row["test_errors"], strict=True)
        line = _LINE_STYLES[row["seed"] % len(_LINE_STYLES)]
        over_steps.plot(steps, errors, line, color=colour, marker=marker, markersize=3, label=label)
        over_bits.plot(row["bits_per_image"], row["mse"], marker, color=colour, label=label)
        if row["prior_bits_per_image"] is not None:
            bits = row["prior_bits_per_image"], row["bits_per_image"]
            over_bits.plot(bits, [row["mse"]] * 2, ":", color=colour, linewidth=1)
            over_bits.plot(bits[0], row["mse"], marker, color=colour, fillstyle="none")
    over_steps.set(title="test MSE during training", xlabel="step", yscale="log")
    priors = any(row["prior_bits_per_image"] is not None for row in rows)
    title = "test MSE" + ("; open: bits under the priors" if priors else "")
    over_bits.set(title=title, xlabel="bits per image", yscale="log")
    over_bits.set_xlim(0, 1.05 * max(row["bits_per_image"] for row in rows))
    for axes in (over_steps, over_bits):
        axes.grid(alpha=0.3, which="both", linewidth=0.5)
        axes.legend(frameon=False, fontsize=8)
    save_figure(figure, path)
