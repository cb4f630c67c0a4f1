"""What a configuration of data admits."""

from __future__ import annotations

import pytest

from hrvqvae.config import DataConfig, presets
from hrvqvae.config.parsing import override
from hrvqvae.utils.errors import InputError


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"split": "sorted"}, r"data\.train_samples is 0; it must be above 0 where data\.split is sorted"),
        ({"train_samples": -1}, r"data\.train_samples is -1; it must be at least 0"),
        ({"test_samples": -2}, r"data\.test_samples is -2; it must be at least 0"),
        ({"size": 0}, r"data\.size is 0; it must be at least 1 pixel"),
        ({"channels": 4}, r"data\.channels is 4; it must be 1 \(greyscale\) or 3 \(RGB\)"),
        ({"test_fraction": 1.0}, r"data\.test_fraction is 1\.0; it must be between 0 and 1"),
        ({"workers": -1}, r"data\.workers is -1; it must be at least 0"),
        ({"max_pixels": 10**9}, r"data\.max_pixels is 1000000000; it must be 1 to "),
    ],
)
def test_values_that_make_no_sense(values: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        DataConfig(**values)  # type: ignore[arg-type]


def test_a_sorted_split_needs_its_count_and_is_told_at_once() -> None:
    """It became a split by hash, silently."""
    photos = presets.get("hrvqvae/photos").config
    with pytest.raises(InputError, match=r"data\.train_samples is 0"):
        override(photos, {"data.split": "sorted"})
    data = override(photos, {"data.split": "sorted", "data.train_samples": "30"}).data
    assert (data.split, data.train_samples) == ("sorted", 30)
