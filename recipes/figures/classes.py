"""Figure 14: a row of samples for each class, under its name.

python recipes/figures/classes.py RUN -o FIG.png [-n N] [--nearest] [--guidance W] [--seed S]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from nearest import nearest_training_images

from hrvqvae.data.images import write_image
from hrvqvae.model import Model
from hrvqvae.plots import sheets
from hrvqvae.plots.sheets import SheetRow
from hrvqvae.priors.guidance import Guidance, parse_guidance
from hrvqvae.priors.sampling import SamplingParams
from hrvqvae.utils.errors import InputError
from hrvqvae.utils.outputs import check_output


def draw(
    run: str, out: Path, count: int, guidance: Guidance | None, seed: int, *, nearest: bool
) -> int:
    """Write the figure and return the number of classes.

    Raises:
        InputError: The priors know no classes or can't be guided, the data is missing, or the file
            can't be written.
    """
    check_output(out, force=True, suffix=".png")
    model = Model(run)
    params = SamplingParams(**model.run.sampling_options(guidance))
    if not model.classes:
        raise InputError(
            f"the priors of {run} know no classes; draw samples: hrvqvae sample {run} -o {out}"
        )
    rows = []
    for index, name in enumerate(model.classes):
        samples = model.draw(count, seed=seed + index, class_name=name, params=params).images
        rows.append(SheetRow(name, list(samples)))
        if nearest:
            images, _ = nearest_training_images(samples, model.config)
            rows.append(SheetRow("nearest training images", list(images)))
    write_image(sheets.draw(rows), out)
    return len(model.classes)


def main(argv: Sequence[str] | None = None) -> None:
    """Draw the figure that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("-o", "--out", required=True, type=Path, metavar="FIG.png")
    parser.add_argument(
        "-n",
        dest="count",
        type=int,
        default=8,
        metavar="N",
        help="draw N images per class (default: 8)",
    )
    text = "below each class, draw the training images that are nearest in pixels"
    parser.add_argument("--nearest", action="store_true", help=text)
    text = "above 1, draw images more typical of their class (default: as the run samples)"
    parser.add_argument("--guidance", type=parse_guidance, metavar="W", help=text)
    parser.add_argument("--seed", type=int, default=0, metavar="S")
    arguments = parser.parse_args(argv)
    try:
        classes = draw(
            arguments.run,
            arguments.out,
            arguments.count,
            arguments.guidance,
            arguments.seed,
            nearest=arguments.nearest,
        )
    except InputError as error:
        parser.error(str(error))
    print(f"{arguments.count} samples per class, {classes} classes: {arguments.out}")


if __name__ == "__main__":
    main()
