"""The checks and timings of a GPU: wrong codes are found and ties are not, FLOP by hand, the small form by command."""

from __future__ import annotations

import dataclasses
import json
import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks.gpu import codes, report
from benchmarks.gpu.codes import TOLERANCE, beam_excess, compare, greedy_excess
from benchmarks.gpu.training import flop_of_step
from benchmarks.train import AutoencoderSide
from hrvqvae.cli import main
from hrvqvae.config import presets
from hrvqvae.config.parsing import override
from hrvqvae.quantize.search import TreeSearch, search_tree
from hrvqvae.quantize.search.beam import search_beam

VECTORS, SIZE, WIDTH = 200, 4, 5


def problem(levels: int = 3) -> tuple[Tensor, list[Tensor]]:
    generator = torch.Generator().manual_seed(levels)
    books = [torch.randn(SIZE**level, SIZE, WIDTH, generator=generator) * 0.6**level for level in range(levels)]
    return torch.randn(VECTORS, WIDTH, generator=generator), books


def with_path(found: TreeSearch, books: list[Tensor], vector: int, path: list[int]) -> TreeSearch:
    """The same, with that path of one vector, and its sum."""
    paths, quantized = found.paths.clone(), found.quantized.clone()
    paths[:, vector] = torch.tensor(path)
    quantized[vector] = torch.stack([book.flatten(0, 1)[k] for book, k in zip(books, path, strict=True)]).sum(0)
    return TreeSearch(paths, quantized)


def distances(latents: Tensor, books: list[Tensor], vector: int, path: list[int]) -> list[float]:
    """To the codewords of the book that the path reaches last, by hand."""
    residual = latents[vector].double().numpy()
    for book, k in zip(books, path, strict=False):
        residual = residual - book.flatten(0, 1)[k].double().numpy()
    book = books[len(path)][path[-1] if path else 0].double().numpy()
    return [float(np.square(residual - codeword).sum()) for codeword in book]


@pytest.mark.parametrize("level", [0, 1, 2])
def test_a_wrong_code_is_found_at_every_level(level: int) -> None:
    """Below the wrong code the path is what a search finds from there, so nothing else is wrong."""
    latents, books = problem()
    right = search_tree(latents, books)
    path = right.paths[:level, 7].tolist()
    ordered = distances(latents, books, 7, path)
    nearest, second = np.argsort(ordered)[:2]
    path.append((path[-1] if path else 0) * SIZE + int(second))
    while len(path) < 3:
        path.append(path[-1] * SIZE + int(np.argmin(distances(latents, books, 7, path))))
    found = compare(latents, books, right, with_path(right, books, 7, path), greedy_excess)
    assert (found.vectors, found.equal, found.ties, found.errors) == (VECTORS, VECTORS - 1, 0, 1)
    assert found.worst == pytest.approx(1 - ordered[nearest] / ordered[second])
    swapped = compare(latents, books, with_path(right, books, 7, path), right, greedy_excess)
    assert swapped.errors == 1, "whichever of the two is wrong"


@pytest.mark.parametrize(("apart", "ties"), [(0.0, 1), (0.1 * TOLERANCE, 1), (10 * TOLERANCE, 0)])
def test_a_tie_is_no_error(apart: float, ties: int) -> None:
    latents, books = problem()
    right = search_tree(latents, books)
    path = right.paths[:, 7].tolist()
    other = path[2] - path[2] % SIZE + (path[2] + 1) % SIZE
    residual = latents[7] - right.quantized[7] + books[2].flatten(0, 1)[path[2]]
    leaves, nearest = books[2].flatten(0, 1), right.quantized[7] - latents[7]
    leaves[path[2]], leaves[other] = residual + nearest, residual - nearest * (1 + apart / 2)  # on its other side
    right = with_path(right, books, 7, path)
    found = compare(latents[7:8], books, only(right, 7), only(with_path(right, books, 7, [*path[:2], other]), 7),
                    greedy_excess)  # fmt: skip
    assert (found.equal, found.ties, found.errors) == (0, ties, 1 - ties)
    assert found.worst == pytest.approx(apart, rel=0.1, abs=1e-6)


def only(found: TreeSearch, vector: int) -> TreeSearch:
    return TreeSearch(found.paths[:, vector : vector + 1], found.quantized[vector : vector + 1])


@pytest.mark.parametrize("excess", [greedy_excess, partial(beam_excess, width=2, weight=0.1)])
@pytest.mark.parametrize("path", [[0, 0, 63], [0, 4, 16], [-1, -4, -16], [4, 16, 64]])
def test_what_is_no_path_of_the_tree_is_an_error(excess, path: list[int]) -> None:  # type: ignore[no-untyped-def]
    latents, books = problem()
    right = search_tree(latents, books)
    paths = right.paths.clone()
    paths[:, 3] = torch.tensor(path)
    found = compare(latents, books, right, TreeSearch(paths, right.quantized), excess)
    assert (found.errors, found.worst) == (1, math.inf)


@pytest.mark.parametrize("value", [1e-2, math.nan, math.inf])
def test_a_sum_that_is_not_of_its_codewords_is_an_error(value: float) -> None:
    latents, books = problem()
    right = search_tree(latents, books)
    quantized = right.quantized.clone()
    quantized[5, 2] += value
    found = compare(latents, books, right, TreeSearch(right.paths, quantized), greedy_excess)
    assert (found.equal, found.errors, found.worst) == (VECTORS, 1, 0)


def costs_of_all_paths(latents: Tensor, books: list[Tensor], weight: float) -> np.ndarray:
    """(N, m^L), one leaf after the other."""
    count, levels = SIZE ** len(books), len(books)
    costs = np.zeros((len(latents), count))
    for leaf in range(count):
        residual = latents.double().numpy()
        for level, book in enumerate(books, start=1):
            residual = residual - book.flatten(0, 1)[leaf // SIZE ** (levels - level)].double().numpy()
            costs[:, leaf] += (1 if level == levels else weight) * np.square(residual).sum(1)
    return costs


@pytest.mark.parametrize("weight", [0.0, 0.3])
def test_a_beam_is_judged_by_the_cost_of_its_path(weight: float) -> None:
    latents, books = problem()
    exact = latents.double(), [book.double() for book in books]
    costs = costs_of_all_paths(latents, books, weight)
    best, worst = costs.argmin(1), costs.argmax(1)

    def judged(leaves: np.ndarray, width: int) -> np.ndarray:
        leaf = torch.from_numpy(leaves)
        paths = torch.stack([leaf // SIZE**2, leaf // SIZE, leaf])
        return beam_excess(*exact, paths, width, weight).numpy()

    rows = np.arange(VECTORS)
    np.testing.assert_allclose(judged(best, SIZE**2), 0, atol=1e-12)
    np.testing.assert_allclose(judged(worst, SIZE**2), 1 - costs[rows, best] / costs[rows, worst])
    for width in (1, 2, 3):
        found = search_beam(latents, books, width, weight)
        assert (judged(found.paths[-1].numpy(), width) < TOLERANCE).all(), "what the search finds is right"
        better = costs[rows, best] < costs[rows, found.paths[-1].numpy()] * (1 - 1e-4)
        assert better.any(), "a narrow beam misses the best path"
        assert (judged(best, width)[better] > TOLERANCE).all(), "which it can't have found"


def test_a_tie_at_the_border_of_a_beam_is_no_error() -> None:
    """Two equal codewords, of which a beam of one keeps either, with children that are not equally good."""
    books = [torch.tensor([[[1.0], [1.0]]]), torch.tensor([[[0.5], [3.0]], [[0.9], [3.0]]])]
    one = TreeSearch(torch.tensor([[0], [0]]), torch.tensor([[1.5]]))
    other = TreeSearch(torch.tensor([[1], [2]]), torch.tensor([[1.9]]))
    latents = torch.tensor([[2.0]])
    for width, ties in ((1, 1), (2, 0)):
        found = compare(latents, books, one, other, partial(beam_excess, width=width, weight=0.0))
        assert (found.ties, found.errors) == (ties, 1 - ties)


def test_flop_of_a_step_by_hand() -> None:
    """Forward once and backward twice, but for the gradient of the images, which nobody asks for."""
    fields = {"training.batch_size": "2", "training.device": "cpu", "model.hidden_units": "8"}
    config = override(presets.get("hrvqvae/cifar10").config, fields)
    images = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    side, forward = AutoencoderSide(config, images, plain=False), list[int]()

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)
        positions = (inputs[0] if isinstance(layer, nn.ConvTranspose2d) else output)[:, 0].numel()
        forward.append(2 * positions * layer.weight.numel())

    for layer in side.model.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            layer.register_forward_hook(count)
    assert flop_of_step(side) == 3 * sum(forward) - forward[0]


TINY = dataclasses.replace(
    report.SMALL, matrix=64, trees=((2, 3, 4),), compared=300, searched=300, rounds=1, steps=1,
    trained={name: {"training.batch_size": "2", "model.hidden_units": "8", "model.quantizer.init_vectors": "512"}
             for name in ("hrvqvae/cifar10",)},
    prior=("hrvqvae/cifar10", {"prior.training.batch_size": "2", "prior.network.residual_blocks": "1",
                               "prior.network.attention_layers": "1"}),
    prior_levels=(0, 2), sampled=("hrvqvae/cifar10", (2, 2), (1, 3)),
)  # fmt: skip


@pytest.fixture
def without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(report, "SMALL", TINY)


@pytest.mark.usefixtures("without_gpu")
def test_the_small_form_for_programs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    compiled = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda module: compiled(module, backend="eager"))  # in a second
    assert main(["bench", "gpu", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["device"], found["form"], found["faults"]) == ("cpu", "small", [])
    assert found["matrix_rate"] > 0
    assert [(row["search"], row["levels"], row["codewords"]) for row in found["codes"]] == [
        ("greedy", 2, 3), ("beam of 4", 2, 3), ("flat", 1, 9),
    ]  # fmt: skip
    for row in found["codes"]:
        assert row["equal"] * 300 + row["ties"] == pytest.approx(300)
        assert (row["errors"], row["vectors"], row["tolerance"]) == (0, 300, TOLERANCE)
    for row in found["search"]:
        assert row["bytes"] == 300 * (2 * 4 * 4 + 8 * row["levels"]), "latents in, codes and z_q out"
        assert row["ratio"] == pytest.approx(row["seconds"] / row["copy_seconds"])
    off, on, first, last = found["training"]
    assert [off["compiled"], on["compiled"], first["compiled"], last["compiled"]] == [False, True, False, False]
    assert on["loss_difference"] < 1e-2
    assert on["flop"] == off["flop"]
    assert ", prior of level 3 (" in last["trained"]
    for row in found["training"]:
        assert row["images_per_second"] == pytest.approx(2 / row["step_seconds"])
        assert row["matrix_share"] == pytest.approx(row["flop"] / row["step_seconds"] / found["matrix_rate"])
    assert [(row["sampler"], row["batch"]) for row in found["sampling"]] == [
        ("cached", 1), ("plain", 1), ("cached", 3), ("plain", 3),
    ]  # fmt: skip
    assert all(row["equal"] == 1 for row in found["sampling"] if "equal" in row)
    assert not any("peak_bytes" in row for part in ("search", "training", "sampling") for row in found[part])


@pytest.mark.usefixtures("without_gpu")
def test_wrong_codes_end_it_and_a_compiler_that_fails_does_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_compiler(_: nn.Module) -> None:
        raise RuntimeError("no compiler\nof C++ here")

    def rounded(latents: Tensor, books: list[Tensor]) -> TreeSearch:
        """In bfloat16, as a GPU would by mistake."""
        return search_tree(latents.bfloat16().float(), [book.bfloat16().float() for book in books])

    monkeypatch.setattr(nn.Module, "compile", no_compiler)
    monkeypatch.setitem(codes.SEARCHES, "greedy", dataclasses.replace(codes.SEARCHES["greedy"], gpu=rounded))
    assert main(["bench", "gpu"]) == 1
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert lines[0] == "no GPU here: a small form of the measurements, on the CPU"
    assert any(line.endswith("does not work here: no compiler of C++ here") for line in lines)
    assert sum(line.startswith("hrvqvae/cifar10") for line in lines) == 4
    (fault,) = printed.err.splitlines()
    assert fault.startswith("hrvqvae: greedy (2 levels of 3, width 4): ")
    assert "of 300 vectors are not coded as on the CPU" in fault
