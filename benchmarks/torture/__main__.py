"""Damaged files for every reader; kills and full disks for every command that writes.

    python -m benchmarks.torture --minutes 30 --seed 0
    make torture MINUTES=30

A case is named by the seed, the reader or command, and a number: --case "zip 17" runs it again and
prints what happens. The exit code is 1 if there is a fault.

A reader may refuse a file in words (InputError, OSError), or return the undamaged parts and report
a fault. Faults of a reader are other errors and signals, more than 5 s of computing, more memory
than 64 MB plus 50 times the input, and content that differs from the file's without a report. If
the format has check bytes, such content is a fault only where it is more frequent than these let
pass. Besides random damage there are constructed files that ask for much (bombs.py).

A disturbed command must end well, or with exit code 2 and a line. The same command must then leave
the files that it leaves without disturbance, with --force if the line names it. Files in which two
undisturbed calls differ must only be there. A full disk that can't be mounted counts as not run.
"""

import contextlib
import io
import shutil
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
import yaml
from PIL import Image

from benchmarks.common import TINY, Row, as_script, fields, finish, options, parse_lines
from benchmarks.torture.bombs import BOMBS, write_bomb
from benchmarks.torture.commands import COMMANDS, Disturbances
from benchmarks.torture.readers import MODEL, READERS, SECONDS, Measured, entropy_model
from hrvqvae.checkpoints.folder import run_folder
from hrvqvae.cli import main as hrvqvae
from hrvqvae.config import presets, to_dict
from hrvqvae.config.parsing import override
from hrvqvae.data.fetch import write_idx
from hrvqvae.utils.errors import InputError
from hrvqvae.utils.quantities import counted

_BATCH = 20  # cases of a reader for one of a command

COLUMNS = parse_lines(f"""
reader or command: {{what}}
cases: {{cases:,}}
not run: {{not run}}
crashes: {{crash}}
over {SECONDS} s: {{hang}}
over 64 MB + 50 x input: {{memory}}
most memory, MB: {{peak_MB:.0f}}
longest, s: {{seconds:.1f}}
other content accepted: {{accepted}}
""")
_COUNTED = ("not run", "crash", "hang", "memory", "accepted")
Cases = Sequence[tuple[int | str, Measured]]
"""The number of each case, or the name of a constructed case, and what it took."""


class Torture:
    """Runs cases in a work folder, and counts their faults."""

    def __init__(self, work: Path, seed: int) -> None:
        self.work = work
        self.seed = seed
        self.cases = defaultdict[str, list[tuple[int | str, Measured]]](list)
        self._disturbances = Disturbances(work, seed)
        self._expected = {name: reader.read_undamaged(work) for name, reader in READERS.items()}

    def run_case(self, name: str, number: int) -> str:
        """Run a case of a reader or a command. Return what a command printed."""
        output = ""
        if name in READERS:
            expected = self._expected[name]
            measured = READERS[name].run_case(self.work, self.seed, number, expected)
        else:
            fault, output = self._disturbances.run_case(name, number)
            measured = Measured(fault)
        self.cases[name].append((number, measured))
        return output

    def run_bombs(self, names: Sequence[str]) -> None:
        """Run the constructed files of these readers."""
        for name, case in BOMBS:
            if name in names:
                with TemporaryDirectory(dir=self.work) as folder:
                    path = write_bomb((name, case), Path(folder))
                    measured = READERS[name].run_file(path, path.stat().st_size)
                self.cases[name].append((case, measured))

    def run_until(self, end: float, names: Sequence[str]) -> None:
        """Run cases of all readers and commands in turn."""
        for turn in count():
            for name in names:
                batch = _BATCH if name in READERS else 1
                for number in range(turn * batch, (turn + 1) * batch):
                    if time.monotonic() > end:
                        return
                    self.run_case(name, number)

    def report(self, as_json: bool) -> bool:
        """Print the table and the faults. Return whether there is none."""
        finish([_count(*item) for item in self.cases.items()], COLUMNS, as_json)
        faults = [line for item in self.cases.items() for line in _list_faults(*item)]
        for line in faults:
            print(line)
        return not faults


def _count(name: str, cases: Cases) -> Row:
    """Return the row of a reader or command in the table."""
    counts = Counter(measured.kind for _, measured in cases)
    row: Row = {"what": name, "cases": len(cases), **{kind: counts[kind] for kind in _COUNTED}}
    if name in READERS:
        row["peak_bytes"] = max(measured.bytes for _, measured in cases)
        row["seconds"] = max(measured.seconds for _, measured in cases)
    return row


def _list_faults(name: str, cases: Cases) -> list[str]:
    """Return a line for each kind of fault of a reader or command."""
    faults = defaultdict[str, list[int | str]](list)
    for case, measured in cases:
        faults[measured.fault].append(case)

    # without check bytes, other content is no fault; with them, only what they do not let pass
    if name in READERS:
        bits = READERS[name].check
        let_pass = 2 + 3 * len(cases) * 2.0**-bits
        if not bits or len(faults["accepted"]) <= let_pass:
            faults.pop("accepted", None)
    return [
        f"{name}: {fault}: {counted(len(numbers), 'case')}, {', '.join(map(str, numbers[:5]))}"
        for fault, numbers in faults.items()
        if fault not in ("", "not run")
    ]


def prepare(work: Path) -> None:
    """Write what readers and commands read: drawn images, a small trained run, and files of a model
    of the package.
    """
    folders = "pictures/a pictures/b data/mnist run zips tables configs"
    for name in folders.split():
        (work / name).mkdir(parents=True)
    _write_images(work)
    _write_config(work)
    _train(work)
    shutil.copy(run_folder(MODEL) / "tables.hrvt", work / "tables")


def _write_images(work: Path) -> None:
    """Write a folder of images, and a data set."""
    rng = np.random.default_rng(0)
    for number in range(12):
        grey = rng.integers(0, 256, (7, 7), np.uint8).repeat(4, 0).repeat(4, 1)
        Image.fromarray(grey).save(work / "pictures" / "ab"[number % 2] / f"{number}.png")
    for part, number in (("train", 96), ("t10k", 40)):
        images = 255 * rng.integers(0, 2, (number, 3, 3), np.uint8).repeat(4, 1).repeat(4, 2)
        labels = np.arange(number, dtype=np.uint8) % 10
        write_idx(work / "data" / "mnist" / f"{part}-images-idx3-ubyte.gz", images)
        write_idx(work / "data" / "mnist" / f"{part}-labels-idx1-ubyte.gz", labels)


def _write_config(work: Path) -> None:
    """Write the configuration of a small run."""
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


def _train(work: Path) -> None:
    """Train the run, and write files of codes and a zip."""
    _run(work, "train")
    shutil.copytree(work / "run", work / "start" / "run")
    _run(work, "train-prior", "train-decoder")
    (work / "run").rename(work / "trained")
    _run(work, "compress", "compress to a zip")
    shutil.copy(work / "x.zip", work / "zips")
    _run(work, "decompress")  # what is compiled now is not compiled in a case
    shutil.rmtree(work / "images")
    entropy_model()


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
    known = [*READERS, *COMMANDS]
    case_name, _, number = (arguments.case or "").rpartition(" ")
    names = [name for name in (case_name or arguments.only).split(",") if name] or known
    if unknown := {*names} - {*known}:
        raise InputError(
            f"no reader or command is named {', '.join(unknown)}; there are: {', '.join(known)}"
        )
    torch.set_num_threads(1)
    with TemporaryDirectory(prefix="torture-") as folder:
        prepare(Path(folder))
        torture = Torture(Path(folder), arguments.seed)
        if arguments.case:
            print(torture.run_case(case_name, int(number)))
        else:
            end = time.monotonic() + 60 * arguments.minutes
            torture.run_bombs(names)
            torture.run_until(end, names)
        sys.exit(0 if torture.report(arguments.json) else 1)


if __name__ == "__main__":
    as_script(main)
