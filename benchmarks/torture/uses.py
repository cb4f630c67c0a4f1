"""Call the package from Python in thousands of odd or wrong ways.

    python -m benchmarks.torture.uses [PART ...]

A use may succeed, with the result that the same data have in their usual form. It may be refused:
by an InputError, or by Python for its arguments. A fault is any other error that is raised inside
the package, another result, or a call of more than a minute. The exit code is 1 if there is a
fault.
"""

import asyncio
import copy
import inspect
import pickle
import signal
import sys
import traceback
import types
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, redirect_stderr, redirect_stdout
from functools import cache, partial
from io import StringIO
from itertools import count, product, zip_longest
from operator import methodcaller
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    IterableDataset,
    StackDataset,
    Subset,
    TensorDataset,
)

import hrvqvae
from benchmarks.common import TINY, fields
from hrvqvae import InputError, NonFiniteError, TreeVQ

Use = tuple[str, Callable[[], object], object]
"""A name, the call, and the expected result: a value, `REFUSED`, or `EITHER`."""

REFUSED = "refused"
EITHER = "refused or any result"
_SECONDS = 60
_PACKAGE = str(Path(hrvqvae.__file__).parent)
_ODD_VALUES: tuple[Any, ...] = (
    *(-1, 0, 1.5, 2**70, float("nan"), float("inf"), True, "", "x", b"x", [], {}, [None], ()),
    *(object(), np.float64(0.5), np.int64(3), torch.tensor(2), torch.zeros(2), int, lambda: 0),
)


def vary(name: str, call: Callable[..., object], /, **usual: Any) -> Iterator[Use]:
    """Yield uses of a call in which each odd value replaces each argument, one at a time.

    The arguments are those with a default, and those with a usual value.
    """
    parameters = inspect.signature(call).parameters.values()
    defaults = {item.name: item.default for item in parameters if item.default is not item.empty}
    usual = defaults | usual
    for argument, value in product(usual, _ODD_VALUES):
        changed = {**usual, argument: value}
        yield f"{name}({argument}={value!r:.30})", partial(call, **changed), EITHER


def pass_each(
    name: str,
    call: Callable[[Any], object],
    values: Mapping[str, Any],
    expected: object,
    either: Collection[str] = (),
) -> Iterator[Use]:
    """Yield a use of a call for each of the named values; `EITHER` is expected for those in
    `either`.
    """
    for kind, value in values.items():
        yield f"{name} {kind}", partial(call, value), EITHER if kind in either else expected


def equal(actual: Any, expected: Any) -> bool:
    """Return whether two results are equal: tensors, or sequences of results."""
    if isinstance(expected, torch.Tensor):
        return isinstance(actual, torch.Tensor) and torch.equal(actual, expected)
    if isinstance(expected, list | tuple):
        return all(equal(*pair) for pair in zip_longest(actual, expected))
    return bool(actual == expected)


def judge(call: Callable[[], object], expected: object) -> str:
    """Make a call. Return its fault, or "" if it has none."""
    try:
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            actual = call()
    except (InputError, NonFiniteError, ModuleNotFoundError) as error:
        if expected is not REFUSED and expected is not EITHER:
            return f"refused: {error}"
        return "" if str(error).strip() else "an empty message"
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        if not any(frame.filename.startswith(_PACKAGE) for frame in frames):
            return ""  # Python refused the arguments
        place = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}"
        return f"{type(error).__name__} ({place}): {error}".splitlines()[0]
    if expected is REFUSED:
        return "accepted"
    return "" if expected is EITHER or equal(actual, expected) else "another result"


# --- images and codes ---


@cache
def load_model() -> hrvqvae.Model:
    """Return the model for MNIST of the package."""
    return hrvqvae.load("mnist")


@cache
def draw_pictures() -> torch.Tensor:
    """Return four grey images (4, 1, 28, 28) uint8."""
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.integers(0, 256, (4, 1, 7, 7), np.uint8).repeat(4, 2).repeat(4, 3))


def images(folder: Path) -> Iterator[Use]:
    """Yield images of every kind for `encode`."""
    model = load_model()
    batch = draw_pictures()
    unit = batch.float() / 255
    usual = model.encode(batch)
    hwc = batch.permute(0, 2, 3, 1).numpy()
    pil = [Image.fromarray(array[:, :, 0]) for array in hwc]
    paths = [folder / f"{index}.png" for index in range(4)]
    for index, path in enumerate(paths):
        pil[index].save(path)
    read_only = np.ascontiguousarray(hwc)
    read_only.flags.writeable = False
    same = {
        "float": unit,
        "double": batch.double() / 255,
        "channels_last": batch.to(memory_format=torch.channels_last),
        "expanded": batch.expand(4, 1, 28, 28),
        "requires grad": unit.clone().requires_grad_(),
        "parameter": nn.Parameter(unit),
        "arrays": hwc,
        "read-only array": read_only,
        "Fortran array": np.asfortranarray(hwc),
        "greyscale arrays": list(hwc[..., 0]),
        "tuple of tensors": tuple(batch),
        "list of tensors": list(batch),
        "PIL": pil,
        "PIL in RGB": [image.convert("RGB") for image in pil],
        "PIL with alpha": [image.convert("LA") for image in pil],
        "paths": paths,
        "texts": list(map(str, paths)),
        "float arrays": hwc.astype(np.float32) / 255,
        "negative strides": hwc[::-1][::-1],
    }
    yield from pass_each("encode", model.encode, same, usual)
    alone = {
        "tensor": batch[0],
        "PIL": pil[0],
        "path": paths[0],
        "text": str(paths[0]),
        "array": hwc[0],
        "greyscale": hwc[0, :, :, 0],
    }
    first = [level[:1] for level in usual]
    yield from pass_each("encode a single", model.encode, alone, first)
    bad = {
        "no image": batch[:0],
        "three channels of a tensor": batch.expand(4, 3, 28, 28),
        "a scalar": torch.tensor(3),
        "five dimensions": batch[None],
        "floats beyond 1": batch.float(),
        "negative floats": -unit,
        "NaN": torch.full((1, 1, 28, 28), torch.nan),
        "complex": batch.to(torch.complex64),
        "int64": batch.long(),
        "sparse": unit.to_sparse(),
        "meta": batch.to("meta"),
        "quantized": torch.quantize_per_tensor(unit, 0.1, 0, torch.quint8),
        "nested": torch.nested.nested_tensor([torch.zeros(1, 28, 28), torch.zeros(1, 24, 28)]),
        "several sizes": [batch[0], batch[1, :, :24]],
        "objects": np.array([None, None]),
        "texts": np.array(["a", "b"]),
        "structured": np.zeros(3, dtype=[("a", "f4")]),
        "ragged": [[1, 2], [3]],
        "no file": folder / "none.png",
        "a folder": folder,
        "None": None,
        "a number": 3,
        "bytes": paths[0].read_bytes(),
        "empty text": "",
        "set": {1, 2},
        "mapping": {"image": batch},
        "width 0": batch[..., :0],
        "numpy scalar": np.uint8(3),
        "masked": np.ma.masked_array(hwc, hwc > 3),
        "memoryview": memoryview(hwc[0, :, :, 0]),  # type: ignore[arg-type]
        "generator": (image for image in pil),
        "iterator that fails": (1 / 0 for _ in range(3)),
    }
    uncertain = ("no image", "int64", "masked")
    yield from pass_each("encode", model.encode, bad, REFUSED, uncertain)
    yield from pass_each("compress", model.compress, bad, EITHER)
    yield from pass_each("complete", model.complete, bad, EITHER)
    yield from vary("encode", partial(model.encode, batch[:1]))


def codes(folder: Path) -> Iterator[Use]:
    """Yield codes of every kind for `decode` and files for `decompress`."""
    model = load_model()
    batch = draw_pictures()
    usual = model.encode(batch)
    levels: dict[str, Callable[[torch.Tensor], object]] = {
        "arrays": torch.Tensor.numpy,
        "int32": torch.Tensor.int,
        "uint8": torch.Tensor.byte,
        "float": torch.Tensor.float,
        "bool": lambda level: level > 2,
    }
    stacked = torch.stack(usual, 1)
    same = {
        **{name: tuple(map(change, usual)) for name, change in levels.items()},
        "list": list(usual),
        "stacked": stacked,
        "stacked int16": stacked.short(),
        "stacked array": stacked.numpy(),
        "nested lists": [level.tolist() for level in usual],
    }
    yield from pass_each("decode", model.decode, same, model.decode(usual), ("float", "bool"))
    bad_levels: dict[str, Callable[[torch.Tensor], object]] = {
        "negative": lambda level: -level - 1,
        "too large": lambda level: level + 1000,
        "unbatched": lambda level: level[0],
        "halves": lambda level: level + 0.5,
        "NaN": lambda level: level * torch.nan,
        "complex": methodcaller("to", torch.complex64),
        "meta": methodcaller("to", "meta"),
    }
    bad = {
        **{name: tuple(map(change, usual)) for name, change in bad_levels.items()},
        "None": None,
        "text": "abc",
        "empty": (),
        "too many levels": (*usual, usual[0]),
        "other grids": (usual[0], usual[1][:, :3]),
        "other batches": (usual[0], usual[1][:2]),
        "a mapping": {0: usual[0]},
        "objects": (object(),),
    }
    yield from pass_each("decode", model.decode, bad, REFUSED)
    yield from vary("decode", partial(model.decode, usual))
    files = model.compress(batch)
    yield "decompress tuple", partial(model.decompress, tuple(files)), model.decompress(files)
    buffers = {"bytearray": bytearray(files[0]), "memoryview": memoryview(files[0])}
    yield from pass_each("decompress", model.decompress, buffers, EITHER)
    refused = (None, "x", [None], ["x"], [b""], b"", 3, [[files[0]]], folder / "x.hrv")
    named = {f"{value!r:.30}": value for value in refused}
    yield from pass_each("decompress", model.decompress, named, REFUSED)
    yield from vary("compress", partial(model.compress, batch[:1]))
    yield from vary("decompress", partial(model.decompress, files[:1]))


def samples(folder: Path) -> Iterator[Use]:
    """Yield arguments of `sample`, `complete`, `SamplingParams` and the rest of a model."""
    model = load_model()
    image = draw_pictures()[0]
    yield from vary("sample", partial(model.sample, class_name="3"))
    yield from vary("SamplingParams", hrvqvae.SamplingParams)
    complete = partial(model.complete, image)
    yield from vary("complete", complete)
    top = torch.arange(28)[:, None].expand(28, 28) < 14
    masks = {
        "bool": top,
        "uint8": top.byte(),
        "float": top.float(),
        "array": np.broadcast_to(np.arange(28)[:, None] < 14, (28, 28)),
        "lists": top.tolist(),
        "with a channel": top[None],
    }
    expected = complete(keep=top)
    yield from pass_each("mask", lambda mask: complete(keep=mask), masks, expected, ["lists"])
    yield from vary("load", hrvqvae.load, run="mnist")
    yield from vary("to", copy.copy(model).to, device="cpu")
    yield from vary("from_pretrained", hrvqvae.Model.from_pretrained, name="mnist")
    numbers = count()

    def save(**options: Any) -> None:
        model.save_pretrained(folder / f"saved-{next(numbers)}", **options)

    yield from vary("save_pretrained", save, license=None)
    yield from vary("evaluate", model.evaluate)
    yield "pickled model", lambda: pickle.loads(pickle.dumps(model)), EITHER
    yield "copied model", lambda: copy.deepcopy(model).sample(1), model.sample(1)
    yield from vary("read_image", hrvqvae.read_image, path="0.png")
    yield from vary("to_pil", hrvqvae.to_pil, image=image)
    odd_images = {
        "a batch": draw_pictures(),
        "no channel": image[0],
        "floats": image[0].float(),
        "an array": image.numpy(),
    }
    yield from pass_each("to_pil of", hrvqvae.to_pil, odd_images, EITHER)


# --- the layer ---


_make_layer = partial(TreeVQ, 8, 4, 2)


def layer(folder: Path) -> Iterator[Use]:
    """Yield uses of `TreeVQ` and the classes of a configuration."""
    yield from vary("TreeVQ", TreeVQ, dim=8, start_vectors=64)
    for name in ("Config", "DataConfig", "QuantizerConfig", "SingleGridConfig", "TrainingConfig"):
        yield from vary(name, getattr(hrvqvae, name))

    torch.manual_seed(0)
    vectors = torch.randn(400, 8)
    tree = _make_layer().fit(vectors)
    indices = tree.encode(vectors)
    same = {
        "array": vectors.numpy(),
        "double": vectors.double(),
        "double array": vectors.double().numpy(),
        "list": [vectors[:100], vectors[100:]],
        "generator": iter(torch.split(vectors, 150)),
        "transposed": vectors.T.contiguous().T,
        "requires grad": vectors.clone().requires_grad_(),
        "parameter": nn.Parameter(vectors),
        "read-only": np.broadcast_to(vectors.numpy(), (400, 8)),
        "loader": DataLoader(vectors, batch_size=50),  # type: ignore[arg-type]
        "tensor data set": TensorDataset(vectors),
        "loader of tuples": DataLoader(TensorDataset(vectors), batch_size=50),
        "nested lists": vectors.tolist(),
        "float16": vectors.half(),
    }
    rounded = ("float16", "tensor data set", "loader of tuples", "nested lists")
    yield from pass_each("TreeVQ.encode", tree.encode, same, indices, rounded)
    del same["generator"]  # it is used up

    def fit(value: Any) -> torch.Tensor:
        return _make_layer().fit(value).encode(vectors)

    yield from pass_each("TreeVQ.fit", fit, same, indices, rounded)
    bad = {
        "None": None,
        "text": "abc",
        "scalar": torch.tensor(1.0),
        "one vector": vectors[0],
        "another width": vectors[:, :5],
        "three dimensions": vectors.view(20, 20, 8),
        "NaN": vectors * torch.nan,
        "infinite": vectors / 0,
        "integers": vectors.long(),
        "complex": vectors.to(torch.complex64),
        "empty": vectors[:0],
        "bool": vectors > 0,
        "meta": vectors.to("meta"),
        "sparse": vectors.to_sparse(),
        "objects": np.array([[None] * 8]),
        "mapping": {"vectors": vectors},
        "number": 3,
        "texts": ["a", "b"],
        "bytes": b"abc",
        "int": int,
    }
    lookup = tree.get_output_from_indices
    calls: dict[str, Callable[[Any], object]] = {
        "TreeVQ.fit": lambda value: _make_layer().fit(vectors).fit(value),
        "TreeVQ.encode": tree.encode,
        "TreeVQ.unique_indices": tree.unique_indices,
        "TreeVQ()": partial(change_and_call, copy.deepcopy, _make_layer()),
        "TreeVQ().eval()": _make_layer().eval(),
        "lookup": lookup,
        "valid_next": lambda value: tree.valid_next(value, indices),
        "valid_next of": partial(tree.valid_next, indices),
    }
    for name, call in calls.items():
        yield from pass_each(name, call, bad, EITHER)
    integers = {str(kind): indices.to(kind) for kind in (torch.int32, torch.int16, torch.uint8)}
    yield from pass_each("lookup", lookup, integers, lookup(indices))
    odd_indices = {
        "too large": indices + 100,
        "negative": indices - 5,
        "no level": indices[:, :0],
        "too many levels": torch.cat([indices, indices], 1),
    }
    yield from pass_each("lookup", lookup, odd_indices, EITHER)
    yield from vary("fit", partial(_make_layer().fit, vectors))
    yield from vary("encode", partial(tree.encode, vectors))
    features = vectors[:64].view(4, 16, 8)
    mask = features[..., 0] > 0
    masks = {
        "bool": mask,
        "float": features[..., 0],
        "wrong": torch.ones(3),
        "text": "x",
        "array": mask.numpy(),
    }
    yield from pass_each("mask", lambda mask: _make_layer()(features, mask=mask), masks, EITHER)
    yield from vary("functional", hrvqvae.ResidualQuantizer, config=hrvqvae.QuantizerConfig())

    yield from _call_changed(features)


def _call_changed(features: torch.Tensor) -> Iterator[Use]:
    """Yield calls of a layer that is changed, or in another mode or place."""
    trained = _make_layer().fit(features.flatten(0, 1)).eval()
    for name, change in _CHANGES.items():
        changed = partial(change_and_call, change, copy.deepcopy(trained), features)
        yield f"layer: {name}", changed, EITHER
    runs: dict[str, Callable[[], object]] = {
        "layer": partial(trained, features),
        "layer trains": lambda: _make_layer()(features),
        "layer is made": _make_layer,
    }
    for (name, run), (mode, make_call) in product(runs.items(), MODES.items()):
        yield f"{name} in {mode}", partial(make_call, run), EITHER
    expected = trained(features)[1]
    yield "layer in a thread", partial(call_in_thread, lambda: trained(features)[1]), expected
    yield "layer, batch of none", partial(trained, features[:0]), EITHER
    yield "layer, training, none", partial(_make_layer(), features[:0]), EITHER


_CHANGES: dict[str, Callable[[TreeVQ], object]] = {
    "half": methodcaller("half"),
    "double": methodcaller("double"),
    "bfloat16": methodcaller("bfloat16"),
    "meta": methodcaller("to", "meta"),
    "requires_grad_": methodcaller("requires_grad_", False),
    "share_memory": methodcaller("share_memory"),
    "apply": methodcaller("apply", lambda module: None),
    "pickle": lambda layer: pickle.loads(pickle.dumps(layer)),
    "deepcopy": copy.deepcopy,
    "script": torch.jit.script,
    "state": methodcaller("load_state_dict", {}),
    "strict": methodcaller("load_state_dict", {"x": torch.zeros(1)}, strict=False),
    "zero": methodcaller("zero_grad"),
}


def change_and_call(
    change: Callable[[TreeVQ], object], layer: TreeVQ, features: torch.Tensor
) -> object:
    """Change a layer, in place or into another layer, and call it."""
    result = change(layer)
    return (result if isinstance(result, TreeVQ) else layer)(features)


# --- contexts and trainings ---


@contextmanager
def change_default(setter: Callable[[Any], object], value: object, usual: object) -> Iterator[None]:
    """Change a default of torch within the context."""
    setter(value)
    try:
        yield
    finally:
        setter(usual)


def call_within(context: Callable[[], AbstractContextManager[Any]], call: Callable[[], Any]) -> Any:
    """Return the result of a call within a new context."""
    with context():
        return call()


def call_in_threads(call: Callable[[], Any], number: int = 2) -> list[Any]:
    """Return the results of a call in several threads at once."""
    pool = ThreadPoolExecutor(number)
    futures = [pool.submit(call) for _ in range(number)]
    return [future.result() for future in futures]


def call_in_thread(call: Callable[[], Any]) -> Any:
    """Return the result of a call in another thread."""
    return call_in_threads(call, 1)[0]


def call_in_loop(call: Callable[[], Any]) -> Any:
    """Return the result of a call in an event loop."""

    async def wait() -> Any:
        return call()

    return asyncio.run(wait())


_change_kind = partial(change_default, torch.set_default_dtype, usual=torch.float32)
_CONTEXTS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "float64": partial(_change_kind, torch.float64),
    "bfloat16": partial(_change_kind, torch.bfloat16),
    "float16": partial(_change_kind, torch.float16),
    "device meta": partial(torch.device, "meta"),
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": partial(torch.autocast, "cpu", torch.bfloat16),
    "deterministic": partial(change_default, torch.use_deterministic_algorithms, True, False),
    "anomaly detection": torch.autograd.detect_anomaly,
    "enable_grad": torch.enable_grad,
}
Mode = Callable[[Callable[[], Any]], Any]
"""Makes a call, and returns its result."""
MODES: dict[str, Mode] = {
    name: partial(call_within, context) for name, context in _CONTEXTS.items()
}
PLACES: dict[str, Mode] = {**MODES, "a thread": call_in_thread, "an event loop": call_in_loop}


def contexts(folder: Path) -> Iterator[Use]:
    """Yield uses of a model in every mode of torch, in threads and in event loops."""
    model = load_model()
    batch = draw_pictures()
    calls: dict[str, Callable[[], Any]] = {
        "load and encode": lambda: hrvqvae.load("mnist").encode(batch),
        "decode": lambda: model.decode(model.encode(batch)),
        "compress": lambda: model.compress(batch[:1]),
        "decompress": lambda: model.decompress(model.compress(batch[:1])),
        "sample": lambda: model.sample(2),
        "complete": lambda: model.complete(batch[0]),
    }
    for name, call in calls.items():
        usual = call()
        for place, make_call in PLACES.items():
            yield f"{name} in {place}", partial(make_call, call), usual
        yield f"{name} in two threads", partial(call_in_threads, call), [usual, usual]


class _Items:
    def __init__(self, items: Sequence[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


class _Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(draw_pictures())


def make_data_sets() -> tuple[dict[str, Any], dict[str, Any]]:
    """Return data sets of every kind by name: good ones, and bad ones."""
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 256, (24, 12, 12), np.uint8)
    tensors = torch.from_numpy(grey)[:, None]
    labels = torch.arange(24) % 3
    labelled = TensorDataset(tensors, labels)
    pil = [Image.fromarray(image) for image in grey]
    good = {
        "array": grey,
        "array with channel": grey[..., None],
        "tensor": tensors,
        "floats": tensors / 255,
        "bfloat16": (tensors / 255).bfloat16(),
        "list": list(tensors),
        "PIL": pil,
        "tuples": [(image, index % 3) for index, image in enumerate(pil)],
        "tensor labels": list(zip(tensors, labels, strict=True)),
        "text labels": [(image, f"c{index % 3}") for index, image in enumerate(pil)],
        "TensorDataset": labelled,
        "images alone": TensorDataset(tensors),
        "Subset": Subset(labelled, range(20)),
        "ConcatDataset": ConcatDataset([labelled] * 2),
        "StackDataset": StackDataset(image=tensors, label=labels),  # type: ignore[arg-type]
        "loader": DataLoader(labelled, batch_size=4),
        "mappings": [{"image": image, "label": 1} for image in pil],
        "own class": _Items(pil),
        "splits": {"train": pil, "test": pil[:4]},
    }
    bad_labels = {
        "vector labels": [1, 2],
        "None labels": None,
        "float labels": 0.5,
        "negative labels": -1,
    }
    bad = {
        "no item": [],
        "generator": (image for image in pil),
        "stream": _Stream(),
        "None items": [None] * 9,
        "numbers": [1, 2, 3],
        "one text": "nowhere",
        "a number": 3,
        "sets": {1, 2},
        "triples": [(image, 1, 2) for image in pil],
        "NaN": tensors / 255 * torch.nan,
        "beyond 1": tensors.float(),
        "complex": tensors.to(torch.complex64),
        "one image": pil[:1],
        "some labels": [(image, 1 if index % 2 else None) for index, image in enumerate(pil)],
        "loader of a stream": DataLoader(_Stream()),
        "paths that are not there": ["a.png"] * 9,
        "fails": _Items([None] * 3),
        "type": int,
        "module": types,
        "class": _Items,
        "function": len,
        "wrong splits": {"a": pil},
        "columns": {"image": pil, "label": labels},
        **{name: [(image, label) for image in pil] for name, label in bad_labels.items()},
        "sizes": [image.resize((9 + index, 12)) for index, image in enumerate(pil)],
    }
    return good, bad


def trainings(folder: Path) -> Iterator[Use]:
    """Yield trainings of two steps, on data sets of every kind, in every mode."""
    numbers = count()
    good, bad = make_data_sets()
    tiny = {
        **TINY,
        **fields("training", "batch_size=8 epochs=0 evaluation_images=8 warmup_steps=1"),
        **fields("training", "max_steps=2"),
        "data.channels": "1",
        "model.quantizer.init_vectors": "500",
    }

    def train(data: Any = good["PIL"], **options: Any) -> Any:
        out = folder / "runs" / str(next(numbers))
        return hrvqvae.train("hrvqvae/mnist", data=data, out=out, **{**tiny, **options})

    uncertain = (
        "None labels",
        "some labels",
        "float labels",
        "negative labels",
        "sizes",
        "triples",
    )
    yield from pass_each("train on", train, good, EITHER)
    yield from pass_each("train on", train, bad, REFUSED, uncertain)

    def train_weights() -> list[torch.Tensor]:
        return list(train().autoencoder.state_dict().values())

    usual = train_weights()
    for place, make_call in PLACES.items():
        yield f"train in {place}", partial(make_call, train_weights), usual
    yield "train with workers", lambda: bool(train(**{"data.workers": 2})), True
    shared = train()
    short = {"max_steps": 1, "max_minutes": 0.02, "seed": 0, "device": "cpu"}
    yield from vary("train", train, **short, init_from=None, resume=False, test_data=None)
    sizes = ("training.batch_size", "training.learning_rate", "model.quantizer.levels")
    for field in (*sizes, "no.such.field", "data.size"):
        yield from vary(f"train with {field}", partial(train, good["PIL"]), **{field: None})
    yield from vary("train_prior", shared.train_prior, level=1, max_steps=1)
    yield from vary("evaluate", shared.evaluate, data=good["PIL"], split="test", limit=4)


PARTS = {part.__name__: part for part in (images, codes, samples, layer, contexts, trainings)}


def main(names: Sequence[str]) -> int:
    """Make the uses of the parts. Print the faults and the counts; return the exit code."""
    torch.set_num_threads(1)
    counts = Counter[str]()
    for name in names or PARTS:
        with TemporaryDirectory(prefix="uses-") as folder:
            for use, call, expected in PARTS[name](Path(folder)):
                signal.alarm(_SECONDS)
                try:
                    fault = judge(call, expected)
                except _Expired:
                    fault = f"longer than {_SECONDS} s"
                signal.alarm(0)
                counts.update([name, "all", *(["faults"] if fault else [])])
                if fault:
                    print(f"{use}: {fault}", flush=True)
    print(", ".join(f"{name} {count}" for name, count in counts.items()))
    return int(counts["faults"] > 0)


class _Expired(BaseException):
    pass


def _expire(*_: object) -> None:
    raise _Expired


if __name__ == "__main__":
    signal.signal(signal.SIGALRM, _expire)
    sys.exit(main(sys.argv[1:]))
