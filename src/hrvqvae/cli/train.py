"""Training: an autoencoder, its priors, the decoding of its prefixes, and the demo that does it all."""

from __future__ import annotations

import dataclasses
import os
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hrvqvae.cli.console import Arguments, Group, command, give
from hrvqvae.utils.errors import InputError
from hrvqvae.utils.quantities import counted

if TYPE_CHECKING:
    from hrvqvae.config import Config, Levels
    from hrvqvae.training.trainer import Outcome

_OPTIONS = ("max_steps", "max_minutes", "seed", "device", "init_from")


def _given(arguments: Arguments, stage: str) -> dict[str, str]:
    """Dotted name -> text, of every option that names a field of the configuration; `stage` is what is trained."""
    given: dict[str, str] = dict(arguments.fields)
    named = (("data", "data.root"), ("codes", "prior.codes"), *((short, f"{stage}.{short}") for short in _OPTIONS))
    for short, name in named:
        value = getattr(arguments, short, None)
        if value is not None:
            give(given, name, value, f"--{short.replace('_', '-')}")
    return given | {name: _absolute(given[name]) for name in ("data.root", "prior.codes") if name in given}


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute())


def _together() -> AbstractContextManager[None]:
    """Join the processes that torchrun started, where it did; alone this needs no torch."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return nullcontext()
    from hrvqvae.distributed import process_group

    return process_group()


def _ended(outcome: Outcome, what: str, done: str) -> int:
    """Print how a training ended; -> the exit code.

    Args:
        what: was trained; empty where there is one thing.
        done: what stands at the end of the line where it was completed.
    """
    spent = f"in {outcome.seconds / 60:.1f} minutes, peak memory {outcome.peak_bytes / 2**30:.2f} GiB"
    if outcome.signal is not None:
        print(f"{what}stopped at step {outcome.step}, saved; continue with --resume ({spent})")
        return 128 + outcome.signal
    print(f"{what}trained {counted(outcome.step, 'step')} {spent}{done}")
    return 0


def _train(arguments: Arguments) -> int:
    from hrvqvae.config import to_dict
    from hrvqvae.config.parsing import base_config, override

    folder = Path(arguments.preset)
    if arguments.resume and (folder / "config.yaml").is_file():  # a run folder says itself what it is
        arguments.preset, arguments.out = str(folder / "config.yaml"), arguments.out or str(folder)
    given = _given(arguments, "training")
    with _together():
        config = override(base_config(arguments.preset), given)  # a mistake is told before torch is imported
        if arguments.print_config:
            import yaml

            print(yaml.safe_dump(to_dict(config), sort_keys=False), end="")
            return 0
        from hrvqvae import distributed
        from hrvqvae.checkpoints.folder import RunFolder
        from hrvqvae.checkpoints.stale import stale_notice
        from hrvqvae.plots.training import draw_training
        from hrvqvae.training.autoencoder import AutoencoderTask, resolve_autoencoder
        from hrvqvae.training.trainer import Trainer

        run = RunFolder(Path(arguments.out or f"runs/{arguments.preset.replace('/', '-')}"))
        resume = arguments.resume or distributed.is_restarted(run.of_this_job)
        config = distributed.on_rank_zero(lambda: resolve_autoencoder(arguments.preset, given, run, resume=resume))
        outcome = Trainer(AutoencoderTask(config, run), resume=resume, callbacks=[draw_training]).train()
        code = _ended(outcome, "", f": {run.model}\npictures in {run.pictures}")
        for line in distributed.on_rank_zero(lambda: stale_notice(run.path)):
            print(line)
        return code


def _train_prior(arguments: Arguments) -> int:
    given = _given(arguments, "prior.training")
    with _together():
        from hrvqvae import distributed
        from hrvqvae.checkpoints.folder import prior_folder
        from hrvqvae.config import level_names
        from hrvqvae.plots.training import draw_training
        from hrvqvae.training.prior import resolve_priors, train_priors

        def configured(resume: bool) -> dict[Levels, Config]:
            return resolve_priors(arguments.run, arguments.level, given, resume=resume)

        def began() -> bool:
            return any(prior_folder(arguments.run, *levels).of_this_job() for levels in configured(False))

        resume = arguments.resume or distributed.is_restarted(began)
        configs = distributed.on_rank_zero(lambda: configured(resume))
        outcomes = train_priors(arguments.run, configs, resume=resume, callbacks=[draw_training])
        codes = [_ended(outcome, f"{level_names(levels)}: ", "") for levels, outcome in outcomes.items()]
        if not codes[-1]:
            print(f"priors in {Path(arguments.run) / 'priors'}")
        return codes[-1]


def _train_progressive(arguments: Arguments) -> int:
    given = _given(arguments, "progressive.training")
    with _together():
        from hrvqvae import distributed
        from hrvqvae.checkpoints.folder import progressive_folder
        from hrvqvae.plots.training import draw_training
        from hrvqvae.training.progressive import ProgressiveTask, resolve_progressive
        from hrvqvae.training.trainer import Trainer

        folder = progressive_folder(arguments.run)
        resume = arguments.resume or distributed.is_restarted(folder.of_this_job)
        config = distributed.on_rank_zero(lambda: resolve_progressive(arguments.run, given, resume=resume))
        outcome = Trainer(ProgressiveTask(arguments.run, config), resume=resume, callbacks=[draw_training]).train()
        return _ended(outcome, "", f": {folder.model}\npictures in {folder.pictures}")


def _refresh(arguments: Arguments) -> int:
    with _together():
        from hrvqvae.checkpoints.stale import stale_notice
        from hrvqvae.plots.training import draw_training
        from hrvqvae.training.refresh import refresh

        signal = refresh(arguments.run, arguments.data and _absolute(arguments.data), callbacks=[draw_training])
        if signal is not None:
            print("stopped, saved; the same command goes on")
            return 128 + signal
        print(*(stale_notice(arguments.run) or [f"everything in {arguments.run} is of its model's state"]), sep="\n")
        return 0


def _train_classifier(arguments: Arguments) -> int:
    from hrvqvae.config.presets import data_config
    from hrvqvae.config.registry import DATASETS
    from hrvqvae.evaluation.classifier import train_classifier, write_classifier

    out = Path(arguments.out)
    if out.exists():
        raise InputError(f"{out} exists already; choose another file")
    out.parent.mkdir(parents=True, exist_ok=True)
    root = arguments.data and _absolute(arguments.data)
    data = dataclasses.replace(data_config(DATASETS.get(arguments.dataset)), root=root)
    trained = train_classifier(data, seed=arguments.seed)
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
    """train, train-prior, train-progressive, refresh, train-classifier, demo."""
    train = command(commands, "train", "train an autoencoder from a preset (or a YAML or JSON file)", _train)
    train.add_argument("preset", metavar="PRESET", help="to go on, the run folder will do")
    train.add_argument("--out", metavar="RUN", help="run folder (default: runs/PRESET)")
    train.add_argument("--print_config", action="store_true", help="print the resolved configuration and stop")
    _trains(train, "--model.quantizer.codewords 8")

    about = "train the priors of a run, one a level or one of all; budgets are a prior's"
    train_prior = command(commands, "train-prior", about, _train_prior)
    train_prior.add_argument("run", metavar="RUN")
    train_prior.add_argument("--level", type=int, metavar="L", help="the prior of this level only, 1 is the coarsest")
    train_prior.add_argument(
        "--codes", metavar="SHARDS", help="train from shards of codes (hrvqvae tokenize), not from the run's own images"
    )
    _trains(train_prior, "--prior.network.hidden_units 128")

    about = "train what a run decodes its first levels by, on the frozen autoencoder"
    train_progressive = command(commands, "train-progressive", about, _train_progressive)
    train_progressive.add_argument("run", metavar="RUN")
    _trains(train_progressive, "--progressive.network.hidden_units 32")

    about = "train priors and progressive decoder anew that are of another state of a run's model, and its tables"
    refreshed = command(commands, "refresh", about, _refresh)
    refreshed.add_argument("run", metavar="RUN")
    refreshed.add_argument("--data", metavar="DIR", help="where the data is, if it has moved since")

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
