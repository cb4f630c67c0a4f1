"""Damaged files for every reader; kills and full disks for every command that writes.

    python -m benchmarks.torture --minutes 30 --seed 0
    make torture MINUTES=30

A case is named by the seed, the reader or command, and a number: --case "zip 17" runs it again and
prints what happens. The exit code is 1 if there is a fault.

A reader may refuse a file in words (InputError, OSError), or return the undamaged parts and report
a fault. Faults of a reader are other errors and signals, more than 5 s of computing, more memory
than 64 MB plus 50 times the input, and content that differs from the file's without a report. If
the format has check bytes, such content is a fault only where it is more frequent than these let
pass. Besides random damage there are constructed cases: files that ask for much (bombs.py), and
names, links and files that exist for every command that writes (escapes.py, --only escapes). A case
that needs a disk, where none can be mounted, counts as not run.

A disturbed command must end well, or with exit code 2 and a line. The same command must then leave
the files that it leaves without disturbance, with --force if the line names it. Files in which two
undisturbed calls differ must only be there.
"""

import contextlib
import io
import json
import shutil
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from functools import cache, partial
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
import yaml
from PIL import Image

from benchmarks.common import TINY, Row, as_script, fields, finish, options, parse_lines
from benchmarks.torture.bombs import BOMBS
from benchmarks.torture.commands import COMMANDS, Disturbances
from benchmarks.torture.escapes import WRITERS, run_case
from benchmarks.torture.readers import MODEL, READERS, SECONDS, Measured
from hrvqvae.checkpoints.folder import run_folder
from hrvqvae.cli import main as hrvqvae
from hrvqvae.config import presets, to_dict
from hrvqvae.config.parsing import override
from hrvqvae.data.fetch import write_idx
from hrvqvae.utils.errors import InputError
from hrvqvae.utils.quantities import counted

_BATCH = 100  # cases of a reader that one process runs

COLUMNS = parse_lines(f"""
reader or command: {{what}}
cases: {{cases:,}}
not run: {{not run}}
crashes: {{crash}}
over {SECONDS} s: {{hang}}
over 64 MB + 50 x input: {{memory}}
most memory, MB: {{peak_MB:.0f}}
x its input: {{times:,.0f}}
longest, s: {{seconds:.1f}}
other content accepted: {{accepted}}
share: {{share:.1e}}
what a check lets pass: {{check}}
""")
_COUNTED = ("not run", "crash", "hang", "memory", "accepted")
Cases = Sequence[tuple[int | str, Measured]]
"""The number of each case, or the name of a constructed case, and what it took."""


class Torture:
    """Runs cases in a work folder, and counts their faults."""

    def __init__(self, work: Path, seed: int) -> None:
        self.work = work
        self.seed = seed
        self._disturbances = Disturbances(work, seed)
        self._expected = cache(lambda name: READERS[name].read_undamaged(work))
        self.cases = defaultdict[str, list[tuple[int | str, Measured]]](list)

    def run(self, name: str, numbers: Sequence[int]) -> str:
        """Run cases of a reader or a command. Return what the last command printed."""
        output = ""
        if name in READERS:
            cases = READERS[name].run(self.work, self.seed, numbers, self._expected(name))
            self.cases[name] += zip(numbers, cases, strict=True)
        else:
            for number in numbers:
                fault, output = self._disturbances.run_case(name, number)
                self.cases[name].append((number, Measured(fault)))
        return output

    def run_constructed(self, names: Sequence[str]) -> None:
        """Run the constructed files of these readers; with the name escapes, those of `escapes`."""
        for (name, case), make in BOMBS.items():
            if name in names:
                with TemporaryDirectory(dir=self.work) as folder:
                    measured = READERS[name].bomb(partial(make, self.work), Path(folder))
                self.cases[name].append((case, measured))
        if "escapes" in names:
            for case in WRITERS:
                fault, output = run_case(case, self.work)
                measured = Measured(fault and f"{fault}\n{output}")
                self.cases["escapes"].append((case, measured))

    def run_until(self, end: float, names: Sequence[str]) -> None:
        """Run cases of readers and of commands in turn, each for half of the time."""
        readers = [name for name in names if name in READERS]
        commands = [name for name in names if name in COMMANDS]
        turns = [_batches(readers, _BATCH)] if readers else []
        turns += [_batches(commands, 1)] if commands else []
        spent = [0.0] * len(turns)
        while turns and time.monotonic() < end:
            turn = spent.index(min(spent))
            begun = time.monotonic()
            self.run(*next(turns[turn]))
            spent[turn] += time.monotonic() - begun

    def report(self, as_json: bool) -> bool:
        """Print the table and the faults. Return whether there is none."""
        finish([_count(*item) for item in self.cases.items()], COLUMNS, as_json)
        print(
            f"{len(READERS)} readers, {len(COMMANDS)} commands that write; constructed:"
            f" {len(BOMBS)} files, {len(WRITERS)} commands with names that lead out, links and"
            " files that exist"
        )
        lines = [line for item in self.cases.items() for line in _list_faults(*item)]
        print(*lines, sep="\n", end="\n" if lines else "")
        return not lines


def _count(name: str, cases: Cases) -> Row:
    """Return the row of a reader or command in the table."""
    counts = Counter(measured.kind for _, measured in cases)
    row: Row = {"what": name, "cases": len(cases), **{kind: counts[kind] for kind in _COUNTED}}
    row["share"] = row["accepted"] / len(cases)
    if name in READERS:
        bits = READERS[name].check
        row["check"] = f"{2.0**-bits:.0e}" if bits else "none"
        if READERS[name].seal:
            row["check"] = "made right"
        _, largest = max(cases, key=lambda case: case[1].excess)
        row["peak_bytes"] = largest.bytes
        row["times"] = largest.bytes / max(largest.size, 1)
        row["seconds"] = max(measured.seconds for _, measured in cases)
    return row


def _list_faults(name: str, cases: Cases) -> list[str]:
    """Return a line for each fault of a reader or command."""
    bits = READERS[name].check if name in READERS else 0
    faults = defaultdict[str, list[int | str]](list)
    for case, measured in cases:
        faults[measured.fault].append(case)
    accepted = len(faults["accepted"])
    if name in READERS and bits <= 8:
        faults.pop("accepted")
    lines = [
        f"{name}: {fault}: {counted(len(cases), 'case')}, {', '.join(map(str, cases[:5]))}"
        for fault, cases in faults.items()
        if cases and fault not in ("", "not run")
    ]
    if bits and accepted > 2 + 3 * len(cases) * 2.0**-bits:
        lines.append(f"{name}: more is accepted than {bits} check bits let pass")
    return lines


def _batches(names: Sequence[str], size: int) -> Iterator[tuple[str, range]]:
    """Yield names in turn, without end, each with its next cases."""
    for first in count(0, size):
        for name in names:
            yield name, range(first, first + size)


def prepare(work: Path) -> None:
    """Write what readers and commands read: drawn images, a small trained run, and files of a model
    of the package.
    """
    folders = "pictures/a pictures/b image data/mnist run zips tables metrics configs"
    for name in folders.split():
        (work / name).mkdir(parents=True)
    _write_images(work)
    _write_config(work)
    _train(work)
    shutil.copy(run_folder(MODEL) / "tables.hrvt", work / "tables")
    shutil.copy(work / "trained" / "metrics.jsonl", work / "metrics")


def _write_images(work: Path) -> None:
    """Write images in files of every kind."""
    rng = np.random.default_rng(0)
    for number in range(12):
        grey = rng.integers(0, 256, (7, 7), np.uint8).repeat(4, 0).repeat(4, 1)
        Image.fromarray(grey).save(work / "pictures" / "ab"[number % 2] / f"{number}.png")
    Image.fromarray(grey).save(work / "image" / "grey.png")
    colours = Image.fromarray(np.stack([grey, grey.T, grey], 2)[:20])
    for ending in ("png", "jpg", "webp"):
        colours.save(work / "image" / f"x.{ending}")
    for part, number in (("train", 96), ("t10k", 40)):
        images = 255 * rng.integers(0, 2, (number, 3, 3), np.uint8).repeat(4, 1).repeat(4, 2)
        labels = np.arange(number, dtype=np.uint8) % 10
        write_idx(work / "data" / "mnist" / f"{part}-images-idx3-ubyte.gz", images)
        write_idx(work / "data" / "mnist" / f"{part}-labels-idx1-ubyte.gz", labels)


def _write_config(work: Path) -> None:
    """Write the configuration of a small run, as YAML and as JSON."""
    changed = (
        TINY
        | {"data.root": str(work / "data")}
        | fields("training", "epochs=0 warmup_steps=2")
        | fields("prior.training", "epochs=0")
        | fields("progressive.network", "hidden_units=8")
    )
    for section in ("training", "prior.training", "progressive.training"):
        changed |= fields(section, "max_steps=5 evaluate_every=100 checkpoint_every=2 log_every=2")
    config = to_dict(override(presets.get("hrvqvae/mnist").config, changed))
    path = work / "tiny.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    shutil.copy(path, work / "configs")
    (work / "configs" / "x.json").write_text(json.dumps(config))


def _train(work: Path) -> None:
    """Train the run, and write files of codes, zips and codes."""
    _run(work, "train")
    shutil.copytree(work / "run", work / "start" / "run")
    _run(work, "train-prior", "train-decoder")
    (work / "run").rename(work / "trained")
    _run(work, "compress", "compress to a zip", "tokenize")
    shutil.copy(work / "x.zip", work / "zips")
    _run(work, "decompress")  # what is compiled now is not compiled in a case
    shutil.rmtree(work / "images")


def _run(work: Path, *names: str) -> None:
    """Run commands in this process, so that the processes of the cases inherit what it loads."""
    for name in names:
        output = io.StringIO()
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            code = hrvqvae(COMMANDS[name].split(work, work))
        if code:
            raise InputError(f"{name}: {output.getvalue()}")


def main(argv: Sequence[str] | None = None) -> None:
    """Run cases, and print the table and the faults."""
    parser = options(__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, metavar="M")
    parser.add_argument("--seed", type=int, default=0, metavar="S")
    parser.add_argument(
        "--only", default="", metavar="A,B", help="these readers and commands (default: all)"
    )
    parser.add_argument("--case", metavar="'NAME N'", help="run one case and print what happens")
    arguments = parser.parse_args(argv)
    known = [*READERS, *COMMANDS, "escapes"]
    case_name, _, number = (arguments.case or "").rpartition(" ")
    named = [name for name in (case_name or arguments.only).split(",") if name] or known
    if unknown := {*named} - {*known}:
        raise InputError(
            f"no reader or command is named {', '.join(unknown)}; there are: {', '.join(known)}"
        )
    torch.set_num_threads(1)
    with TemporaryDirectory(prefix="torture-") as folder:
        prepare(Path(folder))
        torture = Torture(Path(folder), arguments.seed)
        if arguments.case:
            print(torture.run(case_name, [int(number)]))
        else:
            end = time.monotonic() + 60 * arguments.minutes
            torture.run_constructed(named)
            torture.run_until(end, named)
        sys.exit(0 if torture.report(arguments.json) else 1)


if __name__ == "__main__":
    as_script(main)
