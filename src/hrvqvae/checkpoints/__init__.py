"""What is on disk of a run: its folder, tensors, models and priors, code maps; trained models as objects."""
