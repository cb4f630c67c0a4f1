"""Training curves and codeword usage, as PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from hrvqvae.utils.files import write_atomic


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, whole or not at all."""
    stream = BytesIO()
    FigureCanvasAgg(figure).print_png(stream)  # type: ignore[no-untyped-call]
    write_atomic(path, stream.getvalue())


_LINES = ("-", "--", ":", "-.")
_TERMS = ("loss", "reconstruction", "commitment", "codebook", "perceptual", "discriminator")  # none is below 0


def training_curves(records: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Loss terms, test MSE and codeword usage against steps, from the records of metrics.jsonl."""
    steps = [record for record in records if record.get("kind") == "train"]
    tests = [record for record in records if record.get("kind") == "evaluation"]
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    losses, errors, usage = figure.subplots(1, 3)
    terms = [name for name in dict.fromkeys(key for record in steps for key in record) if name.startswith(_TERMS)]
    for number, name in enumerate(terms):
        points = [(record["step"], record[name]) for record in steps if name in record]
        style = _LINES[number % len(_LINES)]
        losses.plot(*zip(*points, strict=True), style, marker=_marker(points), label=name, linewidth=1.2)
    losses.set(title="training loss", xlabel="step", yscale="log" if steps else "linear")
    if losses.lines:
        losses.legend(frameon=False, fontsize=8)
    if tests:
        at = [record["step"] for record in tests]
        for level in range(len(tests[0]["level_mse"])):
            label = "level 1" if level == 0 else f"levels 1-{level + 1}"
            if tests[0]["level_mse"][level] is not None:
                errors.plot(at, [record["level_mse"][level] for record in tests], ".-", label=label)
            usage.plot(at, [record["usage"][level] * 100 for record in tests], ".-", label=f"level {level + 1}")
        errors.legend(frameon=False)
        usage.legend(frameon=False)
    errors.set(title="test MSE of each prefix", xlabel="step", yscale="log" if tests else "linear")
    usage.set(title="codewords used on test images", xlabel="step", ylabel="%", ylim=(0, 105))
    save_figure(figure, path)


def _marker(points: Sequence[object]) -> str:
    """The marker of a line, which shows it where it is one point."""
    return "." if len(points) == 1 else ""


def prior_curves(records: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Bits per code of training batches and of held-out codes against steps, from the records of metrics.jsonl."""
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    for kind, label, marker in (("train", "training, with dropout", ""), ("evaluation", "held out", ".")):
        points = [(record["step"], record["bits_per_code"]) for record in records if record.get("kind") == kind]
        if points:
            axes.plot(*zip(*points, strict=True), "-", marker=marker or _marker(points), label=label, linewidth=1.2)
    axes.set(title="bits per code", xlabel="step", yscale="log")
    axes.legend(frameon=False)
    save_figure(figure, path)


def codeword_usage(counts: Sequence[Tensor], path: Path) -> None:
    """How often each codeword is chosen, most used first, a panel a level; counts are (K_l,) a level."""
    figure = Figure(figsize=(4 * len(counts), 3), layout="constrained")
    for level, (axes, count) in enumerate(zip(figure.subplots(1, len(counts), squeeze=False)[0], counts, strict=True)):
        share = torch.sort(count.double() / count.sum().clamp(min=1), descending=True).values * 100
        axes.bar(range(len(share)), share.tolist(), width=1.0 if len(share) > 16 else 0.8, color="#4477aa")
        used = int((count > 0).sum())
        axes.set(
            title=f"level {level + 1}: {used} of {len(share)} used", xlabel="codeword, by rank", ylabel="% of positions"
        )
        axes.set_yscale("symlog", linthresh=0.1)
    save_figure(figure, path)
