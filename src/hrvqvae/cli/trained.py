"""What is done with a trained run: measured, looked at."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hrvqvae.cli.console import Arguments, Group, add_beam, add_lmbda, at_least, command, print_json, print_table
from hrvqvae.utils.errors import InputError
from hrvqvae.utils.quantities import counted, psnr

if TYPE_CHECKING:
    from hrvqvae.evaluation.samples import SampleQuality


def _evaluate(arguments: Arguments) -> int:
    from hrvqvae.evaluation.report import evaluate_run

    at_least(arguments.samples, 0, "--samples")
    if arguments.images is not None:
        at_least(arguments.images, 1, "--images")
    if arguments.guidance and not arguments.samples:
        raise InputError("--guidance is that of samples: say how many to draw, --samples N")
    evaluated = evaluate_run(
        arguments.run, arguments.split, arguments.data, arguments.device, arguments.samples,
        guidance=arguments.guidance or (1.0,), limit=arguments.images, beam=arguments.beam,
        lmbda=arguments.lmbda, say=lambda line: print(line, file=sys.stderr),
    )  # fmt: skip
    report, rate = evaluated.report, evaluated.rate
    if arguments.json:
        print_json(evaluated.to_dict())
        return 0
    ssim = "-" if report.ssim is None else f"{report.ssim:.4f}"
    print(f"{report.dataset} {report.split}: {counted(report.images, 'image')}")
    print(f"MSE {report.mse:.4e}   PSNR {report.psnr:.2f} dB   SSIM {ssim}")
    print(f"{report.bits_per_image:,.0f} bits an image, compression factor {report.compression_ratio:.2f}\n")
    rows: list[Sequence[object]] = [("level", "codewords", "used", "usage", "perplexity", "MSE of levels 1..l")]
    for number, level in enumerate(report.levels, start=1):
        usage, perplexity = f"{level.usage:.1%}", f"{level.perplexity:.1f}"
        rows.append(
            (number, level.codewords, level.used, usage, perplexity, "-" if level.mse is None else f"{level.mse:.4e}")
        )
    print_table(rows)
    if rate is None:
        print(f"\nno priors: {evaluated.no_rate}")
        return 0
    bits: list[Sequence[object]] = [("bits a code", "prior", "given path", "given path and neighbours")]
    for number, one in enumerate(rate.levels, start=1):
        bits.append((f"level {number}", f"{one.prior:.4f}", f"{one.path:.4f}", f"{one.neighbours:.4f}"))
    totals = (rate.prior_bits_per_image, rate.path_bits_per_image, rate.neighbours_bits_per_image)
    bits.append(("an image", *(f"{total:.1f}" for total in totals)))
    print()
    print_table(bits)
    share = rate.prior_bits_per_image / rate.neighbours_bits_per_image
    print(f"the priors need {share:.1%} of the bits that counts given path and neighbours need")
    if rate.label_bits_per_image:
        print(f"all given the class; it takes {rate.label_bits_per_image:.1f} bits an image where it is not known")
    if evaluated.samples:
        _print_samples(evaluated.samples)
    return 0


def _print_samples(qualities: Sequence[SampleQuality]) -> None:
    names = ["samples" if one.guidance == 1 else f"samples with guidance {one.guidance:g}" for one in qualities]
    for one, name in zip(qualities, names, strict=True):
        print(f"{name}: classification accuracy {one.classification_accuracy:.1%} of {one.samples:,}")
    found = qualities[0]
    print(
        f"the classifier's accuracy on test images: {found.classifier_accuracy:.2%}, "
        f"on reconstructions of {found.compared:,} of them: {found.reconstructions_accuracy:.2%}\n"
    )
    rows: list[Sequence[object]] = [("from test images", found.frechet, "kernel", "precision", "recall")]
    drawn = {name: one.distances["samples"] for one, name in zip(qualities, names, strict=True)}
    for name, far in (drawn | {name: far for name, far in found.distances.items() if name != "samples"}).items():
        values = (f"{far.frechet:.3f}", f"{far.kernel:.4f}", f"{far.precision:.3f}", f"{far.recall:.3f}")
        rows.append((name, *values))
    print_table(rows)


def _reconstruct(arguments: Arguments) -> int:
    from hrvqvae.plots.images import reconstruct

    errors = reconstruct(
        arguments.run, arguments.images, arguments.out, arguments.levels, arguments.beam, arguments.lmbda
    )
    for path, error in errors:
        print(f"{path}: MSE {error:.3e}, PSNR {psnr(error):.2f} dB")
    print(f"originals above reconstructions: {arguments.out}")
    return 0


def add(commands: Group) -> None:
    """evaluate, reconstruct."""
    evaluate = command(commands, "evaluate", "distortion, rate and codeword usage of a run", _evaluate)
    evaluate.add_argument("run", metavar="RUN")
    evaluate.add_argument("--split", default="test", metavar="SPLIT", help="test or train")
    evaluate.add_argument("--data", metavar="DIR", help="where the data is, if it has moved since training")
    evaluate.add_argument("--device", default="auto", metavar="NAME")
    evaluate.add_argument(
        "--samples", type=int, default=0, metavar="N", help="draw N images and measure them by a classifier of the data"
    )
    evaluate.add_argument(
        "--guidance", type=float, nargs="+", metavar="W", help="draw N with each of these (see `sample`)"
    )
    evaluate.add_argument(
        "--images", type=int, metavar="N", help="N images of the split only, evenly spread (default: all)"
    )
    add_beam(evaluate)
    add_lmbda(evaluate)
    evaluate.add_argument("--json", action="store_true", help="for programs")

    reconstruct = command(commands, "reconstruct", "a sheet of images above their reconstructions", _reconstruct)
    reconstruct.add_argument("run", metavar="RUN")
    reconstruct.add_argument("images", nargs="+", metavar="IMAGE", type=Path)
    reconstruct.add_argument("-o", "--out", required=True, metavar="SHEET.png", type=Path)
    reconstruct.add_argument("--levels", type=int, metavar="K", help="decode levels 1..K only")
    add_beam(reconstruct)
    add_lmbda(reconstruct)
