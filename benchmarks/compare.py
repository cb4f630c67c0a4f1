"""Compare systems on the same images, in the same order, with the same budget.

python -m benchmarks.compare mnist --systems hrvqvae,treevq,wide=vqvae --max-steps 250 --seeds 5 \\
    --wide.model.quantizer.codewords 256 --tune 12 --out DIR

NAME=PRESET is a variant of PRESET/DATASET with fields of its own. --section.field VALUE sets a
field of every system, --NAME.section.field VALUE one of a system. --tune N first searches the
optimizer, learning rate, decay and commitment weight of each system by at most N trials of the same
budget, on a tenth of the training images. --tuned-in DIR takes the settings of an earlier search.
The same command goes on where it stopped, and adds systems and seeds to DIR. The rivals fsq and
vqpytorch are systems too (`benchmarks.rivals`).
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.common import as_script, options, positive
from benchmarks.laboratory.report import compare, compare_pairs, table
from benchmarks.laboratory.settings import tune, tuned
from benchmarks.laboratory.systems import Comparison
from hrvqvae.cli.console import print_json, split_fields


def main(argv: Sequence[str] | None = None) -> None:
    """Search, then train and measure."""
    parser = options(__doc__)
    parser.add_argument("dataset", metavar="DATASET", help="as in the presets' names")
    parser.add_argument("--systems", required=True, metavar="A,B", help="NAME or NAME=PRESET")
    parser.add_argument("--max-steps", type=positive, required=True, metavar="N")
    parser.add_argument("--seeds", type=positive, default=1, metavar="K", help="(default: 1)")
    parser.add_argument("--tune", type=positive, metavar="N", help="trials per system")
    parser.add_argument("--tuned-in", type=Path, metavar="DIR", help="an earlier search")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    words, fields = split_fields(sys.argv[1:] if argv is None else argv)
    arguments = parser.parse_args(words)
    if "data.root" in fields:
        fields["data.root"] = str(Path(fields["data.root"]).absolute())

    # NAME is short for NAME=NAME
    pairs = [name.partition("=") for name in arguments.systems.split(",")]
    comparison = Comparison(
        dataset=arguments.dataset,
        systems={name: preset or name for name, _, preset in pairs},
        max_steps=arguments.max_steps,
        seeds=arguments.seeds,
        fields=fields,
    )

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    # settings, then rows
    if arguments.tune:
        _stop(tune(comparison, arguments.tune, arguments.out, say))
    if arguments.tune or arguments.tuned_in:
        comparison = tuned(comparison, arguments.tuned_in or arguments.out, say)
    rows, signal = compare(comparison, arguments.out, say)
    _stop(signal)
    if arguments.json:
        print_json(rows)
    else:
        print(f"{table(rows)}\n{compare_pairs(rows)}".rstrip())


def _stop(signal: int) -> None:
    if signal:
        print("stopped, saved; the same command continues", file=sys.stderr)
        sys.exit(128 + signal)


if __name__ == "__main__":
    as_script(main)
