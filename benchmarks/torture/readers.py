"""Readers and the damage that is done to their files: what each gives of a file, in processes that
may end.
"""

from __future__ import annotations

import dataclasses
import faulthandler
import hashlib
import json
import os
import random
import re
import resource
import signal
import time
import traceback
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save

from hrvqvae.checkpoints import codemaps, export, storage
from hrvqvae.checkpoints.folder import RunFolder
from hrvqvae.compression import hrv, zips
from hrvqvae.compression.entropy_model import EntropyModel, read_entropy_model
from hrvqvae.config import DataConfig, to_dict
from hrvqvae.config.parsing import from_file
from hrvqvae.data.images import decode_image
from hrvqvae.data.loading import load_images, open_whole
from hrvqvae.model import Model
from hrvqvae.tokens.shards import Plan, find_shards, read_rows
from hrvqvae.training.loggers import MetricsLog
from hrvqvae.utils.errors import InputError

Parts = dict[str, str]
"""Digest of each thing that a file holds, by name; "told" is there where the reader says that
something is wrong.
"""

# a case takes at most 5 s, and 64 MB and 50 times its input
SECONDS = 5
BASE = 64 << 20
PER_BYTE = 50
MODEL = "treevq-mnist"
_PATIENCE = 300  # seconds of a case by the clock, on a machine that does other work
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
_KINDS = (
    "cut",
    "bit",
    "bytes",
    "number",
    "zero",
    "remove",
    "repeat",
    "move",
    "word",
    "word",
    "word",
)


def damaged(content: bytes, draw: random.Random) -> bytes:
    """A file with damage: cut, bits and bytes changed, numbers at their ends, parts moved, words
    replaced.
    """
    made = bytearray(content)
    for _ in range(draw.choice((1, 1, 1, 2, 5))):
        place = draw.randrange(len(made) or 1)
        length = draw.choice((1, 2, 4, 8, 64, 1024))
        part = slice(place, place + length)
        bits = 8 * min(length, 8)
        match draw.choice(_KINDS):
            case "cut":
                del made[place:]
            case "bit" if made:
                made[place] ^= 1 << draw.randrange(8)
            case "bytes":
                made[part] = draw.randbytes(length)
            case "number":
                number = draw.choice(
                    (0, 1, 2 ** (bits - 1) - 1, 2**bits - 1, 1 << draw.randrange(bits))
                )
                made[place : place + bits // 8] = number.to_bytes(bits // 8, "little")
            case "zero":
                made[place:] = bytes(len(made) - place)
            case "remove":
                del made[part]
            case "repeat":
                made[place:place] = made[part]
            case "move":
                other = draw.randrange(len(content))
                made[place:place] = content[other : other + length]
            case "word":
                if found := re.search(rb"[\w.+-]+|\S", bytes(made[place : place + 200])):
                    word = draw.choice(_NASTY).encode(errors="surrogatepass")
                    made[place + found.start() : place + found.end()] = word
    return bytes(made)


@dataclass
class Measured:
    """What a case took: what is wrong, "" for nothing; bytes above those at its start; seconds;
    bytes of the input.
    """

    fault: str
    bytes: int
    seconds: float
    size: int

    @classmethod
    def ended(cls, code: int, size: int = 0) -> Measured:
        """A case in which the process ended."""
        return cls(
            "hang" if code in (-signal.SIGXCPU, -signal.SIGALRM) else f"crash: exit code {code}",
            0,
            0.0,
            size,
        )

    @property
    def excess(self) -> float:
        """Its memory as a multiple of what it may take."""
        return self.bytes / (BASE + PER_BYTE * self.size)


@dataclass
class Reader:
    """What reads a kind of file.

    Attributes:
        folder: of the files, below the ground.
        read: the parts that the damaged file, or its folder, holds; None is a refusal.
        files: patterns of the files that are damaged, one in each case.
        check: bits of the check of a part; 0 where the format has none.
        opened: the content that is damaged, where `sealed` makes all checks right again: nothing is
            then told by them.
    """

    folder: str
    read: Callable[[Path], Parts | None]
    files: tuple[str, ...] = ("*",)
    check: int = 0
    opened: Callable[[bytes], bytes] | None = None
    sealed: Callable[[bytes, bytes], bytes] | None = None

    def paths(self, ground: Path) -> list[Path]:
        """The files that are damaged."""
        return sorted(
            {path for pattern in self.files for path in (ground / self.folder).glob(pattern)}
        )

    def case(self, ground: Path, seed: int, number: int) -> tuple[Path, bytes]:
        """The file that a case damages, and what it becomes."""
        draw = random.Random(f"{seed} {self.folder} {self.files} {number}")
        path = draw.choice(self.paths(ground))
        content = path.read_bytes()
        if self.opened and self.sealed:
            return path, self.sealed(content, damaged(self.opened(content), draw))
        return path, damaged(content, draw)

    def expected(self, ground: Path) -> dict[str, Parts]:
        """What the undamaged files hold, by path, read by a process of its own: none inherits its
        threads.
        """
        told = "".join(
            _in_child(
                lambda say: say(
                    json.dumps({str(one): self.read(one) for one in self.paths(ground)})
                )
            )
        )
        found: dict[str, Parts] = json.loads(told or "{}")
        if not found or any(not parts or "told" in parts for parts in found.values()):
            raise InputError(f"the files in {ground / self.folder} can't be read undamaged: {told}")
        return found

    def run(
        self, ground: Path, seed: int, numbers: Sequence[int], expected: Mapping[str, Parts]
    ) -> Iterator[Measured]:
        """Yield what each case took, in order. If a process ends in one, another goes on."""
        left = list(numbers)
        while left:
            before = {path: path.read_bytes() for path in self.paths(ground)}
            code = 0
            for line in _in_child(lambda say: self._run(ground, seed, left, expected, say)):
                if line.startswith("exit code"):
                    code = int(line.split()[-1])
                else:
                    left.pop(0)
                    yield Measured(**json.loads(line))
            if left:
                for path, content in before.items():
                    path.write_bytes(content)
                left.pop(0)
                yield Measured.ended(code)

    def _run(
        self,
        ground: Path,
        seed: int,
        numbers: Sequence[int],
        expected: Mapping[str, Parts],
        say: Callable[[str], None],
    ) -> None:
        for number in numbers:
            path, content = self.case(ground, seed, number)
            before = path.read_bytes()
            path.write_bytes(content)
            measured = self.measure(path, expected[str(path)], len(content))
            path.write_bytes(before)
            say(json.dumps(vars(measured)))

    def measure(self, path: Path, expected: Parts, size: int) -> Measured:
        """Read a file of a case in this process, whose memory and time are limited from now on."""
        faulthandler.enable()
        resource.setrlimit(
            resource.RLIMIT_AS, (resident("VmSize") + (4 << 30), resource.RLIM_INFINITY)
        )
        signal.alarm(_PATIENCE)
        resource.setrlimit(
            resource.RLIMIT_CPU, (int(time.process_time()) + 4 * SECONDS, resource.RLIM_INFINITY)
        )
        Path("/proc/self/clear_refs").write_text("5")  # the peak of memory begins anew
        begun = time.process_time()
        rest = resident("VmRSS")
        mapped = resident("RssFile")
        fault = _fault(self.read, path, expected)
        peak = (
            resident("VmHWM") - rest - (resident("RssFile") - mapped)
        )  # without the libraries' own pages
        measured = Measured(fault, peak, time.process_time() - begun, size)
        if not fault or fault == "accepted":
            measured.fault = (
                "hang" if measured.seconds > SECONDS else "memory" if measured.excess > 1 else fault
            )
        return measured

    def bomb(self, make: Callable[[Path], Path], folder: Path) -> Measured:
        """Yield what a constructed case took, of which nothing has to be read."""
        path = make(folder)
        size = sum(
            file.stat().st_size
            for file in ([path] if path.parent == folder else folder.rglob("*"))
            if file.is_file()
        )

        def work(say: Callable[[str], None]) -> None:
            say(json.dumps(vars(self.measure(path, {}, size))))

        *_, last = [*_in_child(work)] or ["exit code -6"]
        if last.startswith("exit code"):
            return Measured.ended(int(last.split()[-1]), size)
        measured = Measured(**json.loads(last))
        return dataclasses.replace(measured, fault=measured.fault.replace("accepted", ""))


def _in_child(work: Callable[[Callable[[str], None]], None]) -> Iterator[str]:
    """The lines that a process of its own says, and "exit code N" where it is not 0."""
    listen, say = os.pipe()
    child = os.fork()
    if not child:
        code = 1
        try:
            with os.fdopen(say, "w", buffering=1) as lines:
                work(lambda line: print(line, file=lines))
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(say)
    with os.fdopen(listen) as lines:
        for line in lines:
            yield line.rstrip("\n")
    if code := os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
        yield f"exit code {code}"


def _fault(read: Callable[[Path], Parts | None], path: Path, expected: Parts) -> str:
    """What a reader does wrong with a file."""
    try:
        found = read(path)
    except (InputError, OSError):
        return ""
    except MemoryError:
        return "memory"
    except BaseException as error:
        traceback.print_exc()
        last = traceback.extract_tb(error.__traceback__)[-1]
        return f"crash: {type(error).__name__}, {Path(last.filename).name}:{last.lineno}"
    if found is None:
        return ""
    told = found.pop("told", "")
    wrong = any(expected.get(name) != digest for name, digest in found.items())
    return "accepted" if wrong or (not told and len(found) < len(expected)) else ""


def resident(what: str) -> int:
    """VmRSS, VmHWM (its peak) or VmSize of this process in bytes."""
    found = re.search(rf"{what}:\s+(\d+)", Path("/proc/self/status").read_text())
    return int(found[1]) * 1024 if found else 0


def digest(value: Any) -> str:
    """Of plain values, bytes, arrays and tensors, or lists and mappings of these."""
    if isinstance(value, (list, tuple)):
        value = [digest(one) for one in value]
    elif isinstance(value, Mapping):
        value = [(str(name), digest(one)) for name, one in value.items()]
    elif isinstance(value, (np.ndarray, torch.Tensor)):
        array = np.asarray(value)
        value = (array.shape, array.dtype.str, array.tobytes())
    return hashlib.blake2b(repr(value).encode(), digest_size=16).hexdigest()


def _of_run(path: Path) -> Parts:
    run = next(one for one in path.parents if (one / "priors").is_dir())
    model = Model(run)
    priors = model.priors
    found = {
        "config": to_dict(model.config),
        "weights": model.autoencoder.state_dict(),
        "tables": model.entropy_model.content,
    }
    found["priors"] = [
        [one.state_dict() for one in priors.networks],
        priors.classes,
        priors.class_counts,
    ]
    return {name: digest(value) for name, value in found.items()} | {
        "card": export._read_evaluation(RunFolder(run))
    }


def _with_meta(content: bytes, meta: bytes) -> bytes:
    tensors = load(content)
    text = meta.decode("latin-1")
    return save(tensors, {"format": "pt", "meta": text, "digest": storage._digest(tensors, text)})


def _tables_opened(content: bytes) -> bytes:
    end = 12 + int.from_bytes(content[8:12], "little")
    return content[8:end] + zlib.decompress(content[end:])[:-4]


def _tables_sealed(content: bytes, plain: bytes) -> bytes:
    end = 4 + int.from_bytes(plain[:4], "little")
    return (
        content[:8]
        + plain[:end]
        + zlib.compress(plain[end:] + zlib.crc32(plain[4:end]).to_bytes(4, "little"), 1)
    )


def _of_maps(path: Path) -> Parts | None:
    found = codemaps.read_maps(path.parent, "train", {"of": 1}, (4, 300))
    return None if found is None else {"": digest([found.levels, found.labels, found.classes])}


def _of_zip(path: Path) -> Parts:
    contents = [content for _, content in zips.read_zip(path)]  # no check covers the names
    found = {digest(content): "whole" for content in contents if content is not None}
    return found | ({"told": "yes"} if None in contents else {})


@cache
def _entropy_model() -> EntropyModel:
    return Model(MODEL).entropy_model


def _of_file(path: Path) -> Parts:
    found = hrv.read(_entropy_model(), [path.read_bytes()])[0]
    entropy_model = _entropy_model()
    levels = {f"{number}": digest(level) for number, level in enumerate(found.codes)}
    cut = found.fault or len(levels) < len(entropy_model.symbols)  # fewer levels are a whole file
    size = {"size": digest(found.size)} if levels else {}  # the first check is of size and level 1
    return size | levels | ({"told": "yes"} if cut else {})


def _of_shards(path: Path) -> Parts:
    shards = find_shards(path.parent)
    found = Parts()
    for rows in read_rows(shards.paths, 2):
        for place, key in enumerate(rows.keys):
            found[key] = digest(
                [rows.labels[place], rows.sizes[place], [one[place] for one in rows.codes]]
            )
    return found | {"about": digest([shards.broken, shards.classes, str(Plan.read(path.parent))])}


def _of_images(path: Path) -> Parts:
    source = open_whole(path.with_name(path.name.replace("-labels", "")))
    rows = range(min(len(source), 2000))
    images = {source.name(row): decode_image(partial(source.open, row), 3) for row in rows}
    return {"labels": digest(source.labels)} | {
        name: digest(image.pixels) for name, image in images.items()
    }


def _of_set(path: Path) -> Parts:
    images = load_images(
        DataConfig(dataset="mnist", root=str(path.parent), size=12, channels=1), "train"
    )
    return {"": digest([images.pixels, images.labels])}


_WEIGHTS = ("model.safetensors", "p*/**/model.safetensors")
READERS = {
    "run": Reader("trained", _of_run, (*_WEIGHTS, "tables.hrvt"), 128),
    "sealed run": Reader(
        "trained",
        _of_run,
        _WEIGHTS,
        opened=lambda content: storage._header(content)[0].encode(),
        sealed=_with_meta,
    ),
    "texts of a run": Reader(
        "trained", _of_run, ("config.yaml", "metrics.jsonl", "p*/**/config.yaml")
    ),
    "tables": Reader(
        "tables", lambda path: {"": digest(read_entropy_model(path.read_bytes()).content)}, check=32
    ),
    "sealed tables": Reader(
        "tables",
        lambda path: {"": digest(read_entropy_model(path.read_bytes()).content)},
        opened=_tables_opened,
        sealed=_tables_sealed,
    ),
    "code maps": Reader("maps", _of_maps, check=128),
    "zip": Reader("zips", _of_zip, check=32),
    "file of codes": Reader("codes", _of_file, ("**/*.hrv",), 8),
    "shards of codes": Reader("shards", _of_shards, ("[!.]*",)),
    "tar": Reader("tars", _of_images, ("*.tar",)),
    "Parquet of images": Reader("parquets", _of_images),
    "npy and npz": Reader("arrays", _of_images),
    "image": Reader("image", lambda path: {"": digest(decode_image(path, 3).pixels)}),
    "MNIST": Reader("data/mnist", _of_set, ("train*",), 32),
    "configuration": Reader("configs", lambda path: {"": digest(to_dict(from_file(path)))}),
    "metrics": Reader("metrics", lambda path: {"": digest(MetricsLog(path, 10**9).records)}),
}
"""By name. Texts, arrays and images of others have no check of their own, or one that their readers
do not compare.
"""
