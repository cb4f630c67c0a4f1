"""Functions that numba compiles: how they are kept on disk, and how they run on torch's threads."""
