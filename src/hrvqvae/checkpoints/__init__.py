"""The files of a run: its folder, weights, artifacts and code maps; export and the hub."""
