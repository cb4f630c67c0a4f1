"""Readers of files, and cases that damage a file and read it.

Cases run in a process of their own, which has limits of memory and time, and which may crash.
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
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from subprocess import CalledProcessError
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save

from hrvqvae.checkpoints import storage
from hrvqvae.checkpoints.folder import open_run
from hrvqvae.codes.store import read_codes
from hrvqvae.compression import hrv, zips
from hrvqvae.compression.entropy_model import EntropyModel, read_entropy_model
from hrvqvae.config import DataConfig, to_dict
from hrvqvae.config.parsing import from_file
from hrvqvae.data.images import decode_image
from hrvqvae.data.loading import load_images
from hrvqvae.model import Model
from hrvqvae.training.loggers import MetricsLog
from hrvqvae.utils.errors import InputError

Parts = dict[str, str]
"""Digest of each part of a file's content, by name. There is a part "fault" if the reader reports a
fault of the file.
"""
Say = Callable[[Any], None]
"""Sends a value to the parent process."""

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
    "1",
    "1e999",
    "nan",
    "9" * 30,
    "true",
    "[]",
    "{}",
    '""',
    "[" * 2000,
    "{a: " * 2000,
    "\0",
    "é\ud800",
    "../x",
    "x" * 70_000,
    "&a [*a]",
    "!!python/name:os.system",
    "2026-01-01",
    "0x10",
    "~",
    "level",
    "'",
)
_KINDS = ("cut", "bit", "bytes", "number", "zero", "remove", "repeat", "move", *["word"] * 3)


def damage(content: bytes, rng: random.Random) -> bytes:
    """Return a damaged copy of a file: cut off, with changed bits, bytes and numbers, with removed,
    repeated and moved parts, or with replaced words.
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
            case "zero":
                changed[place:] = bytes(len(changed) - place)
            case "remove":
                del changed[part]
            case "repeat":
                changed[place:place] = changed[part]
            case "move":
                source = rng.randrange(len(content))
                changed[place:place] = content[source : source + length]
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

    @classmethod
    def of_exit(cls, code: int, size: int = 0) -> Measured:
        """Return a case whose process ended, with an exit code or minus the number of a signal."""
        too_long = code in (-signal.SIGXCPU, -signal.SIGALRM)
        return cls("hang" if too_long else f"crash: exit code {code}", size=size)

    @property
    def kind(self) -> str:
        """The first words of its fault."""
        return self.fault.partition("\n")[0].partition(":")[0]

    @property
    def excess(self) -> float:
        """Its memory as a multiple of the limit."""
        return self.bytes / (BASE + PER_BYTE * self.size)


@dataclass
class Reader:
    """A function that reads a kind of file.

    Attributes:
        folder: of the files, below the work folder.
        read: Returns the parts of a file, or of its folder; None if it refuses the file.
        files: patterns of the files that are damaged, one file per case.
        check: bits of the check of a part; 0 if the format has none.
        open: Returns the content of a file that is damaged instead of the file itself.
        seal: Returns a file with damaged content whose checks are right, from the undamaged file
            and the content.
    """

    folder: str
    read: Callable[[Path], Parts | None]
    files: tuple[str, ...] = ("*",)
    check: int = 0
    open: Callable[[bytes], bytes] | None = None
    seal: Callable[[bytes, bytes], bytes] | None = None

    def paths(self, work: Path) -> list[Path]:
        """Return the files that are damaged."""
        folder = work / self.folder
        return sorted({path for pattern in self.files for path in folder.glob(pattern)})

    def make_case(self, work: Path, seed: int, number: int) -> tuple[Path, bytes]:
        """Return the file that a case damages, and its damaged content."""
        rng = random.Random(f"{seed} {self.folder} {self.files} {number}")
        path = rng.choice(self.paths(work))
        content = path.read_bytes()
        if self.open and self.seal:
            return path, self.seal(content, damage(self.open(content), rng))
        return path, damage(content, rng)

    def read_undamaged(self, work: Path) -> dict[str, Parts]:
        """Return the parts of the undamaged files, by path. Raises InputError if one has a fault.

        A process of its own reads them, so that its threads are not inherited.
        """
        files: dict[str, Parts] = {}
        with suppress(CalledProcessError):
            paths = self.paths(work)
            (files,) = _in_child(lambda say: say({str(path): self.read(path) for path in paths}))
        if not files or any(not parts or "fault" in parts for parts in files.values()):
            raise InputError(f"the files in {work / self.folder} can't be read undamaged")
        return files

    def run(
        self, work: Path, seed: int, numbers: Sequence[int], expected: Mapping[str, Parts]
    ) -> Iterator[Measured]:
        """Yield what each case took, in order. If a case ends the process, another goes on."""
        left = list(numbers)
        while left:
            contents = {path: path.read_bytes() for path in self.paths(work)}
            code = 0
            try:
                for measured in _in_child(partial(self._run, work, seed, left, expected)):
                    left.pop(0)
                    yield measured
            except CalledProcessError as error:
                code = error.returncode
            if left:
                for path, content in contents.items():
                    path.write_bytes(content)
                left.pop(0)
                yield Measured.of_exit(code)

    def _run(
        self,
        work: Path,
        seed: int,
        numbers: Sequence[int],
        expected: Mapping[str, Parts],
        say: Say,
    ) -> None:
        for number in numbers:
            path, content = self.make_case(work, seed, number)
            undamaged = path.read_bytes()
            path.write_bytes(content)
            measured = self.measure(path, expected[str(path)], len(content))
            path.write_bytes(undamaged)
            say(measured)

    def measure(self, path: Path, expected: Parts | None, size: int) -> Measured:
        """Read a file in this process, whose memory and time are limited from now on.

        Without expected parts, the reader may return any.
        """
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
        measured = Measured(fault, peak, time.process_time() - begun, size)
        if fault in ("", "accepted"):
            if measured.seconds > SECONDS:
                measured.fault = "hang"
            elif measured.excess > 1:
                measured.fault = "memory"
        return measured

    def bomb(self, make: Callable[[Path], Path], folder: Path) -> Measured:
        """Make a constructed file in a folder, and return what reading it took."""
        path = make(folder)
        files = [path] if path.parent == folder else folder.rglob("*")
        size = sum(file.stat().st_size for file in files if file.is_file())
        measured: Measured
        try:
            (measured,) = _in_child(lambda say: say(self.measure(path, None, size)))
        except CalledProcessError as error:
            return Measured.of_exit(error.returncode, size)
        return measured


def _limit(resource_kind: int, limit: int) -> None:
    resource.setrlimit(resource_kind, (limit, resource.RLIM_INFINITY))


def _in_child(call: Callable[[Say], None]) -> Iterator[Any]:
    """Yield the values that a call says in a process of its own. Raises CalledProcessError at the
    end if the exit code is not 0.
    """
    context = get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=call, args=(sender.send,))
    process.start()
    sender.close()
    with suppress(EOFError):
        while True:
            yield receiver.recv()
    process.join()
    if process.exitcode:
        raise CalledProcessError(process.exitcode, "a reader")


def _find_fault(read: Callable[[Path], Parts | None], path: Path, expected: Parts | None) -> str:
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
    if parts is None or expected is None:
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


def _open_weights(content: bytes) -> bytes:
    return storage._read_header(content)["meta"].encode()


def seal_weights(content: bytes, meta: bytes) -> bytes:
    """Return a weights file with another description, and the right digest."""
    tensors = load(content)
    text = meta.decode("latin-1")
    return save(tensors, {"format": "pt", "meta": text, "digest": storage._digest(tensors, text)})


def _read_tables(path: Path) -> Parts:
    return {"": digest(read_entropy_model(path.read_bytes()).content)}


def _open_tables(content: bytes) -> bytes:
    end = 12 + int.from_bytes(content[8:12], "little")
    return content[8:end] + zlib.decompress(content[end:])[:-4]


def _seal_tables(content: bytes, plain: bytes) -> bytes:
    end = 4 + int.from_bytes(plain[:4], "little")
    check = zlib.crc32(plain[4:end]).to_bytes(4, "little")
    return content[:8] + plain[:end] + zlib.compress(plain[end:] + check, 1)


def _read_zip(path: Path) -> Parts:
    parts = {}
    for _, read in zips.open_zip(path):  # no check covers the names
        try:
            parts[digest(read())] = "whole"
        except InputError:
            parts["fault"] = "damaged entries"
    return parts


@cache
def _entropy_model() -> EntropyModel:
    return Model(MODEL).entropy_model


def _read_file_of_codes(path: Path) -> Parts:
    entropy_model = _entropy_model()
    file = hrv.read(entropy_model, [path.read_bytes()])[0]
    parts = {f"{number}": digest(level) for number, level in enumerate(file.codes)}
    if parts:  # the first check is that of the size and of level 1
        parts["size"] = digest(file.size)
    # a file of fewer levels may be whole
    if file.fault or len(file.codes) < len(entropy_model.symbols):
        parts["fault"] = "levels are missing"
    return parts


def _read_tokenized(path: Path) -> Parts:
    maps = read_codes(path.parent, open_run(MODEL).digest)
    return {"": digest([maps.levels, maps.labels, maps.classes])}


def _read_mnist(path: Path) -> Parts:
    config = DataConfig(dataset="mnist", root=str(path.parent), size=12, channels=1)
    images = load_images(config, "train")
    return {"": digest([images.pixels, images.labels])}


_WEIGHTS = ("model.safetensors", "p*/**/model.safetensors")
READERS = {
    "run": Reader("trained", _read_run, (*_WEIGHTS, "tables.hrvt"), 128),
    "sealed run": Reader("trained", _read_run, _WEIGHTS, open=_open_weights, seal=seal_weights),
    "texts of a run": Reader(
        "trained", _read_run, ("config.yaml", "metrics.jsonl", "p*/**/config.yaml")
    ),
    "tables": Reader("tables", _read_tables, check=32),
    "sealed tables": Reader("tables", _read_tables, open=_open_tables, seal=_seal_tables),
    "zip": Reader("zips", _read_zip, check=32),
    "file of codes": Reader("codes", _read_file_of_codes, ("**/*.hrv",), 8),
    "codes of images": Reader("tokenized", _read_tokenized, ("[!.]*",)),
    "image": Reader("image", lambda path: {"": digest(decode_image(path, 3))}),
    "MNIST": Reader("data/mnist", _read_mnist, ("train*",), 32),
    "configuration": Reader("configs", lambda path: {"": digest(to_dict(from_file(path)))}),
    "metrics": Reader("metrics", lambda path: {"": digest(MetricsLog(path, 10**9).records)}),
}
"""By name. Texts, arrays and images of other programs have no check, or their readers do not
compare it.
"""
