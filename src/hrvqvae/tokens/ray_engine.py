"""The shards shared out by Ray Data: on one machine, or on all of a cluster.

The work is a data set of units, one row each; an actor that holds the model, on a GPU where the cluster has some, takes
a row after the other and writes its file. Since a unit is a function of the sorted keys alone, the files are those that
one machine would write. The folder, the images and the model must lie under the same paths on every machine.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from hrvqvae.tokens.coding import Coder, Done, Tokenizer, Unit
from hrvqvae.tokens.images import KeyedImages
from hrvqvae.utils.errors import InputError
from hrvqvae.utils.progress import Advance

Row = dict[str, Any]


class _Actor:
    """Holds a model, and writes the unit of a row. `images` is a list of the reference to them."""

    def __init__(
        self,
        model: str,
        device: str,
        beam: int | None,
        images: Any,
        folder: str,
        size: int | None,
        classes: tuple[str, ...],
        workers: int,
    ) -> None:
        import ray
        import torch

        if device == "cpu":
            torch.set_num_threads(1)
        held: KeyedImages = ray.get(images[0])
        self.tokenizer = Tokenizer(Coder(model, device, beam), held, Path(folder), size, classes, workers)

    def __call__(self, row: Row) -> Row:
        places = range(row["first"], row["last"])
        try:
            (done,) = self.tokenizer.write([Unit(row["name"], places)])
        except (OSError, InputError) as error:  # as a value: raised here it would arrive wrapped in a traceback
            return {"error": os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)}
        return {"error": "", "places": len(places), "done": json.dumps(dataclasses.astuple(done))}


def on_ray(tokenizer: Tokenizer) -> Callable[[Sequence[Unit], Advance], Iterator[Done]]:
    """What writes units as `tokenizer.write` does: on the cluster that RAY_ADDRESS names, else on this machine."""
    _set_quiet()
    import ray

    def write(units: Sequence[Unit], advance: Advance) -> Iterator[Done]:
        if not units:
            return
        begun = not ray.is_initialized()
        if begun:
            ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        try:
            yield from _write(tokenizer, units, advance)
        finally:
            if begun:
                ray.shutdown()

    return write


def _set_quiet() -> None:
    """Nothing is reported to Ray's makers, and what Ray logs stays in its own files, but for errors."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # these are read when ray is imported
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    import ray.data

    ray.data.DataContext.get_current().enable_progress_bars = False
    for name in ("ray", "ray.data"):
        logger = logging.getLogger(name)
        for handler in logger.handlers:
            if isinstance(handler, logging.StreamHandler):
                handler.setLevel(logging.ERROR)
    logging.getLogger("ray").setLevel(logging.ERROR)


def _write(tokenizer: Tokenizer, units: Sequence[Unit], advance: Advance) -> Iterator[Done]:
    import ray
    import ray.data

    coder, has = tokenizer.coder, ray.cluster_resources()  # type: ignore[no-untyped-call]
    on_gpu = coder.device.type == "cuda" and has.get("GPU", 0) > 0
    most = max(1, int(has.get("GPU" if on_gpu else "CPU", 1)))
    rows = [{"name": unit.name, "first": unit.places[0], "last": unit.places[-1] + 1} for unit in units]
    images, workers = [ray.put(tokenizer.images)], tokenizer.workers if on_gpu else 0
    folder = str(tokenizer.folder.resolve())
    made_of = (coder.name, coder.device.type, coder.beam, images, folder, tokenizer.size, tokenizer.classes, workers)
    found = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
        _Actor,  # type: ignore[arg-type]
        fn_constructor_args=made_of,
        compute=ray.data.ActorPoolStrategy(size=min(most, len(rows))),
        num_gpus=1 if on_gpu else None,
        num_cpus=1 + workers,
    )
    goes_on = "finished shards stay, and the same command goes on"
    try:
        for row in found.iter_rows():
            if row["error"]:
                raise InputError(f"a process of Ray stopped ({row['error']}); {goes_on}")
            advance(row["places"])
            name, count, broken, (converted, lost) = json.loads(row["done"])
            yield Done(name, count, tuple((key, why) for key, why in broken), (converted, lost))
    except ray.exceptions.RayError as error:
        raise InputError(f"Ray stopped ({' '.join(str(error).split())[-200:]}); {goes_on}") from error
