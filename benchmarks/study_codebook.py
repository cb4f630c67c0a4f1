"""The collapse study: linked and flat codebooks of 64, 512 and 4,096 leaves, each with and without its two helps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean

import torch
from matplotlib.figure import Figure

from benchmarks.common import Row, as_script, median_seconds
from benchmarks.study import Study, with_leaves
from hrvqvae.checkpoints.folder import RunFolder
from hrvqvae.checkpoints.loading import load_with_config
from hrvqvae.comparison.instruments import test_images
from hrvqvae.comparison.systems import Case, Comparison, style
from hrvqvae.config.parsing import override
from hrvqvae.models.single_grid import SingleGridAutoencoder
from hrvqvae.plots.curves import save_figure

BRANCHING = (4, 8, 16)  # m; with three levels 64, 512 and 4,096 leaves
_LEVELS = 3
_NO_START = {"model.quantizer.init_vectors": "0"}
_NO_RESTART = {"model.quantizer.restart_every": "0"}
HELPS: Mapping[str, Mapping[str, str]] = {
    "k-means start, dead-code restart": {},
    "k-means start": _NO_RESTART,
    "dead-code restart": _NO_START,
    "neither": {**_NO_START, **_NO_RESTART},
}
_LINES = ("-", "--", ":", "-.")


def cases(comparison: Comparison) -> list[Case]:
    """Each system with as many leaves, with each help, both and neither, for each seed."""
    found = []
    for seed in comparison.seed_numbers:
        for size in BRANCHING:
            for help_name, changes in HELPS.items():
                for system in comparison.systems:
                    leaves = size**_LEVELS
                    config = override(comparison.config(system, seed), changes)
                    name = f"{system}-{leaves}-{help_name.replace(', ', '-').replace(' ', '-')}-{seed}"
                    labels = {"system": system, "leaves": leaves, "with": help_name, "seed": seed}
                    found.append(Case(name=name, labels=labels, config=with_leaves(config, size, _LEVELS)))
    return found


def _search(run: RunFolder) -> Row:
    """Milliseconds that the search takes for the latents of 128 test images."""
    model, config = load_with_config(run.path)
    assert isinstance(model, SingleGridAutoencoder)
    with torch.inference_mode():
        latents = model.latents(torch.cat(test_images(config, 128)))
        return {"search_ms": median_seconds(lambda: model.quantizer.encode(latents)) * 1e3}


def draw(rows: Sequence[Row], path: Path) -> None:
    """Share of the leaves used, perplexity, MSE and search time against leaves."""
    figure = Figure(figsize=(16, 3.6), layout="constrained")
    panels: Sequence[tuple[str, Callable[[Row], float], str, str]] = (
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
            marker, colour = style(system)
            axes.plot(sizes, means, marker + lines[helped], color=colour, label=f"{system}, {helped}", markersize=4)
        axes.set(title=title, xlabel="leaves", ylabel=unit, xscale="log", yscale=scale)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=8)
    save_figure(figure, path)


STUDY = Study(
    name="codebook",
    varied=tuple(f"model.quantizer.{name}" for name in ("levels", "codewords", "init_vectors", "restart_every")),
    cases=cases,
    more=_search,
    labels=("system", "leaves", "with"),
    columns={
        "leaves_used": ("leaves used", "{:,.0f}"),
        "perplexity": ("perplexity", "{:.1f}"),
        "mse": ("MSE", "{:.3e}"),
        "search_ms": ("search, ms for 128 images", "{:.2f}"),
    },
    order=lambda row: (row["leaves"], list(HELPS).index(row["with"]), row["system"]),
    draw=draw,
)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the study."""
    STUDY.main(__doc__, argv)


if __name__ == "__main__":
    as_script(main)
