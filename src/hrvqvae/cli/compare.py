"""The comparison of systems."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

from hrvqvae.cli.console import Arguments, Group, command, import_training, option, print_json


def _compare(arguments: Arguments) -> int:
    import_training()
    from hrvqvae.comparison.report import compare, table
    from hrvqvae.comparison.systems import Comparison, available_systems
    from hrvqvae.comparison.tuning import tuned

    named = ",".join(available_systems()) if arguments.systems is None else arguments.systems
    pairs = [[part.strip() for part in name.partition("=")] for name in named.split(",") if name.strip()]
    comparison = Comparison(
        dataset=arguments.dataset, systems=tuple(name for name, _, _ in pairs),
        variants={name: system for name, equals, system in pairs if equals}, tune=arguments.tune,
        seeds=arguments.seeds, first_seed=arguments.first_seed, max_steps=arguments.max_steps,
        max_minutes=arguments.max_minutes, prior_steps=arguments.prior_steps,
        root=None if arguments.data is None else str(Path(arguments.data).expanduser().absolute()),
        fields=arguments.fields,
    )  # fmt: skip
    with contextlib.redirect_stdout(sys.stderr) if arguments.json else contextlib.nullcontext():
        if arguments.tuned_in:
            comparison = tuned(comparison, Path(arguments.tuned_in), print)
        rows, signal = compare(comparison, Path(arguments.out))
    if signal:
        print("stopped, saved; the same command goes on", file=sys.stderr)
        return 128 + signal
    if arguments.json:
        print_json(rows)
        return 0
    print(f"\n{table(rows)}\n{Path(arguments.out) / 'results.md'}, results.json, and pictures beside them")
    return 0


def add(commands: Group) -> None:
    """compare."""
    command(
        commands, "compare", "systems side by side: same data, order, budget and test images", _compare,
        option("dataset", metavar="DATASET", help="mnist, cifar10, emoji32, ...: as in the presets"),
        option(
            "--systems", metavar="A,B", help="which (default: all that are installed); NAME=SYSTEM is a variant, which "
            "--NAME.section.field sets apart",
        ),
        option("--max-steps", type=int, default=0, metavar="N", help="budget of each autoencoder in steps"),
        option("--max-minutes", type=float, default=0.0, metavar="M", help="the same in minutes"),
        option("--seeds", type=int, default=1, metavar="K", help="how often each is trained (default: 1)"),
        option("--first-seed", type=int, default=0, metavar="S", help="seeds begin at this one (default: 0)"),
        option("--prior-steps", type=int, default=0, metavar="N", help="also priors, of N steps a system in all"),
        option(
            "--tune", type=int, default=0, metavar="N", help="first search the optimizer, learning rate, decay and "
            "commitment weight of each system by N trials in this budget, on a tenth of the training images",
        ),
        option("--tuned-in", metavar="DIR", help="take the settings that --tune chose in that folder"),
        option("--data", metavar="DIR", help="root folder, or images: a folder, tars, Parquet, arrays"),
        option("--out", required=True, metavar="DIR"),
        "--json",
        fields="--section.field VALUE sets a field of every system, such as --data.size 128; --SYSTEM.section.field "
        "VALUE of one's model or training, such as --vqgan.model.adversarial_start 500",
    )  # fmt: skip
