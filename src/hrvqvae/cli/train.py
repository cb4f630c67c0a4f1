"""Training: an autoencoder, its priors, the decoding of its prefixes, and the demo that does it all."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hrvqvae.cli.console import Arguments, Call, Group, command, give
from hrvqvae.utils.errors import InputError
from hrvqvae.utils.quantities import counted

if TYPE_CHECKING:
    from hrvqvae.config import Config, Levels

_OPTIONS = ("max_steps", "max_minutes", "seed", "device", "init_from")


def _given(arguments: Arguments, stage: str) -> dict[str, str]:
    """Dotted name -> text, of every option that names a field of the configuration; `stage` is what is trained."""
    given: dict[str, str] = dict(arguments.fields)
    named = (("data", "data.root"), ("codes", "prior.codes"), *((short, f"{stage}.{short}") for short in _OPTIONS))
    for short, name in named:
        value = getattr(arguments, short, None)
        if value is not None:
            give(given, name, value, f"--{short.replace('_', '-')}")
    for name in ("data.root", "prior.codes"):
        if name in given:
            given[name] = str(Path(given[name]).expanduser().absolute())
    return given


def _together(call: Call) -> Call:
    """The command for each of the processes that torchrun starts, one of which prints. Alone it needs no torch yet."""

    def called(arguments: Arguments) -> int:
        if os.environ.get("WORLD_SIZE", "1") == "1":
            return call(arguments)
        from hrvqvae.distributed import process_group

        with process_group():
            return call(arguments)

    return called


def _train(arguments: Arguments) -> int:
    from hrvqvae.config import to_dict
    from hrvqvae.config.parsing import base_config, override

    given = _given(arguments, "training")
    config = override(base_config(arguments.preset), given)  # a mistake is told before torch is imported
    if arguments.print_config:
        import yaml

        print(yaml.safe_dump(to_dict(config), sort_keys=False), end="")
        return 0
    from hrvqvae import distributed
    from hrvqvae.checkpoints.folder import RunFolder
    from hrvqvae.checkpoints.stale import stale_notice
    from hrvqvae.stages import resolve_autoencoder, train_autoencoder

    run = RunFolder(Path(arguments.out or f"runs/{arguments.preset.replace('/', '-')}"))
    resume = arguments.resume or distributed.is_restarted(run.of_this_job)
    config = distributed.on_rank_zero(lambda: resolve_autoencoder(arguments.preset, given, run, resume=resume))
    outcome = train_autoencoder(config, run, resume=resume)
    memory = f"peak memory {outcome.peak_bytes / 2**30:.2f} GiB"
    if outcome.signal is not None:
        print(f"stopped at step {outcome.step}, saved; continue with --resume ({memory})")
    else:
        print(f"trained {counted(outcome.step, 'step')} in {outcome.seconds / 60:.1f} minutes, {memory}: {run.model}")
        print(f"pictures in {run.pictures}")
    for line in distributed.on_rank_zero(lambda: stale_notice(run.path)):
        print(line)
    return 0 if outcome.signal is None else 128 + outcome.signal


def _train_prior(arguments: Arguments) -> int:
    given = _given(arguments, "prior.training")
    from hrvqvae import distributed
    from hrvqvae.checkpoints.folder import prior_folder
    from hrvqvae.config import level_names
    from hrvqvae.stages import resolve_priors, train_priors

    def configured(resume: bool) -> dict[Levels, Config]:
        return resolve_priors(arguments.run, arguments.level, given, resume=resume)

    def began() -> bool:
        return any(prior_folder(arguments.run, *levels).of_this_job() for levels in configured(False))

    resume = arguments.resume or distributed.is_restarted(began)
    configs = distributed.on_rank_zero(lambda: configured(resume))
    outcomes = train_priors(arguments.run, configs, resume=resume)
    for levels, outcome in outcomes.items():
        name = level_names(levels)
        spent = f"{counted(outcome.step, 'step')} in {outcome.seconds / 60:.1f} minutes"
        if outcome.signal is not None:
            print(f"{name}: stopped after {spent}, saved; continue with --resume")
            return 128 + outcome.signal
        print(f"{name}: trained {spent}, peak memory {outcome.peak_bytes / 2**30:.2f} GiB")
    print(f"priors in {Path(arguments.run) / 'priors'}")
    return 0


def _train_prefixes(arguments: Arguments) -> int:
    given = _given(arguments, "progressive.training")
    from hrvqvae import distributed
    from hrvqvae.checkpoints.folder import progressive_folder
    from hrvqvae.stages import resolve_progressive, train_progressive

    folder = progressive_folder(arguments.run)
    resume = arguments.resume or distributed.is_restarted(folder.of_this_job)
    config = distributed.on_rank_zero(lambda: resolve_progressive(arguments.run, given, resume=resume))
    outcome = train_progressive(arguments.run, config, resume=resume)
    spent = f"{counted(outcome.step, 'step')} in {outcome.seconds / 60:.1f} minutes"
    if outcome.signal is not None:
        print(f"stopped after {spent}, saved; continue with --resume")
        return 128 + outcome.signal
    print(f"trained {spent}, peak memory {outcome.peak_bytes / 2**30:.2f} GiB: {folder.model}")
    print(f"pictures in {folder.pictures}")
    return 0


def _train_classifier(arguments: Arguments) -> int:
    from hrvqvae.config.presets import data_config
    from hrvqvae.config.registry import DATASETS
    from hrvqvae.evaluation.classifier import train_classifier, write_classifier

    out = Path(arguments.out)
    if out.exists():
        raise InputError(f"{out} exists already; choose another file")
    out.parent.mkdir(parents=True, exist_ok=True)
    root = None if arguments.data is None else str(Path(arguments.data).expanduser().absolute())
    trained = train_classifier(
        dataclasses.replace(data_config(DATASETS.get(arguments.dataset)), root=root), seed=arguments.seed
    )
    write_classifier(out, trained)
    print(f"{out}: accuracy {trained.accuracy:.2%} on the test images, {out.stat().st_size / 1e6:.2f} MB")
    return 0


def _demo(arguments: Arguments) -> int:
    from hrvqvae.cli.demo import demo

    return demo(Path(arguments.out), arguments.root, arguments.max_minutes, arguments.max_steps)


def _trains(added: Any, example: str) -> None:
    added.add_argument("--data", metavar="DIR", help="root folder, or images: a folder, tars, Parquet, arrays")
    added.add_argument("--max-steps", metavar="N", help="budget in steps")
    added.add_argument("--max-minutes", metavar="M", help="budget in minutes")
    added.add_argument("--seed", metavar="S")
    added.add_argument("--device", metavar="NAME", help="auto, cpu, cuda or cuda:N")
    added.add_argument(
        "--init-from", metavar="MODEL", help="begin with the weights of that run or model, such as cifar10"
    )
    added.add_argument("--resume", action="store_true", help="go on from the newest good checkpoint")
    added.set_defaults(takes_fields=True)
    added.epilog = f"--section.field VALUE sets any field, such as {example} (see hrvqvae presets)"


def add(commands: Group) -> None:
    """train, train-prior, train-progressive, train-classifier, demo."""
    train = command(commands, "train", "train an autoencoder from a preset (or a YAML or JSON file)", _together(_train))
    train.add_argument("preset", metavar="PRESET")
    train.add_argument("--out", metavar="RUN", help="run folder (default: runs/PRESET)")
    train.add_argument("--print_config", action="store_true", help="print the resolved configuration and stop")
    _trains(train, "--model.quantizer.codewords 8")

    about = "train the priors of a run, one a level or one of all; budgets are a prior's"
    train_prior = command(commands, "train-prior", about, _together(_train_prior))
    train_prior.add_argument("run", metavar="RUN")
    train_prior.add_argument("--level", type=int, metavar="L", help="the prior of this level only, 1 is the coarsest")
    train_prior.add_argument(
        "--codes", metavar="SHARDS", help="train from shards of codes (hrvqvae tokenize), not from the run's own images"
    )
    _trains(train_prior, "--prior.network.hidden_units 128")

    about = "train what a run decodes its first levels by, on the frozen autoencoder"
    train_progressive = command(commands, "train-progressive", about, _together(_train_prefixes))
    train_progressive.add_argument("run", metavar="RUN")
    _trains(train_progressive, "--progressive.network.hidden_units 32")

    classifier = command(commands, "train-classifier", "train the classifier that measures samples", _train_classifier)
    classifier.add_argument("dataset", metavar="DATASET", help="such as cifar10")
    classifier.add_argument("--out", required=True, metavar="FILE.safetensors")
    classifier.add_argument("--data", metavar="DIR", help="root folder of the data")
    classifier.add_argument("--seed", type=int, default=1, metavar="S")

    demo = command(commands, "demo", "MNIST from nothing: data, training, evaluation, pictures", _demo)
    demo.add_argument("--out", default="runs/demo", metavar="RUN")
    demo.add_argument("--root", metavar="DIR", help="root folder of the data")
    demo.add_argument(
        "--max-minutes", type=float, default=10.5, metavar="M", help="training time in all (default: 10.5)"
    )
    demo.add_argument("--max-steps", type=int, default=0, metavar="N", help="steps of each stage at most")
