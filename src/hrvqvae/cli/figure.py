"""The paper's figures."""

from __future__ import annotations

from pathlib import Path

from hrvqvae.cli.console import Arguments, Group, add_guidance, at_least, command, group
from hrvqvae.utils.errors import InputError
from hrvqvae.utils.quantities import counted


def _path(text: str) -> list[int]:
    try:
        return [int(child) for child in text.split(",")]
    except ValueError as error:
        raise InputError(f"--path is {text!r}; it must be child indices such as 2,1,3") from error


def _figure_hierarchy(arguments: Arguments) -> int:
    from hrvqvae.plots.figures import figure_hierarchy

    path = None if arguments.path is None else _path(arguments.path)
    position = None if arguments.position is None else (arguments.position[0], arguments.position[1])
    drawn = figure_hierarchy(arguments.run, arguments.out, position, path)
    print(f"{drawn}: {arguments.out}")
    return 0


def _figure_nearest(arguments: Arguments) -> int:
    from hrvqvae.plots.figures import figure_nearest

    at_least(arguments.count, 1, "-n")
    errors = figure_nearest(arguments.run, arguments.out, arguments.count, seed=arguments.seed, root=arguments.data)
    print(f"samples beside their nearest training images, MSE {min(errors):.2e} to {max(errors):.2e}: {arguments.out}")
    return 0


def _figure_classes(arguments: Arguments) -> int:
    from hrvqvae.plots.figures import figure_classes
    from hrvqvae.priors.sampling import SamplingParams

    at_least(arguments.count, 1, "-n")
    params = SamplingParams(guidance=arguments.guidance)
    classes = figure_classes(arguments.run, arguments.out, arguments.count, seed=arguments.seed, params=params)
    print(f"{counted(arguments.count, 'sample')} of each of {classes} classes: {arguments.out}")
    return 0


def add(commands: Group) -> None:
    """figure hierarchy, classes, nearest."""
    figures = group(commands, "figure", "the paper's figures", "FIGURE")
    about = "which codebooks a choice leaves within reach (Figure 10)"
    hierarchy = command(figures, "hierarchy", about, _figure_hierarchy)
    hierarchy.add_argument("run", nargs="?", metavar="RUN", help="a trained run (default: synthetic vectors)")
    hierarchy.add_argument("-o", "--out", required=True, type=Path, metavar="FIG.png", help="PNG or SVG")
    hierarchy.add_argument(
        "--position", nargs=2, type=int, metavar=("Y", "X"), help="of the first test image's latents"
    )
    hierarchy.add_argument("--path", metavar="K,K,K", help="child indices from level 1 on, such as 2,1,3")

    classes = command(figures, "classes", "a row of samples for each class (Figure 14)", _figure_classes)
    classes.add_argument("run", metavar="RUN")
    classes.add_argument("-o", "--out", required=True, type=Path, metavar="FIG.png")
    classes.add_argument("-n", dest="count", type=int, default=8, metavar="N", help="of each class (default: 8)")
    add_guidance(classes)
    classes.add_argument("--seed", type=int, default=0, metavar="S")

    nearest = command(figures, "nearest", "samples beside their nearest training images", _figure_nearest)
    nearest.add_argument("run", metavar="RUN")
    nearest.add_argument("-o", "--out", required=True, type=Path, metavar="FIG.png")
    nearest.add_argument("-n", dest="count", type=int, default=64, metavar="N", help="how many (default: 64)")
    nearest.add_argument("--seed", type=int, default=0, metavar="S")
    nearest.add_argument("--data", metavar="DIR", help="where the data is, if it has moved since training")
