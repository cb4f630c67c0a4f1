"""What a completion keeps: a part of the coarsest grid, and below it all that descends from there."""

from __future__ import annotations

import pytest
import torch

from hrvqvae.priors.base import Priors
from hrvqvae.priors.generative import kept_parts
from hrvqvae.utils.errors import InputError


@pytest.mark.parametrize(("keep", "count"), [("top", 3 * 7), ("left", 6 * 3), ("0.3", 2 * 7)])
def test_what_is_kept(keep: str, count: int) -> None:
    (where,) = kept_parts(keep, [(6, 7)])
    assert int(where.sum()) == count
    assert where[0, 0]
    assert not where[-1, -1]


@pytest.mark.parametrize("keep", ["0.03", "0.98", "left"])
def test_nothing_and_everything_can_not_be_kept(keep: str) -> None:
    with pytest.raises(InputError, match="--keep .* keeps .* codes"):
        kept_parts(keep, [(16, 1)])


def test_a_code_is_kept_where_its_parent_is() -> None:
    coarse, middle, fine = kept_parts("0.3", [(4, 4), (8, 8), (16, 16)])
    assert (int(coarse.sum()), int(middle.sum()), int(fine.sum())) == (4, 16, 64)
    assert torch.equal(fine[::4, ::4], coarse)
    assert torch.equal(fine[1::2, 1::2], middle)


def test_a_mask_keeps_codes_whose_pixels_are_all_kept() -> None:
    mask = torch.ones(8, 8, dtype=torch.bool)
    mask[5, 2] = False
    coarse, fine = kept_parts(mask, [(4, 4), (8, 8)])
    assert (~coarse).nonzero().tolist() == [[2, 1]]
    assert (~fine).nonzero().tolist() == [[4, 2], [4, 3], [5, 2], [5, 3]]
    with pytest.raises(InputError, match="keeps 16 of 16"):
        kept_parts(torch.ones_like(mask), [(4, 4)])


def test_a_class_is_named_or_numbered() -> None:
    priors = Priors((), ("cat", "dog"), (1, 1))
    assert [priors.class_number(name) for name in ("dog", "1", 1)] == [1, 1, 1]
