"""Commands for files of codes, and for codes of many images."""

from pathlib import Path

from hrvqvae.cli.console import Arguments, Command, flag, integer, option, pick
from hrvqvae.utils.quantities import counted


def _compress(arguments: Arguments) -> None:
    from hrvqvae.image_files import check_exist, compress_images
    from hrvqvae.model import Model

    check_exist(arguments.images)
    model = Model(arguments.model, arguments.device, arguments.beam)
    written = compress_images(
        model,
        arguments.images,
        skip=arguments.on_error == "skip",
        max_bytes=arguments.bytes,
        **pick(arguments, "out force levels effort"),
    )
    if written.images:  # all files may exist already
        mean = written.bytes / written.images
        share = written.bytes / written.pixels
        totals = f"{counted(written.images, 'image')}, {counted(written.bytes, 'byte')}"
        print(f"{totals}, {mean:,.1f} per image: {share:.2%} of the pixels")
    print(arguments.out)


def _decompress(arguments: Arguments) -> None:
    from hrvqvae.image_files import check_exist, decompress_files

    check_exist(arguments.files)
    count = decompress_files(arguments.files, **pick(arguments, "out model levels force"))
    print(f"{counted(count, 'image')}: {arguments.out}")


def fraction(text: str) -> tuple[int, int]:
    """Convert "1/4" to (1, 4)."""
    part, parts = map(integer(1), text.split("/"))
    return part, parts


def _tokenize(arguments: Arguments) -> None:
    from hrvqvae.model import Model

    model = Model(arguments.model, arguments.device, arguments.beam)
    count = model.tokenize(
        on_error=arguments.on_error or "stop",
        **pick(arguments, "source out part split effort ray"),
    )
    print(f"{counted(count, 'image')}: {arguments.out}")


COMMANDS = (
    Command(
        "compress",
        "encode images as files of codes (.hrv), or as a zip of them",
        _compress,
        "model",
        option("images IMAGE", "image files, or folders of them", nargs="+", type=Path),
        option("-o --out OUT", "X.hrv, X.zip, or a folder", required=True, type=Path),
        option("--levels K", "write levels 1 to K only (default: all)", type=int),
        "--force",
        "--on-error",
        option(
            "--bytes N",
            "write the least error that fits in N bytes per image: each position has levels of its"
            " own if the entropy model knows where positions stop, else all have the most that fit",
            type=integer(1),
        ),
        "--beam",
        "--effort",
        "--device",
    ),
    Command(
        "decompress",
        "decode files of codes to PNG",
        _decompress,
        option("files FILE", "X.hrv, X.zip, or a folder of them", nargs="+", type=Path),
        option("-o --out OUT", "Y.png, or a folder", required=True, type=Path),
        "--model",
        "--force",
        "--levels",
    ),
    Command(
        "tokenize",
        "write the codes of many images as Parquet files; the same command resumes",
        _tokenize,
        "model",
        option("source SOURCE", "a folder of images", type=Path),
        option("out OUT", "write the codes to the folder OUT", type=Path),
        option(
            "--part I/N",
            "write part I of N, one per machine (default: 1/1)",
            type=fraction,
            default=(1, 1),
        ),
        option(
            "--split",
            "images to encode (default: all)",
            choices=("all", "train", "test"),
            default="all",
        ),
        flag("--ray", "encode on a cluster of Ray (RAY_ADDRESS), or on all cores"),
        "--device",
        "--beam",
        "--effort",
        "--on-error",
    ),
)
