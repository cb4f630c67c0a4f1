"""Autoregressive priors: the contract, a folder for each network, and new images from them. No torch."""
