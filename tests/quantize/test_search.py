"""The two forms of the search against oracles, where the two best differ; ties, NaN, threads,
forks, chunks.
"""

import math
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hrvqvae.quantize.search import compiled, search, tensors
from hrvqvae.quantize.search.compiled import search_compiled
from hrvqvae.quantize.search.tensors import search_tensors
from hrvqvae.utils.errors import NonFiniteError
from tests.conftest import needs_gpu, on_each_device, threads
from tests.quantize import oracle

FORMS: dict[str, Callable[..., Tensor]] = {"compiled": search_compiled, "tensors": search_tensors}
every_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)


def codebooks(levels: int, size: int, dim: int, offset: float = 0.0, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    books = [
        torch.randn(size**level, size, dim, generator=generator) * 0.6**level
        for level in range(levels)
    ]
    books[0] += offset
    return books


def vectors_of(count: int, dim: int, seed: int = 1) -> Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


def assert_greedy(
    latents: np.ndarray, books: list[np.ndarray], paths: np.ndarray, slack: float = 0.0
) -> None:
    """Follow each vector down in float64, as long as its two best distances differ by 1e-5 of them
    and the slack.
    """
    count, dim = latents.shape
    residual = latents.astype(np.float64)
    path = np.zeros(count, np.int64)
    clear = np.ones(count, bool)
    for level, book in enumerate(books):
        size = book.shape[1]
        assert ((paths[level] // size) == path).all(), "a child hangs under its parent"
        distances = np.square(residual[:, None] - book[path].astype(np.float64)).sum(-1)
        ordered = np.sort(distances, axis=1)
        clear &= ordered[:, 1] - ordered[:, 0] > 1e-5 * ordered[:, 1] + slack
        assert (paths[level][clear] == (path * size + distances.argmin(1))[clear]).all()
        path = paths[level]
        residual = residual - book.reshape(-1, dim)[path]


@every_form
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_the_greedy_search_agrees_with_the_oracle(
    form: Callable[..., Tensor], data: st.DataObject
) -> None:
    levels = data.draw(st.integers(1, 6), "levels")
    size = data.draw(
        st.integers(2, min(700 if levels == 1 else 64, int(4_000 ** (1 / levels)))), "size"
    )
    dim = data.draw(st.integers(1, 300), "dim")
    count = data.draw(st.sampled_from([1, 2, 3, 17, 200, 1_025, 1_500, 20_000]), "count")
    count = min(count, 20_000 if form is search_compiled else 1_500, 1_500_000 // (size * dim) + 1)
    offset = data.draw(st.sampled_from([0.0, 0.0, 30.0]), "offset")
    kind = data.draw(
        st.sampled_from(["random", "duplicates", "zeros", "strided", "transposed", "codewords"]),
        "kind",
    )
    seed = data.draw(st.integers(0, 2**31), "seed")
    books = codebooks(levels, size, dim, offset, seed)
    latents = vectors_of(count, dim, seed + 1) + offset
    if kind == "duplicates":
        books = [book[:, torch.arange(size) // 2] for book in books]
    elif kind == "zeros":
        latents = torch.zeros_like(latents)
        books = [book * 0 for book in books]
    elif kind == "strided":
        latents = vectors_of(count, 2 * dim, seed)[:, ::2] + offset
    elif kind == "transposed":
        latents = vectors_of(dim, count, seed).T + offset
    elif kind == "codewords":
        latents = books[0][0][torch.arange(count) % size]
    before = latents.clone()
    found = form(latents, books)
    assert torch.equal(latents, before)
    assert (found.shape, found.dtype) == ((levels, count), torch.int64)
    products = form is search_tensors  # |r|^2 + |c|^2 - 2 r c, from the mean codeword
    scale = 1e-6 * sum(
        float((values - offset).square().sum(-1).max()) for values in (latents, books[0])
    )
    assert_greedy(
        latents.numpy(), [book.numpy() for book in books], found.numpy(), scale if products else 0.0
    )
    if kind == "duplicates" and not products:
        assert ((found % size) % 2 == 0).all(), "the first of two equal codewords is taken"
    if kind == "zeros":
        assert (found == 0).all()


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_a_beam_agrees_with_the_oracle(data: st.DataObject) -> None:
    dim = data.draw(st.integers(1, 20))
    shapes = [(1, data.draw(st.integers(2, 9)))]
    for _ in range(data.draw(st.integers(0, 3))):
        below = shapes[-1][0] * shapes[-1][1]
        books = data.draw(st.sampled_from([1, below])) if below < 100 else 1
        shapes.append((books, data.draw(st.integers(2, 9))))
    width = data.draw(st.integers(1, 12))
    weight = data.draw(st.sampled_from([0, 0.25, 1, 3]))
    random = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    books = [random.integers(-4, 5, (*shape, dim)) for shape in shapes]
    vectors = random.integers(-9, 10, (5, dim))
    plain = [book.tolist() for book in books]
    expected = [oracle.beam(one.tolist(), plain, width, Fraction(weight)) for one in vectors]
    arguments = (
        torch.tensor(vectors, dtype=torch.float32),
        [torch.tensor(book, dtype=torch.float32) for book in books],
    )
    for form in FORMS.values():
        assert form(*arguments, width, weight).T.tolist() == expected, form


@every_form
def test_a_beam_as_wide_as_the_tree_finds_the_nearest_of_all_leaves(
    form: Callable[..., Tensor],
) -> None:
    books = codebooks(3, 5, 7)
    latents = vectors_of(2000, 7)
    leaves = torch.stack(
        [book.flatten(0, 1).repeat_interleave(5 ** (2 - i), 0) for i, book in enumerate(books)]
    ).sum(0)
    distances = torch.cdist(latents.double(), leaves.double()).square()
    nearest = distances.sort(1)
    clear = nearest.values[:, 1] - nearest.values[:, 0] > 1e-4
    found = form(latents, books, 25)
    assert torch.equal(found[-1][clear], nearest.indices[clear, 0])
    greedy = distances.gather(1, form(latents, books)[-1:].T)
    assert nearest.values[:, 0].sum() < 0.99 * greedy.sum()
    assert torch.equal(form(latents, books, 10**15), found), (
        "room is taken for the paths that there are"
    )
    assert torch.equal(form(latents, books[:1], 10**15), form(latents, books[:1]))
    assert torch.equal(form(latents, books, 1, 0.5), form(latents, books)), (
        "one path leaves a weight no choice"
    )


@pytest.mark.parametrize(("levels", "width"), [(1, 1), (2, 1), (3, 4)])
@pytest.mark.parametrize("bad", [float("nan"), -float("nan"), float("inf"), -float("inf")])
def test_nothing_is_nearest_to_what_is_not_finite(levels: int, width: int, bad: float) -> None:
    form = search_compiled
    books = codebooks(levels, 5, 7)
    for count in (5, 3_000):
        latents = torch.zeros(count, 7)
        latents[count // 2, 3] = bad
        with pytest.raises(NonFiniteError, match=f"latents: 1 of {count * 7} values"):
            form(latents, books, width)
    books[-1] = torch.full_like(books[-1], bad)
    number = books[-1].numel()
    with pytest.raises(
        NonFiniteError, match=f"^codebook of level {levels}: {number} of {number} values"
    ):
        form(torch.zeros(3, 7), books, width)
    assert form(torch.zeros(0, 7), books[:-1] or codebooks(1, 5, 7), width).shape == (
        max(1, levels - 1),
        0,
    )


@pytest.mark.parametrize("size", [3, 8, 9])
@pytest.mark.parametrize("width", [1, 12])
@pytest.mark.parametrize("bad", [float("nan"), -float("nan"), float("inf")])
def test_latents_that_are_not_finite(
    size: int, width: int, bad: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They lead to no codebook that is not there."""
    monkeypatch.setattr(compiled.np, "isfinite", lambda _: True)
    latents = torch.zeros(5, 7)
    latents[2, 3] = bad
    indices = search_compiled(latents, codebooks(3, size, 7), width, 0.1)
    assert all(
        index.min() >= 0 and index.max() < size ** (level + 1)
        for level, index in enumerate(indices)
    )


@on_each_device
@pytest.mark.parametrize("shape", [(512,), (128, 8)])
def test_the_tensor_form_is_exact_far_from_the_origin(device: str, shape: tuple[int, ...]) -> None:
    books = [vectors_of(size, 32, size) for size in (shape[0], math.prod(shape))[: len(shape)]]
    books = [book.view(-1, size, 32) for book, size in zip(books, shape, strict=True)]
    books[0] += 1000
    latents = vectors_of(2000, 32) + 1000
    found = search_tensors(latents.to(device), [book.to(device) for book in books]).cpu()
    assert (found == search_compiled(latents, books)).all(0).double().mean() > 0.999


@on_each_device
@pytest.mark.parametrize("width", [1, 4])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_tensor_operations_give_other_vectors_their_codes_beside_nan(
    device: str, width: int, bad: float
) -> None:
    books = codebooks(3, 8, 16)
    latents = vectors_of(300, 16)
    expected = search_tensors(latents, books, width)
    latents[17, 3] = bad
    found = search_tensors(latents.to(device), [book.to(device) for book in books], width).cpu()
    assert 0 <= int(found.min()) <= int(found.max()) < 8**3
    others = torch.arange(300) != 17
    assert (found == expected).all(0)[others].double().mean() > (
        0.99 if device == "cuda" else 0.9999
    )


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_tensor_operations_never_choose_a_bad_codeword_in_a_beam(bad: float) -> None:
    books = codebooks(1, 100, 16) + codebooks(1, 4, 16)
    latents = vectors_of(300, 16)
    expected = search_tensors(latents, books, 4)
    books[0][0, 5] = bad
    found = search_tensors(latents, books, 4)
    others = expected[0] != 5
    assert torch.equal(found[:, others], expected[:, others])


def test_values_that_can_not_be_squared() -> None:
    for levels in (1, 2):
        with pytest.raises(NonFiniteError, match="too large .* to be squared"):
            search_compiled(torch.full((2, 3), 3e38), codebooks(levels, 2, 3))


@on_each_device
@pytest.mark.parametrize(
    ("levels", "size", "width"), [(1, 64, 1), (3, 8, 1), (5, 3, 1), (3, 8, 4), (5, 3, 4)]
)
def test_chunks_and_devices_change_nothing(
    device: str, levels: int, size: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Apart from what rounding may decide, which is rare."""
    books = codebooks(levels, size, 16)
    latents = vectors_of(3_000, 16)
    expected = search_compiled(latents, books, width, 0.1)
    there = [book.to(device) for book in books]
    for values in (2**24, 100 * 8 * 16, 1):
        some = latents if values > 1 else latents[:50]  # a chunk of one vector: some are enough
        monkeypatch.setattr(tensors, "_CHUNK_VALUES", values)
        found = search_tensors(some.to(device), there, width, 0.1)
        assert found.device.type == device
        assert (found.cpu() != expected[:, : len(some)]).any(0).sum() <= 3


def test_many_vectors_are_searched_in_few_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    chunks = list[int]()
    monkeypatch.setattr(
        tensors,
        "_beam",
        lambda chunk, *_: chunks.append(len(chunk)) or chunk.new_zeros(3, len(chunk)),
    )
    books = [torch.zeros(1, 1, 1).expand(8**level, 8, 256) for level in range(3)]
    search_tensors(torch.zeros(1, 1).expand(2**18, 256), books, 4)
    assert sum(chunks) == 2**18
    assert len(chunks) <= 8


@needs_gpu
def test_tensor_operations_are_taken_on_a_gpu() -> None:
    books = codebooks(3, 8, 16)
    latents = vectors_of(3_000, 16).cuda()
    found = search(latents, [book.cuda() for book in books])
    assert found.is_cuda
    assert (found.cpu() == search(latents.cpu(), books)).double().mean() > 0.999


@pytest.mark.filterwarnings("ignore")
def test_a_trace_holds_the_search_and_not_what_it_found() -> None:
    books = codebooks(3, 8, 16)
    latents = vectors_of(100, 16)
    traced = torch.jit.trace(lambda some: search(some, books, 4), latents[:50], check_trace=False)
    assert torch.equal(traced(latents), search(latents, books, 4))


def test_matrix_products_are_in_float32_under_autocast() -> None:
    latents = vectors_of(500, 8)
    books = codebooks(1, 64, 8)
    expected = search_tensors(latents, books)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(search_tensors(latents, books), expected)


@pytest.mark.parametrize(("levels", "size", "width"), [(3, 8, 1), (3, 8, 4), (1, 100, 1)])
def test_the_number_of_threads_changes_nothing(levels: int, size: int, width: int) -> None:
    books = codebooks(levels, size, 32)
    latents = vectors_of(30_000, 32)
    results = []
    for count in (1, 2, 4):
        with threads(count), ThreadPoolExecutor(4) as pool:
            results.append(search_compiled(latents, books, width))
            results += pool.map(lambda _: search_compiled(latents, books, width), range(4))
    assert all(torch.equal(result, results[0]) for result in results)
    if width == 1:
        assert_greedy(
            latents.numpy()[:5_000], [book.numpy() for book in books], results[0].numpy()[:, :5_000]
        )


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


def test_a_forked_process_searches_as_well() -> None:
    done = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0 True"
