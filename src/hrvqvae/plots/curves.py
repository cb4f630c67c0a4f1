"""Figures of a training: curves and codeword usage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from hrvqvae.config import level_names
from hrvqvae.utils.errors import InputError, explain_write_errors
from hrvqvae.utils.outputs import write_atomic

_LINES = ("-", "--", ":", "-.")
_TERMS = (
    "loss",
    "reconstruction",
    "commitment",
    "codebook",
    "perceptual",
    "discriminator",
)  # none is below 0


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
    """
    steps = [record for record in records if record.get("kind") == "train"]
    tests = [record for record in records if record.get("kind") == "evaluation"]
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    losses, errors, usage = figure.subplots(1, 3)
    terms = [
        name
        for name in dict.fromkeys(key for record in steps for key in record)
        if name.startswith(_TERMS)
    ]
    for name, style in zip(terms, cycle(_LINES), strict=False):
        _plot_field(losses, steps, name, style, label=name)
    losses.set(title="training loss", xlabel="step", yscale="log" if steps else "linear")
    if losses.lines:
        losses.legend(frameon=False, fontsize=8)
    if tests:
        at_steps = [record["step"] for record in tests]
        for level in range(len(tests[0]["level_mse"])):
            if tests[0]["level_mse"][level] is not None:
                mse = [record["level_mse"][level] for record in tests]
                errors.plot(at_steps, mse, ".-", label=level_names(range(level + 1)))
            usage.plot(
                at_steps,
                [record["usage"][level] * 100 for record in tests],
                ".-",
                label=f"level {level + 1}",
            )
        errors.legend(frameon=False)
        usage.legend(frameon=False)
    errors.set(title="test MSE of each prefix", xlabel="step", yscale="log" if tests else "linear")
    usage.set(title="codewords used on test images", xlabel="step", ylabel="%", ylim=(0, 105))
    save_figure(figure, path)


def _plot_field(
    axes: Axes, records: Sequence[Mapping[str, Any]], name: str, style: str, label: str
) -> None:
    """Plot a field of the records that have it against steps; a single point gets a marker, to be
    visible.
    """
    points = [(record["step"], record[name]) for record in records if name in record]
    if points:
        (line,) = axes.plot(*zip(*points, strict=True), style, label=label, linewidth=1.2)
        if len(points) == 1:
            line.set_marker(".")


def plot_prior(records: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Plot bits per code, in training and on held-out codes, against steps, from the records of
    metrics.jsonl.
    """
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    for kind, label, style in (
        ("train", "training, with dropout", "-"),
        ("evaluation", "held out", ".-"),
    ):
        _plot_field(
            axes,
            [record for record in records if record.get("kind") == kind],
            "bits_per_code",
            style,
            label,
        )
    axes.set(title="bits per code", xlabel="step", yscale="log")
    axes.legend(frameon=False)
    save_figure(figure, path)


def plot_usage(counts: Sequence[Tensor], path: Path) -> None:
    """Plot how often each codeword is chosen, most used first, in a panel per level; counts are
    (K_l,) per level.
    """
    figure = Figure(figsize=(4 * len(counts), 3), layout="constrained")
    for level, (axes, count) in enumerate(
        zip(figure.subplots(1, len(counts), squeeze=False)[0], counts, strict=True)
    ):
        share = torch.sort(count.double() / count.sum().clamp(min=1), descending=True).values * 100
        axes.stairs(share.tolist(), fill=True, color="#4477aa")
        used = int((count > 0).sum())
        axes.set(
            title=f"level {level + 1}: {used} of {len(share)} used", xlabel="codeword, by rank"
        )
        axes.set_ylabel("% of positions")
        axes.set_yscale("symlog", linthresh=0.1)
    save_figure(figure, path)
