"""Tars, Parquet files and arrays as data: the same images as a folder's, in the same splits, read one by one."""

from __future__ import annotations

import io
import pickle
import sys
import tarfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from hrvqvae.data import packing
from hrvqvae.data.batches import Stream, batches, evaluation_batches
from hrvqvae.data.image_sets import ImageSet, StoredImages
from hrvqvae.data.images import BrokenImageError
from hrvqvae.data.loading import load_images
from hrvqvae.data.sources import parquet, tars
from hrvqvae.data.sources.files import named_files
from hrvqvae.utils.errors import InputError
from tests.cli.helpers import refused
from tests.conftest import write_picture
from tests.data.folders import folder_config
from tests.data.stored import folder_of, write_parquet, write_tar

SPLITS = ("train", "test")


def loaded(root: object, split: str = "train", /, **changes: object) -> ImageSet:
    return load_images(folder_config(Path(str(root)), **{"memory_mb": 0, **changes}), split)


def content(images: ImageSet) -> np.ndarray:
    return np.stack([images.read(index, None) for index in range(len(images))])


def assert_same(one: ImageSet, other: ImageSet, *, labels: bool = True) -> None:
    np.testing.assert_array_equal(content(one), content(other))
    if labels:
        np.testing.assert_array_equal(one.labels, other.labels)
        assert one.classes == other.classes


def png(seed: int, size: tuple[int, int] = (20, 16)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def decoded(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


# The same images as a folder's


@pytest.mark.parametrize("how", ["pattern", "braces", "folder"])
def test_tars_of_a_folder_are_the_folder(how: str, picture_folder: Path, tmp_path: Path) -> None:
    """Without a given split: the same images are for test, by the same hash of the same names."""
    files = folder_of(picture_folder)
    classes = sorted({name.split("/")[0] for name in files})
    shards = tmp_path / "shards"
    for number, names in enumerate(np.array_split(list(files), 3)):
        members = {}
        for name in names.tolist():
            members[name] = files[name]
            members[f"{name.rpartition('.')[0]}.cls"] = str(classes.index(name.split("/")[0])).encode()
        write_tar(shards / f"p-{number:02d}.tar", members)
    (shards / "classnames.txt").write_text("".join(f"{name}\n" for name in classes))
    root = {"pattern": shards / "*.tar", "braces": shards / "p-{00..02}.tar", "folder": shards}[how]
    for split in SPLITS:
        assert_same(loaded(picture_folder, split), loaded(root, split))
        assert loaded(root, split, labels=False).classes == ()


@pytest.mark.parametrize("form", packing.FORMATS)
@pytest.mark.parametrize("given", [False, True])
def test_a_packed_folder_is_the_folder(given: bool, form: str, picture_folder: Path, tmp_path: Path) -> None:
    if given:
        (tmp_path / "whole").mkdir()
        picture_folder.rename(tmp_path / "whole" / "train")
        for index in range(4):
            write_picture(tmp_path / "whole" / "val" / ("cats" if index % 2 else "dogs") / f"{index}.png", 99 + index)
        picture_folder = tmp_path / "whole"
    packed = packing.pack(picture_folder, tmp_path / "packed" / "p", form, shard_bytes=4000, say=lambda _: None)
    assert len(packed.shards) > 2
    assert packed.classes == ("cats", "dogs")
    for split in SPLITS:
        folder = loaded(picture_folder, split, crop="random", flip=True)
        shards = loaded(tmp_path / "packed", split, crop="random", flip=True)
        assert_same(folder, shards)
        samples = Stream(len(folder), 4, 1, order=folder.order), Stream(len(shards), 4, 1, order=shards.order)
        for ours, theirs in zip(*(islice(stream, 5) for stream in samples), strict=True):
            assert ours == theirs
            for one in ours:
                np.testing.assert_array_equal(folder.read(*one), shards.read(*one))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset leaves its shards open
def test_shards_of_tools_are_read_and_ours_by_tools(picture_folder: Path, tmp_path: Path) -> None:
    """WebDataset's own writer and reader, and `datasets`."""
    import datasets
    import webdataset

    files = folder_of(picture_folder)
    (tmp_path / "theirs").mkdir()
    with webdataset.TarWriter(str(tmp_path / "theirs" / "train-0.tar")) as writer:
        for number, (name, one) in enumerate(files.items()):
            writer.write({"__key__": f"{number:06d}", name.rpartition(".")[2]: one, "cls": number % 3})
    theirs = loaded(tmp_path / "theirs" / "train-0.tar", test_fraction=0.5)
    assert theirs.classes == ("0", "1", "2")
    assert isinstance(theirs, StoredImages)
    assert theirs.labels.tolist() == [int(row) % 3 for row in theirs.rows]

    ours = packing.pack(picture_folder, tmp_path / "ours", shard_bytes=4000, say=lambda _: None)
    read = [sample for path in ours.shards for sample in webdataset.WebDataset(str(path), shardshuffle=False)]
    kinds = ("png", "jpg", "webp")
    found = [next(sample[kind] for kind in kinds if kind in sample) for sample in read]
    assert found == list(files.values())
    assert [ours.classes[int(sample["cls"])] for sample in read] == [name.split("/")[0] for name in files]

    hub = packing.pack(picture_folder, tmp_path / "hub", "parquet", shard_bytes=4000, say=lambda _: None)
    table = datasets.load_dataset(
        "parquet", data_files=[str(path) for path in hub.shards], split="train", cache_dir=str(tmp_path / "hf")
    )
    assert table.features["label"].names == list(ours.classes)
    assert [row["label"] for row in table] == [ours.classes.index(name.split("/")[0]) for name in files]
    for row, one in zip(table, files.values(), strict=True):
        np.testing.assert_array_equal(np.asarray(row["image"]), decoded(one))


@pytest.mark.parametrize("kind", ["npy", "npz", "compressed npz", "one npz", "fortran npy"])
def test_arrays(kind: str, tmp_path: Path) -> None:
    """The same pixels as PNG files of the same size; larger ones are cropped and scaled as files are."""
    draw = np.random.default_rng(3)
    arrays, labels = {}, {}
    for split, count in (("train", 9), ("test", 5)):
        arrays[split] = draw.integers(0, 256, (count, 20, 24, 3)).astype(np.uint8)
        labels[split] = draw.integers(0, 3, count)
        labels[split][:3] = (0, 1, 2)
        for number, pixels in enumerate(arrays[split]):
            path = tmp_path / "folder" / split / str(labels[split][number]) / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    root = tmp_path / "arrays"
    root.mkdir()
    if kind.endswith("npy"):
        for split in SPLITS:
            order = "F" if kind.startswith("fortran") else "C"
            np.save(root / f"{split}-images.npy", np.asarray(arrays[split], order=order))
            np.save(root / f"{split}-labels.npy", labels[split])
    elif kind == "one npz":
        columns = {f"x_{split}": arrays[split] for split in SPLITS} | {f"y_{split}": labels[split] for split in SPLITS}
        np.savez(root / "all.npz", **columns)
    else:
        save = np.savez if kind == "npz" else np.savez_compressed
        for split in SPLITS:
            save(root / f"{split}.npz", images=arrays[split], labels=labels[split][:, None])
    where = root / "all.npz" if kind == "one npz" else root
    for split in SPLITS:
        images, folder = loaded(where, split, size=16), loaded(tmp_path / "folder", split, size=16)
        assert images.classes == folder.classes == ("0", "1", "2")
        np.testing.assert_array_equal(images.labels, labels[split])
        by_label = np.argsort(labels[split], kind="stable")
        np.testing.assert_array_equal(content(images)[by_label], content(folder))


def test_grey_arrays_without_labels(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (30, 16, 16)).astype(np.uint8)
    np.save(tmp_path / "digits.npy", pixels)
    train, test = (loaded(tmp_path / "digits.npy", split, channels=1) for split in SPLITS)
    assert isinstance(train, StoredImages)
    assert isinstance(test, StoredImages)
    assert sorted([*train.rows, *test.rows]) == list(range(30))
    for images in (train, test):
        np.testing.assert_array_equal(content(images)[:, 0], pixels[images.rows])
        assert images.classes == ()
    np.save(tmp_path / "digits-labels.npy", np.arange(30) % 7)
    np.testing.assert_array_equal(loaded(tmp_path / "digits.npy", channels=1).labels, train.rows % 7)
    first = loaded(tmp_path / "digits.npy", channels=1, split="sorted", train_samples=20)
    assert isinstance(first, StoredImages)
    assert first.rows.tolist() == list(range(20))


def test_text_labels_and_labels_in_json(tmp_path: Path) -> None:
    images = [png(seed) for seed in range(6)]
    write_parquet(tmp_path / "a-train.parquet", images[:4], ["dog", "cat", "dog", "emu"])
    write_parquet(tmp_path / "a-validation.parquet", images[4:], ["cat", "ant"])
    train, test = (loaded(tmp_path, split) for split in SPLITS)
    assert train.classes == test.classes == ("ant", "cat", "dog", "emu")
    assert (train.labels.tolist(), test.labels.tolist()) == ([2, 1, 2, 3], [1, 0])
    members = {f"{number}.png": one for number, one in enumerate(images)}
    whole = dict(sorted({**members, **{f"{n}.json": b'{"label": %d}' % (10 * n) for n in range(6)}}.items()))
    write_tar(tmp_path / "j.tar", whole)
    assert loaded(tmp_path / "j.tar").classes == ("0", "10", "20", "30", "40", "50")
    del whole["3.json"]
    write_tar(tmp_path / "j.tar", whole)
    assert loaded(tmp_path / "j.tar").classes == ()


def test_images_of_a_folder_come_before_its_tars(
    picture_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = content(loaded(picture_folder))
    write_tar(picture_folder / "old.tar", {"a.png": png(1)})
    np.testing.assert_array_equal(content(loaded(picture_folder)), before)
    assert capsys.readouterr().err == (
        f"{picture_folder}: its images are read and its .tar files are not; "
        f"to read these: --data '{picture_folder}/*.tar'\n"
    )


def test_names_that_stand_for_files(tmp_path: Path) -> None:
    for name in ("a-8.tar", "a-9.tar", "a-10.tar", "b-1.tar", "c[1].tar", ".hidden.tar"):
        (tmp_path / name).touch()

    def names(pattern: str) -> list[str]:
        return [path.name for path in named_files(tmp_path / pattern)]

    assert names("a-{8..10}.tar") == ["a-8.tar", "a-9.tar", "a-10.tar"]
    assert names("{a-8,b-1}.tar") == ["a-8.tar", "b-1.tar"]
    assert names("{b,a}-[19]*.tar") == ["b-1.tar", "a-10.tar", "a-9.tar"]
    assert names("*.tar") == ["a-10.tar", "a-8.tar", "a-9.tar", "b-1.tar", "c[1].tar"]
    assert names("c[1].tar") == ["c[1].tar"]
    for pattern, message in (
        ("a-{8..11}.tar", r"a-11.tar is missing, one of the 4 files that .*get it, or name those"),
        ("a-{08..10}.tar", "a-08.tar is missing"),
        ("d.tar", "d.tar is missing"),
        ("d*.tar", r"no file is named like .*d\*.tar"),
        ("a-{9..8}.tar", "no range"),
        ("a-{0..99999999}.tar", "no range of at most"),
    ):
        with pytest.raises(InputError, match=message):
            named_files(tmp_path / pattern)


def test_links_are_followed_once(tmp_path: Path) -> None:
    write_tar(tmp_path / "disk" / "train" / "0.tar", {"a.png": png(1)})
    write_tar(tmp_path / "disk" / "test" / "0.tar", {"b.png": png(2)})
    (tmp_path / "disk" / "test" / "round").symlink_to(tmp_path / "disk")
    (tmp_path / "data").mkdir()
    for split in SPLITS:
        (tmp_path / "data" / split).symlink_to(tmp_path / "disk" / split)
    assert [len(loaded(tmp_path / "disk", split)) for split in SPLITS] == [1, 1]
    (tmp_path / "disk" / "test" / "round").unlink()
    assert [len(loaded(tmp_path / "data", split)) for split in SPLITS] == [1, 1]


# Reading


def forms(folder: Path, count: int = 40) -> Iterator[Path]:
    images = [png(seed) for seed in range(count)]
    yield write_tar(folder / "x.tar", {f"{number:03d}.png": one for number, one in enumerate(images)})
    yield write_parquet(folder / "x.parquet", images, rows=7)
    np.save(folder / "x.npy", np.stack([decoded(one) for one in images]))
    yield folder / "x.npy"


def test_workers_forked_and_pickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches are the same with any number of processes, also when the main process has read before; nothing open goes
    along when a set is pickled, as where processes are not forked."""
    monkeypatch.setattr(parquet, "WINDOW_BYTES", 15_000)
    for root in forms(tmp_path):
        images = loaded(root, crop="random", flip=True)
        single = list(islice(batches(images, batch_size=4, seed=2), 14))
        for again in (images, pickle.loads(pickle.dumps(images))):
            several = list(islice(batches(again, batch_size=4, seed=2, workers=2), 14))
            assert all(torch.equal(one.images, other.images) for one, other in zip(single, several, strict=True))
        later = next(batches(images, batch_size=4, seed=2, first_step=11))
        assert torch.equal(later.images, single[11].images)
        assert len(pickle.dumps(images)) < 5_000


def test_an_order_of_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Larger than the window: each row group is read once in an epoch, and every epoch has each image once."""
    monkeypatch.setattr(parquet, "WINDOW_BYTES", 23_000)
    for number in range(2):
        write_parquet(tmp_path / f"{number}.parquet", [png(10 * number + seed) for seed in range(50)], rows=5)
    images = loaded(tmp_path, test_fraction=0.3)
    assert isinstance(images, StoredImages)
    assert isinstance(images.source, parquet.ParquetSource)
    groups = images.source.groups
    assert 5_000 < groups[0].bytes < 11_500, "two and more row groups fit into the window"
    orders = [images.order(seed, epoch) for seed, epoch in ((1, 0), (1, 1), (2, 0), (1, 0))]
    assert all(sorted(order) == list(range(len(images))) for order in orders)
    assert orders[0].tolist() == orders[3].tolist()
    assert len({tuple(order) for order in orders}) == 3
    reads = list[parquet.Group]()
    real = parquet._bytes_of
    monkeypatch.setattr(parquet, "_bytes_of", lambda group: (reads.append(group), real(group))[1])
    for index in orders[0]:
        images.read(int(index), None)
    assert len(reads) == len(set(reads)) <= len(groups)
    rows = images.rows[orders[0]] // 5
    assert (np.diff(rows) != 0).mean() > 0.5, "images of several row groups are mixed"
    assert np.diff([reads.index(groups[row]) for row in dict.fromkeys(rows.tolist())]).tolist() == [1] * (
        len(reads) - 1
    )
    monkeypatch.setattr(parquet, "WINDOW_BYTES", 10**6)
    whole = loaded(tmp_path, test_fraction=0.3)
    expected = super(StoredImages, whole).order(1, 0)
    assert whole.order(1, 0).tolist() == expected.tolist(), "what fits is drawn as a folder is"


def test_the_index_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tars, "KEPT_FROM", 10)
    shards = tmp_path / "shards"
    for number in range(3):
        write_tar(shards / f"{number}.tar", {f"{number}-{seed}.png": png(seed) for seed in range(5)})
    scanned = list[str]()
    real = tars.scan
    monkeypatch.setattr(tars, "scan", lambda path, *found: (scanned.append(path.name), real(path, *found)))

    def read() -> tuple[int, np.ndarray]:
        scanned.clear()
        images = content(loaded(shards))
        return len(scanned), images

    first, images = read()
    again, same = read()
    assert (first, again) == (3, 0)
    np.testing.assert_array_equal(same, images)
    write_tar(shards / "1.tar", {f"1-{seed}.png": png(100 + seed) for seed in range(6)})
    changed, others = read()
    assert (changed, len(others)) == (3, len(images) + 1)
    assert read()[0] == 0
    for kept in (tmp_path / "cache" / "hrvqvae" / "indexes").iterdir():
        whole = kept.read_bytes()
        for damage in (b"", whole[: len(whole) // 2], b"x" * 99, whole[:300] + b"\0" * 40 + whole[340:]):
            kept.write_bytes(damage)
            np.testing.assert_array_equal(read()[1], others)
        kept.unlink()
    assert sorted(path.name for path in shards.iterdir()) == ["0.tar", "1.tar", "2.tar"], "nothing is put beside them"


def test_long_and_foreign_names(tmp_path: Path) -> None:
    names = ["d" * 120 + "/" + "e" * 130 + ".png", "über/größe.png", "./dot/x.png", "s.png", "._s.png", "README"]
    write_tar(tmp_path / "a.tar", {name: png(seed) for seed, name in enumerate(names)})
    images = loaded(tmp_path / "a.tar", split="sorted", train_samples=3)
    assert isinstance(images, StoredImages)
    assert [images.source.name(row) for row in range(4)] == [*names[:2], "dot/x.png", "s.png"]
    np.testing.assert_array_equal(images.source.open(2), decoded(png(2)))


# What can be wrong


def test_a_tar_cut_anywhere_is_told_with_its_last_whole_member(tmp_path: Path) -> None:
    members = {f"{number}.png": png(number) for number in range(4)}
    whole = write_tar(tmp_path / "a.tar", members).read_bytes()
    with tarfile.open(tmp_path / "a.tar") as archive:
        ends = [member.offset_data + member.size for member in archive]
    end = -(-ends[-1] // 512) * 512
    for length in [*range(0, end + 512, 97), *ends, *(one + 1 for one in ends), end, end + 100]:
        (tmp_path / "a.tar").write_bytes(whole[:length])
        last = sum(one <= length for one in ends) - 1
        with pytest.raises(InputError, match=r"a.tar is (cut short|no uncompressed tar)") as caught:
            loaded(tmp_path / "a.tar")
        assert ("after its member" in str(caught.value)) == (last >= 0)
        assert last < 0 or f"after its member {last}.png; get or pack it again" in str(caught.value)
    (tmp_path / "a.tar").write_bytes(whole[: ends[1] + 200] + b"\1" * 2000 + whole[ends[1] + 2200 :])
    with pytest.raises(InputError, match=r"a.tar is (damaged|cut short) after its member 1.png"):
        loaded(tmp_path / "a.tar")


def tar_of(path: Path, **members: bytes) -> Path:
    return write_tar(path, {name.replace("_", "."): one for name, one in members.items()})


def bad_inputs(folder: Path) -> Iterator[tuple[Path, str]]:
    """(root, what the one line says)"""
    images = [png(seed) for seed in range(4)]
    yield tar_of(folder / "text.tar", a_txt=b"no image"), "text.tar: no PNG, JPEG or WebP image is in it"
    yield tar_of(folder / "cls.tar", a_cls=b"cat", a_png=images[0]), "cls.tar: a.cls is not a whole number"
    yield folder / "x.tar.gz", "x.tar.gz is compressed, and can't be read by index; unpack it"
    (folder / "gone").mkdir()
    tar_of(folder / "gone" / "train-0.tar", a_png=images[0])
    yield folder / "gone", "has train, but none of test, val, validation: .*--data"
    tar_of(folder / "named" / "train.tar", a_cls=b"5", a_png=images[0], b_cls=b"0", b_png=images[1])
    tar_of(folder / "named" / "test.tar", c_cls=b"0", c_png=images[2])
    (folder / "named" / "classnames.txt").write_text("cat\ndog\n")
    yield folder / "named", "train.tar: a.png has label 5, and there are 2 class names; .*--data.labels false"
    tar_of(folder / "half" / "train.tar", a_cls=b"5", a_png=images[0])
    tar_of(folder / "half" / "test.tar", c_png=images[2])
    yield folder / "half", "images of the test split have no labels, those of the other do"
    tar_of(folder / "mixed" / "a.tar", a_png=images[0])
    write_parquet(folder / "mixed" / "a.parquet", images)
    yield folder / "mixed", r"names files of several kinds \(.parquet, .tar\)"
    yield folder / "nothing", "nothing is not a folder; nor is it named as tars"
    pq.write_table(pa.table({"text": ["a"], "n": [1]}), folder / "text.parquet")
    yield folder / "text.parquet", r"it has no column of images; there are text \(string\), n \(int64\)"
    pq.write_table(pa.table({"one": images, "two": images}), folder / "two.parquet")
    yield folder / "two.parquet", "columns one, two may be images.*name one image"
    write_parquet(folder / "labels.parquet", images, [0.5] * 4)
    yield folder / "labels.parquet", "column label has type double; labels are whole numbers or texts"
    pq.write_table(pa.table({"image": images}).slice(0, 0), folder / "empty.parquet")
    yield folder / "empty.parquet", "there is no row in it"
    whole = write_parquet(folder / "cut.parquet", images).read_bytes()
    (folder / "cut.parquet").write_bytes(whole[:-20])
    yield folder / "cut.parquet", "cut.parquet is damaged, or no Parquet file"
    pixels = np.zeros((5, 3, 8, 8), np.uint8)
    for name, array, message in (
        ("float", pixels.astype(np.float32), "float.npy has type float32; images are uint8"),
        ("second", pixels, r"has shape \(5, 3, 8, 8\); .*transpose\(0, 2, 3, 1\)"),
        ("flat", pixels.reshape(5, -1), r"has shape \(5, 192\); images are \(N, Y, X\) or"),
        ("many", np.zeros((5, 8, 8), np.uint8), "many-labels.npy has 6 labels for the 5 images of .*many.npy"),
        ("odd", np.zeros((5, 8, 8), np.uint8), r"odd-labels.npy has shape \(5,\) and type float64; labels are"),
    ):
        np.save(folder / f"{name}.npy", array)
        yield folder / f"{name}.npy", message
    np.save(folder / "cutted.npy", np.zeros((5, 8, 8), np.uint8))
    (folder / "cutted.npy").write_bytes((folder / "cutted.npy").read_bytes()[:-1])
    yield folder / "cutted.npy", r"is damaged or holds no numbers"
    np.save(folder / "object.npy", np.array([{}]), allow_pickle=True)
    yield folder / "object.npy", "is damaged or holds no numbers"
    np.savez(folder / "keys.npz", pixels=pixels, more=pixels)
    yield folder / "keys.npz", "holds pixels, more; name the images `images` or `x`"
    (folder / "zip.npz").write_bytes(b"nothing")
    yield folder / "zip.npz", "zip.npz can't be read"


def test_what_is_wrong_is_one_line(tmp_path: Path) -> None:
    np.save(tmp_path / "many-labels.npy", np.arange(6))
    np.save(tmp_path / "odd-labels.npy", np.arange(5) / 2)
    for root, message in bad_inputs(tmp_path):
        with pytest.raises(InputError, match=message) as caught:
            loaded(root)
        assert "\n" not in str(caught.value), root


def test_shards_are_no_published_set(tmp_path: Path) -> None:
    """A preset of a published set reads that alone, and says how to read others."""
    root = write_tar(tmp_path / "digits.tar", {f"{number}.png": png(number) for number in range(4)})
    with pytest.raises(InputError, match=r"mnist is read from .*digits.tar are others; .*--data.dataset mine"):
        loaded(root, dataset="mnist")
    assert len(loaded(root, dataset="mine")) == 3


@pytest.mark.parametrize("memory_mb", [0, 100])
def test_broken_images_stop_or_are_skipped(memory_mb: int, tmp_path: Path) -> None:
    images = [png(seed) for seed in range(10)]
    images[4] = images[4][:60]
    rows: list[bytes | None] = [*images]
    rows[6] = None
    roots = {
        write_tar(tmp_path / "x.tar", {f"{number}.png": one for number, one in enumerate(images)}): ("x.tar: 4.png", 9),
        write_parquet(tmp_path / "x.parquet", rows): ("x.parquet: row 4", 8),
    }
    for root, (name, left) in roots.items():
        options = {"memory_mb": memory_mb, "split": "sorted", "train_samples": 10}
        with pytest.raises(BrokenImageError, match=f"{name} is not a readable .*--data.on_error skip"):
            list(evaluation_batches(loaded(root, **options), batch_size=7))
        skipping = loaded(root, **options, on_error="skip")
        found = list(evaluation_batches(skipping, batch_size=7, on_error="skip"))
        assert sum(len(batch.images) for batch in found) == left


def test_a_missing_package_names_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_parquet(tmp_path / "x.parquet", [png(1)])
    monkeypatch.setitem(sys.modules, "pyarrow", None)  # it can't be imported
    command = ["train", "hrvqvae/photos", "--data", tmp_path / "x.parquet", "--out", tmp_path / "run"]
    assert refused(command, capsys) == "hrvqvae: this needs pyarrow: pip install 'hrvqvae[shards]'\n"


def test_only_what_is_asked_is_read_of_a_given_split(tmp_path: Path) -> None:
    write_tar(tmp_path / "train.tar", {"a.png": png(1)})
    (tmp_path / "test.tar").write_bytes(b"")
    assert len(loaded(tmp_path, labels=False)) == 1
