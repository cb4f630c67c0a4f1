"""Commands that train autoencoders, priors and decoders; the demo."""

from __future__ import annotations

import importlib
import os
import shlex
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from hrvqvae.cli.console import Arguments, Command, flag, integer, option, pick, set_field
from hrvqvae.utils.errors import InputError
from hrvqvae.utils.quantities import counted

if TYPE_CHECKING:
    from hrvqvae.training.trainer import Outcome


def _collect_fields(arguments: Arguments, stage: str) -> dict[str, str]:
    """Return the fields that the options set, by dotted name; `stage` is the section of the
    training's fields.
    """
    from hrvqvae.config.parsing import absolute_paths

    fields = dict[str, str](arguments.fields)
    field_of = {"data": "data.root", "codes": "prior.codes", "on_error": "data.on_error"}
    for name in ("max_steps", "max_minutes", "seed", "device", "init_from"):
        field_of[name] = f"{stage}.{name}"
    for option_name, field in field_of.items():
        value = getattr(arguments, option_name, None)
        if value is not None:
            set_field(fields, field, str(value), f"--{option_name.replace('_', '-')}")
    return absolute_paths(fields)


def _report_outcome(outcome: Outcome, prefix: str, suffix: str) -> int:
    """Print `prefix` and how a training ended, then `suffix` if it is complete. Return the exit
    code.
    """
    spent = f"in {outcome.seconds / 60:.1f} minutes"
    if outcome.signal is not None:
        print(f"{prefix}stopped at step {outcome.step}, saved; continue with --resume ({spent})")
        return 128 + outcome.signal
    steps = counted(outcome.step, "step")
    print(f"{prefix}trained {steps} {spent}{suffix}")
    return 0


def _train(arguments: Arguments) -> int:
    processes: AbstractContextManager[None] = nullcontext()
    # One process needs no group. So `--print-config` imports no torch.
    if os.environ.get("WORLD_SIZE", "1") != "1":
        from hrvqvae.distributed.launch import process_group

        processes = process_group()
    with processes:
        fields = _collect_fields(arguments, "training")
        if arguments.print_config:
            import yaml

            from hrvqvae.config import to_dict
            from hrvqvae.config.parsing import base_config, override

            config = override(base_config(arguments.preset), fields)
            print(yaml.safe_dump(to_dict(config), sort_keys=False), end="")
            return 0
        from hrvqvae.training import autoencoder
        from hrvqvae.training.options import choose_run_folder

        run = choose_run_folder(arguments.preset, arguments.out)
        outcome = autoencoder.train(
            arguments.preset, run, fields, **pick(arguments, "resume force")
        )
        return _report_outcome(outcome, "", f": {run.model}\npictures in {run.pictures}")


def _train_prior(arguments: Arguments) -> int:
    from hrvqvae.distributed.launch import process_group

    with process_group():
        from hrvqvae.config import level_names
        from hrvqvae.training import prior

        fields = _collect_fields(arguments, "prior.training")
        outcomes = prior.train(
            arguments.run, fields, level=arguments.level, resume=arguments.resume
        )
        # A signal ends the call, so only the last training can have been stopped.
        for levels, outcome in outcomes.items():
            code = _report_outcome(outcome, f"{level_names(levels)}: ", "")
        if not code:
            print(f"priors in {Path(arguments.run) / 'priors'}")
        return code


def _train_decoder(arguments: Arguments) -> int:
    from hrvqvae.distributed.launch import process_group

    with process_group():
        from hrvqvae.checkpoints.folder import GENERATION, PROGRESSIVE, decoder_folder
        from hrvqvae.training import decoder

        kind = PROGRESSIVE if arguments.decoder == "progressive" else GENERATION
        fields = _collect_fields(arguments, f"{arguments.decoder}.training")
        outcome = decoder.train(arguments.run, kind, fields, resume=arguments.resume)
        folder = decoder_folder(arguments.run, kind)
        return _report_outcome(outcome, "", f": {folder.model}\npictures in {folder.pictures}")


def _plant(arguments: Arguments) -> None:
    from hrvqvae.checkpoints.planting import plant

    print(plant(arguments.run, arguments.out, arguments.codewords))


# Demo overrides for PixelSNAIL priors: with the batch of Table 8, the training would take hours on
# a GPU.
_DEMO_PRIOR = (
    "--prior.network.residual_blocks=8",
    "--prior.training.batch_size=16",
    "--prior.training.learning_rate=2e-3",
    "--prior.training.warmup_steps=20",
    "--prior.training.evaluate_every=100",
    "--prior.training.checkpoint_every=100",
    "--prior.training.evaluation_images=300",
)
_AUTOENCODER_SHARE = 0.45  # of the demo's training time; the priors share the rest


def _demo(arguments: Arguments) -> int:
    """Print and run the commands of the demo, as a newcomer would type them. The same demo again
    goes on where it was stopped.
    """
    from hrvqvae.cli import run
    from hrvqvae.config.parsing import base_config

    config = base_config(arguments.preset)
    # Report a missing package before any download.
    importlib.import_module("hrvqvae.training.autoencoder")
    if arguments.max_minutes <= 0:
        raise InputError(f"--max-minutes is {arguments.max_minutes:g}; it must be above 0")
    pictures = Path(arguments.out, "pictures")
    steps = ("--max-steps", str(arguments.max_steps)) if arguments.max_steps else ()
    minutes = ("--max-minutes", f"{arguments.max_minutes * _AUTOENCODER_SHARE:.3g}")
    prior_minutes = (
        "--max-minutes",
        f"{arguments.max_minutes * (1 - _AUTOENCODER_SHARE) / len(config.prior_levels):.3g}",
    )
    guided = ("--guidance", "1.5") if config.prior.class_dropout else ()
    smaller_prior = _DEMO_PRIOR if config.prior.network.kind == "pixelsnail" else ()
    resume = ("--resume",) if Path(arguments.out, "config.yaml").is_file() else ()
    for words in (
        ("data", "get", "mnist"),
        ("train", arguments.preset, "--out", arguments.out, *resume, *steps, *minutes),
        # begins if there is nothing to resume
        ("train-prior", arguments.out, "--resume", *steps, *prior_minutes, *smaller_prior),
        ("evaluate", arguments.out, "-n", "2000"),
        ("sample", arguments.out, *guided, "--force", "-o", str(pictures / "samples.png")),
        (
            "sample",
            "treevq-mnist",
            "--force",
            "-o",
            str(pictures / "samples-of-the-shipped-model.png"),
        ),
    ):
        print(f"\n$ hrvqvae {shlex.join(words)}", flush=True)
        code = run(words)
        if code:
            return code
    print(
        f"\npictures in {pictures}:"
        f" {', '.join(sorted(path.name for path in pictures.glob('*.png')))}"
    )
    longer = [
        *("--preset", arguments.preset),
        *("--out", f"{arguments.out}-longer"),
        *("--max-minutes", f"{3 * arguments.max_minutes:g}"),
    ]
    print(f"a longer training draws better digits: hrvqvae demo {shlex.join(longer)}")
    return 0


_DATA = option(
    "--data DIR",
    "read data from DIR: a folder of images or of data sets, Parquet or tars, or hub:NAME (default:"
    " the run's, else HRVQVAE_DATA, else the user's cache)",
    type=Path,
)
_DEVICE = option("--device NAME", "train on auto, cpu, cuda or cuda:N (default: auto)")
_TRAINING = (
    _DATA,
    "--on-error",
    option("--max-steps N", "stop after N steps (default: the preset's)"),
    option("--max-minutes M", "stop after M minutes (default: the preset's)"),
    option("--seed S", "draw weights and the order of images from seed S (default: the preset's)"),
    _DEVICE,
    option(
        "--init-from MODEL", "start from the weights of a run or model, such as cifar10", type=Path
    ),
    flag("--resume", "continue from the newest good checkpoint"),
)


COMMANDS = (
    Command(
        "train",
        "train an autoencoder by a preset, or by a YAML or JSON file",
        _train,
        option("preset PRESET", "preset, configuration file, or a run folder to resume"),
        option("--out RUN", "write to the run folder RUN (default: runs/PRESET)", type=Path),
        flag("--print-config", "print the resolved configuration and stop"),
        *_TRAINING,
        flag(
            "--force",
            "with --resume: go on even if files of codes, priors and decoders become void",
        ),
        fields="--model.quantizer.codewords 8",
    ),
    Command(
        "train-prior",
        "train the priors of a run, which draw new images",
        _train_prior,
        "run",
        option(
            "--level L",
            "train the prior of level L only, 1 is the coarsest (default: all)",
            type=int,
        ),
        option(
            "--codes FOLDER",
            "train on the codes in FOLDER (hrvqvae tokenize; default: the images of the run)",
            type=Path,
        ),
        *_TRAINING,
        fields="--prior.network.hidden_units 128",
    ),
    Command(
        "train-decoder",
        "train a decoder for the first levels of a run: of prefixes, or of samples",
        _train_decoder,
        "run",
        option(
            "--decoder",
            "generation: make samples sharp; progressive: decode the first levels of images with"
            " the least error (default: generation)",
            choices=("generation", "progressive"),
            default="generation",
        ),
        *_TRAINING,
        fields="--generation.levels 4",
    ),
    Command(
        "plant",
        "order the codewords of a trained vqvae or rqvae as a tree: a treevq run",
        _plant,
        "run",
        option("--out RUN", "write to the new run folder RUN", required=True, type=Path),
        option("--codewords M", "codewords per codebook (default: 8)", type=integer(2), default=8),
    ),
    Command(
        "demo",
        "get MNIST, train, evaluate and draw, in a quarter of an hour",
        _demo,
        option(
            "--preset",
            "train PRESET (default: treevq-deep/mnist; the paper's is hrvqvae/mnist)",
            default="treevq-deep/mnist",
        ),
        option(
            "--out RUN", "write to the run folder RUN (default: runs/demo)", default="runs/demo"
        ),
        option("--max-minutes M", "train M minutes in all (default: 9.5)", type=float, default=9.5),
        option(
            "--max-steps N",
            "limit each stage to N steps (default: no limit)",
            type=integer(0),
            default=0,
        ),
    ),
)
