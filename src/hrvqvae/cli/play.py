"""A page to play with."""

from __future__ import annotations

import sys

from hrvqvae.cli.console import Arguments, Group, command


def _play(arguments: Arguments) -> int:
    from hrvqvae.checkpoints.trained import TrainedModel
    from hrvqvae.play.limits import Limits
    from hrvqvae.play.server import serve

    limits = Limits(upload_bytes=arguments.max_bytes, pixels=arguments.max_pixels)
    model = TrainedModel(arguments.run, arguments.device)
    serve(model, limits, arguments.host, arguments.port, lambda line: print(line, file=sys.stderr, flush=True))
    return 0


def add(commands: Group) -> None:
    """play."""
    about = "a local page: reconstruct, draw, complete, look at the codebook (docs/play.md)"
    play = command(commands, "play", about, _play)
    play.add_argument("run", nargs="?", default="mnist", metavar="RUN", help="default: mnist, inside the package")
    play.add_argument("--host", default="127.0.0.1", metavar="NAME", help="default: 127.0.0.1, this machine alone")
    play.add_argument("--port", type=int, metavar="N", help="default: a free one from 7860 on")
    play.add_argument("--device", default="cpu", metavar="NAME", help="default: cpu")
    play.add_argument("--max-bytes", type=int, default=16 << 20, metavar="N", help="of an upload (default: 16 MB)")
    play.add_argument("--max-pixels", type=int, default=1 << 24, metavar="N", help="of an image (default: 16 million)")
