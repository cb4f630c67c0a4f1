"""The fair comparison: each system from its preset, on the same data, in the same order, for the same budget."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from hrvqvae import presets
from hrvqvae.checkpoint import RunFolder, load_with_config
from hrvqvae.comparison.harness import Case, Row, Say, as_markdown, rows_of, run_cases, test_images, write_results
from hrvqvae.config import Config
from hrvqvae.configfile import override
from hrvqvae.errors import InputError
from hrvqvae.generate import Generative
from hrvqvae.pictures import sheets
from hrvqvae.pictures.curves import comparison_curves
from hrvqvae.resolve import settled

SYSTEMS = ("hrvqvae", "vqvae", "vqvae2", "vqgan")
_SHEET, _SAMPLES = 12, 24

# column of results.json -> (head of results.md, how its values are shown)
COLUMNS: Mapping[str, tuple[str, str]] = {
    "parameters": ("parameters", "{:,.0f}"),
    "bits_per_image": ("bits an image", "{:,.0f}"),
    "compression_ratio": ("compression", "{:.2f}"),
    "mse": ("MSE", "{:.3e}"),
    "psnr": ("PSNR, dB", "{:.2f}"),
    "ssim": ("SSIM", "{:.4f}"),
    "perceptual_distance": ("{perceptual}", "{:.4f}"),
    "frechet_reconstructions": ("{frechet}", "{:.3f}"),
    "usage": ("codewords used", "{:.1%}"),
    "perplexity": ("perplexity, finest", "{:.1f}"),
    "codewords_searched": ("searched a position", "{:,.0f}"),
    "training_seconds": ("training, s", "{:,.0f}"),
    "encode_images_per_second": ("encode, images/s", "{:,.0f}"),
    "decode_images_per_second": ("decode, images/s", "{:,.0f}"),
    "prior_bits_per_image": ("prior, bits an image", "{:.1f}"),
    "frechet_samples": ("samples: {frechet}", "{:.3f}"),
    "seconds_per_sample": ("s a sample", "{:.3f}"),
}


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What is compared.

    Attributes:
        dataset: the part of the preset's name after the system.
        systems: their names.
        seeds: 0 .. seeds - 1, each trains every system.
        max_steps, max_minutes: the budget of each autoencoder (0: no such limit; one is needed).
        priors: whether each system's priors are trained too, for the budget of the autoencoder, shared equally among
            its levels.
        prior_steps: the same for so many updates instead (0: not so).
        root: folder of the data.
        fields: dotted name -> text, of fields that every system gets; "vqgan." before a name: that one's, of its model,
            as only the systems differ.

    Raises:
        InputError: no such preset, no budget, no system, or a field of a system that is not compared.
    """

    dataset: str
    systems: tuple[str, ...] = SYSTEMS
    seeds: int = 1
    max_steps: int = 0
    max_minutes: float = 0.0
    priors: bool = False
    prior_steps: int = 0
    root: str | None = None
    fields: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not (self.max_steps > 0 or self.max_minutes > 0):
            raise InputError("no budget: give --max-steps or --max-minutes")
        if not self.systems:
            raise InputError(f"--systems names none; there are {', '.join(SYSTEMS)}")
        if self.seeds < 1:
            raise InputError(f"--seeds is {self.seeds}; it must be at least 1")
        if self.prior_steps < 0:
            raise InputError(f"--prior-steps is {self.prior_steps}; it must be at least 1")
        for name in self._own_fields():
            if name.split(".")[0] not in self.systems:
                raise InputError(f"--{name} is of a system that is not compared; there are {', '.join(self.systems)}")
            if name.split(".")[1] != "model":
                raise InputError(
                    f"--{name} would change more than the system; one system's fields are those of its model"
                )
        for system in self.systems:
            self.config(system, 0)

    def _own_fields(self) -> list[str]:
        """Names of the fields of one system."""
        return [name for name in self.fields if name.split(".")[0] in SYSTEMS]

    def config(self, system: str, seed: int) -> Config:
        """The preset of a system with the budget and seed of this comparison."""
        preset = presets.get(f"{system}/{self.dataset}").config.with_root(self.root)
        budget = {"epochs": 0, "max_steps": self.max_steps, "max_minutes": self.max_minutes, "seed": seed}
        given = {f"training.{name}": str(value) for name, value in budget.items()}
        prefix = f"{system}."
        own = {name.removeprefix(prefix): value for name, value in self.fields.items() if name.startswith(prefix)}
        return settled(override(preset, {**self._shared_fields(), **own, **given}))

    def _shared_fields(self) -> dict[str, str]:
        own = self._own_fields()
        return {name: value for name, value in self.fields.items() if name not in own}

    def cases(self) -> list[Case]:
        """Every system, seed after seed."""
        return [
            Case(
                name=f"{system}-{seed}", labels={"system": system, "seed": seed}, config=self.config(system, seed),
                prior=self._prior_of(self.config(system, seed)),
            )
            for seed in range(self.seeds)
            for system in self.systems
        ]  # fmt: skip

    def prior_budget(self) -> dict[str, float]:
        """Steps and minutes of a system's priors in all (0: no such limit); empty without priors."""
        if not (self.priors or self.prior_steps):
            return {}
        if self.prior_steps:
            return {"max_steps": self.prior_steps, "max_minutes": 0.0}
        return {"max_steps": self.max_steps, "max_minutes": self.max_minutes}

    def _prior_of(self, config: Config) -> dict[str, str]:
        """The budget of each level's prior."""
        budget, levels = self.prior_budget(), len(config.model.num_symbols)
        if not budget:
            return {}
        steps = max(1, int(budget["max_steps"]) // levels) if budget["max_steps"] else 0
        given = {"epochs": 0, "max_steps": steps, "max_minutes": budget["max_minutes"] / levels}
        return {f"prior.training.{name}": str(value) for name, value in given.items()}

    def about(self) -> dict[str, Any]:
        """What may not change when more systems, seeds or priors are added."""
        names = ("dataset", "max_steps", "max_minutes", "root")
        return {"study": None, **{name: getattr(self, name) for name in names}, "fields": self._shared_fields()}


def table(rows: list[Row]) -> str:
    """The comparison as Markdown, a row a system."""
    return as_markdown(rows, ("system",), COLUMNS)


def compare(comparison: Comparison, out: Path, say: Say = print) -> tuple[list[Row], int]:
    """Train, measure and draw every system and seed; -> all rows of the folder, the signal that stopped it (0: none).

    Raises InputError as `run_cases`.
    """
    signal = run_cases(comparison.cases(), comparison.about(), out, say)
    rows = rows_of(out, lambda row: (row["seed"], SYSTEMS.index(row["system"])))
    if not signal:
        write_results(out, rows, table(rows))
        _sheets(comparison, rows, out)
        comparison_curves(rows, [_test_errors(out, row) for row in rows], out / "curves.png")
    return rows, signal


def _test_errors(out: Path, row: Row) -> list[tuple[int, float]]:
    """(step, test MSE) of a row's training."""
    lines = RunFolder(out / "runs" / f"{row['system']}-{row['seed']}").metrics.read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return [(record["step"], record["mse"]) for record in records if record["kind"] == "evaluation"]


def _sheets(comparison: Comparison, rows: list[Row], out: Path) -> None:
    """The same test images by each system, and samples of each (of seed 0)."""
    images = test_images(comparison.config(comparison.systems[0], 0), _SHEET)[0][:_SHEET]
    reconstructions, samples = [sheets.Row("original", list(images))], []
    for row in (row for row in rows if row["seed"] == 0):
        system = row["system"]
        run = out / "runs" / f"{system}-0"
        model, _ = load_with_config(run)
        with torch.inference_mode():
            decoded = model.decode(model.encode(images), size=(images.shape[-2], images.shape[-1]))
        error = float((decoded - images).square().mean())
        reconstructions.append(sheets.Row(f"{system}: MSE {error:.2e}", list(decoded)))
        if row["prior_bits_per_image"] is not None:
            drawn = list(Generative(run).sample(_SAMPLES, seed=0).images)
            half = _SAMPLES // 2
            samples += [sheets.Row(system, drawn[:half]), sheets.Row("", drawn[half:])]
    sheets.save(sheets.draw(reconstructions), out / "reconstructions.png")
    if samples:
        sheets.save(sheets.draw(samples), out / "samples.png")
