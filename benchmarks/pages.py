"""Recompute the figures of the pages from docs/data, apart from the code that wrote them.

    python -m benchmarks.pages

pages.txt has, below the name of a page, parts of its text, with an expression in braces for each
figure. Parts that the page lacks are printed, each with the nearest line of the page; the exit code
is 1 if there are any. Nothing of the package is imported: p-values are those of scipy (Welch,
two-sided), and Holm's correction is written out here.
"""

import itertools
import json
import re
import sys
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from statistics import mean, stdev, variance
from typing import Any

from scipy import stats

ROOT = Path(__file__).parent.parent
DATA = ROOT / "docs" / "data"
RIVALS = ("WebP", "AVIF, frame only", "JPEG XL", "PCA, ideal codes")
Values = Sequence[float]
Row = dict[str, Any]


def read(path: str) -> Any:
    """Return the content of a JSON or JSON Lines file in docs/data."""
    text = (DATA / path).read_text()
    if path.endswith("l"):
        return [json.loads(line) for line in text.splitlines()]
    return json.loads(text)


def where(path: str, field: str, **wanted: object) -> list[float]:
    """Return a field of the rows of a file that have the wanted values."""
    return [row[field] for row in read(path) if wanted.items() <= row.items()]


def read_trials(folder: str, names: str) -> list[Row]:
    """Return the trials of a search whose file names match a pattern."""
    paths = (DATA / folder).glob(f"*/rows/{names}.json")
    return [read(str(path)) for path in paths]


def best(folder: str, system: str, **wanted: str) -> Row:
    """Return the trial of least validation error among those with the wanted settings."""
    trials = [
        trial
        for trial in read_trials(folder, f"{system}-*")
        if trial.get("validation_mse") and wanted.items() <= trial.items()
    ]
    return min(trials, key=lambda trial: trial["validation_mse"])


def gain(folder: str, system: str, **wanted: str) -> str:
    """Return by how much Muon's validation error is below Adam's, each at its best learning
    rate.
    """
    muon, adam = (
        best(folder, system, optimizer=name, **wanted)["validation_mse"]
        for name in ("muon", "adam")
    )
    return change([muon], [adam], 0).lstrip("-")


def settings(trial: Row) -> str:
    """Return "learning rate; decay; commitment weight" of a trial, without those that it lacks."""
    values = (trial.get(name) for name in ("learning_rate", "decay", "beta"))
    return "; ".join(f"{float(value):g}" for value in values if value not in (None, "null"))


def ladder(folder: str, system: str, field: str, values: Values, optimizer: str = "") -> str:
    """Return the validation errors of a search by these values of a field, with equal other
    settings.
    """
    lines = dict[tuple[object, ...], dict[float, float]]()
    others = [name for name in ("optimizer", "learning_rate", "decay", "beta") if name != field]
    for trial in read_trials(folder, f"{system}-{optimizer}*"):
        if trial.get(field, "null") != "null":
            line = lines.setdefault(tuple(map(trial.get, others)), {})
            line[float(trial[field])] = trial["validation_mse"]
    line = max(lines.values(), key=len, default={})
    assert line.keys() <= set(values)
    if len(line) < 2:
        return ""
    return ", ".join(f"{1e4 * line[value]:.2f}" if value in line else "-" for value in values)


def spread(sample: Values, scale: float = 1e4, digits: int = 2) -> str:
    """Return mean ± standard deviation, or a single value alone."""
    deviation = f" ± {scale * stdev(sample):,.{digits}f}" if len(sample) > 1 else ""
    return f"{scale * mean(sample):,.{digits}f}{deviation}"


def change(first: Values, second: Values, digits: int = 1) -> str:
    """Return the relative difference of two means."""
    return f"{100 * (mean(first) / mean(second) - 1):+.{digits}f}%"


def shorten(p: float) -> str:
    """Return a p-value with two digits."""
    return "< 0.001" if p < 0.001 else f"{p:.2g}"


def largest(*shown: str) -> str:
    """Return the largest of p-values that `shorten` returned."""
    return max(shown, key=lambda text: float(text.removeprefix("< ")))


def p_welch(first: Values, second: Values) -> float:
    """Return the two-sided p-value of Welch's t-test."""
    return float(stats.ttest_ind(first, second, equal_var=False).pvalue)


def welch(first: Values, second: Values) -> str:
    """Return `p_welch` with two digits."""
    return shorten(p_welch(first, second))


def interval(first: Values, second: Values) -> str:
    """Return the 95% interval of the relative difference of two means (Welch), without a
    correction.
    """
    test = stats.ttest_ind(first, second, equal_var=False)
    low, high = test.confidence_interval(0.95)
    return f"{100 * low / mean(second):+.1f}% to {100 * high / mean(second):+.1f}%"


def holm(plain: Mapping[Any, float]) -> dict[Any, float]:
    """Return p-values with Holm's correction for all of them."""
    corrected = {}
    reached = 0.0
    for rank, name in enumerate(sorted(plain, key=plain.__getitem__)):
        corrected[name] = reached = max(reached, min(1.0, plain[name] * (len(plain) - rank)))
    return corrected


def least(first: Values, second: Values, tests: int = 1) -> float:
    """Return the smallest difference, in percent of the second mean, whose p times the number of
    tests is 0.05.
    """
    samples = (first, second)
    errors = [variance(sample) / len(sample) for sample in samples]
    parts = [error**2 / (len(sample) - 1) for error, sample in zip(errors, samples, strict=True)]
    quantile = stats.t.ppf(1 - 0.025 / tests, sum(errors) ** 2 / sum(parts))
    return float(100 * quantile * sum(errors) ** 0.5 / mean(second))


class Table:
    """The rows of a comparison by system, and p-values with Holm's correction for all pairs of
    systems.
    """

    def __init__(self, rows: Mapping[str, list[Row]]) -> None:
        self.rows = rows
        repeated = sorted(name for name in rows if len(rows[name]) > 1)
        pairs = itertools.combinations(repeated, 2)
        self.corrected = holm({pair: p_welch(*map(self.values, pair)) for pair in pairs})

    def values(self, system: str, field: str = "mse") -> list[float]:
        return [row[field] for row in self.rows[system]]

    def mse(self, system: str) -> str:
        return spread(self.values(system))

    def frechet(self, system: str, digits: int = 1) -> str:
        return spread(self.values(system, "frechet_reconstructions"), 1, digits)

    def change(self, first: str, second: str, digits: int = 1) -> str:
        return change(self.values(first), self.values(second), digits)

    def holm(self, first: str, second: str) -> str:
        return shorten(self.corrected[tuple(sorted((first, second)))])

    def against(self, system: str, values: Values) -> str:
        """Return the p-value of a system against other values, with Holm's correction for all
        systems of the table.
        """
        tests = {name: p_welch(self.values(name), values) for name in self.rows}
        return shorten(holm(tests)[system])

    def least(self, first: str, second: str) -> str:
        return f"{least(self.values(first), self.values(second), len(self.corrected)):.0f}%"

    def extremes(self, system: str, *rivals: str) -> tuple[str, str]:
        """Return the least and the largest p-value of a system against rivals."""
        p_values = [self.corrected[tuple(sorted((system, rival)))] for rival in rivals]
        return shorten(min(p_values)), shorten(max(p_values))


def read_table(folder: str) -> Table:
    """Return the rows of docs/data/FOLDER."""
    rows: dict[str, list[Row]] = {}
    for path in sorted((DATA / folder / "rows").glob("*.json")):
        rows.setdefault(path.stem.rpartition("-")[0], []).append(read(str(path)))
    return Table(rows)


def samples(folder: str, system: str, field: str, place: int | None = None) -> list[float]:
    """Return a field of the samples of each seed.

    With a place, the field is one of a comparison: 0 without guidance, 1 with guidance, 2 for other
    test images.
    """
    path = f"{folder}/samples/rows.jsonl"
    if place is None:
        return where(path, field, what="samples", system=system)
    rows: Any = where(path, "compared", what="samples", system=system)
    return [compared[place][field] for compared in rows]


def measures(folder: str, system: str, place: int) -> str:
    """Return the cells of a table of samples: Frechet and kernel distance, accuracy, precision and
    recall.
    """
    digits = {"frechet": 1, "kernel": 2, "accuracy": 1, "precision": 2, "recall": 2}
    return " | ".join(
        spread(samples(folder, system, name, place), 100 if name == "accuracy" else 1, number)
        for name, number in digits.items()
    )


def steps(folder: str, system: str) -> str:
    """Return the least and the most steps of a prior of a system, over seeds and levels."""
    all_steps: Any = where(f"{folder}/samples/rows.jsonl", "steps", what="samples", system=system)
    return f"{min(map(min, all_steps)):,} to {max(map(max, all_steps)):,}"


def sampled(folder: str, field: str, place: int | None, *systems: str) -> Table:
    """Return a table of systems that has a field of their samples in the place of the error."""
    return Table(
        {
            system: [{"mse": value} for value in samples(folder, system, field, place)]
            for system in systems
        }
    )


def searched(system: str, beam: int) -> list[float]:
    """Return the errors of a tree of docs/data/long-cifar10 that another beam encodes."""
    search = "every leaf of a group" if beam == 512 else f"by group, beam {beam}"
    return encoded(system, search, "long-cifar10")


def encoded(
    system: str, search: str, folder: str = "long-cifar10/depth", coarse_weight: str = "0.1"
) -> list[float]:
    """Return the errors of a system in docs/data/FOLDER with another search."""
    path = f"{folder}/beams.jsonl"
    return where(path, "mse", system=system, search=search, coarse_weight=coarse_weight)


def errors_at(system: str, step: int) -> list[float]:
    """Return the errors in docs/data/long-cifar10 of 2,000 test images after a number of steps."""
    rows = [read(f"long-cifar10/rows/{system}-{seed}.json") for seed in range(3)]
    return [dict(row["test_errors"])[step] for row in rows]


def best_step(row: str) -> int:
    """Return the step of a training at which its error on the way is least."""
    step, _ = min(read(row)["test_errors"], key=lambda point: point[1])
    return int(step)


def leaves(system: str, passes: int, field: str = "mse") -> list[float]:
    """Return a field of a system's leaves in docs/data/long-cifar10 after passes of Lloyd's
    algorithm.
    """
    return where("long-cifar10/leaves.jsonl", field, system=system, passes=passes)


def planted(
    search: str, level: int = 3, tree: str = "8, k-means", run: str = "vqvae", images: int = 10_000
) -> list[float]:
    """Return the errors of the first levels of planted codebooks in docs/data/plant-cifar10."""
    wanted: Row = {"search": search, "tree": tree, "images": images}
    if search != "flat":
        wanted["level"] = level
    path = "plant-cifar10/rows.jsonl"
    return [row for seed in range(3) for row in where(path, "mse", run=f"{run}-{seed}", **wanted)]


def effort_changes(path: str, model: str) -> str:
    """Return the error of effort 0, and the changes of efforts 1 and 2."""
    errors = where(path, "mse", model=model)
    changes = (change([error], errors[:1]) for error in errors[1:])
    return " | ".join((f"{1e4 * errors[0]:.2f}", *changes))


def efforts(model: str) -> str:
    """Return the cells of a model: error and its changes, bits, CPU ms of effort 0 and ratios to
    it.
    """
    path = "effort/rows.json"
    rows = [row for row in read(path) if row["model"] == model]
    times = [row["seconds"] for row in rows]
    bits = " | ".join(f"{row['bits']:,.0f}" for row in rows)
    ratios = " | ".join(f"{time / times[0]:.1f}" for time in times[1:])
    return f"{effort_changes(path, model)} | {bits} | {1e3 * times[0]:.2f} | {ratios}"


def beams(model: str, beam: int | None) -> str:
    """Return the cells of a model and a beam: changes of the error, bits and times."""
    rows = {row["coding"]: row for row in read("effort/beams.json") if row["model"] == model}
    cells = []
    for effort in (0, 2):
        row = rows[f"effort {effort}" + (f", beam {beam}" if beam else "")]
        cells.append(f"{row['change']:+.1%} | {row['bits']:,.0f} | {row['ratio']:.1f}")
    return " | ".join(cells)


def at_bytes(folder: str, title: str, way: str) -> str:
    """Return the PSNR of a kind of files at each budget of bytes; "-" where none is so small."""
    (curve,) = (row for row in read(f"{folder}/rows.json")["curves"] if row["title"] == title)
    return " ".join("-" if value is None else f"{value:.2f}" for value in curve[way])


def ahead(folder: str, setting: str) -> str:
    """Return bytes and PSNR of a model's setting, and how far it is above WebP, AVIF's frame, JPEG
    XL and PCA.
    """
    (rows,) = read(f"{folder}/rows.json")["ahead"].values()
    (row,) = (row for row in rows if row["setting"] == setting)
    rivals = [row["ahead_of"][name] for name in RIVALS]
    above = " ".join("-" if value is None else f"{value:+.2f}" for value in rivals)
    return f"{row['bytes']:,.1f} {row['psnr']:.2f} {above}"


def grid(positions: str, bits: int) -> tuple[float, float, int]:
    """Return mean, standard deviation and number of the errors in docs/data/grids-cifar10."""
    pattern = rf"^{positions}, levels 1 to \d+, {bits} bits: (\S+) ± (\S+) \(n = (\d+)"
    match = re.search(pattern, (DATA / "grids-cifar10" / "prefixes.txt").read_text(), re.MULTILINE)
    assert match is not None
    return 1e4 * float(match[1]), 1e4 * float(match[2]), int(match[3])


def grids(first: str, second: str, bits: int) -> str:
    """Return the difference of two grids with equal bits, and its p-value."""
    left = grid(first, bits)
    right = grid(second, bits)
    p = shorten(stats.ttest_ind_from_stats(*left, *right, equal_var=False).pvalue)
    return f"{change(left[:1], right[:1], 0)}, p {p if '<' in p else '= ' + p}"


def main() -> None:
    """Look for every recomputed part on its page."""
    tables = {path.name.replace("-", "_"): read_table(path.name) for path in DATA.iterdir()}
    tables["depth"] = read_table("long-cifar10/depth")
    tables["longest"] = read_table("long-cifar10/longest")

    # systems at the bits of VQVAE-2 have pairs of their own
    rows = tables["long_cifar10"].rows
    at_3000 = {name: group for name, group in rows.items() if group[0]["bits_per_image"] >= 3000}
    tables["long_3000"] = Table(at_3000)
    tables["long_cifar10"] = Table({name: rows[name] for name in rows.keys() - at_3000})

    # RQ-VAE at the step that held-out images choose
    names: dict[str, Any] = globals() | tables
    names["chosen"] = best_step("long-cifar10/validation/rows/rqvae-1.json")
    count = lacking = 0
    for line in filter(None, Path(__file__).with_suffix(".txt").read_text().splitlines()):
        if line.endswith(".md"):
            lines = (ROOT / line).read_text().splitlines()
            page = line
            text = " ".join(" ".join(lines).split())
            continue
        part = " ".join(eval(f"f{line!r}", names).split())
        count += 1
        if part not in text:
            lacking += 1
            print(f"{page}: {part}\n    nearest: {get_close_matches(part, lines, 1, 0.0)[0]}")
    print(f"{count} parts recomputed, {lacking} not on their page")
    sys.exit(bool(lacking))


if __name__ == "__main__":
    main()
