"""What is compared and counted: forms of a prior, layers, codes of a GPU, FLOP of a step, against oracles."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import types
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks import layer as layer_script
from benchmarks.gpu import __main__ as report
from benchmarks.gpu import codes
from benchmarks.gpu.codes import TOLERANCE, beam_excess, compare, greedy_excess
from benchmarks.gpu.timings import flop_of_step
from benchmarks.prior import FORMS, MaskedConv2d, _replaced
from benchmarks.train import AutoencoderSide
from hrvqvae.config import presets
from hrvqvae.config.parsing import override
from hrvqvae.priors.base import Level
from hrvqvae.quantize.search.reference import search_reference
from tests.priors.test_pixelsnail import inputs, network, random_prior

VECTORS, SIZE, WIDTH = 200, 4, 5


@pytest.mark.parametrize("name", FORMS)
def test_every_form_of_a_prior_computes_the_same(name: str) -> None:
    level = Level(grid=(7, 6), symbols=3, coarser=(3,), classes=4)
    prior = random_prior(network(), level)
    given, coarser, label = inputs(level, 2)
    form = copy.deepcopy(prior)
    _replaced(form, FORMS[name])
    assert FORMS[name].masked == any(isinstance(one, MaskedConv2d) for one in form.modules())
    expected = prior.logits(given, coarser, label)
    torch.testing.assert_close(form.logits(given, coarser, label), expected, rtol=1e-4, atol=1e-4)


def test_lines_of_code(tmp_path: Path) -> None:
    source = (
        '"""A docstring\nof two lines."""\n\nx = 1  # a comment\n\n\n# another\n'
        'def f():\n    """Doc."""\n    return [\n        x,\n    ]\n'
    )
    module = types.ModuleType("some_module")
    module.__file__ = str(tmp_path / "some_module.py")
    Path(module.__file__).write_text(source)
    assert layer_script.code_lines(module) == 5


def test_error_and_leaves_of_a_layer_by_hand() -> None:
    class Halves(nn.Module):
        def forward(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            indices = torch.zeros(len(features), 7, 7, 2, dtype=torch.long)
            indices[..., 3:, 0] = 2
            indices[..., 1] = 1
            return features * 0, indices, torch.zeros(())

    side = layer_script._Side(Halves, 0)
    constant = side.model(torch.zeros(1, 1, 28, 28))[0].detach()
    mse, mae, leaves = side.measure(constant.expand(6, 1, 28, 28) + 0.5, 3)
    assert (mse, mae) == (pytest.approx(0.25**2, rel=1e-5), pytest.approx(0.25, rel=1e-5))
    assert leaves.unique().tolist() == [1, 7]


def problem(levels: int = 3) -> tuple[Tensor, list[Tensor]]:
    generator = torch.Generator().manual_seed(levels)
    books = [torch.randn(SIZE**level, SIZE, WIDTH, generator=generator) * 0.6**level for level in range(levels)]
    return torch.randn(VECTORS, WIDTH, generator=generator), books


def with_path(found: Tensor, vector: int, path: list[int]) -> Tensor:
    """The same paths (L, N), with that one of one vector."""
    paths = found.clone()
    paths[:, vector] = torch.tensor(path)
    return paths


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
    right = search_reference(latents, books)
    path = right[:level, 7].tolist()
    ordered = distances(latents, books, 7, path)
    nearest, second = np.argsort(ordered)[:2]
    path.append((path[-1] if path else 0) * SIZE + int(second))
    while len(path) < 3:
        path.append(path[-1] * SIZE + int(np.argmin(distances(latents, books, 7, path))))
    found = compare(latents, books, right, with_path(right, 7, path), greedy_excess)
    assert (found.vectors, found.equal, found.ties, found.errors) == (VECTORS, VECTORS - 1, 0, 1)
    assert found.worst == pytest.approx(1 - ordered[nearest] / ordered[second])
    swapped = compare(latents, books, with_path(right, 7, path), right, greedy_excess)
    assert swapped.errors == 1, "whichever of the two is wrong"


def test_a_tie_is_no_error() -> None:
    """Two equal codewords, of which a search takes either, and a beam of one keeps either, with unequal children."""
    books = [torch.tensor([[[1.0], [1.0]]]), torch.tensor([[[0.5], [3.0]], [[0.9], [3.0]]])]
    one = torch.tensor([[0], [0]])
    other = torch.tensor([[1], [2]])
    latents = torch.tensor([[2.0]])
    for excess, ties in (
        (greedy_excess, 1), (partial(beam_excess, width=1, weight=0.0), 1),
        (partial(beam_excess, width=2, weight=0.0), 0),
    ):  # fmt: skip
        found = compare(latents, books, one, other, excess)
        assert (found.ties, found.errors) == (ties, 1 - ties)
    for apart, ties in ((0.1 * TOLERANCE, 1), (10 * TOLERANCE, 0)):
        books[0][0, 1] = 1 - apart / 2  # further from 2 by that, relative, in the square
        found = compare(latents, books, one, other, greedy_excess)
        assert (found.ties, found.errors) == (ties, 1 - ties)
        assert found.worst == pytest.approx(apart, rel=0.1, abs=1e-6)


@pytest.mark.parametrize("excess", [greedy_excess, partial(beam_excess, width=2, weight=0.1)])
@pytest.mark.parametrize("path", [[0, 0, 63], [0, 4, 16], [-1, -4, -16], [4, 16, 64]])
def test_what_is_no_path_of_the_tree_is_an_error(excess: codes.Excess, path: list[int]) -> None:
    latents, books = problem()
    right = search_reference(latents, books)
    found = compare(latents, books, right, with_path(right, 3, path), excess)
    assert (found.errors, found.worst) == (1, math.inf)


@pytest.mark.parametrize("weight", [0.0, 0.3])
def test_a_beam_is_judged_by_the_cost_of_its_path(weight: float) -> None:
    latents, books = problem()
    exact, levels = (latents.double(), [book.double() for book in books]), len(books)
    costs = np.zeros((VECTORS, SIZE**levels))  # of all paths, one leaf after the other
    for leaf in range(SIZE**levels):
        residual = latents.double().numpy()
        for level, book in enumerate(books, start=1):
            residual = residual - book.flatten(0, 1)[leaf // SIZE ** (levels - level)].double().numpy()
            costs[:, leaf] += (1 if level == levels else weight) * np.square(residual).sum(1)
    best, worst = costs.argmin(1), costs.argmax(1)

    def judged(leaves: np.ndarray, width: int) -> np.ndarray:
        leaf = torch.from_numpy(leaves)
        paths = torch.stack([leaf // SIZE**2, leaf // SIZE, leaf])
        return beam_excess(*exact, paths, width, weight).numpy()

    rows = np.arange(VECTORS)
    np.testing.assert_allclose(judged(best, SIZE**2), 0, atol=1e-12)
    np.testing.assert_allclose(judged(worst, SIZE**2), 1 - costs[rows, best] / costs[rows, worst])
    for width in (1, 2, 3):
        found = search_reference(latents, books, width, weight)
        assert (judged(found[-1].numpy(), width) < TOLERANCE).all(), "what the search finds is right"
        better = costs[rows, best] < costs[rows, found[-1].numpy()] * (1 - 1e-4)
        assert better.any(), "a narrow beam misses the best path"
        assert (judged(best, width)[better] > TOLERANCE).all(), "which it can't have found"


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
    trained={"hrvqvae/cifar10": {"training.batch_size": "2", "model.hidden_units": "8",
                                 "model.quantizer.init_vectors": "512"}},
    prior=("hrvqvae/cifar10", {"prior.training.batch_size": "2", "prior.network.residual_blocks": "1",
                               "prior.network.attention_layers": "1"}),
    prior_levels=(2,), sampled=("hrvqvae/cifar10", (2, 2), (1, 3)),
)  # fmt: skip


def test_the_gpu_report_in_its_small_form(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(report, "SMALL", TINY)
    compiled = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda module: compiled(module, backend="eager"))  # in a second
    report.main(["--json"])
    found = json.loads(capsys.readouterr().out)
    assert (found["device"], found["form"], found["faults"]) == ("cpu", "small", [])
    assert [(row["search"], row["levels"], row["codewords"]) for row in found["codes"]] == [
        ("greedy", 2, 3), ("beam of 4", 2, 3), ("flat", 1, 9),
    ]  # fmt: skip
    for row in found["codes"]:
        assert row["equal"] * 300 + row["ties"] == pytest.approx(300)
    for row in found["search"]:
        assert row["bytes"] == 300 * (2 * 4 * 4 + 8 * row["levels"]), "latents in, codes and z_q out"
        assert row["ratio"] == pytest.approx(row["seconds"] / row["copy_seconds"])
    off, on, prior = found["training"]
    assert [off["compiled"], on["compiled"], prior["compiled"]] == [False, True, False]
    assert on["loss_difference"] < 1e-2
    assert on["flop"] == off["flop"]
    assert ", prior of level 3 (" in prior["trained"]
    for row in found["training"]:
        assert row["images_per_second"] == pytest.approx(2 / row["step_seconds"])
        assert row["matrix_share"] == pytest.approx(row["flop"] / row["step_seconds"] / found["matrix_rate"])
    assert [(row["sampler"], row["batch"], row.get("equal")) for row in found["sampling"]] == [
        ("cached", 1, None), ("plain", 1, 1), ("cached", 3, None), ("plain", 3, 1),
    ]  # fmt: skip
    assert not any("peak_bytes" in row for part in ("search", "training", "sampling") for row in found[part])


def test_wrong_codes_end_it_and_a_compiler_that_fails_does_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_compiler(_: nn.Module) -> None:
        raise RuntimeError("no compiler\nof C++ here")

    def rounded(latents: Tensor, books: list[Tensor]) -> Tensor:
        """In bfloat16, as a GPU would by mistake."""
        return search_reference(latents.bfloat16().float(), [book.bfloat16().float() for book in books])

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(report, "SMALL", TINY)
    monkeypatch.setattr(nn.Module, "compile", no_compiler)
    monkeypatch.setitem(codes.SEARCHES, "greedy", dataclasses.replace(codes.SEARCHES["greedy"], gpu=rounded))
    with pytest.raises(SystemExit) as ended:
        report.main([])
    assert ended.value.code == 1
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert lines[0].startswith("no GPU here")
    assert any(line.endswith("no compiler of C++ here") for line in lines)
    (fault,) = printed.err.splitlines()[-1:]
    assert fault.startswith("greedy (2 levels of 3, width 4): ")
    assert "of 300 vectors are not coded as on the CPU" in fault
