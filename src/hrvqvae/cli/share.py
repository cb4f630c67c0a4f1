"""A trained run for others: as a small folder, as graphs that need nothing of this package, on the hub."""

from __future__ import annotations

from pathlib import Path

from hrvqvae.cli.console import Arguments, Group, add_beam, command, group
from hrvqvae.utils.errors import InputError
from hrvqvae.utils.notices import waiting


def _export(arguments: Arguments) -> int:
    form = arguments.form
    out = arguments.out or Path(f"{Path(arguments.run).name.removesuffix('.safetensors')}-{form or 'exported'}")
    if form is None:
        if arguments.beam is not None:
            raise InputError(
                "--beam is for graphs: add --onnx or --torch; without them it is given where images are encoded"
            )
        from hrvqvae.checkpoints.export import export

        files, checked = export(arguments.run, out, licence=arguments.licence), None
    else:
        from hrvqvae.export.export import export_graphs

        waiting("tracing the model, and checking its graphs against it")
        files, checked = export_graphs(arguments.run, out, form, arguments.beam)
    for path in files:
        print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")
    if checked is not None:
        print(f"checked: {checked}")
    return 0


def _push(arguments: Arguments) -> int:
    from hrvqvae.checkpoints.export import push_run

    waiting(f"putting {arguments.name} on the hub")
    print(push_run(arguments.run, arguments.name, licence=arguments.licence, private=arguments.private or None))
    return 0


def _get(arguments: Arguments) -> int:
    from hrvqvae.checkpoints.hub import fetch

    out = arguments.out or Path(arguments.name.rpartition("/")[2])
    waiting(f"getting {arguments.name} from the hub")
    print(fetch(arguments.name, revision=arguments.revision, into=out))
    return 0


def add(commands: Group) -> None:
    """export, hub push, hub get."""
    about = "the model of a run and its priors in half precision, and nothing else; or the model as two graphs"
    export = command(commands, "export", about, _export)
    export.add_argument("run", metavar="RUN")
    export.add_argument(
        "out",
        nargs="?",
        metavar="DIR",
        type=Path,
        help="a new folder (default: RUN-exported, RUN-onnx or RUN-torch here)",
    )
    licence = {"metavar": "ID", "help": "for the model card, as the hub names licences: mit, cc-by-4.0, ..."}
    export.add_argument("--licence", **licence)
    forms = export.add_mutually_exclusive_group()
    for name, title in (("onnx", "ONNX"), ("torch", "torch.export")):
        what = f"encoder and decoder as graphs of {title}, checked against the model"
        forms.add_argument(f"--{name}", dest="form", action="store_const", const=name, help=what)

    add_beam(export)

    actions = group(commands, "hub", "models put on the hub and got from there (docs/hub.md)", "ACTION")
    push = command(actions, "push", "export a run and put it on the hub", _push)
    push.add_argument("run", metavar="RUN")
    push.add_argument("name", metavar="USER/NAME")
    push.add_argument("--licence", **licence)
    push.add_argument("--private", action="store_true", help="where the repository is made: for its owner alone")

    get = command(actions, "get", "get a model from the hub into a folder, which every command takes", _get)
    get.add_argument("name", metavar="USER/NAME")
    get.add_argument("out", nargs="?", type=Path, metavar="DIR", help="a new folder (default: NAME here)")
    get.add_argument("--revision", metavar="REV", help="branch, tag or commit (default: the newest)")
