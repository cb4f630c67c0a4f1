"""Commands that share a trained run: export, play."""

from pathlib import Path

from hrvqvae.cli.console import Arguments, Command, flag, integer, option
from hrvqvae.utils.errors import InputError
from hrvqvae.utils.outputs import base_name
from hrvqvae.utils.progress import waiting


def _export(arguments: Arguments) -> None:
    kind = "onnx" if arguments.onnx else "web" if arguments.web else "exported"
    out = arguments.out or Path(f"{base_name(arguments.run)}-{kind}")
    if arguments.beam is not None and kind != "onnx":
        raise InputError(
            "--beam needs --onnx; for a folder, give --beam to the command that encodes images"
        )
    if arguments.license is not None and kind != "exported":
        raise InputError(f"--license is for the model card, which --{kind} does not write")
    if kind == "onnx":
        from hrvqvae.export.graphs import export_graphs

        waiting("tracing the model")
        files = export_graphs(arguments.run, out, arguments.beam)
    elif kind == "web":
        from hrvqvae.export.web import export_web

        files = export_web(arguments.run, out)
    else:
        from hrvqvae.checkpoints.export import export

        files = export(arguments.run, out, license=arguments.license, compact=arguments.compact)
    for path in files:
        print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")


def _play(arguments: Arguments) -> None:
    from hrvqvae.model import Model
    from hrvqvae.play.page import serve

    serve(Model(arguments.run, arguments.device), arguments.host, arguments.port)


_LICENSE = option(
    "--license ID", "license in the model card, as the hub spells it, such as mit or cc-by-4.0"
)
COMMANDS = (
    Command(
        "export",
        "write the model of a run and its priors as a small folder, as ONNX graphs, or for a web"
        " page",
        _export,
        "run",
        option(
            "out DIR",
            "write to the new folder DIR (default: ./RUN-exported, RUN-onnx or RUN-web)",
            nargs="?",
            type=Path,
        ),
        _LICENSE,
        "--beam",
        alternatives=(
            flag(
                "--compact",
                "half precision for the autoencoder, 8 bits for the other networks; changes a few"
                " codes and samples",
            ),
            flag("--onnx", "write encoder and decoder as ONNX graphs"),
            flag(
                "--web",
                "write a file of 8-bit weights and the JavaScript module that reads it"
                " (docs/web.md)",
            ),
        ),
    ),
    Command(
        "play",
        "serve a local page to try a model in a browser (docs/share.md)",
        _play,
        option("run RUN", "run folder or model (default: mnist)", nargs="?", default="mnist"),
        option(
            "--host NAME", "serve at NAME (default: 127.0.0.1, this machine)", default="127.0.0.1"
        ),
        option(
            "--port N",
            "serve at port N (default: the first free from 7860)",
            type=integer(1, 65535),
        ),
        option("--device NAME", "cpu, cuda or cuda:N (default: cpu)", default="cpu"),
    ),
)
