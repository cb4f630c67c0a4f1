"""What a GPU is for, checked and timed; a small form of it on a CPU."""
