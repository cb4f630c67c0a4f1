"""Autoregressive priors: their interface, networks and samplers. This module does not import
torch.
"""
