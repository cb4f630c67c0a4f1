"""Codes of a set of images: made, stored and read."""
