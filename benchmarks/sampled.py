"""Compare the samples of the systems of a comparison: priors of one family, trained for equal time.

python -m benchmarks.sampled DIR --systems hrvqvae,treevq,vqvae --minutes 15 --seeds 3

DIR is the folder of `python -m benchmarks.compare ... --out DIR`, with its runs. The priors of a
system train --minutes of the clock in all, so nothing else should run beside them. Their learning
rate is the one whose priors need the fewest bits for held-out training images, and their guidance
the one whose samples are nearest to training images; both are searched with seed 0. Then the
samples of every seed are compared with test images, without guidance and with it, beside other test
images (guidance -). DIR/samples has the runs with priors, rows.jsonl, and pictures of the first
samples. Processes with different systems may share DIR.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from benchmarks.common import Row, Rows, as_script, finish, options, positive
from hrvqvae.checkpoints.folder import RunFolder, prior_folders
from hrvqvae.config.parsing import stage_config
from hrvqvae.data.images import read_image, to_pil, write_image
from hrvqvae.data.loading import load_images
from hrvqvae.evaluation.classifier import obtain_classifier
from hrvqvae.evaluation.report import evaluate_run
from hrvqvae.evaluation.samples import (
    CLASSIFIER,
    RealImages,
    choose_features,
    draw_subsets,
    read_images_at,
)
from hrvqvae.model import Model
from hrvqvae.plots import sheets
from hrvqvae.priors.sampling import SamplingParams
from hrvqvae.training.loggers import read_records
from hrvqvae.training.stages import raise_signal, train_missing_priors
from hrvqvae.utils.errors import InputError

PRIOR: Mapping[str, str] = {
    "prior.network.kind": "gpt",
    "prior.network.hidden_units": "128",
    "prior.network.layers": "6",
    "prior.network.heads": "4",
    "prior.class_dropout": "0.1",
    "prior.training.optimizer": "muon",
    "prior.training.adam_beta2": "0.99",
    "prior.training.batch_size": "32",
    "prior.training.warmup_steps": "100",
    "prior.training.evaluate_every": "250",
    "prior.training.threads": "1",
}
_BATCH = 128
_SHOWN = 12
RATES = ("0.003", "0.006", "0.012")
GUIDANCE = (1.5, 2.0, 3.0, 4.0, 5.0)


def train_priors(
    trained: RunFolder, target: Path, budget: Mapping[str, float], rate: str, seed: int
) -> float:
    """Train the priors of a copy of a run; return the bits of a held-out training image.

    `budget` has the fields of the budget of all priors of the run together, by their short names.
    """
    if not (target / trained.config.name).is_file():
        if not trained.model.is_file():
            raise InputError(
                f"{trained.path} is not trained; make it with python -m benchmarks.compare"
            )
        shutil.copytree(trained.path, target, ignore=shutil.ignore_patterns("checkpoints"))
    fields = {**PRIOR, "prior.training.learning_rate": rate, "prior.training.seed": str(seed)}
    parts = len(stage_config("prior", trained.read_config(), fields).prior_levels)
    fields |= {"prior.training.epochs": "0", "prior.training.max_steps": "0"}
    fields |= {
        f"prior.training.{name}": str(type(value)(value / parts)) for name, value in budget.items()
    }
    raise_signal(*train_missing_priors(target, fields, resume=True).values())
    bits = [
        [
            record["bits_per_image"]
            for record in read_records(folder.metrics)
            if record["kind"] == "evaluation"
        ]
        for folder in prior_folders(target).values()
    ]
    return math.fsum(map(min, bits))


@torch.inference_mode()
def compare_samples(run: Path, weights: Sequence[float], count: int, split: str) -> list[Row]:
    """Compare `count` samples, or half the split if that is less, with as many real images of a
    split.

    Return a row per guidance weight, and last a row of other real images, whose guidance is None.
    Write the first samples of each weight to a picture beside the run.
    """
    model = Model(run)
    images = load_images(model.config.data, split)
    reference, others = draw_subsets(images, min(count, len(images) // 2), 2)
    classifier = obtain_classifier(model.config.data, run / CLASSIFIER)
    real = RealImages(
        choose_features(model.config.data, run / CLASSIFIER), read_images_at(images, reference)
    )
    rows = list[Row]()
    for weight in weights:
        drawn = model.draw(real.count, seed=0, params=SamplingParams(guidance=weight))
        requested = torch.tensor([model.classes.index(name) for name in drawn.classes])
        accuracy = float((classifier.classify(drawn.images) == requested).double().mean())
        rows.append(
            {
                "guidance": weight,
                "accuracy": accuracy,
                **vars(real.compare(torch.split(drawn.images, _BATCH))),
            }
        )
        write_image(to_pil(torch.cat(list(drawn.images[:_SHOWN]), dim=2)), picture_of(run, weight))
    return [*rows, {"guidance": None, **vars(real.compare(read_images_at(images, others)))}]


def picture_of(run: Path, weight: float) -> Path:
    """Return the file with the first samples of a run."""
    return run.with_name(f"{run.name}-{weight:g}.png")


def search_guidance(run: Path, count: int) -> Row:
    """Compare samples with training images; return the rows, and the guidance with the least
    Frechet distance.
    """
    rows = compare_samples(run, GUIDANCE, count, "train")
    best = min(
        rows[:-1], key=lambda row: math.inf if row["frechet"] is None else row["frechet"]
    )  # None: too few
    return {"guidance": best["guidance"], "searched": rows}


@dataclass
class Study:
    """The rows of a comparison's samples. A row that exists is not made again."""

    comparison: Path
    budget: Mapping[str, float]
    samples: int

    def __post_init__(self) -> None:
        self.folder = self.comparison / "samples"
        self.folder.mkdir(exist_ok=True)
        self.rows = Rows(self.folder / "rows.jsonl")

    def run(self, system: str, seed: int, rate: str) -> Path:
        """Return the run of a system whose priors are trained with a rate."""
        ((name, value),) = self.budget.items()
        return self.folder / f"{system}-{seed}-{rate}-{name.removeprefix('max_')}-{value:g}"

    def train(self, system: str, seed: int, rate: str) -> float:
        """Train the priors of a run, and return their bits."""
        trained = RunFolder(self.comparison / "runs" / f"{system}-{seed}")
        run = self.run(system, seed, rate)
        labels = {
            "what": "prior",
            "system": system,
            "seed": seed,
            "learning_rate": rate,
            **self.budget,
        }
        row = self.rows.get(
            labels, lambda: {"held_out_bits": train_priors(trained, run, self.budget, rate, seed)}
        )
        return float(row["held_out_bits"])

    def measure(self, system: str, seeds: int) -> list[Row]:
        """Search the rate and the guidance of a system, and return three rows per seed, as
        `compare_samples`.
        """
        best = min(RATES, key=lambda rate: self.train(system, 0, rate))
        run = self.run(system, 0, best)
        labels = {"system": system, "learning_rate": best, **self.budget}
        weights = [
            1.0,
            self.rows.get({"what": "guidance", **labels}, partial(search_guidance, run, 2_000))[
                "guidance"
            ],
        ]
        shown = list[Row]()
        for seed in range(seeds):
            self.train(system, seed, best)
            measure = partial(self._evaluate, self.run(system, seed, best), weights)
            row = self.rows.get(
                {"what": "samples", **labels, "seed": seed, "samples": self.samples}, measure
            )
            shown += [{**row, **compared} for compared in row["compared"]]
        pictures = {f"{system}, guidance {weight:g}": picture_of(run, weight) for weight in weights}
        if all(path.is_file() for path in pictures.values()):  # rows may have come without pictures
            strips = [
                sheets.SheetRow(name, [read_image(path, 3)]) for name, path in pictures.items()
            ]
            write_image(sheets.draw(strips, 2), self.folder / f"{system}.png")
        return shown

    def _evaluate(self, run: Path, weights: Sequence[float]) -> Row:
        result = evaluate_run(run).to_dict()
        rates = {name: result[name] for name in ("mse", "prior_bits_per_image")}
        logs = (read_records(folder.metrics) for folder in prior_folders(run).values())
        rates["steps"] = [
            max(record["step"] for record in records) for records in logs
        ]  # of each prior
        return rates | {"compared": compare_samples(run, weights, self.samples, "test")}


COLUMNS = {
    "system": "{system}",
    "seed": "{seed}",
    "guidance": "{guidance:g}",
    "bits": "{prior_bits_per_image:,.0f}",
    "Frechet": "{frechet:.2f}",
    "kernel": "{kernel:.4f}",
    "accuracy": "{accuracy:.1%}",
    "precision": "{precision:.3f}",
    "recall": "{recall:.3f}",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Search rates and guidance, then train the priors of every seed and measure samples."""
    parser = options(__doc__)
    parser.add_argument("comparison", type=Path, metavar="DIR")
    parser.add_argument("--systems", required=True, metavar="A,B")
    parser.add_argument("--seeds", type=positive, default=3, metavar="N", help="(default: 3)")
    budget = parser.add_mutually_exclusive_group(required=True)
    budget.add_argument(
        "--minutes",
        dest="max_minutes",
        type=float,
        metavar="M",
        help="training of all priors of a system",
    )
    budget.add_argument(
        "--steps", dest="max_steps", type=positive, metavar="N", help="instead of --minutes"
    )
    parser.add_argument(
        "--samples", type=positive, default=5_000, metavar="N", help="(default: 5000)"
    )
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    spent = {name: vars(given)[name] for name in ("max_minutes", "max_steps") if vars(given)[name]}
    study = Study(given.comparison, spent, given.samples)
    rows = [
        row for system in given.systems.split(",") for row in study.measure(system, given.seeds)
    ]
    finish(rows, COLUMNS, given.json)


if __name__ == "__main__":
    as_script(main)
