"""The fair comparison: each system from its preset, on the same data, in the same order, for the same budget."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from hrvqvae.checkpoints import storage
from hrvqvae.checkpoints.folder import RunFolder
from hrvqvae.comparison.folder import Folder, Measured
from hrvqvae.comparison.harness import Case, as_markdown, run_cases
from hrvqvae.comparison.instruments import Say, shown_images
from hrvqvae.comparison.systems import phases, remarks
from hrvqvae.config import Config, presets
from hrvqvae.config.parsing import override
from hrvqvae.config.registry import SYSTEMS
from hrvqvae.models.build import system_of
from hrvqvae.plots import sheets
from hrvqvae.plots.curves import comparison_curves
from hrvqvae.utils.errors import InputError

_SHOWN_SIZE = 96  # pixels of a side on the sheets, about

# The printed batch sizes of priors are for a GPU: every system's get the same small batch here.
_SMALL_PRIOR = {
    "prior.training.batch_size": "32", "prior.training.learning_rate": "2e-3",
    "prior.training.warmup_steps": "50", "prior.training.evaluate_every": "200",
    "prior.training.checkpoint_every": "200",
}  # fmt: skip

# Fields that options of a comparison decide, for every system alike.
_DECIDED = {
    "data.root": "--data", "training.seed": "--seeds", "training.max_steps": "--max-steps",
    "training.max_minutes": "--max-minutes", "training.epochs": "--max-steps",
    **{f"prior.training.{name}": "--prior-steps" for name in ("max_steps", "max_minutes", "epochs")},
    "prior.training.seed": "--seeds",
}  # fmt: skip

_NEEDED = ("system", "seed", "bits_per_image", "prior_bits_per_image", "mse", "test_errors")  # of rows, by the pictures

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
    "kernel_samples": ("samples: {kernel}", "{:.4f}"),
    "precision_samples": ("samples: precision", "{:.3f}"),
    "recall_samples": ("samples: recall", "{:.3f}"),
    "seconds_per_sample": ("s a sample", "{:.3f}"),
}


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What is compared.

    Attributes:
        dataset: the part of the preset's name after the system.
        systems: their names.
        seeds: how many; each trains every system.
        first_seed: they are first_seed .. first_seed + seeds - 1.
        max_steps, max_minutes: the budget of each autoencoder (0: no such limit; one is needed).
        priors: whether each system's priors are trained too, for the budget of the autoencoder, shared equally among
            its levels.
        prior_steps: the same for so many updates instead (0: not so).
        root: folder of the data.
        fields: dotted name -> text, of fields that every system gets; "vqgan." before a name: that one's, of its model,
            as only the systems differ.

    Raises:
        InputError: no such preset, no budget, no such system, a field of a system that is not compared or that an
            option decides.
    """

    dataset: str
    systems: tuple[str, ...]
    seeds: int = 1
    first_seed: int = 0
    max_steps: int = 0
    max_minutes: float = 0.0
    priors: bool = False
    prior_steps: int = 0
    root: str | None = None
    fields: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not (self.max_steps > 0 or self.max_minutes > 0):
            raise InputError("no budget: give --max-steps or --max-minutes")
        for name in self.systems or ("none",):
            if name not in SYSTEMS:
                raise InputError(f"--systems names {name}; there are {', '.join(SYSTEMS)}")
        if self.seeds < 1:
            raise InputError(f"--seeds is {self.seeds}; it must be at least 1")
        if self.first_seed < 0:
            raise InputError(f"--first-seed is {self.first_seed}; it must be at least 0")
        if self.prior_steps < 0:
            raise InputError(f"--prior-steps is {self.prior_steps}; it must be at least 1")
        for name, option in _DECIDED.items():
            if name in self.fields:
                raise InputError(f"--{name} is the comparison's to decide: give {option}")
        for name in self._own_fields():
            if name.split(".")[0] not in self.systems:
                raise InputError(f"--{name} is of a system that is not compared; there are {', '.join(self.systems)}")
            if name.split(".")[1] != "model":
                raise InputError(
                    f"--{name} would change more than the system; one system's fields are those of its model"
                )
        for system in self.systems:
            system_of(self.config(system, self.first_seed))  # raises where its package is missing, before any training
        self.config(self.systems[0], self.seed_numbers[-1])  # raises where a field or value of any system is none

    @property
    def seed_numbers(self) -> range:
        """The seeds."""
        return range(self.first_seed, self.first_seed + self.seeds)

    def remarks(self) -> list[str]:
        """What a person should know before it begins, a line each."""
        return [line for system in self.systems for line in remarks(self.config(system, 0).model, self.max_steps)]

    def _own_fields(self) -> list[str]:
        """Names of the fields of one system."""
        return [name for name in self.fields if name.split(".")[0] in SYSTEMS]

    def config(self, system: str, seed: int) -> Config:
        """The preset of a system with the budget and seed of this comparison."""
        config = self._configs[system]
        return dataclasses.replace(config, training=dataclasses.replace(config.training, seed=seed))

    @cached_property
    def _configs(self) -> dict[str, Config]:
        """System -> its configuration, but for the seed."""
        budget = {"epochs": 0, "max_steps": self.max_steps, "max_minutes": self.max_minutes}
        given = {f"training.{name}": str(value) for name, value in budget.items()}
        found = {}
        for system in self.systems:
            preset = presets.get(f"{system}/{self.dataset}").config.with_root(self.root)
            prefix = f"{system}."
            own = {name.removeprefix(prefix): value for name, value in self.fields.items() if name.startswith(prefix)}
            found[system] = override(preset, {**self._shared_fields(), **own, **given})
        return found

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
            for seed in self.seed_numbers
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
        """In what each prior differs from its configuration: budget, seed, and what suits few images a step."""
        budget = self.prior_budget()
        if not budget:
            return {}
        priors = len(config.prior_levels)
        steps = max(1, int(budget["max_steps"]) // priors) if budget["max_steps"] else 0
        minutes = budget["max_minutes"] / priors
        given = {"epochs": 0, "max_steps": steps, "max_minutes": minutes, "seed": config.training.seed}
        asked = {name: value for name, value in self.fields.items() if name.startswith("prior.")}
        return {**_SMALL_PRIOR, **asked, **{f"prior.training.{name}": str(value) for name, value in given.items()}}

    def about(self) -> dict[str, Any]:
        """What may not change when more systems, seeds or priors are added."""
        names = ("dataset", "max_steps", "max_minutes", "root")
        return {"study": None, **{name: getattr(self, name) for name in names}, "fields": self._shared_fields()}


def available_systems() -> tuple[str, ...]:
    """Names of the systems whose packages are on this machine."""
    return tuple(system.name for system in SYSTEMS.entries() if system.available)


def _phases(run: RunFolder) -> Measured:
    """Steps that parts of the training took, where a system tells them apart."""
    return {"phases": phases(run.read_config().model, storage.read_meta(run.model)["step"])}


def table(rows: list[Measured]) -> str:
    """The comparison as Markdown, a row a system."""
    names = dict.fromkeys(name for row in rows for name in row.get("phases", {}))
    columns = {**COLUMNS, **{name: (name, "{:,.0f}") for name in names}}
    return as_markdown([{**row, **row.get("phases", {})} for row in rows], ("system",), columns)


def compare(comparison: Comparison, out: Path, say: Say = print) -> tuple[list[Measured], int]:
    """Train, measure and draw every system and seed; -> all rows of the folder, the signal that stopped it (0: none).

    Raises InputError as `run_cases`.
    """
    folder = Folder(out)
    for remark in comparison.remarks():
        say(remark)
    signal = run_cases(comparison.cases(), comparison.about(), folder, say, _phases, _NEEDED)
    here = available_systems()
    with folder.locked(say):
        rows = folder.sorted_rows(lambda row: (row["seed"], _place(here, row["system"])))
        if rows and not signal:
            folder.write_results(rows, table(rows))
            _sheets(comparison, rows, folder, say)
            comparison_curves(rows, out / "curves.png")
    return rows, signal


def _place(systems: Sequence[str], name: str) -> tuple[int, str]:
    """A key that sorts names of systems in their order, and others by the alphabet."""
    return (systems.index(name) if name in systems else len(systems), name)


def _sheets(comparison: Comparison, rows: list[Measured], folder: Folder, say: Say) -> None:
    """The same test images by each system, and samples of each, of its first seed whose images are kept."""
    original = shown_images(comparison.config(comparison.systems[0], 0))
    zoom = max(1, round(_SHOWN_SIZE / original.shape[-1]))
    reconstructions, samples = [sheets.SheetRow("original", list(original))], []
    left_out = []
    for system in dict.fromkeys(row["system"] for row in rows):
        some = [row for row in rows if row["system"] == system]
        kept = [(row, folder.images(f"{system}-{row['seed']}", "reconstructions")) for row in some]
        row, decoded = next((one for one in kept if one[1]), (some[0], ()))
        if not decoded:
            left_out.append(system)
            continue
        reconstructions.append(sheets.SheetRow(f"{system}: MSE {row['mse']:.2e}, all test images", decoded))
        drawn = folder.images(f"{system}-{row['seed']}", "samples")
        if drawn:
            half = len(drawn) // 2
            samples += [sheets.SheetRow(system, drawn[:half]), sheets.SheetRow("", drawn[half:])]
    if left_out:
        say(f"the sheets leave out {', '.join(left_out)}: none of their images is kept in {folder.path / 'rows'}")
    sheets.save(sheets.draw(reconstructions, zoom), folder.path / "reconstructions.png")
    if samples:
        sheets.save(sheets.draw(samples, zoom), folder.path / "samples.png")
