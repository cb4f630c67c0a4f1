"""The laboratory: systems, runs and rows, instruments, the search for settings, reports."""
