"""Figures of a training: curves and codeword usage."""

from collections.abc import Mapping, Sequence
from io import BytesIO
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from torch import Tensor

from hrvqvae.config import level_names
from hrvqvae.utils.errors import InputError, explain_write_errors
from hrvqvae.utils.outputs import write_atomic

_LINES = ("-", "--", ":", "-.")
# prefixes of the names of the losses that are never negative, for a logarithmic axis
_TERMS = ("loss", "reconstruction", "commitment", "codebook", "perceptual", "discriminator")


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG or SVG, by the suffix of the path, atomically. Raises InputError."""
    if path.suffix not in (".png", ".svg"):
        raise InputError(f"{path} must end in .png or .svg")
    stream = BytesIO()
    figure.savefig(stream, format=path.suffix[1:], metadata={"Date": None})
    with explain_write_errors(path):
        write_atomic(path, stream.getvalue())


def plot_training(records: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Plot loss terms, test MSE and codeword usage against steps, from the records of
    metrics.jsonl.

    Fields that a record lacks, or that are no numbers, are left out: the file may have been edited.
    """
    steps = [record for record in records if record.get("kind") == "train"]
    tests = [record for record in records if record.get("kind") == "evaluation"]
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    losses, errors, usage = figure.subplots(1, 3)

    logged = dict.fromkeys(name for record in steps for name in record)
    names = [
        name for name in logged if name.startswith(_TERMS) and not name.endswith("gradient_norm")
    ]
    for name, style in zip(names, cycle(_LINES), strict=False):
        _plot_field(losses, steps, name, style, label=name)

    levels = max((len(_values(record, "usage")) for record in tests), default=0)
    for level in range(levels):
        prefix = level_names(range(level + 1))
        _plot_field(errors, tests, "level_mse", ".-", label=prefix, level=level)
        _plot_field(usage, tests, "usage", ".-", label=f"level {level + 1}", level=level)

    losses.set(title="training loss", xlabel="step", yscale="log" if steps else "linear")
    errors.set(title="test MSE of each prefix", xlabel="step", yscale="log" if tests else "linear")
    usage.set(title="codewords used on test images", xlabel="step", ylim=(0, 1.05))
    usage.yaxis.set_major_formatter(PercentFormatter(1.0))
    for axes in (losses, errors, usage):
        if axes.lines:
            axes.legend(frameon=False, fontsize=8)
    save_figure(figure, path)


def _plot_field(
    axes: Axes,
    records: Sequence[Mapping[str, Any]],
    name: str,
    style: str,
    label: str,
    level: int = 0,
) -> None:
    """Plot a field against steps; of a field with a value per level, plot the values of `level`.

    A single point gets a marker, to be visible.
    """
    points = []
    for record in records:
        values = _values(record, name)
        if level < len(values) and isinstance(values[level], int | float):
            points.append((record["step"], values[level]))
    if points:
        (line,) = axes.plot(*zip(*points, strict=True), style, label=label, linewidth=1.2)
        if len(points) == 1:
            line.set_marker(".")


def _values(record: Mapping[str, Any], name: str) -> list[Any]:
    """Return a field of a record as a list, of one value or of a value per level."""
    value = record.get(name)
    return value if isinstance(value, list) else [value]


def plot_prior(records: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Plot bits per code, in training and on held-out codes, against steps, from the records of
    metrics.jsonl.
    """
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    train = [record for record in records if record.get("kind") == "train"]
    held_out = [record for record in records if record.get("kind") == "evaluation"]
    _plot_field(axes, train, "bits_per_code", "-", label="training, with dropout")
    _plot_field(axes, held_out, "bits_per_code", ".-", label="held out")
    axes.set(title="bits per code", xlabel="step", yscale="log")
    if axes.lines:
        axes.legend(frameon=False)
    save_figure(figure, path)


def plot_usage(counts: Sequence[Tensor], path: Path) -> None:
    """Plot how often each codeword is chosen, most used first, in a panel per level; counts are
    (K_l,) per level.
    """
    figure = Figure(figsize=(4 * len(counts), 3), layout="constrained")
    panels = figure.subplots(1, len(counts), squeeze=False)[0]
    for level, (axes, count) in enumerate(zip(panels, counts, strict=True), start=1):
        share = torch.sort(count.double() / count.sum().clamp(min=1), descending=True).values * 100
        axes.stairs(share.tolist(), fill=True, color="#4477aa")
        used = int((count > 0).sum())
        axes.set(title=f"level {level}: {used} of {len(share)} used", xlabel="codeword, by rank")
        axes.set_ylabel("% of positions")
        axes.set_yscale("symlog", linthresh=0.1)
    save_figure(figure, path)
