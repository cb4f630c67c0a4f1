"""Some 1,000 odd or wrong uses from Python: `python -m benchmarks.torture.uses [PART ...]`.

A use may succeed, with the result that the same thing has in its usual form; or it may be refused
by an InputError, or by Python for its arguments. Wrong are other errors that come from inside the
package, results that differ, and calls that take longer than a minute. Exit code 1 if one is.
"""

import asyncio
import copy
import functools
import itertools
import pickle
import signal
import sys
import threading
import traceback
import types
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import (
    AbstractContextManager,
    contextmanager,
    redirect_stderr,
    redirect_stdout,
)
from io import StringIO
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
from hrvqvae import InputError, NonFiniteError, TreeVQ

Use = tuple[str, Callable[[], object], object]
"""A name, the call, and the expected result: a value, `REFUSED`, or `EITHER`."""

REFUSED = "refused"
EITHER = "either"
_SECONDS = 60
_WRONG: tuple[Any, ...] = (
    *(-1, 0, 1.5, 2**70, float("nan"), float("inf"), True, "", "x", b"x", [], {}, [None], ()),
    *(object(), np.float64(0.5), np.int64(3), torch.tensor(2), torch.zeros(2), int, lambda: 0),
)


def vary(shown: str, call: Callable[..., object], /, **usual: Any) -> Iterator[Use]:
    """Yield uses of a call, with one argument after the other replaced by each wrong value."""
    for argument, value in itertools.product(usual, _WRONG):
        yield (
            f"{shown}({argument}={value!r:.30})",
            functools.partial(call, **{**usual, argument: value}),
            EITHER,
        )


def equal(actual: Any, expected: Any) -> bool:
    """Return whether two results are equal: tensors, or sequences of results."""
    if isinstance(expected, torch.Tensor):
        return isinstance(actual, torch.Tensor) and torch.equal(actual.cpu(), expected.cpu())
    if isinstance(expected, list | tuple):
        pairs = itertools.zip_longest(actual, expected)
        return all(equal(left, right) for left, right in pairs)
    return bool(actual == expected)


def _is_from_inside(error: BaseException) -> bool:
    """Return whether an error was raised below a function of the package."""
    frames = traceback.extract_tb(error.__traceback__)
    package = str(Path(hrvqvae.__file__).parent)
    return any(frame.filename.startswith(package) for frame in frames)


def judge(call: Callable[[], object], expected: object) -> str:
    """Make a call; return "" if it is as it should be, else what is wrong."""
    try:
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            actual = call()
    except (InputError, NonFiniteError, ModuleNotFoundError) as error:
        if expected in (REFUSED, EITHER) or isinstance(expected, str):
            return "" if str(error).strip() else "an empty message"
        return f"refused: {error}"
    except Exception as error:
        inside = _is_from_inside(error)
        place = traceback.extract_tb(error.__traceback__)[-1]
        told = f"{type(error).__name__}: {error} ({Path(place.filename).name}:{place.lineno})"
        return told.splitlines()[0] if inside else ""
    if isinstance(expected, str) and expected == REFUSED:
        return "accepted"
    if (isinstance(expected, str) and expected == EITHER) or equal(actual, expected):
        return ""
    return "another result"


# --- images and codes ---


@functools.cache
def model(name: str = "mnist") -> hrvqvae.Model:
    """Return a model of the package."""
    return hrvqvae.load(name)


@functools.cache
def pictures() -> torch.Tensor:
    """Return four grey images (4, 1, 28, 28) uint8."""
    draw = np.random.default_rng(0)
    return torch.from_numpy(draw.integers(0, 256, (4, 1, 7, 7), np.uint8).repeat(4, 2).repeat(4, 3))


def images(folder: Path) -> Iterator[Use]:
    """Yield images of every kind for `encode`."""
    batch = pictures()
    usual = model().encode(batch)
    hwc = batch.permute(0, 2, 3, 1).numpy()
    pil = [Image.fromarray(array[:, :, 0]) for array in hwc]
    paths = [folder / f"{index}.png" for index in range(4)]
    for path, image in zip(paths, pil, strict=True):
        image.save(path)
    read_only = np.ascontiguousarray(hwc)
    read_only.flags.writeable = False
    same: dict[str, Any] = {
        "float": batch.float() / 255,
        "double": batch.double() / 255,
        "channels_last": batch.to(memory_format=torch.channels_last),
        "expanded": batch.expand(4, 1, 28, 28),
        "requires grad": (batch.float() / 255).requires_grad_(),
        "parameter": nn.Parameter(batch.float() / 255),
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
    for name, value in same.items():
        yield f"encode {name}", functools.partial(model().encode, value), usual
    first = tuple(level[:1] for level in usual)
    alone = {"tensor": batch[0], "PIL": pil[0], "path": paths[0], "text": str(paths[0])}
    for name, value in {**alone, "array": hwc[0], "greyscale": hwc[0, :, :, 0]}.items():
        yield f"encode a single {name}", functools.partial(model().encode, value), first
    bad: dict[str, Any] = {
        "no image": batch[:0],
        "three channels of a tensor": batch.expand(4, 3, 28, 28),
        "a scalar": torch.tensor(3),
        "five dimensions": batch[None],
        "floats beyond 1": batch.float(),
        "negative floats": -batch.float() / 255,
        "NaN": torch.full((1, 1, 28, 28), torch.nan),
        "complex": batch.to(torch.complex64),
        "int64": batch.long(),
        "sparse": (batch.float() / 255).to_sparse(),
        "meta": batch.to("meta"),
        "quantized": torch.quantize_per_tensor(batch.float() / 255, 0.1, 0, torch.quint8),
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
    for name, value in bad.items():
        expected = EITHER if name in ("no image", "int64", "masked") else REFUSED
        yield f"encode {name}", functools.partial(model().encode, value), expected
        yield f"compress {name}", functools.partial(model().compress, value), EITHER
        yield f"complete {name}", functools.partial(model("mnist").complete, value), EITHER
    yield from vary("encode", functools.partial(model().encode, batch[:1]), lmbda=None, effort=None)
    yield from vary("encode", functools.partial(model().encode, batch[:1]), stacked=False)


def codes(folder: Path) -> Iterator[Use]:
    """Yield codes of every kind for `decode` and files for `decompress`."""
    batch = pictures()
    usual = model().encode(batch)
    decoded = model().decode(usual)
    same: dict[str, Any] = {
        "list": list(usual),
        "arrays": tuple(code.numpy() for code in usual),
        "int32": tuple(code.int() for code in usual),
        "uint8": tuple(code.to(torch.uint8) for code in usual),
        "stacked": torch.stack(usual, 1),
        "stacked int16": torch.stack(usual, 1).short(),
        "stacked array": torch.stack(usual, 1).numpy(),
        "nested lists": [code.tolist() for code in usual],
        "float": tuple(code.float() for code in usual),
        "bool": tuple((code > 2) for code in usual),
    }
    for name, value in same.items():
        expected: object = decoded if name not in ("float", "bool") else EITHER
        yield f"decode {name}", functools.partial(model().decode, value), expected
    bad: dict[str, Any] = {
        "None": None,
        "text": "abc",
        "empty": (),
        "negative": tuple(-code - 1 for code in usual),
        "too large": tuple(code + 1000 for code in usual),
        "too many levels": (*usual, usual[0]),
        "other grids": (usual[0], usual[1][:, :3]),
        "other batches": (usual[0], usual[1][:2]),
        "unbatched": tuple(code[0] for code in usual),
        "a mapping": {0: usual[0]},
        "halves": tuple(code + 0.5 for code in usual),
        "NaN": tuple(code * torch.nan for code in usual),
        "complex": tuple(code.to(torch.complex64) for code in usual),
        "meta": tuple(code.to("meta") for code in usual),
        "objects": (object(),),
    }
    for name, value in bad.items():
        yield f"decode {name}", functools.partial(model().decode, value), REFUSED
    yield from vary("decode", functools.partial(model().decode, usual), levels=None, size=None)
    files = model().compress(batch)
    unpacked = model().decompress(files)
    yield "decompress tuple", functools.partial(model().decompress, tuple(files)), unpacked
    whole: dict[str, Any] = {"bytearray": bytearray(files[0]), "memoryview": memoryview(files[0])}
    for name, value in whole.items():
        yield f"decompress {name}", functools.partial(model().decompress, value), EITHER
    refused: tuple[Any, ...] = (
        None,
        "x",
        [None],
        ["x"],
        [b""],
        b"",
        3,
        [[files[0]]],
        folder / "x.hrv",
    )
    for value in refused:
        yield f"decompress {value!r:.30}", functools.partial(model().decompress, value), REFUSED
    pack = functools.partial(model().compress, batch[:1])
    yield from vary("compress", pack, levels=None, max_bytes=None, lmbda=None)
    yield from vary("compress", pack, names=None, effort=None)
    unpack = functools.partial(model().decompress, files[:1])
    yield from vary("decompress", unpack, levels=None, max_pixels=None)


def samples(folder: Path) -> Iterator[Use]:
    """Yield arguments of `sample`, `complete`, `SamplingParams` and the rest of a model."""
    draw = functools.partial(model().sample, 1)
    yield from vary("sample", model().sample, count=1)
    yield from vary("sample", draw, class_name="3", seed=0, temperature=1.0, top_k=0, top_p=1.0)
    yield from vary("sample", draw, guidance=None, levels=None, decoder=None)
    yield from vary("SamplingParams", hrvqvae.SamplingParams, temperature=1.0, guidance=1.0)
    complete = functools.partial(model().complete, pictures()[0])
    yield from vary("complete", complete, count=1, keep="top", class_name=None, seed=0, params=None)
    masks: dict[str, Any] = {
        "bool": torch.arange(28)[:, None].expand(28, 28) < 14,
        "uint8": (torch.arange(28)[:, None].expand(28, 28) < 14).byte(),
        "float": (torch.arange(28)[:, None].expand(28, 28) < 14).float(),
        "array": np.broadcast_to(np.arange(28)[:, None] < 14, (28, 28)),
        "lists": (torch.arange(28)[:, None].expand(28, 28) < 14).tolist(),
        "with a channel": torch.arange(28)[None, :, None].expand(1, 28, 28) < 14,
    }
    top = model().complete(pictures()[0], keep=masks["bool"])
    for name, mask in masks.items():
        expected: object = EITHER if name == "lists" else top
        yield f"mask {name}", functools.partial(complete, keep=mask), expected
    yield from vary("load", hrvqvae.load, run="mnist", device="cpu", beam=None)
    yield from vary("to", copy.copy(model()).to, device="cpu")
    yield from vary("from_pretrained", hrvqvae.Model.from_pretrained, name="mnist")
    for value in _WRONG:
        path = folder / "saved"
        save = functools.partial(model().save_pretrained, path, license=value)
        yield f"save_pretrained(license={value!r:.30})", _once(save, path), EITHER
    yield from vary("evaluate", model().evaluate, data=None)
    yield "pickled model", lambda: pickle.loads(pickle.dumps(model())), EITHER
    yield "copied model", lambda: copy.deepcopy(model()).sample(1), model().sample(1)
    yield from vary("read_image", hrvqvae.read_image, path="0.png")
    yield from vary("to_pil", hrvqvae.to_pil, image=pictures()[0])
    for value in (pictures(), pictures()[0, 0], pictures()[0].float(), pictures()[0].numpy()):
        yield "to_pil", functools.partial(hrvqvae.to_pil, value), EITHER


def _once(call: Callable[[], object], path: Path) -> Callable[[], object]:
    def run() -> object:
        import shutil

        shutil.rmtree(path, ignore_errors=True)
        return call()

    return run


# --- the layer ---


def layer(folder: Path) -> Iterator[Use]:
    """Yield uses of `TreeVQ` and the classes of a configuration."""
    make = functools.partial(TreeVQ, 8, 4, 2)
    yield from vary("TreeVQ", TreeVQ, dim=8, codewords=4, levels=2)
    yield from vary("TreeVQ", make, beam=1, linked=2, coarse_weight=0.0, level_betas=0.25)
    yield from vary("TreeVQ", make, update="ema", decay=0.99, restart_every=100)
    yield from vary("TreeVQ", make, start_vectors=64, channel_last=True)
    for name in ("Config", "DataConfig", "QuantizerConfig", "SingleGridConfig", "TrainingConfig"):
        kind = getattr(hrvqvae, name)
        yield from vary(name, kind, **dict.fromkeys(list(kind.__dataclass_fields__)))

    torch.manual_seed(0)
    vectors = torch.randn(400, 8)
    tree = make().fit(vectors)
    indices = tree.encode(vectors)
    same: dict[str, Any] = {
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
    for name, value in same.items():
        close = name in ("float16", "tensor data set", "loader of tuples", "nested lists")
        expected: object = EITHER if close else indices
        yield f"TreeVQ.encode {name}", functools.partial(tree.encode, value), expected
        if name != "generator":

            def fit(value: Any = value) -> torch.Tensor:
                return make().fit(value).encode(vectors)

            yield f"TreeVQ.fit {name}", fit, expected
    bad: dict[str, Any] = {
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
    for name, value in bad.items():
        for method in ("fit", "encode", "unique_indices"):
            call = getattr(make().fit(vectors), method)
            yield f"TreeVQ.{method} {name}", functools.partial(call, value), EITHER
        yield f"TreeVQ() {name}", functools.partial(make(), value), EITHER
        yield f"TreeVQ().eval() {name}", functools.partial(make().eval(), value), EITHER
        yield f"lookup {name}", functools.partial(tree.get_output_from_indices, value), EITHER
        yield f"valid_next {name}", functools.partial(tree.valid_next, value, indices), EITHER
        yield f"valid_next of {name}", functools.partial(tree.valid_next, indices, value), EITHER
    lookup = tree.get_output_from_indices
    out = lookup(indices)
    for kind in (torch.int32, torch.int16, torch.uint8):
        yield f"lookup {kind}", functools.partial(lookup, indices.to(kind)), out
    for value in (indices + 100, indices - 5, indices[:, :0], torch.cat([indices, indices], 1)):
        yield f"lookup {value[0].tolist()}", functools.partial(lookup, value), EITHER
    yield from vary("fit", functools.partial(make().fit, vectors), passes=2, batch=100, seed=0)
    yield from vary("fit", functools.partial(make().fit, vectors), align=False)
    yield from vary("encode", functools.partial(tree.encode, vectors), batch=100)
    features = vectors[:64].view(4, 16, 8)
    masks = {"bool": features[..., 0] > 0, "float": features[..., 0], "wrong": torch.ones(3)}
    for name, mask in {**masks, "text": "x", "array": masks["bool"].numpy()}.items():
        yield f"TreeVQ(mask={name})", functools.partial(make(), features, mask=mask), EITHER
    yield from vary("functional", hrvqvae.ResidualQuantizer, config=hrvqvae.QuantizerConfig())
    yield from _modes(features)


def _modes(features: torch.Tensor) -> Iterator[Use]:
    trained = TreeVQ(8, 4, 2).fit(features.flatten(0, 1)).eval()
    expected = trained(features)[1]

    def step(layer: TreeVQ) -> object:
        return layer(features)

    changes: dict[str, Callable[[TreeVQ], object]] = {
        "half": lambda layer: layer.half(),
        "double": lambda layer: layer.double(),
        "bfloat16": lambda layer: layer.bfloat16(),
        "meta": lambda layer: layer.to("meta"),
        "requires_grad_": lambda layer: layer.requires_grad_(False),
        "share_memory": lambda layer: layer.share_memory(),
        "apply": lambda layer: layer.apply(lambda module: None),
        "pickle": lambda layer: pickle.loads(pickle.dumps(layer)),
        "deepcopy": copy.deepcopy,
        "script": torch.jit.script,
        "state": lambda layer: layer.load_state_dict({}),
        "strict": lambda layer: layer.load_state_dict({"x": features}, strict=False),
        "zero": lambda layer: layer.zero_grad(),
    }
    for name, change in changes.items():
        changed = copy.deepcopy(trained)

        def use(changed: TreeVQ = changed, change: Any = change) -> object:
            result = change(changed)
            return (result if isinstance(result, TreeVQ) else changed)(features)

        yield f"layer: {name}", use, EITHER
    for name, mode in _contexts().items():
        yield f"layer in {name}", _within(mode, functools.partial(trained, features)), EITHER
        yield f"layer trains in {name}", _within(mode, lambda: TreeVQ(8, 4, 2)(features)), EITHER
        yield f"layer is made in {name}", _within(mode, lambda: TreeVQ(8, 4, 2)), EITHER
    yield "layer in a thread", _in_thread(lambda: trained(features)[1]), expected
    yield "layer, batch of none", functools.partial(trained, features[:0]), EITHER
    yield "layer, training, none", functools.partial(TreeVQ(8, 4, 2), features[:0]), EITHER


# --- contexts and trainings ---


@contextmanager
def _default(setter: Callable[[Any], object], value: object, back: object) -> Iterator[None]:
    setter(value)
    try:
        yield
    finally:
        setter(back)


def _contexts() -> dict[str, Callable[[], AbstractContextManager[Any]]]:
    kind = torch.set_default_dtype
    return {
        "float64": lambda: _default(kind, torch.float64, torch.float32),
        "bfloat16": lambda: _default(kind, torch.bfloat16, torch.float32),
        "float16": lambda: _default(kind, torch.float16, torch.float32),
        "device meta": lambda: torch.device("meta"),
        "no_grad": torch.no_grad,
        "inference_mode": torch.inference_mode,
        "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
        "deterministic": lambda: _default(torch.use_deterministic_algorithms, True, False),
        "anomaly detection": torch.autograd.detect_anomaly,
        "enable_grad": torch.enable_grad,
    }


def _within(mode: Callable[[], Any], call: Callable[[], Any]) -> Callable[[], Any]:
    def run() -> Any:
        with mode():
            return call()

    return run


def _in_thread(call: Callable[[], Any]) -> Callable[[], Any]:
    def run() -> Any:
        results: list[Any] = []
        errors: list[BaseException] = []

        def work() -> None:
            try:
                results.append(call())
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        if errors:
            raise errors[0]
        return results[0]

    return run


def _in_loop(call: Callable[[], Any]) -> Callable[[], Any]:
    async def work() -> Any:
        return call()

    return lambda: asyncio.run(work())


def contexts(folder: Path) -> Iterator[Use]:
    """Yield uses of a model in every mode of torch, in threads and in event loops."""
    batch = pictures()
    calls: dict[str, Callable[[], Any]] = {
        "load and encode": lambda: hrvqvae.load("mnist").encode(batch),
        "decode": lambda: model().decode(model().encode(batch)),
        "compress": lambda: model().compress(batch[:1]),
        "decompress": lambda: model().decompress(model().compress(batch[:1])),
        "sample": lambda: model().sample(2),
        "complete": lambda: model().complete(batch[0]),
    }
    for name, call in calls.items():
        usual = call()
        for mode_name, mode in _contexts().items():
            yield f"{name} in {mode_name}", _within(mode, call), usual
        yield f"{name} in a thread", _in_thread(call), usual
        yield f"{name} in an event loop", _in_loop(call), usual

        def threads(call: Any = call) -> list[Any]:
            return [_in_thread(call)() for _ in range(2)]

        yield f"{name} in two threads", threads, [usual, usual]


_TINY = {
    "data.size": "12",
    "data.workers": "0",
    "model.hidden_units": "8",
    "model.residual_units": "8",
    "model.padding": "1",
    "model.quantizer.codewords": "3",
    "model.quantizer.init_vectors": "500",
    "training.batch_size": "8",
    "training.epochs": "0",
    "training.evaluation_images": "8",
    "training.warmup_steps": "1",
}


class _Items:
    def __init__(self, items: Sequence[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


class _Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(pictures())


def _items() -> dict[str, tuple[Any, object]]:
    draw = np.random.default_rng(0)
    grey = draw.integers(0, 256, (24, 12, 12), np.uint8)
    tensors = torch.from_numpy(grey)[:, None]
    labels = torch.arange(24) % 3
    pil = [Image.fromarray(image) for image in grey]
    good: dict[str, Any] = {
        "array": grey,
        "array with channel": grey[..., None],
        "tensor": tensors,
        "floats": tensors / 255,
        "bfloat16": (tensors / 255).bfloat16(),
        "list": list(tensors),
        "PIL": pil,
        "tuples": list(zip(pil, labels.tolist(), strict=True)),
        "tensor labels": list(zip(tensors, labels, strict=True)),
        "text labels": [(image, f"c{label}") for image, label in zip(pil, labels, strict=True)],
        "TensorDataset": TensorDataset(tensors, labels),
        "images alone": TensorDataset(tensors),
        "Subset": Subset(TensorDataset(tensors, labels), range(20)),
        "ConcatDataset": ConcatDataset([TensorDataset(tensors, labels)] * 2),
        "StackDataset": StackDataset(image=tensors, label=labels),  # type: ignore[arg-type]
        "loader": DataLoader(TensorDataset(tensors, labels), batch_size=4),
        "mappings": [{"image": image, "label": 1} for image in pil],
        "own class": _Items(pil),
        "splits": {"train": pil, "test": pil[:4]},
    }
    bad: dict[str, Any] = {
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
        "vector labels": [(image, [1, 2]) for image in pil],
        "None labels": [(image, None) for image in pil],
        "some labels": [(image, 1 if index % 2 else None) for index, image in enumerate(pil)],
        "float labels": [(image, 0.5) for image in pil],
        "negative labels": [(image, -1) for image in pil],
        "loader of a stream": DataLoader(_Stream()),
        "paths that are not there": ["a.png"] * 9,
        "fails": _Items([None] * 3),
        "type": int,
        "module": types,
        "class": _Items,
        "function": len,
        "wrong splits": {"a": pil},
        "columns": {"image": pil, "label": labels},
    }
    mixed = {"sizes": [image.resize((9 + index, 12)) for index, image in enumerate(pil)]}
    either = ("None labels", "some labels", "float labels", "negative labels", "sizes", "triples")
    table: dict[str, tuple[Any, object]] = {name: (value, EITHER) for name, value in good.items()}
    for name, value in {**bad, **mixed}.items():
        table[name] = (value, EITHER if name in either else REFUSED)
    return table


def trainings(folder: Path) -> Iterator[Use]:
    """Yield trainings of two steps, on data sets of every kind, in every mode."""
    numbers = itertools.count()
    items = _items()

    def train(data: Any = items["PIL"][0], **options: Any) -> Any:
        out = folder / "runs" / str(next(numbers))
        chosen = {**_TINY, "data.channels": "1", "max_steps": 2, "device": "cpu", **options}
        if "out" in chosen:
            out = chosen.pop("out")
        return hrvqvae.train("hrvqvae/mnist", data=data, out=out, **chosen)

    for name, (data, expected) in items.items():
        yield f"train on {name}", functools.partial(train, data), expected

    def results() -> list[torch.Tensor]:
        return list(train().autoencoder.state_dict().values())

    usual = train().autoencoder.state_dict()
    for name, mode in _contexts().items():
        yield f"train in {name}", _within(mode, results), list(usual.values())

    yield "train in a thread", _in_thread(results), list(usual.values())
    yield "train in an event loop", _in_loop(results), list(usual.values())
    workers = {"data.workers": 2}
    yield "train with workers", lambda: bool(train(**workers)), True
    shared = train()
    yield from vary("train", train, max_steps=1, max_minutes=0.02, seed=0, device="cpu")
    yield from vary("train", train, init_from=None, resume=False, test_data=None)
    fields = ("training.batch_size", "training.learning_rate", "model.quantizer.levels")
    for field, value in itertools.product((*fields, "no.such.field", "data.size"), _WRONG):
        call = functools.partial(train, **{field: value})
        yield f"train({field}={value!r:.30})", call, EITHER
    yield from vary("train_prior", shared.train_prior, data=None, level=1, max_steps=1)
    yield from vary("evaluate", shared.evaluate, data=items["PIL"][0], split="test", limit=4)


PARTS = {part.__name__: part for part in (images, codes, samples, layer, contexts, trainings)}


def main(names: Sequence[str]) -> int:
    """Run the parts; print what is wrong and the counts."""
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
                counts.update([name, "all", *(["wrong"] if fault else [])])
                if fault:
                    print(f"{use}: {fault}", flush=True)
    print(", ".join(f"{name} {count}" for name, count in counts.items()))
    return int(counts["wrong"] > 0)


class _Expired(BaseException):
    pass


def _expire(*_: object) -> None:
    raise _Expired


if __name__ == "__main__":
    signal.signal(signal.SIGALRM, _expire)
    sys.exit(main(sys.argv[1:]))
