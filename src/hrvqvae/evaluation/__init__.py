"""How good a model is on images that it was not trained on."""
