"""Distributions that neither PyTorch nor Pyro has; import each from its module."""
