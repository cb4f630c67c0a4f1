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
from hrvqvae.utils.outputs import write_output

Record = Mapping[str, Any]
"""A line of metrics.jsonl."""

_LINES = ("-", "--", ":", "-.")
# prefixes of the names of the losses that are never negative, for a logarithmic axis
_TERMS = ("loss", "reconstruction", "commitment", "codebook", "perceptual", "discriminator")


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG or SVG, by the suffix of the path. Raises InputError if it can't be
    written.
    """
    stream = BytesIO()
    figure.savefig(stream, format=path.suffix[1:], metadata={"Date": None})
    write_output(path, stream.getvalue())


def plot_training(records: Sequence[Record], path: Path) -> None:
    """Plot loss terms, test MSE and codeword usage against steps, from the records of
    metrics.jsonl.
    """
    steps = [record for record in records if record["kind"] == "train"]
    tests = [record for record in records if record["kind"] == "evaluation"]
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    losses, errors, usage = figure.subplots(1, 3)

    # the first record may lack a loss that begins later
    logged = dict.fromkeys(name for record in steps for name in record)
    names = [
        name for name in logged if name.startswith(_TERMS) and not name.endswith("gradient_norm")
    ]
    for name, style in zip(names, cycle(_LINES), strict=False):
        _plot_field(losses, steps, name, style, label=name)

    levels = len(tests[-1]["usage"]) if tests else 0
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
    records: Sequence[Record],
    name: str,
    style: str,
    label: str,
    level: int | None = None,
) -> None:
    """Plot a field against steps; of a field with a value per level, plot the values of `level`.
    Records without a value are left out.
    """
    points = []
    for record in records:
        value = record.get(name)
        if level is not None:
            value = record[name][level]
        if value is not None:
            points.append((record["step"], value))
    if points:
        axes.plot(*zip(*points, strict=True), style, label=label, linewidth=1.2)


def plot_prior(records: Sequence[Record], path: Path) -> None:
    """Plot bits per code, in training and on held-out codes, against steps, from the records of
    metrics.jsonl.
    """
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    train = [record for record in records if record["kind"] == "train"]
    held_out = [record for record in records if record["kind"] == "evaluation"]
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
