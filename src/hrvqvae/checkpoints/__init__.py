"""The files of a run: its folder, weights and artifacts; export and the hub."""
