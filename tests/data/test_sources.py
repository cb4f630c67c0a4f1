"""Every form in which images are stored gives the same images, labels, order and split, and is
refused in one line.
"""

import hashlib
import io
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterable, Iterator
from itertools import islice, product
from pathlib import Path
from unittest.mock import Mock, patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from hrvqvae.data.batches import ImageSet, batches, evaluation_batches, make_rng
from hrvqvae.data.images import BrokenImageError
from hrvqvae.data.loading import open_whole
from hrvqvae.data.sources import HELD_OUT, arrays, parquet, tars
from hrvqvae.data.sources.files import match_files, read_list
from hrvqvae.utils.errors import InputError
from tests.data.stored import content, loaded, paths_of, write_parquet, write_tar

SPLITS = ("train", "test")
FORMS = ("folder", "tar", "parquet", "npy", "npz")


def png(seed: int, size: tuple[int, int] = (16, 16)) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), np.uint8)).save(
        stream, "PNG"
    )
    return stream.getvalue()


def decoded(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)))


def planes(images: Iterable[bytes]) -> np.ndarray:
    return np.stack([decoded(image).transpose(2, 0, 1) for image in images])


def store(form: str, root: Path, files: dict[str, bytes]) -> Path:
    """Write images by name in a form, in three tars or Parquet files; their folders "0", "1" ...
    are their labels.
    """
    labels = {name: int(name.split("/")[-2]) for name in files}
    root.parent.mkdir(parents=True, exist_ok=True)
    if form == "folder":
        for name, image in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(image)
        return root
    for index, names in enumerate(np.array_split(list(files), 3)):
        if form == "tar":
            members = {}
            for name in names.tolist():
                members |= {
                    name: files[name],
                    f"{name.rpartition('.')[0]}.cls": b"%d" % labels[name],
                }
            write_tar(Path(f"{root}-{index}.tar"), members)
        elif form == "parquet":
            images, values = ([table[name] for name in names] for table in (files, labels))
            write_parquet(
                Path(f"{root}-{index}.parquet"), images, values, paths=names.tolist(), rows=4
            )
    if form == "npy":
        np.save(
            f"{root}-images.npy", np.asarray(np.stack([*map(decoded, files.values())]), order="F")
        )
        np.save(f"{root}-labels.npy", [*labels.values()])
    elif form == "npz":
        np.savez(
            f"{root}.npz",
            images=np.stack([*map(decoded, files.values())]),
            labels=[*labels.values()],
        )
    return root.parent


def drawn(count: int, seed: int = 0) -> dict[str, bytes]:
    names = sorted(f"{(index * 7) % 3}/{index:03d}.png" for index in range(count))
    return {name: png(seed + index) for index, name in enumerate(names)}


@pytest.fixture(autouse=True)
def _separate_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize(("form", "held_out"), [*zip(FORMS, 2 * [*HELD_OUT], strict=False)])
def test_a_given_split(form: str, held_out: str, tmp_path: Path) -> None:
    stored = {"train": drawn(21), held_out: drawn(8, 100)}
    for word, files in stored.items():
        store(form, tmp_path / "set" / word, files)
    for split, files in zip(SPLITS, stored.values(), strict=True):
        images = loaded(tmp_path / "set", split)
        np.testing.assert_array_equal(content(images), planes(files.values()))
        assert images.labels.tolist() == [int(name[0]) for name in files]
        assert images.classes == ("0", "1", "2")
        assert loaded(tmp_path / "set", split, labels=False).classes == ()


@pytest.mark.parametrize("form", FORMS[:3])
def test_a_hash_of_each_name_divides(form: str, tmp_path: Path) -> None:
    files = drawn(40)
    root = store(form, tmp_path / "set" / "images", files)
    hashes = {name: hashlib.blake2b(name.encode(), digest_size=8).digest() for name in files}
    test = [
        files[name] for name, value in hashes.items() if int.from_bytes(value, "big") < 0.2 * 2**64
    ]
    train = [image for image in files.values() if image not in test]
    for split, expected in (("train", train), ("test", test)):
        np.testing.assert_array_equal(
            content(loaded(root, split, test_fraction=0.2)), planes(expected)
        )
    first = [content(loaded(root, split, split="sorted", train_samples=30)) for split in SPLITS]
    np.testing.assert_array_equal(np.concatenate(first), planes(files.values()))
    assert [*map(len, first)] == [30, 10]
    with pytest.raises(InputError, match="has 40 images, none in the test split.*--data.split"):
        loaded(root, "test", split="sorted", train_samples=40)


@pytest.mark.parametrize("form", FORMS)
def test_batches_are_those_of_a_folder(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = drawn(40)
    roots = [store(name, tmp_path / name / "images", files) for name in ("folder", form)]
    options = {"crop": "random", "flip": True, "size": 12, "split": "sorted", "train_samples": 30}
    folder, images = (loaded(root, **options) for root in roots)
    assert len({folder.decode(0, (1, epoch, 0)).pixels.tobytes() for epoch in range(8)}) > 1

    def read(images: ImageSet, workers: int = 0) -> torch.Tensor:
        return torch.cat(
            [
                batch.images
                for batch in islice(batches(images, batch_size=4, seed=2, workers=workers), 14)
            ]
        )

    expected = read(folder)
    assert torch.equal(read(images), expected)
    assert torch.equal(read(pickle.loads(pickle.dumps(images)), workers=2), expected)
    assert torch.equal(
        next(batches(images, batch_size=4, seed=2, first_step=11)).images, expected[44:48]
    )
    monkeypatch.setattr(parquet, "WINDOW_BYTES", 3_000)
    windowed = read(loaded(roots[1], **options))
    assert torch.equal(read(loaded(roots[1], **options), workers=2), windowed)
    assert torch.equal(windowed, expected) == (form != "parquet")
    assert len(pickle.dumps(images)) < 5_000
    assert multiprocessing.active_children() == [], (
        "processes have ended with who asked for batches"
    )


@pytest.mark.parametrize("memory_mb", [0, 100])
@pytest.mark.parametrize("form", FORMS[:3])
def test_broken_images(
    form: str, memory_mb: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = drawn(10)
    for name in list(files)[4:6]:
        files[name] = files[name][:60]
    root = store(form, tmp_path / "set" / "images", files)
    options = {"memory_mb": memory_mb, "split": "sorted", "train_samples": 10}
    with pytest.raises(BrokenImageError, match=r"is not a readable .*--data.on_error skip"):
        list(evaluation_batches(loaded(root, **options), batch_size=2))
    counts = [
        len(batch.images)
        for batch in evaluation_batches(loaded(root, **options, on_error="skip"), batch_size=2)
    ]
    assert sum(counts) == 8
    assert all(counts), "no batch is empty"
    lines = [line for line in caplog.messages if line.startswith("broken")]
    assert len(lines) == bool(memory_mb)
    assert all("skipped: 2 of 10, the first: " in line for line in lines)
    root = store(form, tmp_path / "broken" / "images", dict.fromkeys(drawn(10), b"nothing"))
    with pytest.raises(InputError, match="all images are broken"):
        next(batches(loaded(root, **options, on_error="skip"), batch_size=2, seed=0))


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # webdataset leaves its shards open
def test_shards_of_webdataset_are_read(picture_folder: Path, tmp_path: Path) -> None:
    import webdataset

    with webdataset.TarWriter(str(tmp_path / "train-0.tar")) as writer:
        for index, path in enumerate(sorted(picture_folder.rglob("*.*"))):
            writer.write(
                {"__key__": f"{index:06d}", path.suffix[1:]: path.read_bytes(), "cls": index % 3}
            )
    images = loaded(tmp_path / "train-0.tar", test_fraction=0.5)
    assert (images.classes, images.labels.tolist()) == (
        ("0", "1", "2"),
        [int(row) % 3 for row in images.rows],
    )


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def names_of(folder: Path, split: str = "train", **changes: object) -> list[str]:
    paths = paths_of(loaded(folder, split, **changes))
    return [path.relative_to(folder).as_posix() for path in paths]


def test_folders_that_are_refused(tmp_path: Path) -> None:
    for number, (names, message) in enumerate(
        (
            (
                ["train/a/0.png", "train/b/1.png", "2.png"],
                "has train, but none of test, val, valid, validation, dev: .*--data",
            ),
            (["test/a/0.png", "test/b/1.png"], "has test, but no train"),
            (["val/0.png", "validation/1.png"], "has val and validation, but no train"),
            (
                ["train/a/0.png", "test/1.png"],
                "images of the test split alone have no labels; .*--data.labels false",
            ),
            (["train/0.png", "val/a/1.png"], "images of the train split alone have no labels"),
            (
                ["train/e\u0301.png", "train/\u00e9.png", "test/0.png"],
                "two spellings of Unicode; rename",
            ),
            ([os.fsdecode(b"train/\xff.png"), "test/0.png"], "not UTF-8; rename"),
            (["notes.txt"], "has no image"),
        )
    ):
        touch(folder := tmp_path / f"{number}", *names)
        (folder / "annotations").mkdir()
        for split in SPLITS:
            with pytest.raises(InputError, match=message):
                loaded(folder, split)
    assert names_of(tmp_path / "3", labels=False) == ["train/a/0.png"]


def test_linked_folders_are_followed_unless_they_lead_back(tmp_path: Path) -> None:
    touch(tmp_path / "elsewhere", "0.png", "1.png")
    folder = tmp_path / "set"
    touch(folder, "train/2.png")
    (folder / "val").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (folder / "self").symlink_to(folder)
    (folder / "up").symlink_to(tmp_path)
    assert names_of(folder) == ["train/2.png"]
    assert names_of(folder, "test") == ["val/0.png", "val/1.png"]
    (tmp_path / "tars").mkdir()
    for split in SPLITS:
        write_tar(tmp_path / "disk" / split / "0.tar", {"a.png": png(1)})
        (tmp_path / "tars" / split).symlink_to(tmp_path / "disk" / split)
    assert [len(loaded(tmp_path / "tars", split)) for split in SPLITS] == [1, 1]
    touch(tmp_path / "deep", "a/b/1.png")
    (tmp_path / "deep" / "a" / "b" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "deep" / "a")
    names = names_of(tmp_path / "deep") + names_of(tmp_path / "deep", "test")
    assert sorted(names) == [
        "a/b/1.png",
        "a/b/link/0.png",
        "a/b/link/1.png",
    ], "at any depth, once around"


def test_unreadable_folders_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path, "a/0.png", "a/1.png", "b/2.png")
    (tmp_path / "c").symlink_to("c")
    scandir = os.scandir

    def closed(path: str) -> object:
        if str(path).endswith("/b"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    with patch.object(os, "scandir", closed):
        assert sorted(names_of(tmp_path) + names_of(tmp_path, "test")) == ["a/0.png", "a/1.png"]
    assert "/b can't be read (Permission denied)" in caplog.text
    assert "/c can't be read (Too many levels of symbolic links); it is left out" in caplog.text


def test_images_of_a_folder_come_before_its_tars(
    picture_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = content(loaded(picture_folder))
    write_tar(picture_folder / "old.tar", {"a.png": png(1)})
    np.testing.assert_array_equal(content(loaded(picture_folder)), before)
    assert f"to read these: '{picture_folder}/*.tar'" in caplog.text
    caplog.clear()
    np.save(picture_folder / "old.npy", np.zeros((2, 4, 4), np.uint8))
    open_whole(picture_folder)
    assert f"to read these: '{picture_folder}/*.npy'" in caplog.text


def test_names_that_stand_for_files(tmp_path: Path) -> None:
    touch(tmp_path, "a-8.tar", "a-9.tar", "a-10.tar", "b-1.tar", "c[1].tar", ".hidden.tar")

    def names(pattern: str) -> list[str]:
        return [path.name for path in match_files(tmp_path / pattern)]

    assert names("a-{8..10}.tar") == ["a-8.tar", "a-9.tar", "a-10.tar"]
    assert names("{a-8,b-1}.tar") == ["a-8.tar", "b-1.tar"]
    assert names("{b,a}-[19]*.tar") == ["b-1.tar", "a-10.tar", "a-9.tar"]
    assert names("*.tar") == ["a-10.tar", "a-8.tar", "a-9.tar", "b-1.tar", "c[1].tar"]
    assert names("c[1].tar") == ["c[1].tar"]
    for pattern, message in (
        ("a-{8..11}.tar", "a-11.tar is missing; get it, or name the files"),
        ("a-{08..10}.tar", "a-08.tar is missing"),
        ("d*.tar", r"no file is named like .*d\*.tar"),
        ("a-{9..8}.tar", "no range"),
        ("a-{0..99999999}.tar", "no range of at most"),
        ("d**.tar", r"d\*\*.tar"),  # a ValueError of pathlib before Python 3.13
    ):
        with pytest.raises(InputError, match=message):
            match_files(tmp_path / pattern)


def test_the_index_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tars, "MIN_INDEXED_IMAGES", 10)
    shards = store("tar", tmp_path / "shards" / "x", drawn(15))
    monkeypatch.setattr(tars, "scan", scan := Mock(wraps=tars.scan))

    def read() -> tuple[int, np.ndarray]:
        scan.reset_mock()
        images = content(loaded(shards))
        return scan.call_count, images

    count, images = read()
    again, same = read()
    assert (count, again) == (3, 0)
    np.testing.assert_array_equal(same, images)
    write_tar(shards / "x-1.tar", {f"1-{seed}.png": png(100 + seed) for seed in range(6)})
    changed, others = read()
    assert (changed, len(others)) == (3, len(images) + 1)
    for kept in (tmp_path / "cache" / "hrvqvae" / "indexes").iterdir():
        whole = kept.read_bytes()
        for damage in (
            b"",
            whole[: len(whole) // 2],
            b"x" * 99,
            whole[:300] + b"\0" * 40 + whole[340:],
        ):
            kept.write_bytes(damage)
            np.testing.assert_array_equal(read()[1], others)
    assert sorted(path.name for path in shards.iterdir()) == [
        "x-0.tar",
        "x-1.tar",
        "x-2.tar",
    ], "nothing beside them"


def test_long_and_foreign_names_and_labels_in_json(tmp_path: Path) -> None:
    names = [
        "d" * 120 + "/" + "e" * 130 + ".png",
        "über/größe.png",
        "./dot/x.png",
        "s.png",
        "._s.png",
        "dot/._x.png",
    ]
    write_tar(tmp_path / "a.tar", {name: png(seed) for seed, name in enumerate([*names, "README"])})
    images = loaded(tmp_path / "a.tar", split="sorted", train_samples=3)
    assert len(images.source) == 4
    assert [images.source.name(row) for row in range(4)] == [*names[:2], "dot/x.png", "s.png"]
    np.testing.assert_array_equal(images.source.open(2), decoded(png(2)))
    members = {f"{n}.png": png(n) for n in range(6)} | {
        f"{n}.json": b'{"label": %d}' % (10 * n) for n in range(6)
    }
    write_tar(tmp_path / "j.tar", dict(sorted(members.items())))
    assert loaded(tmp_path / "j.tar").classes == ("0", "10", "20", "30", "40", "50")
    for other in (b'{"no": 1}', b"[" * 100_000, b'{"label": true}'):
        write_tar(tmp_path / "j.tar", dict(sorted({**members, "3.json": other}.items())))
        assert loaded(tmp_path / "j.tar").classes == ()


def test_what_is_left_out_of_a_tar_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_tar(
        tmp_path / "a.tar", {"a.png": png(1), "b.png": png(2), "d.HEIC": png(3), "e.txt": b""}
    )
    with tarfile.open(tmp_path / "a.tar", "a") as archive:
        link = tarfile.TarInfo("c.png")
        link.type = tarfile.LNKTYPE
        link.linkname = "a.png"
        archive.addfile(link)
    assert len(loaded(tmp_path / "a.tar", split="sorted", train_samples=2, labels=False)) == 2
    assert "links such as c.png are left out; pack it with tar --dereference" in caplog.text
    assert "a.tar: 1 image such as d.HEIC left out; convert to PNG, JPEG or WebP" in caplog.text


def test_a_tar_cut_anywhere_is_told_with_its_last_whole_member(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", {f"{index}.png": png(index) for index in range(4)})
    whole = path.read_bytes()
    with tarfile.open(path) as archive:
        ends = [member.offset_data + member.size for member in archive]
    end = -(-ends[-1] // 512) * 512
    for length in [*range(0, end + 512, 97), *ends, *(value + 1 for value in ends), end, end + 100]:
        path.write_bytes(whole[:length])
        last = sum(value <= length for value in ends) - 1
        message = f"cut short or damaged after its member [{last}{last + 1}].png"
        other = "|no uncompressed tar" if last < 0 else ""
        with pytest.raises(
            InputError, match=f"a.tar is ({message}{other}).*; get or pack it again"
        ):
            loaded(path)
    path.write_bytes(whole[: ends[1] + 200] + b"\1" * 2000 + whole[ends[1] + 2200 :])
    with pytest.raises(InputError, match="a.tar is cut short or damaged after its member 1.png"):
        loaded(path)
    start = ends[0] + 511 & -512
    for size in (2**63 - 1, 2**64, len(whole)):  # with a checksum that is right
        header = tarfile.TarInfo.frombuf(whole[start : start + 512], "utf-8", "strict")
        header.size = size
        path.write_bytes(whole[:start] + header.tobuf(tarfile.GNU_FORMAT) + whole[start + 512 :])
        with pytest.raises(
            InputError, match="a.tar is cut short or damaged after its member 0.png"
        ):
            loaded(path)


def test_an_order_of_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Larger than the window: each row group is read once in an epoch, and every epoch has each
    image once.
    """
    monkeypatch.setattr(parquet, "WINDOW_BYTES", 23_000)
    for index in range(2):
        images = [png(10 * index + seed, (20, 16)) for seed in range(50)]
        write_parquet(tmp_path / f"{index}.parquet", images, rows=5)
    images = loaded(tmp_path, test_fraction=0.3)
    groups = images.source.groups
    assert 5_000 < groups[0].bytes < 11_500, "two and more row groups fit into the window"
    orders = [images.order(seed, epoch) for seed, epoch in ((1, 0), (1, 1), (2, 0), (1, 0))]
    assert all(sorted(order) == list(range(len(images))) for order in orders)
    assert orders[0].tolist() == orders[3].tolist()
    assert len({tuple(order) for order in orders}) == 3
    monkeypatch.setattr(parquet, "_read_group", read := Mock(wraps=parquet._read_group))
    for index in orders[0]:
        images.decode(int(index), None)
    reads = [call.args[0] for call in read.call_args_list]
    assert len(reads) == len(set(reads)) <= len(groups)
    rows = images.rows[orders[0]] // 5
    assert (np.diff(rows) != 0).mean() > 0.5, "images of several row groups are mixed"
    monkeypatch.setattr(parquet, "WINDOW_BYTES", 10**6)
    whole = loaded(tmp_path, test_fraction=0.3)
    assert whole.order(1, 0).tolist() == make_rng("order", 1, 0).permutation(len(whole)).tolist(), (
        "as of a folder"
    )


def test_text_labels_and_rows_without_bytes(tmp_path: Path) -> None:
    images: list[bytes | None] = [png(seed) for seed in range(6)]
    write_parquet(
        tmp_path / "a-train.parquet",
        images[:4],
        ["dog", "cat", "dog", "emu"],
        names=("of", "numbers"),
    )
    write_parquet(tmp_path / "a-validation.parquet", images[4:], ["cat", "ant"])
    train, test = (loaded(tmp_path, split) for split in SPLITS)
    assert train.classes == test.classes == ("ant", "cat", "dog", "emu")
    assert (train.labels.tolist(), test.labels.tolist()) == ([2, 1, 2, 3], [1, 0])
    pq.write_table(pa.table({"image": images, "class": [*"abcabc"]}), tmp_path / "class.parquet")
    assert loaded(tmp_path / "class.parquet").classes == ("a", "b", "c")
    write_parquet(tmp_path / "none.parquet", [*images[:4], None])
    with pytest.raises(BrokenImageError, match="none.parquet: row 4 is not a readable"):
        loaded(tmp_path / "none.parquet", split="sorted", train_samples=5).decode(4, None)


def test_rows_of_parquet_without_paths_are_named_by_folder_and_file(tmp_path: Path) -> None:
    for split in SPLITS:
        images = [{"bytes": png(seed), "path": seed} for seed in range(2)]  # no texts
        (tmp_path / split).mkdir()
        pq.write_table(pa.table({"image": images}), tmp_path / split / "0.parquet")
    source = open_whole(tmp_path)
    names = [source.name(row) for row in range(4)]
    assert names == [f"{split}/0.parquet/{row}" for split in ("test", "train") for row in (0, 1)]


def test_a_row_group_that_pyarrow_can_not_hold_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "_MAX_GROUP_BYTES", 1_000)
    write_parquet(tmp_path / "a.parquet", [png(seed) for seed in range(4)])
    with pytest.raises(
        InputError, match=r"a.parquet: row group 0 holds [\d,]+ bytes, .*row_group_size=1000"
    ):
        loaded(tmp_path / "a.parquet")


def test_shards_outside_of_the_splits_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number, name in enumerate(("train-0", "train-1", "validation-0", "test-0", "extra")):
        write_tar(tmp_path / f"{name}.tar", {f"{name}.png": png(number)})
    assert [len(loaded(tmp_path, split, labels=False)) for split in SPLITS] == [2, 1]
    assert "2 shards outside of train and test left out, such as " in caplog.text


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_other_arrays(save: object, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (30, 16, 16)).astype(np.uint8)
    labels = np.arange(30) % 7
    save(
        tmp_path / "all.npz",
        x_train=pixels[..., None],
        y_train=labels[:, None],
        x_test=pixels,
        y_test=labels,
    )  # type: ignore[operator]
    np.save(tmp_path / "digits.npy", pixels)
    shutil.copyfile(tmp_path / "all.npz", tmp_path / "mnist_train_test.npz")
    for split, name in product(SPLITS, ("all", "mnist_train_test")):
        images = loaded(tmp_path / f"{name}.npz", split, channels=1)
        np.testing.assert_array_equal(content(images)[:, 0], pixels)
        assert images.labels.tolist() == labels.tolist()
        images = loaded(tmp_path / "digits.npy", split, channels=1)
        np.testing.assert_array_equal(content(images)[:, 0], pixels[images.rows])
        assert images.classes == ()
    np.save(tmp_path / "digits-labels.npy", labels)
    images = loaded(tmp_path / "digits.npy", channels=1)
    np.testing.assert_array_equal(images.labels, images.rows % 7)
    for index in range(30):
        np.save(tmp_path / f"{index}.npy", pixels[: 2 + index // 20])
        assert all(len(loaded(tmp_path / f"{index}.npy", split, channels=1)) for split in SPLITS), (
            "no split is empty"
        )


def test_a_folder_of_many_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is one image. No more files stay open than a system allows."""
    monkeypatch.setattr(arrays, "_MAX_OPEN", 5)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3)).astype(np.uint8)
    for index, image in enumerate(pixels):
        np.save(tmp_path / f"{index:02d}.npy", image)
    before = len(list(Path("/proc/self/fd").iterdir()))
    images = loaded(tmp_path, split="sorted", train_samples=40)
    np.testing.assert_array_equal(content(images), pixels.transpose(0, 3, 1, 2))
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 5


def bad_inputs(folder: Path) -> Iterator[tuple[Path, str]]:
    images = [png(seed) for seed in range(4)]
    yield (
        write_tar(folder / "text.tar", {"a.txt": b"no image"}),
        "text.tar: no PNG, JPEG or WebP image is in it",
    )
    for label in (b"cat", b"9" * 20, b"9" * 5000):
        yield (
            write_tar(folder / "cls.tar", {"a.cls": label, "a.png": images[0]}),
            "a.png: its .cls file is no number; correct it, or train with --data.labels false",
        )
    yield folder / "x.tar.gz", "x.tar.gz: there is no such file or folder"
    write_tar(folder / "gone" / "train-0.tar", {f"{name}.png": images[0] for name in "abc"})
    yield (
        folder / "gone",
        r"has train, but none of test, val, .*: .*--data '.*gone.\*\.tar'",
    )
    assert sum(len(loaded(folder / "gone" / "*.tar", split)) for split in SPLITS) == 3
    (folder / "gone" / "test.tar").write_bytes(b"")
    assert len(loaded(folder / "gone", labels=False)) == 3, (
        "only what is asked is read of a given split"
    )
    (folder / "image.png").write_bytes(images[0])
    yield folder / "*.png", r"names .png files; for images give their folder: "
    write_tar(
        folder / "named" / "train.tar",
        {"a.cls": b"5", "a.png": images[0], "b.cls": b"0", "b.png": images[1]},
    )
    write_tar(folder / "named" / "test.tar", {"c.cls": b"0", "c.png": images[2]})
    for names, message in (
        (
            b"cat\ndog\n",
            "train.tar: a.png has label 5, but there are 2 class names; .*labels false",
        ),
        (b"cat\ncat\n", "names a class twice"),
        (b"caf\xe9\n", "classnames.txt is not in UTF-8"),
    ):
        (folder / "named" / "classnames.txt").write_bytes(names)
        yield folder / "named", message
    write_tar(folder / "half" / "train.tar", {"a.cls": b"5", "a.png": images[0]})
    write_tar(folder / "half" / "test.tar", {"c.png": images[2]})
    yield folder / "half", "images of the test split alone have no labels"
    write_tar(folder / "mixed" / "a.tar", {"a.png": images[0]})
    write_parquet(folder / "mixed" / "a.parquet", images)
    yield folder / "mixed", r"names files of several kinds \(.parquet, .tar\)"
    for columns, message in (
        (
            {"text": ["a"], "n": [1]},
            r"no column holds images; there are text \(string\), n \(int64\)",
        ),
        ({"one": images, "two": images}, "columns one, two may be images.*name one image"),
        ({"image": pa.array([], pa.binary())}, "there is no row in it"),
    ):
        pq.write_table(pa.table(columns), folder / "table.parquet")
        yield folder / "table.parquet", message
    for labels, message in (
        ([0.5] * 4, "column label has type double, no numbers or texts"),
        (np.full(4, 2**63, np.uint64), r"column label has labels of 2\^63 or more; .* false"),
    ):
        yield write_parquet(folder / "labels.parquet", images, labels), message  # type: ignore[arg-type]
    yield (
        write_tar(folder / "long.tar", {"n" * 5_000 + ".png": images[0]}),
        "an image has a name of 5,004 bytes, more than 4,096",
    )
    for name in "ab":
        write_parquet(folder / "other" / f"{name}.parquet", images, [0] * 4, names=(name,))
    yield folder / "other", "name different classes; use --data.labels false"
    write_parquet(folder / "kinds" / "train.parquet", images, [0] * 4)
    write_parquet(folder / "kinds" / "test.parquet", images, ["a"] * 4)
    yield folder / "kinds", "name different classes; use --data.labels false"
    named = pa.array(
        [{"bytes": image, "path": f"path-{number}"} for number, image in enumerate(images)]
    )
    pq.write_table(pa.table({"image": named}), folder / "damaged.parquet", compression="none")
    whole = (folder / "damaged.parquet").read_bytes()
    assert whole.count(b"path-1") == 1
    for damage in (
        whole[:-20],
        whole.replace(b"path-1", b"\xff" * 6),
        whole.replace(b"image", b"imag\xff"),
    ):
        (folder / "damaged.parquet").write_bytes(damage)
        yield folder / "damaged.parquet", "damaged.parquet is damaged, or no Parquet file"
    pixels = np.zeros((5, 3, 8, 8), np.uint8)
    flat = np.zeros((5, 8, 8), np.uint8)
    np.save(folder / "many-labels.npy", np.arange(6))
    np.save(folder / "odd-labels.npy", np.arange(5) / 2)
    for name, array, message in (
        ("float", pixels.astype(np.float32), "float.npy has type float32; images are uint8"),
        ("second", pixels, r"has shape \(5, 3, 8, 8\); images are \(N, Y, X\), "),
        ("none", flat[:0], "none.npy: there is no image in it"),
        ("flat", pixels.reshape(5, -1), r"has shape \(5, 192\); images are \(N, Y, X\), "),
        ("many", flat, "many-labels.npy has 6 labels for the 5 images of .*many.npy"),
        ("odd", flat, r"odd-labels.npy is float64 \(5,\); labels are"),
    ):
        np.save(folder / f"{name}.npy", array)
        yield folder / f"{name}.npy", message
    np.save(folder / "cutted.npy", flat)
    (folder / "cutted.npy").write_bytes((folder / "cutted.npy").read_bytes()[:-1])
    np.save(folder / "object.npy", np.array([{}]), allow_pickle=True)
    np.savez(folder / "object.npz", images=np.array([{}]))
    np.save(folder / "header.npy", flat)
    (folder / "header.npy").write_bytes((folder / "header.npy").read_bytes().replace(b"}", b"{"))
    np.savez_compressed(folder / "inflated.npz", images=flat)
    content = bytearray((folder / "inflated.npz").read_bytes())
    content[60:64] = b"\xff" * 4
    (folder / "inflated.npz").write_bytes(content)
    for name in ("cutted.npy", "object.npy", "object.npz", "header.npy", "inflated.npz"):
        yield folder / name, "is damaged or holds no numbers"
    np.savez(folder / "keys.npz", pixels=pixels, more=pixels)
    yield folder / "keys.npz", "holds pixels, more; name the images `images` or `x`"
    content[content.index(b"PK\1\2") + 6] = 255  # the version that reads it
    for damage in (b"nothing", bytes(content)):
        (folder / "zip.npz").write_bytes(damage)
        yield folder / "zip.npz", "zip.npz can't be read"


def test_what_is_wrong_is_one_line(tmp_path: Path) -> None:
    for root, message in bad_inputs(tmp_path):
        with pytest.raises(InputError, match=message) as caught:
            loaded(root)
        assert "\n" not in str(caught.value), root
    with pytest.raises(InputError, match="mnist is not in .*cls.tar .*--data.dataset mine"):
        loaded(tmp_path / "cls.tar", dataset="mnist")
    assert len(open_whole(tmp_path / "cls.tar", labels=False)), (
        "a command that needs no labels reads no .cls file"
    )


def test_a_digest_knows_the_content_of_images(tmp_path: Path) -> None:
    files = {f"0/{index}.png": png(index) for index in range(9)}
    same_size = png(50)[: len(files["0/4.png"])].ljust(len(files["0/4.png"]), b"\0")
    for form in FORMS:
        changed = files | {"0/4.png": same_size if form in ("folder", "tar") else png(50)}
        digests = list[str]()
        for copy, images in enumerate((files, files, changed)):
            root = store(form, tmp_path / f"{form}{copy}" / "set", images)
            digests.append(loaded(root, split="sorted", train_samples=9).digest())
        assert digests[0] == digests[1] != digests[2], form


def test_inputs_that_would_fill_the_memory_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez_compressed(tmp_path / "zeros.npz", images=np.zeros((80_000, 32, 32), np.uint8))
    with pytest.raises(InputError, match=r"zeros.npz: images has 82 MB in 0\.\d MB, .*numpy.savez"):
        loaded(tmp_path / "zeros.npz")
    count = 1_000_000
    images = pa.DictionaryArray.from_arrays(pa.array(np.zeros(count, np.int32)), pa.array([png(0)]))
    labels = pa.DictionaryArray.from_arrays(
        pa.array(np.zeros(count, np.int32)), pa.array(["x" * 10_000])
    )
    pq.write_table(pa.table({"image": images, "label": labels}), tmp_path / "rows.parquet")
    with pytest.raises(
        InputError, match=r"rows.parquet has 1,000,000 rows in [\d,]+ bytes, which are no images"
    ):
        loaded(tmp_path / "rows.parquet")
    table = pa.table(
        {"image": pa.array([png(seed) for seed in range(50)] * 40), "label": labels[:2_000]}
    )
    pq.write_table(table, tmp_path / "text.parquet")
    labelled = loaded(tmp_path / "text.parquet", split="sorted", train_samples=2_000)
    assert labelled.classes == ("x" * 10_000,)
    assert labelled.source.labels.nbytes == 8 * 2_000
    lines = [f"{number}.png\tcat" for number in range(20_000)]
    (tmp_path / "x.txt").write_text("\n".join([*lines, f"{'y' * 4_000}.png\t{'z' * 4_000}"]))
    listed = read_list(tmp_path / "x.txt")
    assert (listed.name(20_000), listed.name(7)) == (f"{'y' * 4_000}.png", "7.png")
    assert listed.labels is not None
    assert listed.labels.nbytes + listed._names.nbytes < 1 << 20


def test_no_damage_of_the_metadata_of_parquet_ends_the_process(tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    pq.write_table(pa.table({"image": [b"abc"] * 3, "label": [0, 1, 2]}), path)
    script = f"""
from pathlib import Path
from hrvqvae.data.sources import Shard, parquet
path = Path({str(path)!r})
content = path.read_bytes()
start = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
for place in range(start, len(content) - 8):
    for bit in (0, 6):
        flipped = bytes([content[place] ^ 1 << bit])
        path.write_bytes(content[:place] + flipped + content[place + 1 :])
        try:
            parquet.ParquetSource([Shard(path.name, path)], labels=True)
        except (ValueError, OSError):
            pass
"""
    child = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert (child.returncode, child.stderr) == (0, "")
