"""Tests under the newest Python and torch, with fake tensors of a GPU: `make test-newest`."""
