"""The two forms of the search against oracles, where the two best differ; ties, NaN, threads,
forks, chunks.
"""

import math
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from hrvqvae.quantize.search import compiled, search, tensors
from hrvqvae.quantize.search.compiled import search_compiled
from hrvqvae.quantize.search.tensors import search_tensors
from tests.conftest import (
    generator,
    nonfinite_error,
    normal,
    on_each_device,
    parametrize,
    run_python,
    same,
    threads,
)
from tests.quantize import oracle
from tests.quantize.test_fit import LargestTensor

FORMS = {"compiled": search_compiled, "tensors": search_tensors}
every_form = parametrize("form", FORMS.values(), ids=FORMS)
every_bad = parametrize("bad", [torch.nan, -torch.nan, torch.inf, -torch.inf])


def codebooks(levels, size, dim=16, offset=0.0, seed=0):
    random = generator(seed)
    books = [
        torch.randn(size**level, size, dim, generator=random) * 0.6**level
        for level in range(levels)
    ]
    books[0] += offset
    return books


def vectors_of(count, dim=16, seed=1):
    return normal(count, dim, seed=seed)


def assert_greedy(latents, books, paths, slack=0.0):
    """Follow each vector down in float64, as long as its two best distances differ by 1e-5 of them
    and the slack.
    """
    residual = latents.double()
    path = torch.zeros(len(latents)).long()
    is_clear = torch.ones(len(latents)).bool()
    for book, index in zip(books, paths, strict=True):
        size = book.shape[1]
        assert same(index // size, path)  # a child hangs under its parent
        distances = (residual[:, None] - book[path].double()).square().sum(-1)
        nearest = distances.topk(2, largest=False)
        best, second = nearest.values.T
        is_clear &= second - best > 1e-5 * second + slack
        assert same((index % size)[is_clear], nearest.indices[is_clear, 0])
        path = index
        residual = residual - book.flatten(0, 1)[path]


@every_form
@settings(max_examples=60)
@given(data=st.data())
def test_the_greedy_search_agrees_with_the_oracle(form, data):
    levels = data.draw(st.integers(1, 6), "levels")
    largest = min(700 if levels == 1 else 64, int(4_000 ** (1 / levels)))
    size = data.draw(st.integers(2, largest), "size")
    dim = data.draw(st.integers(1, 300), "dim")
    count = data.draw(st.sampled_from([1, 2, 3, 17, 200, 1_025, 1_500, 20_000]), "count")
    count = min(count, 20_000 if form is search_compiled else 1_500, 1_500_000 // (size * dim) + 1)
    offset = data.draw(st.sampled_from([0.0, 0.0, 30.0]), "offset")
    kinds = ["random", "duplicates", "zeros", "strided", "transposed", "codewords"]
    kind = data.draw(st.sampled_from(kinds), "kind")
    seed = data.draw(st.integers(0, 2**31), "seed")
    books = codebooks(levels, size, dim, offset, seed)
    latents = vectors_of(count, dim, seed + 1) + offset
    match kind:
        case "duplicates":
            books = [book[:, torch.arange(size) // 2] for book in books]
        case "zeros":
            latents = latents * 0
            books = [book * 0 for book in books]
        case "strided":
            latents = latents.repeat(1, 2)[:, ::2]
        case "transposed":
            latents = latents.T.contiguous().T
        case "codewords":
            latents = books[0][0][torch.arange(count) % size]
    before = latents.clone()
    indices = form(latents, books)
    assert same(latents, before)
    assert indices.dtype == torch.int64
    slack = 0.0
    if form is search_tensors:  # |r|^2 + |c|^2 - 2 r c, from the mean codeword
        lengths = [(values - offset).square().sum(-1).max() for values in (latents, books[0])]
        slack = 1e-6 * sum(lengths)
    assert_greedy(latents, books, indices, slack)
    if kind == "duplicates" and form is search_compiled:  # it takes the first of two equals
        assert (indices % size % 2 == 0).all()
    if kind == "zeros":
        assert (indices == 0).all()


@settings(max_examples=80)
@given(data=st.data())
def test_a_beam_agrees_with_the_oracle(data):
    dim = data.draw(st.integers(1, 20))
    shapes = [(1, data.draw(st.integers(2, 9)))]
    for _ in range(data.draw(st.integers(0, 3))):
        below = math.prod(shapes[-1])
        books = data.draw(st.sampled_from([1, below])) if below < 100 else 1
        shapes.append((books, data.draw(st.integers(2, 9))))
    width = data.draw(st.integers(1, 12))
    weight = data.draw(st.sampled_from([0, 0.25, 1, 3]))
    random = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    books = [random.integers(-4, 5, (*shape, dim)) for shape in shapes]
    vectors = random.integers(-9, 10, (5, dim))
    plain = [book.tolist() for book in books]
    expected = [oracle.beam(vector, plain, width, Fraction(weight)) for vector in vectors.tolist()]
    tensors_of_books = [torch.tensor(book).float() for book in books]
    for form in FORMS.values():
        indices = form(torch.tensor(vectors).float(), tensors_of_books, width, weight)
        assert indices.T.tolist() == expected, form


@parametrize("levels, width", [(1, 1), (2, 1), (3, 4)])
@every_bad
def test_nothing_is_nearest_to_what_is_not_finite(levels, width, bad):
    books = codebooks(levels, 5, 7)
    for count in (5, 3_000):
        latents = torch.zeros(count, 7)
        latents[count // 2, 3] = bad
        with nonfinite_error("latents or codewords are NaN"):
            search_compiled(latents, books, width)
    assert search_compiled(torch.zeros(0, 7), books, width).shape == (levels, 0)
    books[-1] = torch.full_like(books[-1], bad)
    with nonfinite_error():
        search_compiled(torch.zeros(3, 7), books, width)


@parametrize("size", [3, 8, 9])
@parametrize("width", [1, 12])
@every_bad
def test_latents_that_are_not_finite(size, width, bad, monkeypatch):
    """They lead to no codebook that is not there."""
    monkeypatch.setattr(compiled.np, "isfinite", lambda _: True)
    latents = torch.zeros(5, 7)
    latents[2, 3] = bad
    indices = search_compiled(latents, codebooks(3, size, 7), width, 0.1)
    for level, index in enumerate(indices, start=1):
        assert 0 <= index.min() <= index.max() < size**level


def moved_to(device, tensors):
    return [tensor.to(device) for tensor in tensors]


@on_each_device
@parametrize("shapes", [[(1, 512)], [(1, 128), (128, 8)]])
def test_the_tensor_form_is_exact_far_from_the_origin(device, shapes):
    books = [normal(*shape, 32, seed=shape[1]) for shape in shapes]
    books[0] += 1000
    latents = vectors_of(2000, 32) + 1000
    indices = search_tensors(latents.to(device), moved_to(device, books)).cpu()
    assert (indices == search_compiled(latents, books)).all(0).double().mean() > 0.999


@on_each_device
@parametrize("width", [1, 4])
@every_bad
def test_tensor_operations_give_other_vectors_their_codes_beside_nan(device, width, bad):
    books = codebooks(3, 8)
    latents = vectors_of(300)
    expected = search_tensors(latents, books, width)
    latents[17, 3] = bad
    indices = search_tensors(latents.to(device), moved_to(device, books), width).cpu()
    assert 0 <= indices.min() <= indices.max() < 8**3
    is_equal = (indices == expected).all(0)[torch.arange(300) != 17]
    assert is_equal.double().mean() > (0.99 if device == "cuda" else 0.9999)


@on_each_device
@parametrize("levels, size, width", [(1, 64, 1), (3, 8, 1), (5, 3, 1), (3, 8, 4), (5, 3, 4)])
def test_chunks_and_devices_change_nothing(device, levels, size, width, monkeypatch):
    """Apart from what rounding may decide, which is rare."""
    books = codebooks(levels, size)
    latents = vectors_of(3_000)
    expected = search_compiled(latents, books, width, 0.1)
    there = moved_to(device, books)
    for values, count in ((2**24, 3_000), (100 * 8 * 16, 3_000), (1, 50)):
        monkeypatch.setattr(tensors, "_CHUNK_VALUES", values)
        indices = search_tensors(latents[:count].to(device), there, width, 0.1)
        assert indices.device.type == device
        assert (indices.cpu() != expected[:, :count]).any(0).sum() <= 3


@parametrize("sizes", [(2, 64), (64, 2), (2, 2, 2), (512, 8)])
@parametrize("width", [1, 8])
def test_memory_of_separate_levels_is_bounded(sizes, width, monkeypatch):
    """Levels that are not linked have one codebook each, of any size."""
    monkeypatch.setattr(tensors, "_CHUNK_VALUES", 2**16)
    books = [normal(1, size, 32, seed=size) for size in sizes]
    latents = vectors_of(3_000, 32)
    with LargestTensor() as seen:
        search_tensors(latents, books, width)
    assert seen.largest <= 2**16


@pytest.mark.filterwarnings("ignore")
def test_a_trace_holds_the_search_and_not_what_it_found():
    books = codebooks(3, 8)
    latents = vectors_of(100)
    traced = torch.jit.trace(lambda x: search(x, books, 4), latents[:50], check_trace=False)
    assert same(traced(latents), search(latents, books, 4))


@pytest.mark.filterwarnings("ignore")
@parametrize("shapes", [[(1, 64)], [(1, 8), (8, 8)]])
def test_transforms_and_fake_tensors_are_searched_in_tensor_operations(shapes):
    books = [normal(*shape, 16, seed=shape[1]) for shape in shapes]
    latents = vectors_of(60).view(3, 20, 16)
    expected = torch.stack([search(part, books, 4) for part in latents], 1)
    mapped = torch.func.vmap(lambda part: search(part, books, 4), out_dims=1)(latents)
    assert same(mapped, expected)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = [mode.from_tensor(values) for values in (latents[0], *books)]
        assert search(fake[0], fake[1:], 4).shape == (len(books), 20)
    on_meta = [values.to("meta") for values in (latents[0], *books)]
    assert search(on_meta[0], on_meta[1:], 4).shape == (len(books), 20)


@parametrize("levels, size, width", [(3, 8, 1), (3, 8, 4), (1, 100, 1)])
def test_the_number_of_threads_changes_nothing(levels, size, width):
    books = codebooks(levels, size, 32)
    latents = vectors_of(30_000, 32)
    results = []
    for count in (1, 2, 4):
        with threads(count), ThreadPoolExecutor(4) as pool:
            results.append(search_compiled(latents, books, width))
            results += pool.map(lambda _: search_compiled(latents, books, width), range(4))
    assert all(same(result, results[0]) for result in results)


FORK = """
import os, torch
from hrvqvae.quantize.search.compiled import search_compiled
torch.set_num_threads(2)
books = [torch.arange(8.0).view(1, 8, 1)]
latents = torch.arange(5000.0).view(-1, 1) % 8
first = search_compiled(latents, books)
pid = os.fork()
same = torch.equal(search_compiled(latents, books), first)
if pid == 0:
    os._exit(0 if same else 1)
print(os.waitpid(pid, 0)[1], same)
"""


def test_a_forked_process_searches_as_well():
    assert run_python("-c", FORK).stdout.strip() == "0 True"
