"""What can be asked: the protocol that `Engine` and `Client` keep, and `Trace`, the object over one trace."""

from fxtrace.api.options import TraceOptions
from fxtrace.api.picture import Picture
from fxtrace.api.protocol import TensorReader, TraceApi
from fxtrace.api.selection import Nodes, Roles
from fxtrace.api.trace import Trace

__all__ = ["Nodes", "Picture", "Roles", "TensorReader", "Trace", "TraceApi", "TraceOptions"]
