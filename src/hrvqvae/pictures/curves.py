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

from hrvqvae.storage import write_atomic


def _save(figure: Figure, path: Path) -> None:
    stream = BytesIO()
    FigureCanvasAgg(figure).print_png(stream)  # type: ignore[no-untyped-call]
    write_atomic(path, stream.getvalue())


def training_curves(records: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Loss terms, test MSE and codeword usage against steps, from the records of metrics.jsonl."""
    steps = [record for record in records if record.get("kind") == "train"]
    tests = [record for record in records if record.get("kind") == "evaluation"]
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    losses, errors, usage = figure.subplots(1, 3)
    terms = ("loss", "reconstruction", "commitment", "codebook")
    for name, line in zip(terms, ("-", "--", ":", "-."), strict=True):
        points = [(record["step"], record[name]) for record in steps if name in record]
        if points:
            losses.plot(*zip(*points, strict=True), line, label=name, linewidth=1.2)
    losses.set(title="training loss", xlabel="step", yscale="log")
    if losses.lines:
        losses.legend(frameon=False)
    if tests:
        at = [record["step"] for record in tests]
        for level in range(len(tests[0]["level_mse"])):
            label = "level 1" if level == 0 else f"levels 1-{level + 1}"
            errors.plot(at, [record["level_mse"][level] for record in tests], ".-", label=label)
            usage.plot(at, [record["usage"][level] * 100 for record in tests], ".-", label=f"level {level + 1}")
        errors.legend(frameon=False)
        usage.legend(frameon=False)
    errors.set(title="test MSE of each prefix", xlabel="step", yscale="log")
    usage.set(title="codewords used on test images", xlabel="step", ylabel="%", ylim=(0, 105))
    _save(figure, path)


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
    _save(figure, path)
