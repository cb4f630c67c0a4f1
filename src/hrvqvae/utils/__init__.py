"""Helpers of all packages: errors, output files, locks, progress, numbers as text, devices, extras,
compiled code.
"""
