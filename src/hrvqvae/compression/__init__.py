"""Codes as files: entropy models in integers, a range coder, the files .hrv and .hrva, the search
for good codes.
"""
