"""Training curves and codeword usage, as PNG."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from statistics import mean
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
_STYLES = {  # system -> marker and colour of its curves
    "hrvqvae": ("o", "#4477aa"),
    "treevq": ("*", "#222255"),
    "vqvae": ("s", "#cc6677"),
    "vqvae2": ("^", "#228833"),
    "vqgan": ("D", "#aa8800"),
    "rqvae": ("v", "#aa3377"),
    "fsq": ("P", "#66ccee"),
    "vqpytorch": ("X", "#555555"),
}
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
    """Bits a code of training batches and of held-out codes against steps, from the records of metrics.jsonl."""
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    for kind, label, marker in (("train", "training, with dropout", ""), ("evaluation", "held out", ".")):
        points = [(record["step"], record["bits_per_code"]) for record in records if record.get("kind") == kind]
        if points:
            axes.plot(*zip(*points, strict=True), "-", marker=marker or _marker(points), label=label, linewidth=1.2)
    axes.set(title="bits a code", xlabel="step", yscale="log")
    axes.legend(frameon=False)
    save_figure(figure, path)


_METHODS = {
    "tree": ("tree of linked codebooks", "o-"), "flat": ("flat, ours", "s-"), "cdist": ("torch.cdist + argmin", "x:"),
    "vector_quantize": ("flat, vector-quantize-pytorch", "^--"),
    "residual_vq": ("unlinked residual, vector-quantize-pytorch", "v--"),
}  # fmt: skip


def search_growth(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Cost of a search against the number of leaves, from the rows of bench search: m = 8 left, L = 3 right."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    panels = (("codewords", 8, "m = 8, L = 1 to 6"), ("levels", 3, "L = 3, m = 4 to 64"))
    for axes, (fixed, value, title) in zip(figure.subplots(1, 2, sharey=True), panels, strict=True):
        some = sorted((row for row in rows if row[fixed] == value), key=lambda row: row["leaves"])
        for method, (label, style) in _METHODS.items():
            points = [(row["leaves"], row["seconds"] * 1e3) for row in some if row["method"] == method]
            if points:
                axes.plot(*zip(*points, strict=True), style, label=label)
        floor = [(row["leaves"], row["floor"] * 1e3) for row in some if row["method"] == "tree"]
        if floor:
            axes.plot(*zip(*floor, strict=True), "k:", linewidth=1, label="arithmetic floor of the tree")
        axes.set(title=title, xlabel="leaves (m^L)", xscale="log", yscale="log")
        if axes.lines:
            axes.legend(frameon=False, fontsize=8)
    size = f"{rows[0]['vectors']:,} vectors of width {rows[0]['width']}" if rows else ""
    figure.axes[0].set_ylabel(f"milliseconds for {size}")
    save_figure(figure, path)


def _style(system: str) -> tuple[str, str]:
    """(marker, colour) of a system's curves; grey where it is none of ours."""
    return _STYLES.get(system, ("o", "#777777"))


def comparison_curves(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Test MSE against steps, and at the end against bits an image, of the rows of a comparison."""
    figure = Figure(figsize=(11, 3.8), layout="constrained")
    over_steps, over_bits = figure.subplots(1, 2)
    first = {row["system"]: row["seed"] for row in reversed(rows)}
    for row in rows:
        marker, colour = _style(row["system"])
        label = row["system"] if row["seed"] == first[row["system"]] else None
        line = _LINES[row["seed"] % len(_LINES)]
        over_steps.plot(
            *zip(*row["test_errors"], strict=True), line, color=colour, marker=marker, markersize=3, label=label
        )
        over_bits.plot(row["bits_per_image"], row["mse"], marker, color=colour, label=label)
        if row["prior_bits_per_image"] is not None:
            bits = row["prior_bits_per_image"], row["bits_per_image"]
            over_bits.plot(bits, [row["mse"]] * 2, ":", color=colour, linewidth=1)
            over_bits.plot(bits[0], row["mse"], marker, color=colour, fillstyle="none")
    over_steps.set(title="test MSE during training", xlabel="step", yscale="log")
    priors = any(row["prior_bits_per_image"] is not None for row in rows)
    title = "test MSE" + ("; open: bits under the priors" if priors else "")
    over_bits.set(title=title, xlabel="bits an image", yscale="log")
    over_bits.set_xlim(0, 1.05 * max(row["bits_per_image"] for row in rows))
    for axes in (over_steps, over_bits):
        axes.grid(alpha=0.3, which="both", linewidth=0.5)
        axes.legend(frameon=False, fontsize=8)
    save_figure(figure, path)


def codebook_study(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Share of the leaves used, perplexity, MSE and search time against leaves, from the rows of the codebook study."""
    figure = Figure(figsize=(16, 3.6), layout="constrained")
    panels: Sequence[tuple[str, Callable[[Mapping[str, Any]], float], str, str]] = (
        ("leaves used", lambda row: row["leaves_used"] / row["leaves"] * 100, "%", "linear"),
        ("perplexity of the leaves", lambda row: row["perplexity"], "", "log"),
        ("test MSE", lambda row: row["mse"], "", "log"),
        ("search, 128 images", lambda row: row["search_ms"], "ms", "log"),
    )
    lines = dict(zip(dict.fromkeys(row["with"] for row in rows), _LINES, strict=False))
    kinds = dict.fromkeys((row["system"], row["with"]) for row in rows)
    for axes, (title, value, unit, scale) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        for system, helped in kinds:
            some = [row for row in rows if (row["system"], row["with"]) == (system, helped)]
            sizes = sorted({row["leaves"] for row in some})
            means = [mean(value(row) for row in some if row["leaves"] == size) for size in sizes]
            marker, colour = _style(system)
            axes.plot(sizes, means, marker + lines[helped], color=colour, label=f"{system}, {helped}", markersize=4)
        axes.set(title=title, xlabel="leaves", ylabel=unit, xscale="log", yscale=scale)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=8)
    save_figure(figure, path)


def rate_distortion(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """From the rows of the rate study: test MSE against bits an image, a line for each depth, with prefixes dotted; and
    what a tree's error is of that of one level with as many leaves.
    """
    figure = Figure(figsize=(12, 4.4), layout="constrained")
    over_bits, over_depth = figure.subplots(1, 2)
    found: dict[tuple[str, int], dict[int, list[float]]] = {}
    for row in rows:
        found.setdefault((row["system"], row["levels"]), {}).setdefault(row["leaves"], []).append(row["mse"])
    rates = {row["leaves"]: row["bits_per_image"] for row in rows}
    for place, (system, levels) in enumerate(sorted(found, key=_by_depth)):
        errors = found[system, levels]
        leaves, colour, marker = sorted(errors), f"C{place}", _style(system)[0]
        means = [mean(errors[number]) for number in leaves]
        label = f"{system}, L = {levels}"
        over_bits.plot(
            [rates[number] for number in leaves], means, marker + "-", color=colour, label=label, markersize=5
        )
        for row in rows:
            if (row["system"], row["levels"]) == (system, levels):
                prefixes = [
                    (row["bits_per_image"] * level / levels, error)
                    for level, error in enumerate(row["level_mse"], start=1)
                    if error is not None
                ]
                over_bits.plot(*zip(*prefixes, strict=True), ".:", color=colour, linewidth=0.8, markersize=3)
    for place, number in enumerate(sorted(rates)):
        flat = [error for (_, levels), errors in found.items() if levels == 1 for error in errors.get(number, ())]
        points = [
            (levels, mean(errors[number]) / mean(flat) * 100 - 100)
            for (_, levels), errors in sorted(found.items(), key=lambda one: _by_depth(one[0]))
            if flat and levels > 1 and number in errors
        ]
        if points:
            over_depth.plot(*zip(*points, strict=True), "o-", color=f"C{place}", label=f"{number:,} leaves")
    over_depth.axhline(0, color="black", linewidth=0.8)
    over_bits.set(
        title="test MSE; dotted: prefixes of the same model", xlabel="bits an image", xlim=(0, None), yscale="log"
    )
    over_depth.set(title="test MSE above that of one level with as many leaves, %", xlabel="levels (L)")
    for axes in (over_bits, over_depth):
        axes.grid(alpha=0.3, which="both", linewidth=0.5)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, fontsize=8)
    save_figure(figure, path)


def _by_depth(kind: tuple[str, int]) -> tuple[int, str]:
    return kind[1], kind[0]


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
