"""Data sets that are folders of images."""

from hrvqvae.config.entries import Dataset
from hrvqvae.config.systems import OURS, TABLE_5, select_column, settings

_CROPPED = {"data.crop": "random", "data.flip": True}
# For a few thousand images, on a few cores.
_FEW_IMAGES = {
    "data.channels": 3,
    "model.adversarial_start": 1_000,
    "training.evaluate_every": 250,
    "training.checkpoint_every": 250,
    "prior.network.dropout": 0.3,
    "prior.training.batch_size": (32,),
    "prior.training.epochs": 60,
    "prior.training.evaluate_every": 100,
    "prior.training.checkpoint_every": 100,
}

IMAGENET = Dataset(
    name="imagenet",
    about="ImageNet, 128x128 colour, class folders",
    settings=select_column(TABLE_5, "imagenet") | settings(OURS, _CROPPED),
    column="imagenet",
    how=(
        "class folders in <root>/imagenet/train and <root>/imagenet/val, from image-net.org (needs"
        " an account)"
    ),
)

FFHQ = Dataset(
    name="ffhq",
    about="FFHQ, 256x256 colour, a folder of faces",
    settings=select_column(TABLE_5, "ffhq")
    | settings(OURS, {"data.split": "sorted", "data.flip": True, "data.labels": False}),
    column="ffhq",
    notes=(
        "Table 5 prints 875,000 training steps; 60,000 samples * 400 epochs / 32 are 750,000."
        " 875,000 is what 70,000 samples give. The printed value is kept beside the computed"
        " one.",
    ),
    how="the 70,000 images of FFHQ in <root>/ffhq, from github.com/NVlabs/ffhq-dataset",
)

EMOJI32 = Dataset(
    name="emoji32",
    about="a folder of 32x32 colour images in class folders",
    settings=settings(
        OURS,
        _FEW_IMAGES
        | {
            "data.dataset": "emoji32",
            "data.size": 32,
            "training.batch_size": 64,
            "training.epochs": 60,
        },
    ),
    column="cifar10",
    how="any folder of small colour images: --data DIR",
    takes_any_folder=True,
)

PHOTOS = Dataset(
    name="photos",
    about="any folder of photographs, 256x256 crops",
    settings=settings(
        OURS,
        _FEW_IMAGES
        | _CROPPED
        | {
            "data.dataset": "photos",
            "data.size": 256,
            "data.labels": False,
            "training.batch_size": 8,
            "training.epochs": 400,
            "training.learning_rate": 1e-3,
            "training.evaluation_images": 64,
            "prior.training.batch_size": (8,),
        },
    ),
    column="ffhq",
    how="any folder of photographs: --data DIR",
    takes_any_folder=True,
)
