"""Collapse: leaves in use, and error, after a short training of trees, flat and unlinked codebooks
from several starts.

python -m benchmarks.collapse mnist --max-steps 200 --out DIR writes rows.json and collapse.png, and
goes on where it stopped. A leaf is the sum of the codewords of a path: there are m^L in a tree of L
levels and in unlinked codebooks, m in a flat codebook. `N(0, s)` draws codewords apart from the
data; "latents" draws them at the scale of the latents of the untrained encoder, the default without
k-means.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from benchmarks.common import Row, as_script, options, positive, preset_of, read_rows, show
from hrvqvae.checkpoints.folder import RunFolder
from hrvqvae.config import Config
from hrvqvae.config.parsing import digest_of, override
from hrvqvae.config.schema import decide_auto
from hrvqvae.data.batches import Batch
from hrvqvae.evaluation.samples import read_split
from hrvqvae.models.objective import Metrics
from hrvqvae.models.single_grid import SingleGridAutoencoder
from hrvqvae.plots.curves import save_figure
from hrvqvae.quantize import ResidualQuantizer
from hrvqvae.quantize import functional as vq
from hrvqvae.training.autoencoder import AutoencoderTask
from hrvqvae.training.state import TrainState
from hrvqvae.training.trainer import Trainer
from hrvqvae.utils.outputs import write_atomic

KINDS = {"tree": (3, 3), "flat": (1, 1), "unlinked": (3, 1)}
"""Levels and linked levels."""
SCALES = {"N(0, 1)": 1.0, "N(0, 0.1)": 0.1, "N(0, 0.01)": 0.01}
STARTS = (*SCALES, "latents", "k-means")
SHOWN = {"kind": ("tree", "flat"), "start": ("N(0, 1)", "latents"), "leaves": (512,)}
# steps beside the last one
_SHOWN_STEPS = (0, 50)
_SHOWN_LATENTS = 400
_TESTED = 2_000


def configure(
    base: Config, kind: str, leaves: int, start: str, restarts: bool, seed: int
) -> Config:
    """Return the preset with as many leaves in codebooks of that kind."""
    levels, linked = KINDS[kind]
    fields = {
        "model.quantizer.levels": levels,
        "model.quantizer.codewords": round(leaves ** (1 / levels)),
        "model.quantizer.linked": linked,
        "training.seed": seed,
        **({} if start == "k-means" else {"model.quantizer.init_vectors": 0}),
        **({} if restarts else {"model.quantizer.restart_every": 0}),
    }
    return override(base, {name: str(value) for name, value in fields.items()})


class CollapseTask(AutoencoderTask):
    """A training that starts its codewords at a scale, and keeps latents and leaves at a few
    steps.
    """

    def __init__(self, config: Config, run: RunFolder, start: str) -> None:
        super().__init__(config, run)
        self.start = start
        self.kept = dict[int, tuple[Tensor, Tensor]]()

    def initialize(self, model: nn.Module) -> None:
        super().initialize(model)
        if self.start in SCALES:
            assert isinstance(model, SingleGridAutoencoder)
            assert isinstance(model.quantizer, ResidualQuantizer)
            for book in model.quantizer.levels:
                count = book.num_codewords
                drawn = SCALES[self.start] * torch.randn(count, book.codewords.shape[-1])
                book.set_codewords(torch.arange(len(drawn)), drawn, torch.ones(len(drawn)))

    def step(self, state: TrainState, batch: Batch) -> Metrics:
        if state.step in _SHOWN_STEPS:
            self.keep(state.step, state.model, batch.images)
        return super().step(state, batch)

    @torch.no_grad()
    def keep(self, step: int, model: nn.Module, images: Tensor) -> None:
        """Keep a sample of the latents (n, D), and all leaves (m^L, D)."""
        assert isinstance(model, SingleGridAutoencoder)
        latents = model.latents(images.float() / 255).flatten(0, -2)
        sample = torch.randperm(len(latents), generator=torch.Generator().manual_seed(0))[
            :_SHOWN_LATENTS
        ]
        symbols = [torch.arange(count) for count in model.config.num_symbols]
        codes = torch.cartesian_prod(*symbols).view(1, 1, -1, len(symbols))
        leaves = model.quantizer.lookup(codes.unbind(-1)).flatten(0, -2)
        self.kept[step] = latents[sample], leaves


@torch.inference_mode()
def measure(model: SingleGridAutoencoder, images: Tensor) -> Row:
    """Return the number of leaves that the latents of images choose, their perplexity, and the
    MSE.
    """
    codes = []
    error = 0.0
    for batch in torch.split(images, 200):
        codes.append(torch.stack(model.encode(batch)))
        error += float((model.decode(tuple(codes[-1])) - batch).square().mean()) * len(batch)
    leaf = torch.zeros((), dtype=torch.long)
    for symbols, level in zip(model.config.num_symbols, torch.cat(codes, dim=1), strict=True):
        leaf = leaf * symbols + level
    counts = vq.counts(leaf.flatten(), int(leaf.max()) + 1)
    return {
        "used": int((counts > 0).sum()),
        "perplexity": vq.perplexity(counts),
        "mse": error / len(images),
    }


def run(case: Row, base: Config, test: Tensor) -> tuple[Row, dict[int, tuple[Tensor, Tensor]]]:
    """Train and measure a case; return its row, and the latents and leaves of the steps that are
    shown.
    """
    config = decide_auto(configure(base, **case), "model", "training")
    with TemporaryDirectory() as folder:
        task = CollapseTask(config, RunFolder(Path(folder)), case["start"])
        trainer = Trainer(
            task, say=lambda _: None, callbacks=[lambda *values: models.append(values[2].model)]
        )
        models: list[Any] = []
        outcome = trainer.train()
        if outcome.signal is not None:
            sys.exit(128 + outcome.signal)
    model = models[-1].cpu()
    task.keep(outcome.step, model, (test[:128] * 255).byte())
    return {**case, **measure(model, test)}, task.kept


def draw(shown: dict[str, dict[int, tuple[Tensor, Tensor]]], path: Path) -> None:
    """Draw latents and leaves in the latents' first two principal components: a row per case, a
    column per step.
    """
    columns = max(map(len, shown.values()))
    figure = Figure(figsize=(3 * columns, 2.8 * len(shown)), layout="constrained")
    grid = figure.subplots(len(shown), columns, squeeze=False)
    for row, (name, steps) in zip(grid, shown.items(), strict=True):
        for axes, (step, (latents, words)) in zip(row, steps.items(), strict=True):
            mean = latents.mean(0)
            plane = torch.linalg.svd(latents - mean, full_matrices=False).Vh[:2].T
            near = torch.unique(torch.cdist(latents, words).argmin(1))
            chosen = torch.zeros(len(words), dtype=torch.bool).index_fill(0, near, True)
            points = (words - mean) @ plane
            axes.scatter(
                *points[~chosen].T,
                s=6,
                color="0.75",
                label="leaves that none of these latents chooses",
            )
            axes.scatter(
                *((latents - mean) @ plane).T, s=6, color="tab:blue", alpha=0.4, label="latents"
            )
            axes.scatter(*points[chosen].T, s=9, color="tab:red", label="leaves that some choose")
            axes.set(
                xticks=[],
                yticks=[],
                title=f"step {step}: {len(near)} chosen",
                ylabel=name if step == 0 else "",
            )
    figure.legend(
        *grid[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False
    )
    save_figure(figure, path)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the study."""
    parser = options(__doc__)
    parser.add_argument(
        "preset", metavar="DATASET", help="mnist or cifar10: the preset is hrvqvae/DATASET"
    )
    parser.add_argument(
        "--leaves", type=positive, nargs="+", default=(512, 4096), metavar="N", help="cubes of m"
    )
    parser.add_argument(
        "--kinds", nargs="+", choices=KINDS, default=[*KINDS], metavar="KIND", help=", ".join(KINDS)
    )
    parser.add_argument(
        "--max-steps",
        type=positive,
        default=200,
        metavar="N",
        help="of each training (default: 200)",
    )
    parser.add_argument("--seeds", type=positive, default=1, metavar="K")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    arguments, base = preset_of(parser, argv, "hrvqvae/")
    base = override(
        base, {"training.max_steps": str(arguments.max_steps), "training.evaluate_every": "1000000"}
    )
    test = read_split(base.data, "test", _TESTED)
    path = arguments.out / "rows.json"
    digest = digest_of(base, "data", "model", "training")
    about = {"preset": base.name, "max_steps": arguments.max_steps, "configuration": digest}
    rows = read_rows(arguments.out, about)
    shown = {}
    for seed in range(arguments.seeds):
        for leaves in arguments.leaves:
            for kind in arguments.kinds:
                for start, restarts in [
                    *((start, False) for start in STARTS),
                    *((start, True) for start in ("latents", "k-means")),
                ]:
                    case: Row = {
                        "kind": kind,
                        "leaves": leaves,
                        "start": start,
                        "restarts": restarts,
                        "seed": seed,
                    }
                    pictured = (
                        seed == 0
                        and not restarts
                        and all(case[name] in SHOWN[name] for name in SHOWN)
                    )
                    if pictured or not any(case.items() <= row.items() for row in rows):
                        row, kept = run(case, base, test)
                        rows = [
                            *(other for other in rows if not case.items() <= other.items()),
                            row,
                        ]
                        write_atomic(path, json.dumps(rows, indent=2).encode())
                        if pictured:
                            shown[f"{kind}, {start}"] = kept
                            draw(shown, arguments.out / "collapse.png")
                        show([row], {name: f"{{{name}}}" for name in row})


if __name__ == "__main__":
    as_script(main)
