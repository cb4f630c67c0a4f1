"""Measurements, each a script (`python -m benchmarks.search`); both sides of a ratio run by turns
in one process.
"""
