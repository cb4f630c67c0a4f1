"""New images from a run: samples and completions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hrvqvae.cli.console import Arguments, Group, add_guidance, at_least, command
from hrvqvae.utils.quantities import counted


def _draw(arguments: Arguments) -> dict[str, Any]:
    """What `sample` and `complete` have in common."""
    from hrvqvae.priors.sampling_params import SamplingParams

    if arguments.top_k is not None:
        at_least(arguments.top_k, 1, "--top-k")
    how = SamplingParams(
        temperature=arguments.temperature, top_k=arguments.top_k or 0, top_p=arguments.top_p,
        guidance=arguments.guidance,
    )  # fmt: skip
    return {"seed": arguments.seed, "class_name": arguments.class_name, "draw": how}


def _sample(arguments: Arguments) -> int:
    from hrvqvae.plots.images import sample

    sample(arguments.run, arguments.count, arguments.out, save_dir=arguments.save_dir, **_draw(arguments))
    print(f"{counted(arguments.count, 'sample')}: {arguments.out}")
    if arguments.save_dir is not None:
        print(f"each on its own: {arguments.save_dir}")
    return 0


def _complete(arguments: Arguments) -> int:
    from hrvqvae.plots.images import complete

    complete(arguments.run, arguments.image, arguments.keep, arguments.count, arguments.out, **_draw(arguments))
    print(f"{counted(arguments.count, 'completion')}: {arguments.out}")
    return 0


def _draws(added: Any, count: int) -> None:
    added.add_argument("-n", dest="count", type=int, default=count, metavar="N", help=f"how many (default: {count})")
    added.add_argument("--class", dest="class_name", metavar="C", help="name or number of a class")
    added.add_argument("--temperature", type=float, default=1.0, metavar="T", help="below 1: likelier codes")
    added.add_argument("--top-k", type=int, metavar="K", help="draw from the K likeliest codes only")
    added.add_argument("--top-p", type=float, default=1.0, metavar="P", help="draw from the likeliest share P only")
    add_guidance(added)
    added.add_argument("--seed", type=int, default=0, metavar="S")
    added.add_argument("-o", "--out", required=True, metavar="SHEET.png", type=Path)


def add(commands: Group) -> None:
    """sample, complete."""
    sample = command(commands, "sample", "new images from a run's priors", _sample)
    sample.add_argument("run", metavar="RUN")
    _draws(sample, 64)
    sample.add_argument(
        "--save-dir", type=Path, metavar="DIR", help="also a PNG file of each, named by class and number"
    )

    about = "keep a part of an image and draw the rest from a run's priors"
    complete = command(commands, "complete", about, _complete)
    complete.add_argument("run", metavar="RUN")
    complete.add_argument("image", type=Path, metavar="IMAGE")
    complete.add_argument("--keep", default="top", metavar="PART", help="top, left, or a fraction of the rows")
    _draws(complete, 8)
