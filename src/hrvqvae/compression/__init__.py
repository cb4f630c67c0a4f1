"""Codes as files: entropy models in integers, a range coder, files of codes (.hrv), zips of them,
the search for good codes.
"""
