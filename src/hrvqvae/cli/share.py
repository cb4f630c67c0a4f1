"""A trained run for others: as a small folder, as graphs that need nothing of this package, on the hub, as a page."""

from __future__ import annotations

from pathlib import Path

from hrvqvae.cli.console import Arguments, Group, Option, command, flag, group, option, whole
from hrvqvae.utils.errors import InputError
from hrvqvae.utils.progress import waiting


def _export(arguments: Arguments) -> int:
    kind = "onnx" if arguments.onnx else "exported"
    out = arguments.out or Path(f"{Path(arguments.run).name.removesuffix('.safetensors')}-{kind}")
    checked = None
    if not arguments.onnx:
        if arguments.beam is not None:
            raise InputError("--beam is of graphs (--onnx); a folder takes it where images are encoded")
        from hrvqvae.checkpoints.export import export

        files = export(arguments.run, out, license=arguments.license, compact=arguments.compact)
    else:
        from hrvqvae.export.graphs import export_graphs

        waiting("tracing the model, and checking its graphs against it")
        files, checked = export_graphs(arguments.run, out, arguments.beam)
    for path in files:
        print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")
    if checked is not None:
        print(f"checked: {checked}")
    return 0


def _push(arguments: Arguments) -> int:
    from hrvqvae.checkpoints.export import push_run

    waiting(f"putting {arguments.name} on the hub")
    print(push_run(arguments.run, arguments.name, license=arguments.license, private=arguments.private or None))
    return 0


def _get(arguments: Arguments) -> int:
    from hrvqvae.checkpoints.hub import fetch

    out = arguments.out or Path(arguments.name.rpartition("/")[2])
    waiting(f"getting {arguments.name} from the hub")
    print(fetch(arguments.name, revision=arguments.revision, into=out))
    return 0


def _play(arguments: Arguments) -> int:
    from hrvqvae.model import Model
    from hrvqvae.play.page import serve
    from hrvqvae.play.tasks import Limits

    limits = Limits(upload_bytes=arguments.max_bytes, pixels=arguments.max_pixels)
    serve(Model(arguments.run, arguments.device), limits, arguments.host, arguments.port)
    return 0


def add(commands: Group) -> None:
    """export, hub push, hub get, play."""

    def folder(default: str) -> Option:
        return option("out", nargs="?", metavar="DIR", type=Path, help=f"a new folder (default: {default} here)")

    license = option("--license", metavar="ID", help="for the model card, as the hub names it: mit, cc-by-4.0, ...")
    about = "the model of a run and its priors in half precision, and nothing else; or the model as two graphs"
    where = folder("RUN-exported or RUN-onnx")
    export = command(commands, "export", about, _export, "run", where, license, "--beam")
    forms = export.add_mutually_exclusive_group()
    what = "the autoencoder in half precision, all else in 8 bits: a few codes and samples differ"
    forms.add_argument("--compact", action="store_true", help=what)
    what = "encoder and decoder as graphs of ONNX, checked against the model"
    forms.add_argument("--onnx", action="store_true", help=what)

    actions = group(commands, "hub", "models put on the hub and got from there (docs/hub.md)")
    name = option("name", metavar="USER/NAME")
    private = flag("--private", "where the repository is made: for its owner alone")
    command(actions, "push", "export a run and put it on the hub", _push, "run", name, license, private)
    revision = option("--revision", metavar="REV", help="branch, tag or commit (default: the newest)")
    about = "get a model from the hub into a folder, which every command takes"
    command(actions, "get", about, _get, name, folder("NAME"), revision)

    command(
        commands, "play", "a local page: reconstruct, draw, complete, look at the codebook (docs/play.md)", _play,
        option("run", nargs="?", default="mnist", metavar="RUN", help="default: mnist, inside the package"),
        option("--host", default="127.0.0.1", metavar="NAME", help="default: 127.0.0.1, this machine alone"),
        option("--port", type=int, metavar="N", help="default: a free one from 7860 on"),
        option("--device", default="cpu", metavar="NAME", help="default: cpu"),
        option("--max-bytes", type=whole(1), default=16 << 20, metavar="N", help="of an upload (default: 16 MB)"),
        option("--max-pixels", type=whole(1), default=1 << 24, metavar="N", help="of an image (default: 16 million)"),
    )  # fmt: skip
