"""Readers of files, and cases that damage a file and read it.

Each case runs in a process of its own, which has limits of memory and time, and which may crash.
"""

from __future__ import annotations

import faulthandler
import hashlib
import random
import re
import resource
import signal
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from subprocess import CalledProcessError
from typing import Any

import numpy as np
import torch

from hrvqvae.checkpoints.folder import run_folder
from hrvqvae.compression import hrv, zips
from hrvqvae.compression.entropy_model import EntropyModel, read_entropy_model
from hrvqvae.config import to_dict
from hrvqvae.config.parsing import from_file
from hrvqvae.model import Model
from hrvqvae.utils.errors import InputError

Parts = dict[str, str]
"""Digest of each part of a file's content, by name. There is a part "fault" if the reader reports a
fault of the file.
"""

# A case may take 5 s, and 64 MB plus 50 times its input.
SECONDS = 5
BASE = 64 << 20
PER_BYTE = 50
MODEL = "treevq-mnist"
_PATIENCE = 300  # seconds of a case by the clock, for a busy machine
_NASTY = (
    "",
    "null",
    "-1",
    "0",
    "1e999",
    "nan",
    "9" * 30,
    "true",
    "[]",
    "{}",
    "\0",
    "é\ud800",
    "../x",
    "x" * 70_000,
    "&a [*a]",
    "!!python/name:os.system",
    "'",
)
_KINDS = ("cut", "bit", "bytes", "number", "remove", "repeat", *["word"] * 3)


def damage(content: bytes, rng: random.Random) -> bytes:
    """Return a damaged copy of a file: cut off, with changed bits, bytes and numbers, with removed
    and repeated parts, or with replaced words.
    """
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        place = rng.randrange(len(changed) or 1)
        length = rng.choice((1, 2, 4, 8, 64, 1024))
        part = slice(place, place + length)
        match rng.choice(_KINDS):
            case "cut":
                del changed[place:]
            case "bit" if changed:
                changed[place] ^= 1 << rng.randrange(8)
            case "bytes":
                changed[part] = rng.randbytes(length)
            case "number":
                size = min(length, 8)
                bits = 8 * size
                extremes = (0, 1, 2 ** (bits - 1) - 1, 2**bits - 1, 1 << rng.randrange(bits))
                changed[place : place + size] = rng.choice(extremes).to_bytes(size, "little")
            case "remove":
                del changed[part]
            case "repeat":
                changed[place:place] = changed[part]
            case "word":
                if word := re.search(rb"[\w.+-]+|\S", bytes(changed[place : place + 200])):
                    replacement = rng.choice(_NASTY).encode(errors="surrogatepass")
                    changed[place + word.start() : place + word.end()] = replacement
    return bytes(changed)


@dataclass
class Measured:
    """What a case took.

    Attributes:
        fault: "" if there is none.
        bytes: peak of the memory, above that at the start of the case.
        seconds: of computing.
        size: bytes of the input.
    """

    fault: str
    bytes: int = 0
    seconds: float = 0.0
    size: int = 0

    @property
    def kind(self) -> str:
        """The first words of its fault."""
        return self.fault.partition("\n")[0].partition(":")[0]


@dataclass
class Reader:
    """A function that reads a kind of file.

    Attributes:
        folder: of the files, below the work folder.
        read: Returns the parts of a file, or of its folder.
        files: patterns of the files that are damaged, one file per case.
        check: bits of the check of a part; 0 if the format has none.
    """

    folder: str
    read: Callable[[Path], Parts]
    files: tuple[str, ...] = ("*",)
    check: int = 0

    def paths(self, work: Path) -> list[Path]:
        """Return the files that are damaged."""
        folder = work / self.folder
        return sorted({path for pattern in self.files for path in folder.glob(pattern)})

    def make_case(self, work: Path, seed: int, number: int) -> tuple[Path, bytes]:
        """Return the file that a case damages, and its damaged content."""
        rng = random.Random(f"{seed} {self.folder} {self.files} {number}")
        path = rng.choice(self.paths(work))
        return path, damage(path.read_bytes(), rng)

    def read_undamaged(self, work: Path) -> dict[str, Parts]:
        """Return the parts of the undamaged files, by path. Raises InputError if one has a fault.

        A process of its own reads them, so that its threads are not inherited.
        """
        paths = self.paths(work)
        files: dict[str, Parts] = {}
        with suppress(CalledProcessError):
            files = _call_in_child(lambda: {str(path): self.read(path) for path in paths})
        if not files or any("fault" in parts for parts in files.values()):
            raise InputError(f"the files in {work / self.folder} can't be read undamaged")
        return files

    def run_case(
        self, work: Path, seed: int, number: int, expected: Mapping[str, Parts]
    ) -> Measured:
        """Damage a file, read it, put it back, and return what that took."""
        path, content = self.make_case(work, seed, number)
        undamaged = path.read_bytes()
        path.write_bytes(content)
        try:
            return self.run_file(path, len(content), expected[str(path)])
        finally:
            path.write_bytes(undamaged)

    def run_file(self, path: Path, size: int, expected: Parts | None = None) -> Measured:
        """Read a file, or a folder of so many bytes, in a process of its own.

        Without expected parts, the reader may return any.
        """
        try:
            measured: Measured = _call_in_child(lambda: self._measure(path, expected))
        except CalledProcessError as error:
            too_long = error.returncode in (-signal.SIGXCPU, -signal.SIGALRM)
            fault = "hang" if too_long else f"crash: exit code {error.returncode}"
            return Measured(fault, size=size)
        measured.size = size
        if measured.fault in ("", "accepted"):
            if measured.seconds > SECONDS:
                measured.fault = "hang"
            elif measured.bytes > BASE + PER_BYTE * size:
                measured.fault = "memory"
        return measured

    def _measure(self, path: Path, expected: Parts | None) -> Measured:
        """Read a file in this process, whose memory and time are limited from now on."""
        faulthandler.enable()
        signal.alarm(_PATIENCE)
        _limit(resource.RLIMIT_AS, resident("VmSize") + (4 << 30))
        _limit(resource.RLIMIT_CPU, int(time.process_time()) + 4 * SECONDS)
        Path("/proc/self/clear_refs").write_text("5")  # the peak of memory begins anew
        begun = time.process_time()
        # pages of files, such as those of libraries, do not count
        before = resident("VmRSS") - resident("RssFile")
        fault = _find_fault(self.read, path, expected)
        peak = resident("VmHWM") - resident("RssFile") - before
        return Measured(fault, peak, time.process_time() - begun)


def _limit(resource_kind: int, limit: int) -> None:
    resource.setrlimit(resource_kind, (limit, resource.RLIM_INFINITY))


def _call_in_child(call: Callable[[], Any]) -> Any:
    """Return the value of a call in a forked process. Raises CalledProcessError."""
    context = get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=lambda: sender.send(call()))
    process.start()
    sender.close()
    value = None
    with suppress(EOFError):
        value = receiver.recv()
    process.join()
    if process.exitcode:
        raise CalledProcessError(process.exitcode, "a reader")
    return value


def _find_fault(read: Callable[[Path], Parts], path: Path, expected: Parts | None) -> str:
    """Return what a reader does wrong with a file, or "" for nothing."""
    try:
        parts = read(path)
    except (InputError, OSError):
        return ""
    except MemoryError:
        return "memory"
    except BaseException as error:
        traceback.print_exc()
        last = traceback.extract_tb(error.__traceback__)[-1]
        return f"crash: {type(error).__name__}, {Path(last.filename).name}:{last.lineno}"
    if expected is None:
        return ""
    reported = parts.pop("fault", "")
    changed = any(expected.get(name) != part for name, part in parts.items())
    is_short = len(parts) < len(expected) and not reported
    return "accepted" if changed or is_short else ""


def resident(field: str) -> int:
    """Return a field of /proc/self/status in bytes: VmRSS, RssFile, VmHWM (the peak of VmRSS) or
    VmSize.
    """
    kilobytes = re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())
    return int(kilobytes[1]) * 1024 if kilobytes else 0


def digest(value: Any) -> str:
    """Return the digest of a plain value, bytes, an array or a tensor, or of lists and mappings of
    these.
    """
    if isinstance(value, (list, tuple)):
        value = [digest(item) for item in value]
    elif isinstance(value, Mapping):
        value = [(str(name), digest(item)) for name, item in value.items()]
    elif isinstance(value, (np.ndarray, torch.Tensor)):
        array = np.asarray(value)
        value = (array.shape, array.dtype.str, array.tobytes())
    return hashlib.blake2b(repr(value).encode(), digest_size=16).hexdigest()


def _read_run(path: Path) -> Parts:
    run = next(parent for parent in path.parents if (parent / "priors").is_dir())
    model = Model(run)
    priors = model.priors
    weights = [network.state_dict() for network in priors.networks]
    content = {
        "config": to_dict(model.config),
        "weights": model.autoencoder.state_dict(),
        "tables": model.entropy_model.content,
        "priors": [weights, priors.classes, priors.class_counts],
    }
    return {name: digest(value) for name, value in content.items()}


def _read_tables(path: Path) -> Parts:
    return {"": digest(read_entropy_model(path.read_bytes()).content)}


def _read_zip(path: Path) -> Parts:
    parts = {}
    for _, read in zips.open_zip(path):  # no check covers the names
        try:
            parts[digest(read())] = "whole"
        except InputError:
            parts["fault"] = "damaged entries"
    return parts


@cache
def entropy_model() -> EntropyModel:
    """Return the tables of the files of codes."""
    return read_entropy_model((run_folder(MODEL) / "tables.hrvt").read_bytes())


def _read_file_of_codes(path: Path) -> Parts:
    file = hrv.read(entropy_model(), [path.read_bytes()])[0]
    parts = {f"{number}": digest(level) for number, level in enumerate(file.codes)}
    if parts:  # the first check is that of the size and of level 1
        parts["size"] = digest(file.size)
    # a file of fewer levels may be whole
    if file.fault or len(file.codes) < len(entropy_model().symbols):
        parts["fault"] = "levels are missing"
    return parts


def _read_configuration(path: Path) -> Parts:
    return {"": digest(to_dict(from_file(path)))}


_RUN = ("model.safetensors", "p*/**/model.safetensors", "tables.hrvt")
READERS = {
    "run": Reader("trained", _read_run, _RUN, 128),
    "tables": Reader("tables", _read_tables, check=32),
    "zip": Reader("zips", _read_zip, check=32),
    "file of codes": Reader("codes", _read_file_of_codes, ("**/*.hrv",), 8),
    "configuration": Reader("configs", _read_configuration),
}
"""By name. A configuration has no check."""
