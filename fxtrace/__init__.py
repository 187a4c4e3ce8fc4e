"""Traces a PyTorch model into a graph whose every tensor has a shape, a role and a reason."""

__version__ = "0.1.0"
