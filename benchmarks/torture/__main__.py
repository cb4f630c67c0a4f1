"""Damaged files for every reader; kills, full disks and company for every command that writes: what
comes of it.

python -m benchmarks.torture --minutes 30 --seed 0, or make torture MINUTES=30. A case is named by
the seed, by what is tried and by a number; --case "zip 17" runs it again and tells what
happens. Exit code 1 where something is wrong.

A reader may refuse a file in words (InputError, OSError), or read what is whole in it and say so.
Wrong are other errors and signals, more than 5 s of computing, more memory than 64 MB and 50 times
the input, and content that differs from the file's without a word: where the format has check
bytes, more often than these let pass. Beside random damage there are constructed cases: files that
ask for much (bombs.py), and names, links and files that exist for every command that writes
(escapes.py, --only escapes). What could not be run, as without a disk to mount, counts as not run.

A command that was disturbed must end well, or with exit code 2 and a line. Then the same command,
with --force where the line names it, must leave the files that one leaves which was never
disturbed, as far as two of these leave the same.
"""

import contextlib
import io
import json
import shutil
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from PIL import Image

from benchmarks.common import TINY, Row, as_script, fields, finish, options, parse_columns
from benchmarks.torture.bombs import BOMBS
from benchmarks.torture.commands import COMMANDS, Disturbances
from benchmarks.torture.escapes import WRITERS, wrong
from benchmarks.torture.readers import MODEL, READERS, SECONDS, Measured, Parts
from hrvqvae.checkpoints import codemaps
from hrvqvae.checkpoints.folder import run_folder
from hrvqvae.cli import main as hrvqvae
from hrvqvae.config import presets, to_dict
from hrvqvae.config.parsing import override
from hrvqvae.data.sets.mnist import write_idx
from hrvqvae.utils.errors import InputError
from hrvqvae.utils.quantities import counted

_CHUNK = 100  # cases of a reader that one process takes


COLUMNS = parse_columns(f"""
reader or command: {{what}}
cases: {{cases:,}}
not run: {{missing}}
crashes: {{crash}}
over {SECONDS} s: {{hang}}
over 64 MB + 50 x input: {{memory}}
most memory, MB: {{megabytes}}
x its input: {{times}}
longest, s: {{seconds}}
other content accepted: {{accepted}}
share: {{share:.1e}}
what a check lets pass: {{check}}
""")


class Torture:
    """Cases that are run on a ground, and what was wrong in them."""

    def __init__(self, ground: Path, seed: int) -> None:
        self.ground = ground
        self.seed = seed
        self._disturb = Disturbances(ground, seed)
        self.counts: dict[str, Counter[str]] = {}
        # the case of a reader that took the most memory for its input
        self.most: dict[str, Measured] = {}
        self.slowest: dict[str, float] = {}
        self.faults: dict[tuple[str, str], list[int | str]] = {}  # cases, by name and what is wrong
        self._expected: dict[str, dict[str, Parts]] = {}

    def run(self, name: str, numbers: Sequence[int]) -> str:
        """Run some cases of a reader or a command. Return what commands told."""
        told = ""
        if name in READERS:
            if name not in self._expected:
                self._expected[name] = READERS[name].expected(self.ground)
            cases = READERS[name].run(self.ground, self.seed, numbers, self._expected[name])
            for number, measured in zip(numbers, cases, strict=True):
                self._count(name, number, measured)
        else:
            for number in numbers:
                fault, told = self._disturb.case(name, number)
                self._count(name, number, Measured(fault, 0, 0.0, 0))
        return told

    def _count(self, name: str, case: int | str, measured: Measured) -> None:
        fault = measured.fault
        self.counts.setdefault(name, Counter()).update(["cases", fault.partition(":")[0]])
        if measured.excess >= (self.most[name].excess if name in self.most else 0.0):
            self.most[name] = measured
        self.slowest[name] = max(measured.seconds, self.slowest.get(name, 0.0))
        let_pass = fault == "accepted" and name in READERS and READERS[name].check <= 8
        if fault not in ("", "not run") and not let_pass:
            self.faults.setdefault((name, fault), []).append(case)

    def construct(self, only: Sequence[str]) -> None:
        """Run the constructed cases: bombs for readers, and names and links for writers."""
        for (name, case), make in BOMBS.items():
            if name in only:
                with TemporaryDirectory(dir=self.ground) as folder:
                    self._count(
                        name, case, READERS[name].bomb(partial(make, self.ground), Path(folder))
                    )
        for name in WRITERS:
            if "escapes" in only:
                with TemporaryDirectory(dir=self.ground) as folder:
                    (Path(folder) / "box").mkdir()
                    fault, told = wrong(name, self.ground, Path(folder) / "box")
                    self.counts.setdefault("escapes", Counter()).update(
                        ["cases", fault.partition(":")[0]]
                    )
                    if fault:
                        self.faults.setdefault(("escapes", f"{fault}\n{told}"), []).append(name)

    def go_on(self, names: Sequence[str], until: float) -> None:
        """Run cases in turn, half of the time those of readers."""
        kinds = [[name for name in names if name in table] for table in (READERS, COMMANDS)]
        spent = [0.0, 0.0]
        turn = [0, 0]
        while time.monotonic() < until and any(kinds):
            kind = 1 if not kinds[0] or (kinds[1] and spent[1] < spent[0]) else 0
            name = kinds[kind][turn[kind] % len(kinds[kind])]
            began = time.monotonic()
            first = turn[kind] // len(kinds[kind]) * (1 if kind else _CHUNK)
            self.run(name, range(first, first + (1 if kind else _CHUNK)))
            turn[kind] += 1
            spent[kind] += time.monotonic() - began

    def tell(self, as_json: bool) -> bool:
        """Print the table and the faults. Return whether nothing was wrong."""
        rows: list[Row] = []
        for name, counts in self.counts.items():
            row: Row = dict.fromkeys(("accepted", "crash", "hang", "memory", "not run"), 0)
            row |= dict.fromkeys(("check", "megabytes", "times", "seconds"), "-")
            row |= {"what": name, **counts}
            if name in READERS:
                bits = READERS[name].check
                sealed = READERS[name].sealed is not None
                row["check"] = "made right" if sealed else f"{2.0**-bits:.0e}" if bits else "none"
                if bits and row["accepted"] > 2 + 3 * row["cases"] * 2.0**-bits:
                    self.faults[name, f"more is accepted than {bits} check bits let pass"] = []
                most = self.most[name]
                row["megabytes"] = f"{most.bytes / 1e6:.0f}"
                row["times"] = f"{most.bytes / max(most.size, 1):,.0f}"
                row["seconds"] = f"{self.slowest[name]:.1f}"
            rows.append({**row, "share": row["accepted"] / row["cases"], "missing": row["not run"]})
        finish(rows, COLUMNS, as_json)
        print(
            f"{len(READERS)} readers, {len(COMMANDS)} commands that write; constructed:"
            f" {len(BOMBS)} files, {len(WRITERS)} commands with names that lead out, links and"
            " files that exist"
        )
        for (name, fault), cases in self.faults.items():
            print(
                f"{name}: {fault}: {counted(len(cases), 'case')}, {', '.join(map(str, cases[:5]))}"
            )
        return not self.faults


def prepare(ground: Path) -> None:
    """Write what readers read and commands take: drawn images, a small trained run, files of a
    model of the package.
    """
    draw = np.random.default_rng(0)
    places = ("pictures/a", "pictures/b", "image", "data/mnist", "arrays", "maps")
    for name in places:
        (ground / name).mkdir(parents=True)
    for number in range(12):
        pixels = draw.integers(0, 256, (7, 7), np.uint8).repeat(4, 0).repeat(4, 1)
        Image.fromarray(pixels).save(ground / "pictures" / "ab"[number % 2] / f"{number}.png")
    for name in ("grey.png", "x.png", "x.jpg", "x.webp"):
        Image.fromarray(
            pixels if name == "grey.png" else np.stack([pixels, pixels.T, pixels], 2)[:20]
        ).save(ground / "image" / name)
    for part, count in (("train", 96), ("t10k", 40)):
        images = 255 * draw.integers(0, 2, (count, 3, 3), np.uint8).repeat(4, 1).repeat(4, 2)
        labels = np.arange(count, dtype=np.uint8) % 10
        write_idx(ground / "data" / "mnist" / f"{part}-images-idx3-ubyte.gz", images)
        write_idx(ground / "data" / "mnist" / f"{part}-labels-idx1-ubyte.gz", labels)
    np.save(ground / "arrays" / "a.npy", images)
    np.save(ground / "arrays" / "a-labels.npy", labels)
    np.savez(ground / "arrays" / "b.npz", x=images, y=labels)
    np.savez_compressed(ground / "arrays" / "c.npz", x=images, y=labels)
    maps = [images[:, :5, :5] % 4, images.astype(np.uint16)[:, :6, :6], labels.astype(np.int64)]
    for path, array in zip(codemaps.array_paths(ground / "maps", "train", 2), maps, strict=True):
        codemaps.write_array(path, array)
    codemaps.write_maps(ground / "maps", "train", {"of": 1}, 2, lambda _: ["a", "b"])
    given = (
        TINY
        | {"data.root": str(ground / "data")}
        | fields("training", "epochs=0 max_steps=5 evaluate_every=100 checkpoint_every=2")
        | fields("training", "log_every=2 warmup_steps=2")
        | fields("prior.training", "epochs=0 max_steps=6")
        | fields("progressive.network", "hidden_units=8")
    )
    config = to_dict(override(presets.get("hrvqvae/mnist").config, given))
    (ground / "tiny.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    pictures = sorted((ground / "pictures").rglob("*.png"))
    with tarfile.open(ground / "x.tar", "w") as archive:
        for path in pictures:
            archive.add(path, path.relative_to(ground))
    files = [
        {"bytes": path.read_bytes(), "path": str(path.relative_to(ground))} for path in pictures
    ]
    pq.write_table(
        pa.table({"image": files, "label": [0, 1] * (len(files) // 2)}), ground / "x.parquet"
    )
    (ground / "run").mkdir()
    for name in ("train", "train-prior", "train-progressive", "fit-entropy-model"):
        _run(name, ground)
        if name == "train":
            shutil.copytree(ground / "run", ground / "start" / "run")
    (ground / "run").rename(ground / "trained")
    (ground / "zips").mkdir()
    for name in ("compress", "compress to a zip", "tokenize"):
        _run(name, ground)
    shutil.copy(ground / "x.zip", ground / "zips")
    _run("decompress", ground)  # what is compiled now is not compiled in a case
    shutil.rmtree(ground / "images")
    parts = {
        "tars": ground.glob("*.tar"),
        "parquets": ground.glob("*.parquet"),
        "tables": [run_folder(MODEL) / "tables.hrvt"],
        "metrics": [ground / "trained" / "metrics.jsonl"],
        "configs": [ground / "tiny.yaml"],
    }
    for name, paths in parts.items():
        (ground / name).mkdir(parents=True)
        for path in list(paths):
            shutil.copy(path, ground / name)
    (ground / "configs" / "x.json").write_text(json.dumps(config))


def _run(name: str, ground: Path) -> None:
    """Run a command in this process, so that those of the cases inherit what it has loaded."""
    told = io.StringIO()
    with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
        code = hrvqvae(COMMANDS[name].split(ground, ground))
    if code:
        raise InputError(f"{name}: {told.getvalue()}")


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = options(__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, metavar="M")
    parser.add_argument("--seed", type=int, default=0, metavar="S")
    parser.add_argument(
        "--only", default="", metavar="A,B", help="these readers and commands (default: all)"
    )
    parser.add_argument("--case", metavar="'NAME N'", help="run one again, and tell what happens")
    arguments = parser.parse_args(argv)
    known = {**READERS, **COMMANDS}
    named, _, number = (arguments.case or "").rpartition(" ")
    only = [name for name in (named or arguments.only).split(",") if name]
    chosen = only or [*known, "escapes"]
    if unknown := {*chosen} - {*known, "escapes"}:
        raise InputError(
            f"no reader or command is named {', '.join(unknown)}; there are: {', '.join(known)}"
        )
    torch.set_num_threads(1)
    with TemporaryDirectory(prefix="torture-") as folder:
        prepare(Path(folder))
        torture = Torture(Path(folder), arguments.seed)
        if arguments.case:
            print(torture.run(named, [int(number)]))
        else:
            until = time.monotonic() + 60 * arguments.minutes
            torture.construct(chosen)
            torture.go_on(chosen, until)
        sys.exit(0 if torture.tell(arguments.json) else 1)


if __name__ == "__main__":
    as_script(main)
