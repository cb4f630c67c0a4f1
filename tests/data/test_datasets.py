"""Data sets given from Python: what is taken, and what is refused."""

from pathlib import Path

import datasets
import torch
from numpy.testing import assert_array_equal
from PIL import Image
from torch.utils.data import Dataset

from hrvqvae.data.datasets import register_datasets
from hrvqvae.data.loading import load_images
from tests.conftest import input_error, parametrize
from tests.data.stored import folder_config, noise

PIXELS = noise(20, 16, 16, 3)
TENSORS = torch.from_numpy(PIXELS.transpose(0, 3, 1, 2).copy())
LABELS = [index % 3 for index in range(20)]
CLASSES = ("cat", "dog", "emu")


def loaded(train):
    root = register_datasets("run", train)
    return load_images(folder_config(root, split="sorted", train_samples=18), "train")


class Pairs(Dataset):
    classes = CLASSES

    def __len__(self):
        return len(PIXELS)

    def __getitem__(self, row):
        return PIXELS[row], LABELS[row]


def hugging_face():
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=[*CLASSES])}
    columns = {"image": [Image.fromarray(image) for image in PIXELS], "label": LABELS}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def test_items_of_every_kind_are_the_same_images():
    pictures = [Image.fromarray(image) for image in PIXELS]
    paths = [Path(f"{index}.png") for index in range(20)]
    for picture, path in zip(pictures, paths, strict=True):
        picture.save(path)
    files = [path.read_bytes() for path in paths]
    for items in (
        PIXELS,
        TENSORS,
        TENSORS.double() / 255,
        pictures,
        paths,
        [*map(str, paths)],
        list(zip(paths, LABELS, strict=True)),
        files,
        Pairs(),
        hugging_face(),
    ):
        assert_array_equal(loaded(items).pixels, TENSORS[:18], err_msg=str(type(items)))
    for items in (Pairs(), hugging_face()):
        images = loaded(items)
        assert images.classes == CLASSES
        assert images.labels.tolist() == LABELS[:18]
    root = register_datasets("two", TENSORS[:12], TENSORS[12:])
    assert_array_equal(load_images(folder_config(root), "test").pixels, TENSORS[12:])


GREY = torch.zeros(1, 12, 12)


@parametrize(
    "items, fault",
    [
        ([GREY[0]], r"item 0 of the data set is not a readable image .its shape is \(12, 12\)"),
        ([GREY - 1], r"its values are -1 to -1; float images are in \[0, 1\]"),
        ([(GREY, 0.5)], "labels that are neither whole numbers nor texts"),
        ([3], "it is a int; images are paths, bytes, PIL images, arrays or tensors"),
        ([], "the data set has no item"),
    ],
)
def test_what_is_no_data_set_is_one_line(items, fault):
    with input_error(fault):
        loaded(items * 2)
