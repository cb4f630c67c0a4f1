"""Train the classifier of a data set, which measures samples.

python recipes/train_classifier.py DATASET --out FILE
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from hrvqvae.config.presets import data_config
from hrvqvae.config.registry import DATASETS
from hrvqvae.evaluation.classifier import train_classifier, write_classifier


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, and print the accuracy on the test images."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("dataset", help="data set, such as cifar10, in the folder HRVQVAE_DATA")
    parser.add_argument("--out", type=Path, required=True, help="write the classifier to this file")
    parser.add_argument("--seed", type=int, default=1, help="draw the weights from this seed")
    options = parser.parse_args(arguments)
    out = options.out
    if out.exists():
        parser.error(f"{out} is there already")
    trained = train_classifier(data_config(DATASETS.get(options.dataset)), seed=options.seed)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_classifier(out, trained)
    size = out.stat().st_size / 1e6
    print(f"{out}: accuracy {trained.accuracy:.2%} on the test images, {size:.2f} MB")


if __name__ == "__main__":
    main()
