"""Which tensors of a run share their memory."""

from __future__ import annotations

from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef

from fxtrace.shapes import Sink


class Memory:
    """Notes whose memory each tensor of a run is in.

    Args:
        fake: the mode that the run is under, where it is one of fake tensors.

    Attributes:
        bases: for each tensor in the memory of an earlier one (a view, a part, or what a call wrote in place), the
            name of the earliest.
    """

    def __init__(self, fake: FakeTensorMode | None = None) -> None:
        self.bases: dict[str, str] = {}
        self._fake = fake
        self._fakes: list[Tensor] = []  # the mode itself forgets them
        # While a weak reference to it is held, no other storage gets a storage's address.
        self._first: dict[int, tuple[StorageWeakRef, str]] = {}

    def note(self, name: str, tensor: Tensor) -> None:
        """Takes in a tensor, under its name; a `Sink`."""
        if self._fake is not None and not isinstance(tensor, FakeTensor):
            tensor = self._fake.from_tensor(tensor)  # views of a parameter are views of its fake
            self._fakes.append(tensor)
        try:
            storage = StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]
        except (NotImplementedError, RuntimeError):  # a sparse one's, which no view shares
            return
        _, first = self._first.setdefault(storage.cdata, (storage, name))
        if first != name:
            self.bases[name] = first

    def and_then(self, sink: Sink | None) -> Sink:
        """A sink that notes a tensor, and gives it to another."""
        if sink is None:
            return self.note

        def both(name: str, tensor: Tensor) -> None:
            self.note(name, tensor)
            sink(name, tensor)

        return both
