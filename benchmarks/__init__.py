"""Measurements that print a ratio: both sides in one process, their rounds interleaved."""
