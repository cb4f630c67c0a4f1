"""Every form in which images are stored gives the same images, labels, order and split, and is
refused in one line.
"""

import hashlib
import io
import multiprocessing
import os
import pickle
import tarfile
from itertools import islice
from pathlib import Path
from unittest.mock import Mock, patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from numpy.testing import assert_array_equal
from PIL import Image

from hrvqvae.data.batches import batches, evaluation_batches, make_rng
from hrvqvae.data.loading import open_whole
from hrvqvae.data.sources import HELD_OUT, arrays, parquet, tars
from hrvqvae.data.sources.files import match_files, read_list
from hrvqvae.utils.progress import note_once
from tests.conftest import cells_of, input_error, parametrize, run_python, same
from tests.data.people import encoded
from tests.data.stored import (
    broken_image,
    content,
    folder_of,
    loaded,
    noise,
    paths_of,
    write_folder,
    write_parquet,
    write_tar,
)

SPLITS = ("train", "test")
FORMS = ("folder", "tar", "parquet", "npy", "npz")


def png(seed, size=(16, 16)):
    return encoded("PNG", Image.fromarray(noise(*size[::-1], 3, seed=seed)))


PNGS = [png(seed) for seed in range(6)]


def decoded(content):
    return np.asarray(Image.open(io.BytesIO(content)))


def planes(images):
    return np.stack([decoded(image).transpose(2, 0, 1) for image in images])


def store(form, root, files):
    """Write images by name in a form, in three tars or Parquet files; their folders "0", "1" ...
    are their labels. Return what is to be loaded.
    """
    labels = {name: int(name[0]) for name in files}
    parent = Path(root).parent
    parent.mkdir(parents=True, exist_ok=True)
    if form == "folder":
        write_folder(root, files)
        return root
    if form in ("npy", "npz"):
        pixels = np.stack([*map(decoded, files.values())])
        arrays = {"images": np.asfortranarray(pixels), "labels": [*labels.values()]}
        if form == "npz":
            np.savez(f"{root}.npz", **arrays)
        else:
            for name, array in arrays.items():
                np.save(f"{root}-{name}.npy", array)
        return str(parent)
    for index, names in enumerate(np.array_split(list(files), 3)):
        names = names.tolist()
        images, values = ([table[name] for name in names] for table in (files, labels))
        if form == "tar":
            members = {}
            for name in names:
                members |= {name: files[name], f"{name[:-4]}.cls": name[0].encode()}
            write_tar(f"{root}-{index}.tar", members)
        else:
            write_parquet(f"{root}-{index}.parquet", images, values, paths=names, rows=4)
    return str(parent)


def first_rows(count):
    """Return fields for a split whose training images are the first."""
    return {"split": "sorted", "train_samples": count}


def drawn(count, seed=0):
    names = sorted(f"{(index * 7) % 3}/{index:03d}.png" for index in range(count))
    return {name: png(seed + index) for index, name in enumerate(names)}


@parametrize("form, held_out", [*zip(FORMS, 2 * [*HELD_OUT], strict=False)])
def test_a_given_split(form, held_out):
    stored = {"train": drawn(21), held_out: drawn(8, 100)}
    for word, files in stored.items():
        store(form, f"set/{word}", files)
    for split, files in zip(SPLITS, stored.values(), strict=True):
        images = loaded("set", split)
        assert_array_equal(content(images), planes(files.values()))
        assert images.labels.tolist() == [int(name[0]) for name in files]
        assert images.classes == ("0", "1", "2")
        assert loaded("set", split, labels=False).classes == ()


@parametrize("form", FORMS[:3])
def test_a_hash_of_each_name_divides(form):
    files = drawn(40)
    root = store(form, "set/images", files)
    expected = {split: [] for split in SPLITS}
    for name, image in files.items():
        digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
        is_test = int.from_bytes(digest, "big") < 0.2 * 2**64
        expected[SPLITS[is_test]].append(image)
    for split, images in expected.items():
        assert_array_equal(content(loaded(root, split, test_fraction=0.2)), planes(images))


@parametrize("form", FORMS[:3])
def test_the_first_images_are_for_training(form):
    files = drawn(40)
    root = store(form, "set/images", files)
    parts = [content(loaded(root, split, **first_rows(30))) for split in SPLITS]
    assert_array_equal(np.concatenate(parts), planes(files.values()))
    assert len(parts[0]) == 30
    with input_error("has 40 images, none in the test split.*--data.split"):
        loaded(root, "test", **first_rows(40))


@parametrize("form", FORMS)
def test_batches_are_those_of_a_folder(form, monkeypatch):
    """Processes end with who asked for batches."""
    files = drawn(40)
    options = {"crop": "random", "flip": True, "size": 12, **first_rows(30)}
    folder = loaded(store("folder", "folder/images", files), **options)
    root = store(form, f"{form}/images", files)
    images = loaded(root, **options)
    assert len({folder.decode(0, (1, epoch, 0)).pixels.tobytes() for epoch in range(8)}) > 1

    def read(images, workers=0):
        drawn = batches(images, batch_size=4, seed=2, workers=workers)
        return torch.cat([batch.images for batch in islice(drawn, 14)])

    expected = read(folder)
    assert same(read(images), expected)
    assert same(read(pickle.loads(pickle.dumps(images)), workers=2), expected)
    later = next(batches(images, batch_size=4, seed=2, first_step=11))
    assert same(later.images, expected[44:48])
    monkeypatch.setattr(parquet, "WINDOW_BYTES", 3_000)
    windowed = read(loaded(root, **options))
    assert same(read(loaded(root, **options), workers=2), windowed)
    assert same(windowed, expected) == (form != "parquet")
    assert len(pickle.dumps(images)) < 5_000
    assert multiprocessing.active_children() == []


@parametrize("memory_mb", [0, 100])
@parametrize("form", FORMS[:3])
def test_broken_images(form, memory_mb, caplog):
    """No batch is empty, and a line counts the broken images."""
    note_once.cache_clear()
    files = drawn(10)
    for name in list(files)[4:6]:
        files[name] = files[name][:60]
    options = {"memory_mb": memory_mb, **first_rows(10)}
    root = store(form, "set/images", files)
    with broken_image(r"is not a readable .*--data.on_error skip"):
        list(evaluation_batches(loaded(root, **options), batch_size=2))
    options["on_error"] = "skip"
    read = evaluation_batches(loaded(root, **options), batch_size=2)
    counts = [len(batch.images) for batch in read]
    assert sum(counts) == 8
    assert all(counts)
    lines = [line for line in caplog.messages if line.startswith("broken")]
    assert len(lines) == 1
    assert "skipped: 2 of 10, the first: " in lines[0]
    root = store(form, "broken/images", dict.fromkeys(files, b"nothing"))
    with input_error("all images are broken"):
        next(batches(loaded(root, **options), batch_size=2, seed=0))


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # webdataset leaves its shards open
def test_shards_of_webdataset_are_read():
    import webdataset

    with webdataset.TarWriter("train-0.tar") as writer:
        for index, suffix in enumerate(10 * ["png", "jpg", "webp"]):
            writer.write({"__key__": f"{index:06d}", suffix: PNGS[0], "cls": index % 3})
    images = loaded("train-0.tar", test_fraction=0.5)
    assert images.classes == ("0", "1", "2")
    assert images.labels.tolist() == (images.rows % 3).tolist()


def touch(*names):
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()


def names_of(folder, split="train", **changes):
    paths = paths_of(loaded(folder, split, **changes))
    return [path.relative_to(folder).as_posix() for path in paths]


@parametrize(
    "names, message",
    cells_of("""
        train/a/0.png train/b/1.png 2.png | has train, but none of test, val, .* dev: .*--data
        test/a/0.png test/b/1.png | has test, but no train
        val/0.png validation/1.png | has val and validation, but no train
        train/a/0.png test/1.png | of the test split alone have no labels; .*--data.labels false
        train/0.png val/a/1.png | images of the train split alone have no labels
        train/e\u0301.png train/\u00e9.png test/0.png | two spellings of Unicode; rename
        train/\udcff.png test/0.png | not UTF-8; rename
        notes.txt | has no image
    """),
)
def test_folders_that_are_refused(names, message):
    touch(*(f"set/{name}" for name in names.split()))
    Path("set/annotations").mkdir()
    for split in SPLITS:
        with input_error(message):
            loaded("set", split)
    if "of the test split" in message:
        assert names_of("set", labels=False) == ["train/a/0.png"]


def test_linked_folders_are_followed_unless_they_lead_back(tmp_path):
    """At any depth, once around."""
    touch("elsewhere/0.png", "elsewhere/1.png", "set/train/2.png", "deep/a/b/1.png", "tars/x")
    for split in SPLITS:
        write_tar(f"disk/{split}/0.tar", {"a.png": PNGS[0]})
    for link, target in cells_of("""
        set/val | elsewhere
        set/self | set
        set/up | .
        tars/train | disk/train
        tars/test | disk/test
        deep/a/b/link | elsewhere
        elsewhere/back | deep/a
    """):
        Path(link).symlink_to(tmp_path / target)
    assert names_of("set") == ["train/2.png"]
    assert [len(loaded("tars", split)) for split in SPLITS] == [1, 1]
    names = names_of("deep") + names_of("deep", "test")
    assert sorted(names) == ["a/b/1.png", "a/b/link/0.png", "a/b/link/1.png"]
    Path("elsewhere/back").unlink()
    assert names_of("set", "test") == ["val/0.png", "val/1.png"]


def test_unreadable_folders_are_told(caplog):
    touch("set/a/0.png", "set/a/1.png", "set/b/2.png")
    Path("set/c").symlink_to("c")
    scandir = os.scandir

    def closed(path):
        if str(path).endswith("/b"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    with patch.object(os, "scandir", closed):
        assert sorted(names_of("set") + names_of("set", "test")) == ["a/0.png", "a/1.png"]
    assert "/b can't be read (Permission denied)" in caplog.text
    assert "/c can't be read (Too many levels of symbolic links); it is left out" in caplog.text


def test_images_of_a_folder_come_before_its_tars(picture_folder, caplog):
    before = content(loaded(picture_folder))
    write_tar(picture_folder / "old.tar", {"a.png": PNGS[0]})
    assert_array_equal(content(loaded(picture_folder)), before)
    assert f"to read these: '{picture_folder}/*.tar'" in caplog.text
    caplog.clear()
    np.save(picture_folder / "old.npy", np.zeros((2, 4, 4), np.uint8))
    open_whole(picture_folder)
    assert f"to read these: '{picture_folder}/*.npy'" in caplog.text


def test_names_that_stand_for_files():
    touch("a-8.tar", "a-9.tar", "a-10.tar", "b-1.tar", "c[1].tar", ".hidden.tar")
    for pattern, names in cells_of("""
            a-{8..10}.tar | a-8.tar a-9.tar a-10.tar
            {a-8,b-1}.tar | a-8.tar b-1.tar
            {b,a}-[19]*.tar | b-1.tar a-10.tar a-9.tar
            *.tar | a-10.tar a-8.tar a-9.tar b-1.tar c[1].tar
            c[1].tar | c[1].tar
        """):
        assert [path.name for path in match_files(Path(pattern))] == names.split()
    for pattern, message in cells_of(r"""
            a-{8..11}.tar | a-11.tar is missing; get it, or name the files
            a-{08..10}.tar | a-08.tar is missing
            a-{9..8}.tar | no range
            a-{0..99999999}.tar | no range of at most
            d*.tar | no file is named like .*d\*.tar
            d**.tar | d\*\*.tar
        """):
        with input_error(message):
            match_files(Path(pattern))


def test_the_index_is_kept(monkeypatch):
    """In the cache, and nothing beside the tars."""
    monkeypatch.setattr(tars, "MIN_INDEXED_IMAGES", 10)
    shards = store("tar", "shards/x", drawn(15))
    monkeypatch.setattr(tars, "scan", scan := Mock(wraps=tars.scan))

    def read(scanned):
        scan.reset_mock()
        images = content(loaded(shards))
        assert scan.call_count == scanned
        return images

    images = read(3)
    assert_array_equal(read(0), images)
    write_tar("shards/x-1.tar", {f"1-{seed}.png": png(100 + seed) for seed in range(6)})
    changed = read(3)
    assert len(changed) == len(images) + 1
    for kept in Path("cache/hrvqvae/indexes").iterdir():
        intact = kept.read_bytes()
        zeroed = intact[:300] + b"\0" * 40 + intact[340:]
        for damage in (b"", intact[: len(intact) // 2], b"x" * 99, zeroed):
            kept.write_bytes(damage)
            assert_array_equal(content(loaded(shards)), changed)
    assert [*folder_of(Path(shards))] == ["x-0.tar", "x-1.tar", "x-2.tar"]


def test_long_and_foreign_names():
    long = "d" * 120 + "/" + "e" * 130 + ".png"
    names = [long, "über/größe.png", "./dot/x.png", "s.png", "._s.png", "dot/._x.png", "README"]
    write_tar("a.tar", {name: png(seed) for seed, name in enumerate(names)})
    source = loaded("a.tar", **first_rows(3)).source
    read_names = [source.name(row) for row in range(len(source))]
    assert read_names == [long, "über/größe.png", "dot/x.png", "s.png"]
    assert_array_equal(source.open(2), decoded(png(2)))


def test_labels_in_json():
    members = {}
    for seed, image in enumerate(PNGS):
        members[f"{seed}.json"] = b'{"label": %d}' % (10 * seed)
        members[f"{seed}.png"] = image
    write_tar("j.tar", members)
    assert loaded("j.tar").classes == ("0", "10", "20", "30", "40", "50")
    for label_file in (b'{"no": 1}', b"[" * 100_000, b'{"label": true}'):
        write_tar("j.tar", members | {"3.json": label_file})
        images = loaded("j.tar")
        assert images.classes == ()
        assert images.source.unlabelled == "1 image without a whole number in .cls or .json"


def test_names_in_a_tar_that_begin_with_a_dot_are_ignored():
    kept = ["./a/b.png", "../c.png", "/d.png", "e//f.png"]
    ignored = [
        ".thumbnails/a.png",
        "a/.AppleDouble/b.png",
        "./.c/d/e.png",
        "f/._g.png",
        "..h/i.png",
    ]
    write_tar("a.tar", dict.fromkeys(kept + ignored, PNGS[0]))
    source = open_whole(Path("a.tar"))
    assert [source.name(row) for row in range(len(source))] == ["a/b.png", *kept[1:]]


def test_what_is_left_out_of_a_tar_is_told(caplog):
    image = PNGS[0]
    write_tar("a.tar", {"a.png": image, "b.png": image, "d.HEIC": image, "e.txt": b""})
    with tarfile.open("a.tar", "a") as archive:
        link = tarfile.TarInfo("c.png")
        link.type = tarfile.LNKTYPE
        link.linkname = "a.png"
        archive.addfile(link)
    assert len(loaded("a.tar", **first_rows(2), labels=False)) == 2
    assert "links such as c.png are left out; pack it with tar --dereference" in caplog.text
    assert "a.tar: 1 image such as d.HEIC left out; convert to PNG, JPEG or WebP" in caplog.text


def test_a_tar_cut_anywhere_is_told_with_its_last_whole_member():
    path = write_tar("a.tar", {f"{index}.png": png(index) for index in range(4)})
    intact = path.read_bytes()
    with tarfile.open(path) as archive:
        ends = [member.offset_data + member.size for member in archive]

    def assert_damaged(damaged, message):
        path.write_bytes(damaged)
        with input_error(f"a.tar is {message}"):
            loaded("a.tar")

    cut = "cut short or damaged after its member"
    end = -(-ends[-1] // 512) * 512
    for length in [*range(0, end + 512, 97), *ends, *(value + 1 for value in ends), end, end + 100]:
        last = sum(value <= length for value in ends) - 1
        or_no_tar = "|no uncompressed tar" if last < 0 else ""
        message = f"({cut} [{last}{last + 1}].png{or_no_tar}).*; get or pack it again"
        assert_damaged(intact[:length], message)
    overwritten = intact[: ends[1] + 200] + b"\1" * 2000 + intact[ends[1] + 2200 :]
    assert_damaged(overwritten, f"{cut} 1.png")
    start = ends[0] + 511 & -512
    for size in (2**63 - 1, 2**64, len(intact)):  # with a checksum that is right
        header = tarfile.TarInfo.frombuf(intact[start : start + 512], "utf-8", "strict")
        header.size = size
        block = header.tobuf(tarfile.GNU_FORMAT)
        assert_damaged(intact[:start] + block + intact[start + 512 :], f"{cut} 0.png")


def test_an_order_of_windows(monkeypatch):
    """Larger than the window: each row group is read once in an epoch, and every epoch has each
    image once. Images of several row groups are mixed. Otherwise the order is that of a folder.
    """
    monkeypatch.setattr(parquet, "WINDOW_BYTES", 23_000)
    for index in range(2):
        images = [png(10 * index + seed, (20, 16)) for seed in range(50)]
        write_parquet(f"{index}.parquet", images, rows=5)
    images = loaded("", test_fraction=0.3)
    groups = images.source.groups
    assert 5_000 < groups[0].bytes < 11_500  # two and more row groups fit into the window
    orders = [images.order(seed, epoch).tolist() for seed, epoch in ((1, 0), (1, 1), (2, 0))]
    assert all(sorted(order) == list(range(len(images))) for order in orders)
    first = images.order(1, 0)
    assert first.tolist() == orders[0]
    assert orders[1] != orders[0] != orders[2] != orders[1]
    monkeypatch.setattr(parquet, "_read_group", read := Mock(wraps=parquet._read_group))
    for index in first:
        images.decode(int(index), None)
    reads = [call.args[0] for call in read.call_args_list]
    assert len(reads) == len(set(reads)) <= len(groups)
    assert (np.diff(images.rows[first] // 5) != 0).mean() > 0.5
    monkeypatch.setattr(parquet, "WINDOW_BYTES", 10**6)
    order = loaded("", test_fraction=0.3).order(1, 0)
    assert_array_equal(order, make_rng("order", 1, 0).permutation(len(images)))


def test_text_labels_and_rows_without_bytes():
    labels = ["dog", "cat", "dog", "emu"]
    write_parquet("a-train.parquet", PNGS[:4], labels, names=("of", "numbers"))
    write_parquet("a-validation.parquet", PNGS[4:], ["cat", "ant"])
    train, test = (loaded("", split) for split in SPLITS)
    assert train.classes == test.classes == ("ant", "cat", "dog", "emu")
    assert train.labels.tolist() == [2, 1, 2, 3]
    assert test.labels.tolist() == [1, 0]
    pq.write_table(pa.table({"image": PNGS, "class": [*"abcabc"]}), "class.parquet")
    assert loaded("class.parquet").classes == ("a", "b", "c")
    write_parquet("none.parquet", [*PNGS[:4], None])
    with broken_image("none.parquet: row 4 is not a readable"):
        loaded("none.parquet", **first_rows(5)).decode(4, None)


def test_rows_of_parquet_without_paths_are_named_by_folder_and_file():
    images = [{"bytes": image, "path": index} for index, image in enumerate(PNGS[:2])]  # no texts
    for split in SPLITS:
        Path(split).mkdir()
        pq.write_table(pa.table({"image": images}), f"{split}/0.parquet")
    source = open_whole(Path())
    names = [source.name(row) for row in range(4)]
    assert names == [f"{split}/0.parquet/{row}" for split in ("test", "train") for row in (0, 1)]


def test_a_row_group_that_pyarrow_can_not_hold_is_refused(monkeypatch):
    monkeypatch.setattr(parquet, "_MAX_GROUP_BYTES", 1_000)
    write_parquet("a.parquet", PNGS[:4])
    with input_error(r"a.parquet: row group 0 holds [\d,]+ bytes, .*row_group_size=1000"):
        loaded("a.parquet")


def test_shards_outside_of_the_splits_are_told(caplog):
    for name in ("train-0", "train-1", "validation-0", "test-0", "extra"):
        write_tar(f"{name}.tar", {f"{name}.png": PNGS[0]})
    assert [len(loaded("", split, labels=False)) for split in SPLITS] == [2, 1]
    assert "2 shards outside of train and test left out, such as " in caplog.text


@parametrize("save", [np.savez, np.savez_compressed])
@parametrize("name", ["all", "mnist_train_test"])
def test_arrays_of_two_splits(save, name):
    """With channels or without."""
    pixels = noise(30, 16, 16)
    labels = np.arange(30) % 7
    train = {"x_train": pixels[..., None], "y_train": labels[:, None]}
    save(f"{name}.npz", x_test=pixels, y_test=labels, **train)
    for split in SPLITS:
        images = loaded(f"{name}.npz", split, channels=1)
        assert_array_equal(content(images)[:, 0], pixels)
        assert_array_equal(images.labels, labels)


def test_an_array_and_its_labels():
    pixels = noise(30, 16, 16)
    np.save("digits.npy", pixels)
    assert loaded("digits.npy", channels=1).classes == ()
    np.save("digits-labels.npy", np.arange(30) % 7)
    for split in SPLITS:
        images = loaded("digits.npy", split, channels=1)
        assert_array_equal(content(images)[:, 0], pixels[images.rows])
        assert_array_equal(images.labels, images.rows % 7)


def test_which_arrays_are_images(caplog):
    pixels = noise(4, 16, 16)
    masks = {"images_mask": pixels, "labels_2": np.arange(4), "test_x_small": pixels}
    np.savez("all.npz", images_0=pixels, IMAGES_1=pixels, **masks)
    names = [open_whole(Path("all.npz"), labels=False).name(row) for row in range(0, 8, 4)]
    assert names == ["all.npz/images_0/0", "all.npz/IMAGES_1/0"]
    told = "all.npz: left out images_mask, labels_2, test_x_small; images are named `images` or `x`"
    assert told in caplog.text
    np.save("tile_x0_y1.npy", noise(16, 16, 3))
    np.save("tile_x1_y0.npy", noise(16, 16, 3))
    np.save("y.npy", np.arange(4)[:, None])
    np.save("y_texts.npy", np.array(["dog"], object))
    np.save("train_labels.npy", pixels)
    assert len(open_whole(Path("*.npy"), labels=False)) == 2
    assert "y_texts.npy: left out" in caplog.text
    np.savez("mixed.npz", x=pixels, labels=np.arange(4))
    open_whole(Path("mixed.npz"))
    assert "mixed.npz: left out labels;" in caplog.text


def test_no_split_of_a_small_array_is_empty():
    for index in range(30):
        np.save(f"{index}.npy", noise(2 + index // 20, 16, 16))
        assert all(len(loaded(f"{index}.npy", split, channels=1)) for split in SPLITS)


def test_a_folder_of_many_arrays(monkeypatch):
    """Each is one image. No more files stay open than a system allows."""
    monkeypatch.setattr(arrays, "_MAX_OPEN", 5)
    pixels = noise(40, 16, 16, 3)
    for index, image in enumerate(pixels):
        np.save(f"{index:02d}.npy", image)
    before = len([*Path("/proc/self/fd").iterdir()])
    images = loaded("", **first_rows(40))
    assert_array_equal(content(images), pixels.transpose(0, 3, 1, 2))
    assert len([*Path("/proc/self/fd").iterdir()]) <= before + 5


# a tar, its members, and the texts in them; the others are images
MEMBERS = f"""
text | a.txt
word | a.cls=cat a.png
number | a.cls={"9" * 20} a.png
longest-number | a.cls={"9" * 5000} a.png
gone/train-0 | a.png
half/train | a.cls=5 a.png
half/test | c.png
mixed/a | a.png
long | {"n" * 5000}.png
named-0/train | a.cls=5 a.png b.cls=0 b.png
named-0/test | c.cls=0 c.png
named-1/train | a.cls=5 a.png
named-1/test | c.cls=0 c.png
named-2/train | a.cls=5 a.png
named-2/test | c.cls=0 c.png
"""


def write_bad_tars():
    image = PNGS[0]
    Path("image.png").write_bytes(image)
    for name, members in cells_of(MEMBERS):
        texts = dict(member.partition("=")[::2] for member in members.split())
        contents = {member: text.encode() or image for member, text in texts.items()}
        write_tar(f"{name}.tar", contents)
    write_parquet("mixed/a.parquet", [image])
    for index, names in enumerate((b"cat\ndog\n", b"cat\ncat\n", b"caf\xe9\n")):
        Path(f"named-{index}/classnames.txt").write_bytes(names)


BAD_TARS = r"""
x.tar.gz | x.tar.gz: there is no such file or folder
*.png | names .png files; for images give their folder: .*[^g]$
image.png | image.png names .png files; for images give their folder: .*[^g]$
text.tar | text.tar: no PNG, JPEG or WebP image is in it
word.tar | a.png: its .cls file is no number; correct it, or train with --data.labels false
number.tar | a.png: its .cls file is no number; correct it, or train with --data.labels false
longest-number.tar | a.png: its .cls file is no number; correct it, or
gone | has train, but none of test, val, .*: .*--data '.*gone.\*\.tar'
half | images of the test split alone have no labels
mixed | names files of several kinds \(.parquet, .tar\)
long.tar | an image has a name of 5,004 bytes, more than 4,096
named-0 | train.tar: a.png has label 5, but there are 2 class names; .*labels false
named-1 | names a class twice
named-2 | classnames.txt is not in UTF-8
"""


def write_bad_tables():
    images = PNGS[:4]
    for name, columns in {
        "none": {"text": ["a"], "n": [1]},
        "several": {"one": images, "two": images},
        "empty": {"image": pa.array([], pa.binary())},
    }.items():
        pq.write_table(pa.table(columns), f"{name}.parquet")
    for name, kind, label in cells_of(f"""
            fractions | float64 | 0.5
            vast | uint64 | {2**63}
            kinds/train | int64 | 0
            kinds/test | str | a
        """):
        write_parquet(f"{name}.parquet", images, np.array(4 * [label], kind))
    for name in "ab":
        write_parquet(f"other/{name}.parquet", images, [0] * 4, names=(name,))

    structs = [{"bytes": image, "path": f"path-{index}"} for index, image in enumerate(images)]
    cut = Path("cut.parquet")
    pq.write_table(pa.table({"image": structs}), cut, compression="none")
    intact = cut.read_bytes()
    assert intact.count(b"path-1") == 1
    cut.write_bytes(intact[:-20])
    Path("path.parquet").write_bytes(intact.replace(b"path-1", b"\xff" * 6))
    Path("name.parquet").write_bytes(intact.replace(b"image", b"imag\xff"))


BAD_TABLES = r"""
none.parquet | no column holds images; there are text \(string\), n \(int64\)
several.parquet | columns one, two may be images.*name one image
empty.parquet | there is no row in it
fractions.parquet | column label has type double, no numbers or texts
vast.parquet | column label has labels of 2\^63 or more; .* false
kinds | name different classes; use --data.labels false
other | name different classes; use --data.labels false
cut.parquet | cut.parquet is damaged, or no Parquet file
path.parquet | path.parquet is damaged, or no Parquet file
name.parquet | name.parquet is damaged, or no Parquet file
"""


# arrays of zeros, with their types and shapes
ZEROS = """
float | float32 | 5 3 8 8
second | uint8 | 5 3 8 8
none | uint8 | 0 8 8
flat | uint8 | 5 192
many | uint8 | 5 8 8
many-labels | int64 | 6
odd | uint8 | 5 8 8
odd-labels | float64 | 5
"""


def write_bad_arrays():
    for name, kind, shape in cells_of(ZEROS):
        pixels = np.zeros([*map(int, shape.split())], kind)
        np.save(f"{name}.npy", pixels)
    np.save("object.npy", np.array([{}]), allow_pickle=True)
    stored = Path("odd.npy").read_bytes()
    Path("header.npy").write_bytes(stored.replace(b"}", b"{"))
    Path("cut.npy").write_bytes(stored[:-1])
    np.savez("keys.npz", pixels=pixels, more=pixels)
    np.savez("object.npz", images=np.array([{}]))
    inflated = Path("inflated.npz")
    np.savez_compressed(inflated, images=np.load("odd.npy"))
    packed = bytearray(inflated.read_bytes())
    packed[60:64] = b"\xff" * 4
    inflated.write_bytes(packed)
    packed[packed.index(b"PK\1\2") + 6] = 255  # the version that reads it
    Path("version.npz").write_bytes(packed)
    Path("zip.npz").write_bytes(b"nothing")


BAD_ARRAYS = r"""
float.npy | float.npy has type float32; images are uint8
second.npy | has shape \(5, 3, 8, 8\); images are \(N, Y, X\),
none.npy | none.npy: there is no image in it
flat.npy | has shape \(5, 192\); images are \(N, Y, X\),
many.npy | many-labels.npy has 6 labels for the 5 images of .*many.npy
odd.npy | odd-labels.npy is float64 \(5,\); labels are
object.npy | is damaged or holds no numbers
header.npy | is damaged or holds no numbers
cut.npy | is damaged or holds no numbers
keys.npz | holds pixels, more; name the images `images` or `x`
object.npz | is damaged or holds no numbers
inflated.npz | is damaged or holds no numbers
version.npz | version.npz can't be read
zip.npz | zip.npz can't be read
"""


@parametrize(
    "write, table",
    [(write_bad_tars, BAD_TARS), (write_bad_tables, BAD_TABLES), (write_bad_arrays, BAD_ARRAYS)],
)
def test_what_is_wrong_is_one_line(write, table):
    write()
    for root, message in cells_of(table):
        with input_error(message) as caught:
            loaded(root)
        assert "\n" not in str(caught.value), root


def test_only_what_is_asked_is_read():
    write_tar("set/train.tar", {f"{name}.png": PNGS[0] for name in "abc"})
    assert sum(len(loaded("set/*.tar", split)) for split in SPLITS) == 3
    Path("set/test.tar").touch()
    assert len(loaded("set", labels=False)) == 3
    write_tar("cls.tar", {"a.cls": b"cat", "a.png": PNGS[0]})
    assert len(open_whole(Path("cls.tar"), labels=False))
    with input_error("mnist is not in .*cls.tar .*--data.dataset mine"):
        loaded("cls.tar", dataset="mnist")


@parametrize("form", FORMS)
def test_a_digest_knows_the_content_of_images(form):
    files = {f"0/{index}.png": png(index) for index in range(9)}
    changed = png(50)
    if form in ("folder", "tar"):  # of the same size
        size = len(files["0/4.png"])
        changed = changed[:size].ljust(size, b"\0")
    digests = []
    for copy, images in enumerate((files, files, files | {"0/4.png": changed})):
        root = store(form, f"{copy}/set", images)
        digests.append(loaded(root, **first_rows(9)).digest())
    assert digests[0] == digests[1] != digests[2]


def repeated(value, count):
    return pa.DictionaryArray.from_arrays(np.zeros(count, np.int32), pa.array([value]))


def test_inputs_that_would_fill_the_memory_are_refused():
    np.savez_compressed("zeros.npz", images=np.zeros((80_000, 32, 32), np.uint8))
    with input_error(r"zeros.npz: images has 82 MB in 0\.\d MB, .*numpy.savez"):
        loaded("zeros.npz")
    count = 1_000_000
    columns = {"image": repeated(PNGS[0], count), "label": repeated("x" * 10_000, count)}
    pq.write_table(pa.table(columns), "rows.parquet")
    with input_error(r"rows.parquet has 1,000,000 rows in [\d,]+ bytes, which are no images"):
        loaded("rows.parquet")


def test_long_labels_take_little_memory():
    text = "x" * 10_000
    images = [png(seed) for seed in range(50)] * 40
    columns = {"image": images, "label": repeated(text, 2_000)}
    pq.write_table(pa.table(columns), "text.parquet")
    images = loaded("text.parquet", **first_rows(2_000))
    assert images.classes == (text,)
    assert images.source.labels.nbytes == 8 * 2_000


def test_long_lists_take_little_memory():
    path = Path("x.txt")
    name = "y" * 4_000 + ".png"
    lines = [f"{index}.png\tcat" for index in range(20_000)]
    path.write_text("\n".join([*lines, f"{name}\t{'z' * 4_000}"]))
    listed = read_list(path)
    assert listed.name(20_000) == name
    assert listed.name(7) == "7.png"
    assert listed.labels.nbytes + listed._names.nbytes < 1 << 20


def test_no_damage_of_the_metadata_of_parquet_ends_the_process():
    pq.write_table(pa.table({"image": [b"abc"] * 3, "label": [0, 1, 2]}), "train.parquet")
    script = """
from pathlib import Path
from hrvqvae.data.sources import Shard, parquet
path = Path("train.parquet")
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
    assert run_python("-c", script).stderr == ""
