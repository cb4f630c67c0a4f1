"""Comparison of systems on the same data, in the same order, with the same budget and test
images.
"""
