"""Commands that use a trained run: evaluate, reconstruct, sample, complete."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hrvqvae.cli.console import Arguments, Command, integer, option, pick, print_json, print_table
from hrvqvae.priors.guidance import format_guidance, parse_guidance
from hrvqvae.utils.errors import InputError
from hrvqvae.utils.quantities import counted, psnr

if TYPE_CHECKING:
    from hrvqvae.evaluation.report import Rate
    from hrvqvae.evaluation.samples import SampleQuality, Spread


def _evaluate(arguments: Arguments) -> None:
    from hrvqvae.evaluation.report import evaluate_run

    if (arguments.guidance or arguments.sample_levels) and not arguments.samples:
        raise InputError("--guidance and --sample-levels need samples: add --samples N")
    evaluated = evaluate_run(
        root=arguments.data,
        guidance=arguments.guidance or (1.0,),
        limit=arguments.count,
        **pick(arguments, "run split device samples beam effort sample_levels on_error"),
    )
    report = evaluated.report
    if arguments.json:
        print_json(evaluated.to_dict())
        return
    ssim = "-" if report.ssim is None else f"{report.ssim:.4f}"
    print(f"{report.dataset} {report.split}: {counted(report.images, 'image')}")
    print(f"MSE {report.mse:.4e}   PSNR {report.psnr:.2f} dB   SSIM {ssim}")
    print(
        f"{report.bits_per_image:,.0f} bits per image, compression factor"
        f" {report.compression_ratio:.2f}\n"
    )
    rows: list[Sequence[object]] = [
        ("level", "codewords", "used", "usage", "perplexity", "MSE of levels 1..l")
    ]
    for index, level in enumerate(report.levels, start=1):
        error = "-" if level.mse is None else f"{level.mse:.4e}"
        usage = f"{level.usage:.1%}"
        perplexity = f"{level.perplexity:.1f}"
        rows.append((index, level.codewords, level.used, usage, perplexity, error))
    print_table(rows)
    if evaluated.no_rate:
        print(f"\nno priors: {evaluated.no_rate}")
    if evaluated.rate is not None:
        _print_rate(evaluated.rate)
    if evaluated.samples:
        _print_samples(evaluated.samples)


def _print_rate(rate: Rate) -> None:
    def show(values: Iterable[float | None], places: int) -> list[str]:
        return ["-" if bits is None else f"{bits:.{places}f}" for bits in values]

    names = [name for name in ("prior", "file") if getattr(rate, name)]
    rows: list[Sequence[object]] = [("bits per code", *names)]

    # a row per level, a column per name
    columns = [rate.per_code(name) for name in names]
    for index, level_bits in enumerate(zip(*columns, strict=True), start=1):
        rows.append((f"level {index}", *show(level_bits, 4)))
    rows.append(("bits per image", *show(map(rate.per_image, names), 1)))
    print()
    print_table(rows)
    if rate.label:
        print(
            f"the priors know the class; an unknown class takes {rate.label:.1f} bits more per"
            " image"
        )


def _print_samples(qualities: Sequence[SampleQuality]) -> None:
    distances = {}
    for quality in qualities:
        name = f"samples with guidance {format_guidance(quality.guidance)}"
        accuracy = f"{quality.classification_accuracy:.1%} of {quality.samples:,}"
        print(f"{name}: classification accuracy {accuracy}")
        distances[name] = quality.distances["samples"]
    first = qualities[0]
    print(
        f"classification accuracy of test images: {first.classifier_accuracy:.2%}, of"
        f" reconstructions of {first.compared:,} test images:"
        f" {first.reconstructions_accuracy:.2%}\n"
    )
    distances |= first.distances
    del distances["samples"]  # stands above, by guidance

    # the fields of SetDistances; `first.frechet` is the name of the Frechet distance
    rows: list[Sequence[object]] = [
        ("from test images", first.frechet, "kernel", "precision", "recall")
    ]
    for name, spreads in distances.items():
        rows.append((name, *map(_format_spread, spreads.values(), (3, 4, 3, 3))))
    print_table(rows)
    floor = "the distance of test images from other test images is the floor"
    print(f"mean ± standard deviation over several sets; {floor}")


def _format_spread(spread: Spread | None, places: int) -> str:
    if spread is None:
        return "too few images"
    values = (spread.mean, spread.deviation)
    return " ± ".join(f"{value:.{places}f}" for value in values if value is not None)


def _reconstruct(arguments: Arguments) -> None:
    from hrvqvae.image_files import check_exist
    from hrvqvae.pictures import reconstruct

    check_exist(arguments.images)
    errors = reconstruct(
        arguments.run, arguments.images, **pick(arguments, "out levels beam effort force")
    )
    for path, error in errors:
        print(f"{path}: MSE {error:.3e}, PSNR {psnr(error):.2f} dB")
    print(f"originals above reconstructions: {arguments.out}")


def _collect_sampling_options(arguments: Arguments) -> dict[str, Any]:
    """Return the keyword arguments that `pictures.sample` and `pictures.complete` share."""
    from hrvqvae.checkpoints.folder import open_run
    from hrvqvae.priors.sampling import SamplingParams

    options = open_run(arguments.run).sampling_options(arguments.guidance, arguments.levels)
    options |= pick(arguments, "temperature top_p")
    params = SamplingParams(top_k=arguments.top_k or 0, decoder=arguments.decoder, **options)
    return {"params": params, **pick(arguments, "run count out seed class_name force")}


def _sample(arguments: Arguments) -> None:
    from hrvqvae.pictures import sample

    options = _collect_sampling_options(arguments)
    sample(save_dir=arguments.save_dir, **options)
    print(f"{counted(arguments.count, 'sample')}: {arguments.out}")
    if arguments.save_dir is not None:
        print(f"single images: {arguments.save_dir}")


def _complete(arguments: Arguments) -> None:
    from hrvqvae.image_files import check_exist
    from hrvqvae.pictures import complete

    check_exist([arguments.image])
    options = _collect_sampling_options(arguments)
    complete(path=arguments.image, keep=arguments.keep, **options)
    print(f"{counted(arguments.count, 'completion')}: {arguments.out}")


_SHEET = option("-o --out SHEET.png", "write the picture to SHEET.png", required=True, type=Path)
_DRAWING = (
    option(
        "--class C",
        "draw images of class C, a name or an index (default: any)",
        dest="class_name",
    ),
    option("--temperature T", "below 1, prefer likely codes (default: 1)", type=float, default=1.0),
    option("--top-k K", "draw from the K likeliest codes only (default: all)", type=integer(1)),
    option(
        "--top-p P",
        "draw from the likeliest codes only, which together have probability P (default: 1)",
        type=float,
        default=1.0,
    ),
    option(
        "--guidance W",
        "above 1, draw images more typical of their class; 1: no guidance; 1,5: from 1 at the"
        " first position to 5 at the last (default: as in the model's sampling.json; 1 if"
        " --levels is given)",
        type=parse_guidance,
    ),
    option(
        "--levels K",
        "draw levels 1 to K only (default: as in the model's sampling.json; with --guidance, all if"
        " all have priors)",
        type=int,
    ),
    option(
        "--decoder",
        "make images with this decoder of train-decoder (default: as in the model's"
        " sampling.json, else generation if it was trained for these levels)",
        choices=("generation", "progressive"),
    ),
    option("--seed S", "draw the images of seed S (default: 0)", type=int, default=0),
    _SHEET,
    "--force",
)

COMMANDS = (
    Command(
        "evaluate",
        "measure distortion, rate and codeword usage of a run, and its samples",
        _evaluate,
        "run",
        "--data",
        "--device",
        "--beam",
        "--effort",
        "--json",
        option(
            "--split",
            "images to measure (default: test; with --data, all if they have no splits)",
            choices=("test", "train", "all"),
        ),
        option(
            "-n N",
            "measure N images, evenly spread over the split (default: all)",
            dest="count",
            type=integer(1),
        ),
        option(
            "--samples N",
            "draw N images and measure them too (default: 0)",
            type=integer(0),
            default=0,
        ),
        option(
            "--guidance W",
            "draw N images and measure them with each guidance W, such as 3 or 1,5 (default: 1)",
            type=parse_guidance,
            nargs="+",
        ),
        option(
            "--sample-levels K",
            "draw levels 1 to K only (default: all; as in sampling.json if a level has no prior)",
            type=int,
        ),
        "--on-error",
    ),
    Command(
        "reconstruct",
        "draw images above their reconstructions",
        _reconstruct,
        "run",
        option("images IMAGE", "images of any sizes", nargs="+", type=Path),
        _SHEET,
        "--levels",
        "--beam",
        "--effort",
        "--force",
    ),
    Command(
        "sample",
        "draw new images with the priors of a run",
        _sample,
        "run",
        option("-n N", "draw N images (default: 64)", dest="count", type=integer(1), default=64),
        *_DRAWING,
        option(
            "--save-dir DIR",
            "write each image to DIR as well, as PNG named by class and number",
            type=Path,
        ),
    ),
    Command(
        "complete",
        "keep a part of an image and draw the rest with the priors of a run",
        _complete,
        "run",
        option("image IMAGE", "image, cropped and resized as in training", type=Path),
        option(
            "--keep PART",
            "keep a fraction of the rows, or the white part of an image file of the size in"
            " training (default: 0.5)",
            default="0.5",
        ),
        option("-n N", "draw N completions (default: 8)", dest="count", type=integer(1), default=8),
        *_DRAWING,
    ),
)
