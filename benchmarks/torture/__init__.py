"""Damaged files for every reader; kills and full disks for every command that writes; odd uses from
Python.
"""
