"""Sets of images as people have them: names, splits, nesting, links, depths, arrays."""

import io
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from PIL import Image

from tests.data.stored import noise, write_tar

NONE = "no classes"
PETS = "2 classes"
HELD_OUT = ("test", "val", "valid", "validation", "dev")


class People(NamedTuple):
    """A set of images, and what is meant by it.

    `files` has per path an image, bytes, an array for .npy, the target of a link, or the images and
    bytes in a tar. `meaning` is the number of images, and the end of the line that says what was
    understood.
    """

    files: Mapping
    meaning: tuple
    note: str = ""  # part of another line
    labels: bool = True


def drawn(seed=1):
    return Image.fromarray(noise(16, 16, 3, seed=seed))


def encoded(form, image=None):
    stream = io.BytesIO()
    (image or drawn()).save(stream, form)
    return stream.getvalue()


def four(content, start="", end=".png"):
    """Four files of the same content."""
    return {f"{start}{index}{end}": content for index in range(4)}


def pets(folder="", count=4, suffix=".png"):
    names = (f"{folder}{('cat', 'dog')[index % 2]}/{index}{suffix}" for index in range(count))
    return {name: drawn(index) for index, name in enumerate(names)}


def given(train, test, name="test", kinds=PETS):
    return train + test, f"{train} images in train and {test} images in {name}; {kinds}"


def divided(count, kinds=NONE):
    return count, f" to test, by their names; {kinds}"


FOUR = divided(4)
FOUR_PETS = divided(4, PETS)


def splits():
    """Folders and files of splits, in any case."""
    arrays = np.zeros((6, 16, 16, 3), np.uint8)
    labels = np.arange(6) % 2
    for test in HELD_OUT:
        for case in (str.lower, str.title, str.upper):
            train = case("train")
            held_out = case(test)
            yield People(pets(f"{train}/") | pets(f"{held_out}/", 2), given(4, 2, test))
            files = {f"{train}/a.png": drawn(), f"{held_out}/b.png": drawn(2)}
            yield People(files, given(1, 1, test, NONE))
        yield People({"train.npy": arrays, f"{test}.npy": arrays[:2]}, given(6, 2, test, NONE))
        files = {"x_train.npy": arrays, f"x_{test}.npy": arrays[:2]}
        files |= {"y_train.npy": labels, f"y_{test}.npy": labels[:2]}
        yield People(files, given(6, 2, test))
    for test, left_out in (("test", "val"), ("val", "valid"), ("valid", "dev"), ("test", "extra")):
        files = pets("train/") | pets(f"{test}/", 2) | pets(f"{left_out}/", 2)
        yield People(files, given(4, 2, test), f"2 images outside of train/ and {test}/ left out")
    yield People(pets("train/") | pets("boat/", 2), divided(6, "2 classes"))
    unlabelled = "images without a whole number in .cls or .json"
    yield People({"x.tar": pets()}, divided(4, f"{NONE}: 4 {unlabelled}"))
    one_label = {"cat/0.cls": b"1"} | pets()
    yield People({"x.tar": one_label}, divided(4, f"{NONE}: 3 {unlabelled}"))
    yield People({"x.tar": pets()}, FOUR, labels=False)


def nesting():
    """Where images lie in a folder."""
    for folder in ("", "a/", "a/b/", "a/b/c/"):
        files = four(encoded("JPEG"), folder, ".jpg")
        yield People(files, divided(4, "1 class" if folder else NONE))
    yield People(pets(), FOUR_PETS)
    unread = f"{NONE}: data.labels is false"
    yield People(pets(), divided(4, unread), labels=False)
    yield People(pets("deep/pets/"), divided(4, "1 class"))
    outside = f"{NONE}: 1 image outside of class folders"
    yield People(pets() | {"x.png": drawn()}, divided(5, outside))
    for junk in ("Thumbs.db", ".DS_Store", "._0.png", ".git/x.png", "notes.txt", "labels.csv"):
        yield People(pets() | {junk: b"junk"}, FOUR_PETS)
    run = {f"runs/x/{name}": b"" for name in ("config.yaml", "metrics.jsonl", "sheet.png")}
    yield People(pets() | run, FOUR_PETS, "is a run folder; its pictures are left out")


def names():
    """Names of files."""
    for name in [*["a b", "größe", "é", "猫", "x#1", "50%", "it's", 'say "x"', "a.b.c"], "n" * 200]:
        yield People(four(drawn(), f"{name}-"), FOUR)
    for suffix in (".PNG", ".Jpg", ".JPEG", ".webp"):
        yield People(pets(suffix=suffix), FOUR_PETS)
    for suffix in [".heic", ".gif", ".TIFF", ".bmp", ".avif", ".cr2", ".svg", ".psd"]:
        note = f"images left out: 1 {suffix.lower()}; convert them to PNG, JPEG or WebP"
        yield People(pets() | {f"cat/other{suffix}": b"other"}, FOUR_PETS, note)


def links():
    """Links to files and folders, and to nothing."""
    pictures = four(drawn(), "../there/")
    to_files = {f"{index}.png": f"../there/{index}.png" for index in range(4)}
    yield People(pictures | to_files, FOUR)
    yield People(pictures | {"pictures": "../there"}, divided(4, "1 class"))
    yield People(pets() | {"cat/again": ".."}, FOUR_PETS)
    gone = "to files that are not there left out, such as "
    yield People(pets() | {"cat/x.png": "gone.png"}, FOUR_PETS, f"1 link {gone}")
    annex = {f"dog/{index}.jpg": f"../.git/annex/{index}.jpg" for index in range(10, 13)}
    yield People(pets() | annex, FOUR_PETS, f"3 links {gone}")


def pixels():
    """Sixteen bits, and arrays."""
    deep = Image.fromarray(np.full((16, 16), 40_000, np.uint16))
    yield People(four(deep), FOUR, "images are converted (16 bits to 8)")
    for channels in (1, 3, 4):
        array = np.full((16, 16, channels), 255, np.uint8)
        yield People({f"{index}.npy": array for index in range(10)}, divided(10))


PEOPLE = [*splits(), *nesting(), *names(), *links(), *pixels()]


def write(people, folder):
    """Write a set of images."""
    for name, content in people.files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        match content:
            case str():
                path.symlink_to(content)
            case bytes():
                path.write_bytes(content)
            case np.ndarray():
                np.save(path, content)
            case Mapping():
                labels = {key: value for key, value in content.items() if key.endswith(".cls")}
                write_tar(path, dict.fromkeys(content, encoded("PNG")) | labels)
            case _:
                content.save(path)
