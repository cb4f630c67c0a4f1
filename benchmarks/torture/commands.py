"""Commands that write, and what disturbs them: kills, full and read-only disks, a second process
that does the same.
"""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.torture.readers import MODEL, digest, resident
from hrvqvae.cli import main as hrvqvae
from hrvqvae.utils.errors import InputError

KINDS = ("killed", "full disk", "read-only", "two at once")
_BYTES = 1 << 30  # that a command may take
_PATIENCE = 60  # seconds of a command beyond ten times what it takes undisturbed


@dataclass
class Command:
    """Words of a command, where {box} is the folder that it writes to; what lies there before; what
    a run leaves.
    """

    words: str
    start: tuple[str, ...] = ()
    usual: Mapping[Path, str] = field(
        default_factory=dict
    )  # digest of each file, "" where two runs differ
    seconds: float = 0.0
    grown: int = 0  # bytes

    def split(self, ground: Path, box: Path) -> list[str]:
        """The words with the places in them."""
        return [word.format(ground=ground, box=box, model=MODEL) for word in self.words.split()]


_TRAINING = "--{0}.max_steps 5 --{0}.evaluate_every 100 --{0}.checkpoint_every 2 --{0}.log_every 2"
COMMANDS = {
    "train": Command("train {ground}/tiny.yaml --out {box}/run --resume"),
    "train-prior": Command(
        f"train-prior {{box}}/run --resume {_TRAINING.format('prior.training')}", ("run",)
    ),
    "train-progressive": Command(
        f"train-progressive {{box}}/run --resume {_TRAINING.format('progressive.training')}",
        ("run",),
    ),
    "fit-entropy-model": Command("fit-entropy-model {box}/run --effort 0.02", ("run",)),
    "export": Command("export {ground}/trained {box}/exported"),
    "compress": Command("compress {model} {ground}/pictures -o {box}/codes"),
    "compress to a zip": Command("compress {model} {ground}/pictures -o {box}/x.zip"),
    "decompress": Command("decompress {ground}/zips/x.zip -o {box}/images"),
    "tokenize": Command(
        "tokenize {model} {ground}/pictures {box}/shards --shard-size 5 --workers 0"
    ),
    "detokenize": Command("detokenize {ground}/shards {box}/images"),
    "reconstruct": Command("reconstruct {model} {ground}/pictures/a/0.png -o {box}/y.png"),
    "sample": Command("sample {model} -n 1 -o {box}/y.png --save-dir {box}/each"),
}


@dataclass
class Ended:
    """How a command ended: exit code, or minus a signal; what it told; seconds; peak of bytes above
    the start.
    """

    code: int
    told: str
    seconds: float
    bytes: int

    def fault(self, refused: bool) -> str:
        """What is wrong in that: it may be refused in a line, where that is allowed."""
        if self.bytes > _BYTES:
            return "memory"
        line = self.told.strip().rpartition("\n")[2]
        well = self.code == 0 or (refused and self.code == 2 and line.startswith("hrvqvae: "))
        if well and "Traceback" not in self.told:
            return ""
        return "hang" if self.code == -signal.SIGALRM else "crash"


class Running:
    """A command in a process of its own, which has all imports already."""

    def __init__(self, words: Sequence[str], folder: Path, patience: float) -> None:
        self.begun = time.monotonic()
        self._log = folder / f"log-{random.randbytes(4).hex()}"
        self.process = os.fork()
        if not self.process:
            code = 1
            try:
                for descriptor in (1, 2):
                    os.dup2(os.open(self._log, os.O_CREAT | os.O_WRONLY | os.O_APPEND), descriptor)
                signal.alarm(int(patience))
                code = hrvqvae(words)
                sys.stdout.flush()
            except BaseException:
                traceback.print_exc()
                sys.stderr.flush()
            finally:
                os._exit(code)

    def wait(self) -> Ended:
        """Until it has ended."""
        _, status, used = os.wait4(self.process, 0)
        seconds = time.monotonic() - self.begun
        told = self._log.read_text(errors="replace") if self._log.exists() else ""
        self._log.unlink(missing_ok=True)
        return Ended(
            os.waitstatus_to_exitcode(status),
            told,
            seconds,
            used.ru_maxrss * 1024 - resident("VmRSS"),
        )


class Box:
    """A folder for a command, a disk of its own where this process may mount one."""

    def __init__(self, path: Path, room: int) -> None:
        self.path = path
        path.mkdir()
        self.mounted = self._mount(f"size={max(room, 1 << 14)}", "-t", "tmpfs", "none")

    def _mount(self, how: str, *words: str) -> bool:
        command = ["mount", *words, "-o", how, str(self.path)]
        return (
            os.geteuid() == 0
            and subprocess.run(command, capture_output=True, check=False).returncode == 0
        )

    def lock(self) -> bool:
        """Make the disk read-only; -> whether that could be done."""
        return self.mounted and self._mount("remount,ro")

    def unlock(self) -> None:
        """Make the disk writable, and roomy."""
        if self.mounted:
            self._mount("remount,size=1g,rw")

    def remove(self) -> None:
        """With what is in it."""
        if self.mounted:
            subprocess.run(["umount", str(self.path)], check=True)
        shutil.rmtree(self.path)


def _files(folder: Path) -> dict[Path, str]:
    paths = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {path.relative_to(folder): digest(path.read_bytes()) for path in paths}


def _size(folder: Path) -> int:
    """Bytes on a disk of pages of 4 kB."""
    return sum(4096 * (1 + (path.stat().st_size + 4095) // 4096) for path in folder.rglob("*"))


class Disturbances:
    """Disturbs commands on a ground that has what they read."""

    def __init__(self, ground: Path, seed: int) -> None:
        self.ground = ground
        self.seed = seed

    def _fill(self, command: Command, box: Path) -> None:
        for name in command.start:
            shutil.copytree(self.ground / "start" / name, box / name)
        (box / "run").mkdir(exist_ok=True)  # --resume asks for a folder

    def _learn(self, command: Command) -> None:
        """Run a command twice, to know what it leaves. Raises InputError where it fails."""
        found = []
        for _ in range(2):
            with TemporaryDirectory(dir=self.ground) as folder:
                box = Path(folder) / "box"
                box.mkdir()
                self._fill(command, box)
                before = _size(box)
                ended = Running(command.split(self.ground, box), self.ground, 600).wait()
                if ended.code:
                    raise InputError(f"{command.words}: {ended.told}")
                found.append(_files(box))
                command.seconds = ended.seconds
                command.grown = _size(box) - before
        command.usual = {
            path: one if found[1].get(path) == one else "" for path, one in found[0].items()
        }

    def case(self, name: str, number: int) -> tuple[str, str]:
        """(what is wrong or "", and what was told) of one case."""
        command = COMMANDS[name]
        kind = KINDS[number % len(KINDS)]
        if not command.usual:
            self._learn(command)
        share = random.Random(f"{self.seed} {name} {number}").random()
        there = sum(_size(self.ground / "start" / one) for one in command.start)
        room = there + int(share * command.grown) if kind == "full disk" else 1 << 30
        with TemporaryDirectory(dir=self.ground) as folder:
            box = Box(Path(folder) / "box", room)
            try:
                if kind == "full disk" and not box.mounted:
                    return "not run", "no disk could be mounted"
                with contextlib.suppress(OSError, shutil.Error):
                    self._fill(command, box.path)
                if kind == "read-only" and not box.lock():
                    return "not run", "no disk could be mounted"
                return self._disturbed(command, kind, share, box)
            finally:
                box.remove()

    def _disturbed(self, command: Command, kind: str, share: float, box: Box) -> tuple[str, str]:
        words = command.split(self.ground, box.path)
        patience = _PATIENCE + 10 * command.seconds
        begun = [Running(words, self.ground, patience)]
        if kind in ("killed", "two at once"):
            time.sleep(share * command.seconds)
            if kind == "killed":
                os.kill(begun[0].process, signal.SIGKILL)
            else:
                begun.append(Running(words, self.ground, patience))
        ended = [one.wait() for one in begun]
        told = [
            f"$ hrvqvae {' '.join(words)}   ({kind}, {share:.2f})",
            *(one.told for one in ended),
        ]
        if kind != "killed" and (
            faults := [fault for one in ended if (fault := one.fault(refused=True))]
        ):
            return faults[0], "\n".join(told)
        box.unlock()
        again = Running(words, self.ground, patience).wait()
        if again.code == 2 and "--force" in again.told:
            again = Running([*words, "--force"], self.ground, patience).wait()
        found = _files(box.path)
        usual = command.usual
        other = {
            path
            for path in {*found, *usual}
            if path not in found or usual.get(path) not in ("", found[path])
        }
        told += [
            f"again, exit code {again.code}:\n{again.told}",
            *(f"differs: {path}" for path in sorted(other)),
        ]
        fault = again.fault(refused=not other)  # what is whole may be refused
        return fault or ("accepted" if other else ""), "\n".join(told)
