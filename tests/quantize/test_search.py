"""Every search gives the codes of a float64 oracle where the two best differ; ties, NaN, threads, forks, the cache."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hrvqvae.quantize.search import FlatSearcher, TreeSearcher, chunked, compiled, search_flat, search_tree
from hrvqvae.quantize.search.chunked import search_flat_chunked, search_tree_chunked
from hrvqvae.quantize.search.compiled import search_flat_compiled, search_tree_compiled
from hrvqvae.utils.errors import NonFiniteError

TREES: dict[str, TreeSearcher] = {
    "plain": search_tree,
    "compiled": search_tree_compiled,
    "chunked": search_tree_chunked,
}
FLATS: dict[str, FlatSearcher] = {"plain": search_flat, "compiled": search_flat_compiled}


def oracle_agrees(latents: np.ndarray, books: list[np.ndarray], paths: np.ndarray, quantized: np.ndarray) -> None:
    """Follow each vector down in float64, as long as its two best distances differ by more than 1e-5 relative."""
    count, dim = latents.shape
    residual, path, clear = latents.astype(np.float64), np.zeros(count, np.int64), np.ones(count, bool)
    scale = np.abs(latents).max(initial=0.0) + sum(np.abs(book).max() for book in books)
    total = np.zeros((count, dim))
    for level, book in enumerate(books):
        size = book.shape[1]
        assert ((paths[level] // size) == path).all(), "a child hangs under its parent"
        distances = np.square(residual[:, None] - book[path].astype(np.float64)).sum(-1)
        ordered = np.sort(distances, axis=1)
        clear &= ordered[:, 1] - ordered[:, 0] > 1e-5 * ordered[:, 1]
        best = path * size + distances.argmin(1)
        assert (paths[level][clear] == best[clear]).all()
        path = paths[level]
        residual = residual - book.reshape(-1, dim)[path]
        total = total + book.reshape(-1, dim)[path]
    np.testing.assert_allclose(quantized, total, rtol=1e-5, atol=1e-5 * scale)


def codebooks(generator: torch.Generator, levels: int, size: int, dim: int, offset: float = 0.0) -> list[Tensor]:
    books = [torch.randn(size**level, size, dim, generator=generator) * 0.6**level for level in range(levels)]
    books[0] += offset
    return books


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_the_compiled_tree_agrees_with_the_oracle(data: st.DataObject) -> None:
    check_tree("compiled", data, 100_000)


@pytest.mark.parametrize("name", ["plain", "chunked"])
@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_other_trees_agree_with_the_oracle(name: str, data: st.DataObject) -> None:
    check_tree(name, data, 1_500)


def check_tree(name: str, data: st.DataObject, most: int) -> None:
    levels = data.draw(st.integers(1, 6), "levels")
    size = data.draw(st.integers(2, min(64, int(4_000 ** (1 / levels)))), "size")
    dim = data.draw(st.integers(1, 300), "dim")
    count = data.draw(st.sampled_from([1, 2, 3, 17, 200, 1_025, 1_500, 20_000, 100_000]), "count")
    count = min(count, most, 4_000_000 // (size * dim))
    offset = data.draw(st.sampled_from([0.0, 0.0, 30.0]), "offset")
    kind = data.draw(st.sampled_from(["random", "duplicates", "zeros", "strided", "transposed", "codewords"]), "kind")
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31), "seed"))
    books = codebooks(generator, levels, size, dim, offset)
    latents = torch.randn(count, dim, generator=generator) + offset
    if kind == "duplicates":
        books = [book[:, torch.arange(size) // 2] for book in books]
    elif kind == "zeros":
        latents, books = torch.zeros_like(latents), [book * 0 for book in books]
    elif kind == "strided":
        latents = torch.randn(count, 2 * dim, generator=generator)[:, ::2] + offset
    elif kind == "transposed":
        latents = torch.randn(dim, count, generator=generator).T + offset
    elif kind == "codewords":
        latents = books[0][0][torch.arange(count) % size]
    before = latents.clone()
    found = TREES[name](latents, books)
    assert torch.equal(latents, before)
    oracle_agrees(latents.numpy(), [book.numpy() for book in books], found.paths.numpy(), found.quantized.numpy())
    if kind == "duplicates":
        assert ((found.paths % size) % 2 == 0).all(), "the first of two equal codewords is taken"
    if kind == "zeros":
        assert (found.paths == 0).all()


@pytest.mark.parametrize("name", FLATS)
@settings(max_examples=150, deadline=None)
@given(
    number=st.integers(2, 700), dim=st.integers(1, 300), count=st.sampled_from([1, 3, 500, 2_049, 5_000]),
    offset=st.sampled_from([0.0, 0.0, 30.0]), twice=st.booleans(), seed=st.integers(0, 2**31),
)  # fmt: skip
def test_flat_searches_agree_with_the_oracle(
    name: str, number: int, dim: int, count: int, offset: float, twice: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    codebook = torch.randn(number, dim, generator=generator) + offset
    if twice:
        codebook = torch.cat([codebook, codebook])
    count = min(count, 2_000_000 // (number * dim) + 1)
    latents = torch.randn(count, dim, generator=generator) + offset
    found = FLATS[name](latents, codebook)
    assert (found < number).all(), "the first of two equal codewords is taken"
    oracle_agrees(latents.numpy(), [codebook.numpy()[None]], found.numpy()[None], codebook[found].numpy())


@pytest.mark.parametrize("name", ["compiled", "chunked"])
def test_a_hundred_thousand_vectors_in_four_threads(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    books, latents = codebooks(generator, 3, 8, 32), torch.randn(100_000, 32, generator=generator)
    results = []
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        results.append(TREES[name](latents, books))
        torch.set_num_threads(1)
    assert all(torch.equal(result.paths, results[0].paths) for result in results)
    assert all(torch.equal(result.quantized, results[0].quantized) for result in results)
    oracle_agrees(
        latents.numpy(), [book.numpy() for book in books], results[0].paths.numpy(), results[0].quantized.numpy()
    )


@pytest.mark.parametrize("name", TREES)
@pytest.mark.parametrize(("levels", "size"), [(1, 8), (3, 8), (6, 4)])
def test_ties_go_to_the_lowest_index(name: str, levels: int, size: int) -> None:
    """Every codeword of a vector's codebook is as near as the others, at every level."""
    first, deeper = torch.tensor([1.0, -1.0]), torch.tensor([0.0, -2.0])  # every level leaves -1
    books = [
        (deeper if level else first).repeat(size // 2 * size**level).view(size**level, size, 1)
        for level in range(levels)
    ]
    residual = torch.zeros(1)
    for book in books:
        assert len((residual - book[0]).abs().unique()) == 1, "ties at every level"
        residual = residual - book[0, 0]
    found = TREES[name](torch.zeros(3, 1), books)
    assert found.paths.tolist() == [[0, 0, 0]] * levels


@pytest.mark.parametrize("name", TREES)
def test_no_vectors(name: str) -> None:
    found = TREES[name](torch.zeros(0, 4), codebooks(torch.Generator().manual_seed(0), 2, 3, 4))
    assert found.paths.shape == (2, 0)
    assert found.quantized.shape == (0, 4)


@pytest.mark.parametrize("call", ["plain", "compiled", "flat plain", "flat compiled"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("count", [5, 3_000])
def test_no_codeword_is_nearest_to_nan(call: str, bad: float, count: int) -> None:
    latents = torch.zeros(count, 7)
    latents[count // 2, 3] = bad
    books = codebooks(torch.Generator().manual_seed(0), 2, 5, 7)
    searches: dict[str, Callable[[], object]] = {
        **{name: lambda name=name: TREES[name](latents, books) for name in ("plain", "compiled")},  # type: ignore[misc]
        **{f"flat {name}": lambda name=name: FLATS[name](latents, books[0][0]) for name in FLATS},  # type: ignore[misc]
    }
    with pytest.raises(NonFiniteError, match=f"1 of {count * 7} values"):
        searches[call]()


@pytest.mark.parametrize("size", [3, 4, 7, 8, 9])
@pytest.mark.parametrize("bad", [float("nan"), -float("nan"), float("inf"), -float("inf")])
def test_latents_that_are_not_finite_lead_to_no_codebook_that_is_not_there(size: int, bad: float) -> None:
    books = codebooks(torch.Generator().manual_seed(0), 3, size, 7)
    filled = tuple(compiled.filled_up(book).flatten(0, 1).numpy() for book in books)
    latents = np.zeros((5, 7), np.float32)
    latents[2, 3] = bad
    paths, quantized = np.full((3, 5), -1), np.zeros((5, 7), np.float32)
    assert not np.isfinite(compiled._tree(latents, filled, 0, 5, size, paths, quantized))
    assert all(path.min() >= 0 and path.max() < size ** (level + 1) for level, path in enumerate(paths))


def test_nan_stays_visible_where_the_device_is_not_waited_for() -> None:
    latents = torch.zeros(4, 3)
    latents[2, 1] = float("nan")
    found = search_tree_chunked(latents, codebooks(torch.Generator().manual_seed(0), 2, 3, 3))
    assert torch.isnan(found.quantized[2]).any()
    assert torch.isfinite(found.quantized[[0, 1, 3]]).all()


def test_values_that_can_not_be_squared() -> None:
    with pytest.raises(NonFiniteError, match="latents or codewords are too large .* to be squared"):
        search_tree_compiled(torch.full((2, 3), 3e38), codebooks(torch.Generator().manual_seed(0), 1, 2, 3))


@pytest.mark.parametrize("name", ["plain", "compiled"])
@pytest.mark.parametrize("bad", [float("nan"), -float("nan"), float("inf")])
def test_a_codebook_that_is_not_finite_is_named(name: str, bad: float) -> None:
    """The latents are without fault, and the message does not blame them."""
    books = codebooks(torch.Generator().manual_seed(0), 2, 5, 7)
    books[1] = torch.full_like(books[1], bad)
    with pytest.raises(NonFiniteError, match="^codebook of level 2: 175 of 175 values are NaN or infinite$"):
        TREES[name](torch.zeros(3, 7), books)
    with pytest.raises(NonFiniteError, match="^codebook of level 1: 35 of 35 values are NaN or infinite$"):
        FLATS[name](torch.zeros(3, 7), books[1][0])


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    books, latents = codebooks(generator, 3, 4, 5), torch.randn(101, 5, generator=generator)
    whole = search_tree_chunked(latents, books)
    monkeypatch.setattr(chunked, "_CHUNK_VALUES", 7 * 4 * 5)
    assert torch.equal(search_tree_chunked(latents, books).paths, whole.paths)


def test_a_flat_codebook_is_searched_in_float32_under_autocast() -> None:
    generator = torch.Generator().manual_seed(0)
    latents, codebook = torch.randn(500, 8, generator=generator), torch.randn(64, 8, generator=generator)
    expected = search_flat_chunked(latents, codebook)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(search_flat_chunked(latents, codebook), expected)


def test_where_torch_can_not_compile_the_search_goes_on_uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    def compile_nothing(function: object, **_: object) -> Callable[..., object]:
        def call(*_: object) -> object:
            raise RuntimeError("Failed to find\nC compiler")

        return call

    monkeypatch.setattr(torch, "compile", compile_nothing)
    chunked._descend_compiled.cache_clear()
    with pytest.warns(UserWarning, match=r"torch.compile does not work here \(Failed to find C compiler\)"):
        found = chunked._descend_compiled(torch.device("cpu"))
    chunked._descend_compiled.cache_clear()
    assert found is chunked.descend


def test_threads_may_search_at_once() -> None:
    generator = torch.Generator().manual_seed(0)
    books, latents = codebooks(generator, 3, 8, 16), torch.randn(5_000, 16, generator=generator)
    expected = search_tree(latents, books).paths
    torch.set_num_threads(2)
    try:
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda _: search_tree_compiled(latents, books).paths, range(40)))
    finally:
        torch.set_num_threads(1)
    assert all(torch.equal(paths, expected) for paths in found)


FORK = """
import os, torch
from hrvqvae.quantize.search.compiled import search_tree_compiled
torch.set_num_threads(2)
books = [torch.arange(8.0).view(1, 8, 1)]
latents = torch.arange(5000.0).view(-1, 1) % 8
first = search_tree_compiled(latents, books).paths
pid = os.fork()
same = torch.equal(search_tree_compiled(latents, books).paths, first)
if pid == 0:
    os._exit(0 if same else 1)
print(os.waitpid(pid, 0)[1], same)
"""


def _run(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, **environment}
    )
    return done.stdout.strip()


def test_a_forked_process_searches_as_well() -> None:
    assert _run(FORK) == "0 True"


CACHE = """
import torch
from hrvqvae.quantize.search.compiled import search_tree_compiled
books = [torch.arange(3.0).view(1, 3, 1), torch.zeros(3, 3, 1)]
print(search_tree_compiled(torch.tensor([[2.2], [0.1]]), books).paths.tolist())
"""


def test_two_processes_do_not_damage_the_cache(tmp_path: Path) -> None:
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", CACHE]
    for _ in range(2):
        processes = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
        assert [process.communicate(timeout=120)[0].strip() for process in processes] == ["[[2, 0], [6, 0]]"] * 2
    assert list(tmp_path.rglob("*.nbc"))
