"""Damaged files for every reader; kills, full disks and company for every command that writes."""
