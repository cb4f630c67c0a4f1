"""Codes as files: integer models, a range coder, files and archives. Knows codes, and no network of torch's."""
