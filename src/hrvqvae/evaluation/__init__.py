"""Evaluation of a model on images that it was not trained on."""
