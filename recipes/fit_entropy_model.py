"""Fit the entropy model of a run otherwise than `hrvqvae compress` does when it needs one.

python recipes/fit_entropy_model.py RUN [--data DIR] [--duration X] [--shifts N]
"""

import argparse
from collections.abc import Sequence

from hrvqvae.checkpoints.entropy import fit_entropy_model
from hrvqvae.checkpoints.folder import open_run


def main(arguments: Sequence[str] | None = None) -> None:
    """Fit the entropy model, and print its file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run")
    parser.add_argument("--data", help="folder of the data (default: as in training)")
    parser.add_argument("--duration", type=float, default=1.0, help="fit X times as long")
    parser.add_argument("--shifts", type=int, default=0, help="fit N shifted copies too")
    options = parser.parse_args(arguments)
    run = open_run(options.run)
    fit_entropy_model(run, options.data, options.duration, options.shifts, say=print)
    print(run.tables)


if __name__ == "__main__":
    main()
