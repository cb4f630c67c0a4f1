"""What is compared and counted: forms of a prior, layers, codes of a GPU, FLOP of a step, against oracles."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks import gpu
from benchmarks.gpu import SEARCHES, compare
from benchmarks.layer_tuned import SmallAutoencoder
from benchmarks.search import TOLERANCE, exact_search, make_problem, measure_agreement
from hrvqvae.quantize.search.tensors import search_tensors


def test_error_and_leaves_of_a_layer_by_hand() -> None:
    class Halves(nn.Module):
        def forward(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            indices = torch.zeros(len(features), 7, 7, 2, dtype=torch.long)
            indices[..., 3:, 0] = 2
            indices[..., 1] = 1
            return features * 0, indices, torch.zeros(())

    model = SmallAutoencoder(Halves, 0)
    constant = model(torch.zeros(1, 1, 28, 28))[0].detach()
    mse, used = model.measure(constant.expand(6, 1, 28, 28) + 0.5, 3)
    assert mse == pytest.approx(0.25**2, rel=1e-5)
    assert used == 2, "leaves 1 and 7"


@pytest.mark.parametrize(("width", "weight"), [(1, 0.0), (3, 0.0), (4, 0.3)])
def test_the_oracle_of_searches_by_all_paths(width: int, weight: float) -> None:
    """Paths of each length are all kept in a sorted list, one vector after the other."""
    case = make_problem(3, 4, vectors=40, width=5)
    leaves, clear = exact_search(case.latents, case.books, width, weight)
    books = [book.double().numpy() for book in case.books]
    for vector, leaf, gap in zip(case.latents.double().numpy(), leaves.tolist(), clear.tolist(), strict=True):
        kept, gaps = [(0.0, 0, vector)], []
        for level, book in enumerate(books, start=1):
            paths = []
            for before, parent, residual in kept:
                for child, codeword in enumerate(book[parent]):
                    left = np.square(residual - codeword).sum()
                    paths.append((before + left, before + weight * left, parent * 4 + child, residual - codeword))
            paths.sort(key=lambda path: path[0])
            count = width if level < 3 else 1
            if len(paths) > count:
                gaps.append(1 - paths[count - 1][0] / paths[count][0])
            kept = [path[1:] for path in paths[:count]]
        assert (leaf, gap) == (kept[0][1], pytest.approx(min(gaps)))


def test_vectors_that_rounding_decides_are_not_judged() -> None:
    right, wrong = torch.zeros(1, 3, dtype=torch.long), torch.ones(1, 3, dtype=torch.long)
    for first, second, vector, tie in (
        (1, 1 - 0.05 * TOLERANCE, 2, True), (1, 1 - 5 * TOLERANCE, 2, False), (1, 1, 1, True), (1, 3, 1, False),
    ):  # fmt: skip
        vectors, books = torch.full((3, 1), float(vector)), [torch.tensor([[[float(first)], [float(second)]]])]
        difference = compare(vectors, books, right, wrong, SEARCHES["greedy"])
        assert (difference["equal"], difference["ties"], difference["errors"]) == (0, 3 * tie, 3 * (not tie))
        assert (difference["worst"] > TOLERANCE) != tie
        same = compare(vectors, books, right, right, SEARCHES["greedy"])
        assert (same["equal"], same["ties"], same["errors"], same["worst"]) == (1, 0, 0, 0)
    assert (measure_agreement(vectors, books, right[0]), measure_agreement(vectors, books, wrong[0])) == (1, 0)


TINY = dataclasses.replace(
    gpu.SMALL, matrix=64, trees=((2, 3, 4),), compared=300, searched=300, rounds=1, steps=1,
    trained={"hrvqvae/cifar10": {"training.batch_size": "2", "model.hidden_units": "8",
                                 "model.quantizer.init_vectors": "512"}},
    prior={"prior.training.batch_size": "2", "prior.network.residual_blocks": "1",
           "prior.network.attention_layers": "1"},
    prior_levels=(2,),
)  # fmt: skip


def test_the_gpu_report_in_its_small_form(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(gpu, "SMALL", TINY)
    gpu.main(["--json"])
    report = json.loads(capsys.readouterr().out)
    assert (report["device"], report["form"], report["faults"]) == ("cpu", "small", [])
    assert [(row["search"], row["levels"], row["codewords"]) for row in report["codes"]] == [
        ("greedy", 2, 3), ("beam of 4", 2, 3), ("flat", 1, 9),
    ]  # fmt: skip
    for row in report["search"]:
        assert row["bytes"] == 300 * (4 * 4 + 8 * row["levels"]), "latents in, codes out"
        assert row["ratio"] == pytest.approx(row["seconds"] / row["copy_seconds"])
    assert len(report["training"]) == 2, "an autoencoder and a prior"
    assert all(row["flop"] > 0 for row in report["training"])
    for row in report["training"]:
        assert row["images_per_second"] == pytest.approx(2 / row["step_seconds"])
        assert row["matrix_share"] == pytest.approx(row["flop"] / row["step_seconds"] / report["matrix_rate"])


def test_wrong_codes_end_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def rounded(latents: Tensor, books: list[Tensor], width: int, coarse_weight: float) -> Tensor:
        """The greedy search in bfloat16, as a GPU would by mistake."""
        if width == 1 and len(books) > 1:
            latents, books = latents.bfloat16().float(), [book.bfloat16().float() for book in books]
        return search_tensors(latents, books, width, coarse_weight)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(gpu, "SMALL", TINY)
    monkeypatch.setattr(gpu, "search_tensors", rounded)
    monkeypatch.setattr(gpu, "bench_trainings", lambda *_: [])
    with pytest.raises(SystemExit) as ended:
        gpu.main([])
    assert ended.value.code == 1
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert lines[0].startswith("no GPU here")
    (fault,) = printed.err.splitlines()[-1:]
    assert fault.startswith("greedy (2 levels of 3, width 4): ")
    assert "of 300 vectors are not coded as on the CPU" in fault
