"""Commands that write, and what disturbs them: a kill, or a full disk."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.common import parse_lines
from benchmarks.torture.readers import MODEL, digest, resident
from hrvqvae.cli import main as hrvqvae
from hrvqvae.utils.errors import InputError

KINDS = ("killed", "full disk")
_BYTES = 1 << 30  # of memory that a command may take
_PATIENCE = 60  # seconds that a command may take beyond ten times those without disturbance


@dataclass
class Command:
    """A command that writes.

    Attributes:
        words: of the command line; {work} is the work folder, {box} the folder that it writes to.
        usual: digest of each file that the undisturbed command leaves, "" where two calls differ.
        seconds: of an undisturbed call.
        growth: bytes that an undisturbed call adds to the box.
    """

    words: str
    usual: Mapping[Path, str] = field(default_factory=dict)
    seconds: float = 0.0
    growth: int = 0

    @property
    def needs_run(self) -> bool:
        """Whether the box must have a run whose autoencoder is trained."""
        return self.words.split()[1] == "{box}/run"

    def split(self, work: Path, box: Path) -> list[str]:
        """Return the words with the folders in them."""
        return [word.format(work=work, box=box, model=MODEL) for word in self.words.split()]


_WORDS = parse_lines("""
train: train {work}/tiny.yaml --out {box}/run --resume
train-prior: train-prior {box}/run --resume
train-decoder: train-decoder {box}/run --decoder progressive --resume
export: export {work}/trained {box}/exported
compress: compress {model} {work}/pictures -o {box}/codes
compress to a zip: compress {model} {work}/pictures -o {box}/x.zip
decompress: decompress {work}/zips/x.zip -o {box}/images
tokenize: tokenize {model} {work}/pictures {box}/tokenized
reconstruct: reconstruct {model} {work}/pictures/a/0.png -o {box}/y.png
sample: sample {model} -n 1 -o {box}/y.png --save-dir {box}/each
""")
COMMANDS = {name: Command(words) for name, words in _WORDS.items()}


@dataclass
class Result:
    """How a command ended.

    Attributes:
        code: exit code, or minus the number of a signal.
        output: what it printed.
        seconds: by the clock.
        bytes: peak of the memory, above that at the start.
    """

    code: int
    output: str
    seconds: float
    bytes: int

    def find_fault(self, may_refuse: bool) -> str:
        """Return the fault, or "" for none. A refusal (exit code 2 and a line) is a fault unless
        the command may refuse.
        """
        if self.bytes > _BYTES:
            return "memory"
        last_line = self.output.strip().rpartition("\n")[2]
        refused = self.code == 2 and last_line.startswith("hrvqvae: ")
        ended_well = self.code == 0 or (may_refuse and refused)
        if ended_well and "Traceback" not in self.output:
            return ""
        return "hang" if self.code == -signal.SIGALRM else "crash"


def run_command(
    words: Sequence[str], folder: Path, patience: float, kill_after: float | None = None
) -> Result:
    """Run a command in a forked process, which has all imports already."""
    begun = time.monotonic()
    log = folder / "log"
    log.write_bytes(b"")
    process = os.fork()
    if not process:
        code = 1
        try:
            for descriptor in (1, 2):
                os.dup2(os.open(log, os.O_WRONLY | os.O_APPEND), descriptor)
            signal.alarm(int(patience))
            code = hrvqvae(words)
            sys.stdout.flush()
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(code)

    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(process, signal.SIGKILL)
    _, status, used = os.wait4(process, 0)
    seconds = time.monotonic() - begun
    grown = used.ru_maxrss * 1024 - resident("VmRSS")
    output = log.read_text(errors="replace")
    return Result(os.waitstatus_to_exitcode(status), output, seconds, grown)


class Box:
    """A folder for a command to write to. It is a disk of its own if this process may mount one."""

    def __init__(self, path: Path, room: int) -> None:
        self.path = path
        path.mkdir()
        self.mounted = self._mount(f"size={max(room, 1 << 14)}")

    def _mount(self, options: str) -> bool:
        if os.geteuid():
            return False
        command = ["mount", "-t", "tmpfs", "none", "-o", options, str(self.path)]
        return not subprocess.run(command, capture_output=True, check=False).returncode

    def enlarge(self) -> None:
        """Make room on the disk."""
        if self.mounted:
            self._mount("remount,size=1g")

    def remove(self) -> None:
        """Remove the folder and its files."""
        if self.mounted:
            subprocess.run(["umount", str(self.path)], check=True)
        shutil.rmtree(self.path)


def _digest_files(folder: Path) -> dict[Path, str]:
    """Return the digest of each file, but not of hidden files, nor of those in hidden folders."""
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    visible = [path for path in paths if not any(part.startswith(".") for part in path.parts)]
    return {path: digest((folder / path).read_bytes()) for path in visible}


def _disk_bytes(folder: Path) -> int:
    """Return the bytes that a folder takes on a disk of pages of 4 kB."""
    return sum(4096 * (1 + (path.stat().st_size + 4095) // 4096) for path in folder.rglob("*"))


class Disturbances:
    """Cases that disturb the commands. The work folder has what the commands read."""

    def __init__(self, work: Path, seed: int) -> None:
        self.work = work
        self.seed = seed
        self._trained = work / "start" / "run"

    @contextlib.contextmanager
    def _make_box(self, command: Command, room: int = 1 << 30) -> Iterator[Box]:
        """Make a box with what a command needs, as far as there is room."""
        with TemporaryDirectory(dir=self.work) as folder:
            box = Box(Path(folder) / "box", room)
            run = box.path / "run"
            try:
                with contextlib.suppress(OSError, shutil.Error):
                    if command.needs_run:
                        shutil.copytree(self._trained, run)
                    run.mkdir(exist_ok=True)  # --resume asks for a folder
                yield box
            finally:
                box.remove()

    def _learn(self, command: Command) -> None:
        """Run a command twice to know what it leaves. Raises InputError if it fails."""
        calls = []
        for _ in range(2):
            with self._make_box(command) as box:
                before = _disk_bytes(box.path)
                result = run_command(command.split(self.work, box.path), self.work, 600)
                if result.code:
                    raise InputError(f"{command.words}: {result.output}")
                calls.append(_digest_files(box.path))
                command.seconds = result.seconds
                command.growth = _disk_bytes(box.path) - before
        first, second = calls
        command.usual = {
            path: part if second.get(path) == part else "" for path, part in first.items()
        }

    def run_case(self, name: str, number: int) -> tuple[str, str]:
        """Run a case of a command. Return its fault, "" for none, and what was printed."""
        command = COMMANDS[name]
        kind = KINDS[number % len(KINDS)]
        if not command.usual:
            self._learn(command)
        share = random.Random(f"{self.seed} {name} {number}").random()
        room = 1 << 30
        if kind == "full disk":
            room = int(share * command.growth)
            room += _disk_bytes(self._trained) if command.needs_run else 0
        with self._make_box(command, room) as box:
            if kind == "full disk" and not box.mounted:
                return "not run", "no disk could be mounted"
            return self._disturb(command, kind, share, box)

    def _disturb(self, command: Command, kind: str, share: float, box: Box) -> tuple[str, str]:
        words = command.split(self.work, box.path)
        patience = _PATIENCE + 10 * command.seconds
        kill_after = share * command.seconds if kind == "killed" else None
        result = run_command(words, self.work, patience, kill_after)
        output = f"$ hrvqvae {' '.join(words)}   ({kind}, {share:.2f})\n{result.output}"
        fault = result.find_fault(may_refuse=True)
        if fault and kind != "killed":
            return fault, output

        # without disturbance, the command must leave its usual files
        box.enlarge()
        again = run_command(words, self.work, patience)
        if again.code == 2 and "--force" in again.output:
            again = run_command([*words, "--force"], self.work, patience)
        files = _digest_files(box.path)
        # where two undisturbed calls differ, any file will do
        usual = {path: part or files.get(path) for path, part in command.usual.items()}
        changed = sorted(path for path in {*files, *usual} if files.get(path) != usual.get(path))
        output += f"\nagain, exit code {again.code}:\n{again.output}\n"
        output += "\n".join(f"differs: {path}" for path in changed)
        fault = again.find_fault(may_refuse=not changed)  # finished files may be refused
        return fault or ("accepted" if changed else ""), output
