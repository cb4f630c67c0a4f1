"""Codes of many images as Parquet files (docs/tokens.md): made in shards, read back, trained
from.
"""
