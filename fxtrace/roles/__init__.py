"""What every tensor of a transformer is, found from dataflow and shown on the values. See `label`."""

from fxtrace.roles.label import label

__all__ = ["label"]
