"""The tensor operations that search on a GPU: the codes of the CPU, in chunks of any size, and NaN that stays visible.

On the CPU the same operations are run, so that what they are asked to do is tested where there is no GPU.
"""

from __future__ import annotations

import pytest
import torch

from benchmarks.gpu.codes import SEARCHES, compare
from hrvqvae.config import QuantizerConfig
from hrvqvae.quantize import ResidualQuantizer
from hrvqvae.quantize.search import TreeSearch, beam, chunked, search_flat_fastest, search_tree_fastest
from hrvqvae.utils.errors import NonFiniteError
from tests.devices import needs_gpu, on_each_device

VECTORS, WIDTH = 3_000, 16


def problem(levels: int, size: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(size)
    books = [torch.randn(size**level, size, WIDTH, generator=generator) * 0.5**level for level in range(levels)]
    return torch.randn(VECTORS, WIDTH, generator=generator), books


@on_each_device
@pytest.mark.parametrize("values", [2**24, 100 * 8 * WIDTH, 1])
@pytest.mark.parametrize(("name", "levels", "size"), [(name, *tree) for name in SEARCHES for tree in ((3, 8), (5, 3))])
def test_codes_are_those_of_the_cpu(
    device: str, values: int, name: str, levels: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    latents, books = problem(levels, size)
    if values == 1:  # a chunk of one vector: some are enough
        latents = latents[:50]
    monkeypatch.setattr(chunked, "_CHUNK_VALUES", values)
    monkeypatch.setattr(beam, "_CHUNK_VALUES", values)
    kind = SEARCHES[name]
    books = books[:1] if kind.flat else books
    there = kind.gpu(latents.to(device), [book.to(device) for book in books])
    assert (there.paths.device.type, there.quantized.device.type) == (device, device)
    found = TreeSearch(there.paths.cpu(), there.quantized.cpu())
    agreement = compare(latents, books, kind.cpu(latents, books), found, kind.excess)
    assert (agreement.vectors, agreement.errors) == (len(latents), 0)
    assert agreement.ties <= 3


@needs_gpu
def test_the_fastest_search_is_taken_on_a_gpu() -> None:
    latents, books = problem(3, 8)
    there, there_books = latents.cuda(), [book.cuda() for book in books]
    tree, flat = search_tree_fastest(there, there_books), search_flat_fastest(there, there_books[0][0])
    assert (tree.paths.cpu() == search_tree_fastest(latents, books).paths).double().mean() > 0.999
    assert (flat.cpu() == search_flat_fastest(latents, books[0][0])).double().mean() > 0.999


@on_each_device
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_stays_visible_in_its_vector_alone(device: str, bad: float) -> None:
    latents, books = problem(3, 8)
    latents[17, 3] = bad
    found = chunked.search_tree_chunked(latents.to(device), [book.to(device) for book in books])
    finite = torch.isfinite(found.quantized).all(1).cpu()
    assert not finite[17]
    assert finite.sum() == VECTORS - 1
    assert 0 <= int(found.paths.min()) <= int(found.paths.max()) < 8**3


@needs_gpu
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_visible_in_a_beam(bad: float) -> None:
    latents, books = problem(3, 8)
    latents[17, 3] = bad
    found = beam.Beam(4, 0.1)(latents.cuda(), [book.cuda() for book in books])
    assert (~torch.isfinite(found.quantized).all(1)).nonzero().flatten().tolist() == [17]


@on_each_device
def test_nan_reaches_the_losses_of_a_quantizer_or_is_refused(device: str) -> None:
    """A CPU says so at once; a GPU is not waited for, and the loss tells."""
    quantizer = ResidualQuantizer(QuantizerConfig(levels=2, codewords=3, dim=4)).eval().to(device)
    latents = torch.zeros(2, 3, 3, 4, device=device)
    latents[1, 2, 0, 1] = torch.nan
    if device == "cpu":
        with pytest.raises(NonFiniteError, match="1 of 72 values"):
            quantizer(latents)
        return
    losses = quantizer(latents).losses
    assert any(bool(loss.isnan()) for loss in losses.values())
