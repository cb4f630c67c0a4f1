"""docs/scale.md: its commands are taken by torchrun and by this package, and its tables are true."""

from __future__ import annotations

import dataclasses
import re
import shlex
from pathlib import Path

import pytest
from torch.distributed.run import get_args_parser

from benchmarks.processes import exchanged, exchanged_by_leaves
from hrvqvae.cli import _parser, main
from hrvqvae.cli.console import split_fields
from hrvqvae.config import Config, presets

PAGE = (Path(__file__).parent.parent.parent / "docs" / "scale.md").read_text()
COMMANDS = [line[2:] for line in PAGE.splitlines() if line.startswith("$ ")]
COMMANDS += [line.removeprefix("srun ") for line in PAGE.splitlines() if line.startswith("srun ")]


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_are_taken(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = shlex.split(line.replace("$head", "node1").replace("$SLURM_JOB_ID", "7"))
    if words[0] == "hrvqvae":
        _parser().parse_args(words[1:])
        return
    assert words[0] == "torchrun"
    found = get_args_parser().parse_args(words[1:])
    assert found.module
    assert found.training_script == "hrvqvae"
    arguments = found.training_script_args
    if arguments[0] == "train":
        assert main([*arguments, "--print_config"]) == 0
        batch = int(re.findall(r"batch_size: (\d+)", capsys.readouterr().out)[-1])
        counts = range(int(found.nnodes.split(":")[0]), int(found.nnodes.split(":")[-1]) + 1)
        for machines in counts:
            assert batch % (machines * int(found.nproc_per_node)) == 0, "the processes can share the batch"
    else:
        others, _ = split_fields(arguments)
        _parser().parse_args(others)


def rows(head: str) -> list[list[str]]:
    """Cells of the table that begins with that head."""
    lines = PAGE[PAGE.index(f"| {head} |") :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def plain(name: str) -> Config:
    """The preset, without a network of features, which is not trained."""
    config = presets.get(name).config
    if hasattr(config.model, "perceptual"):
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, perceptual="none"))
    return config


def test_the_bytes_of_the_tables() -> None:
    found = [[row[0].split(",")[0], *(int(cell.replace(",", "")) for cell in row[1:])] for row in rows("preset")]
    assert found == [[name, *(round(part / 1e3) for part in exchanged(plain(name)))] for name, *_ in found]
    told = [[float(cell.replace(",", "")) for cell in row] for row in rows("leaves")]
    names = ("leaves", "codewords")
    assert told == [
        [*(row[name] for name in names), round(row["gradients"] / 1e3), round(row["codebooks"] / 1e3, 1)]
        for row in exchanged_by_leaves()
    ]
