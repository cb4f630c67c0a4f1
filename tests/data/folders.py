"""Configurations of image folders, for the tests of data."""

from __future__ import annotations

from pathlib import Path

from hrvqvae.config import DataConfig


def folder_config(folder: Path, **changes: object) -> DataConfig:
    return DataConfig(
        **{"dataset": "pictures", "root": str(folder), "size": 16, "channels": 3, "workers": 0, **changes}  # type: ignore[arg-type]
    )
