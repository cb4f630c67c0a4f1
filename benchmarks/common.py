"""Timing in turns, test images, tables of rows and the main function, for all benchmarks."""

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from statistics import median
from typing import Any

import torch
from torch import Tensor

from hrvqvae.cli.console import print_json, print_table, split_fields
from hrvqvae.config import Config, DataConfig
from hrvqvae.config.parsing import base_config, override
from hrvqvae.data.batches import evaluation_batches
from hrvqvae.data.loading import load_images
from hrvqvae.utils.errors import InputError

Row = dict[str, Any]
"""Measured values by name."""
Columns = Mapping[str, str]
"""The format of a row in each column, by its header."""

CPU = torch.device("cpu")


def seconds(call: Callable[[], object], device: torch.device = CPU) -> float:
    """Return the seconds of a call, waiting for a GPU before and after it."""
    _wait(device)
    begun = time.perf_counter()
    call()
    _wait(device)
    return time.perf_counter() - begun


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def side_by_side(
    calls: Mapping[str, Callable[[], object]], rounds: int = 5, device: torch.device = CPU
) -> dict[str, float]:
    """Return the median seconds of each call, in turns, so that a busy machine slows all of them
    alike.

    The first round is not timed: it allocates memory and loads compiled code.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(1 + rounds):
        for name, call in calls.items():
            times[name].append(seconds(call, device))
    return {name: median(spent[1:]) for name, spent in times.items()}


def median_seconds(
    call: Callable[[], object], rounds: int = 5, device: torch.device = CPU
) -> float:
    """Return the median seconds of a call, timed as by `side_by_side`."""
    return side_by_side({"": call}, rounds, device)[""]


def matrix_rate(
    device: torch.device = CPU, side: int = 1536, bf16: bool = False, rounds: int = 8
) -> float:
    """Return the FLOP per second of a product of square matrices, in bfloat16 or float32; a
    multiply-add is two.
    """
    kind = torch.bfloat16 if bf16 else torch.float32
    left, right = (torch.rand(side, side, device=device).to(kind) for _ in range(2))
    return 2 * side**3 / median_seconds(lambda: left @ right, rounds, device)


def read_images(config: DataConfig, limit: int | None = None, split: str = "test") -> Tensor:
    """Read the images of a split (N, C, Y, X) uint8, not augmented; at most `limit` of them, evenly
    spread.
    """
    batches = [
        batch.images
        for batch in evaluation_batches(load_images(config, split), batch_size=128, limit=limit)
    ]
    if not batches:
        raise InputError(f"no image of the {split} split could be read")
    return torch.cat(batches)


def positive(text: str) -> int:
    """Parse a whole number of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value


def fields(section: str, values: str) -> dict[str, str]:
    """Return the fields "name=value ..." of a section of the configuration."""
    pairs = (pair.split("=") for pair in values.split())
    return {f"{section}.{name}": value for name, value in pairs}


TINY = (
    fields("data", "size=12 workers=0")
    | fields("model", "hidden_units=8 residual_units=8 padding=1")
    | fields("model.quantizer", "codewords=3 init_vectors=1000")
    | fields("training", "batch_size=16 device=cpu evaluation_images=40")
    | fields("prior.network", "hidden_units=8 residual_units=8 residual_blocks=2")
    | fields("prior.network", "attention_layers=1")
    | fields("prior.training", "batch_size=16 device=cpu")
)
"""Fields of `hrvqvae/mnist` that make a model which trains in seconds."""


def options(about: str | None, **numbers: tuple[int, str]) -> argparse.ArgumentParser:
    """Return the parser of a script, with --json; `about` is the docstring of its module.

    `numbers` are options of a number from 1: default and help by name.
    """
    parser = argparse.ArgumentParser(
        description=(about or "").partition("\n\n")[0], allow_abbrev=False
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    for name, (default, text) in numbers.items():
        parser.add_argument(
            f"--{name}",
            type=positive,
            default=default,
            metavar="N",
            help=f"{text} (default: {default})",
        )
    return parser


def import_rival(name: str) -> Any:
    """Import a package of the extra bench. Raises InputError."""
    try:
        return import_module(name)
    except ImportError as error:
        raise InputError(f"this compares with {name}: pip install '.[bench]'") from error


def preset_of(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None, prefix: str = ""
) -> tuple[Any, Config]:
    """Return the options, and the configuration of the preset that they name after a prefix.

    `--section.field VALUE` changes the preset.
    """
    words, fields = split_fields(sys.argv[1:] if argv is None else argv)
    arguments = parser.parse_args(words)
    return arguments, override(base_config(prefix + arguments.preset), fields)


def parse_lines(text: str) -> dict[str, str]:
    """Return the values of lines "name: value", such as the formats of a table by their headers."""
    return dict(line.split(": ", 1) for line in text.split("\n") if line)


def show(rows: Sequence[Row], columns: Columns) -> None:
    """Print rows as a table; a cell whose values a row lacks is "-".

    A format may also use times in milliseconds and sizes in megabytes: "step_ms" for
    "step_seconds", "peak_MB" for "peak_bytes".
    """
    print_table(
        [
            tuple(columns),
            *(tuple(_format_cell(row, form) for form in columns.values()) for row in rows),
        ]
    )


def _format_cell(row: Row, form: str) -> str:
    figures = {name: value for name, value in row.items() if isinstance(value, int | float)}
    derived = {name.replace("seconds", "ms"): 1e3 * value for name, value in figures.items()}
    derived |= {name.replace("bytes", "MB"): value / 1e6 for name, value in figures.items()}
    try:
        return form.format(**{**derived, **row})
    except (KeyError, TypeError):
        return "-"


def finish(rows: Sequence[Row], columns: Columns, as_json: bool) -> None:
    """Print rows as JSON or as a table."""
    if as_json:
        print_json(rows)
    else:
        show(rows, columns)


def as_script(main: Callable[[], None]) -> None:
    """Call the main function of a script. Errors that a user can cause print one line, and the exit
    code is 2.
    """
    try:
        main()
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
