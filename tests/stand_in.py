"""A stand-in for a GPU: tensors that lie on another device, and are computed on this one.

What a GPU refuses is refused: an operation on tensors of both devices, a NumPy array of a tensor
that is not on the host, a random stream of the host for numbers on the device. What waits for the
device is written down.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = "meta"
"""The only other device that every build of torch knows; a tensor there has no numbers."""
WAITING = ("_local_scalar_dense", "equal", "masked_select", "nonzero", "repeat_interleave")
"""Operations whose result, or its shape, the host must know before it goes on."""
COPYING = ("_to_copy", "copy_")
"""Operations that take tensors from device to device."""
MAKING = (torch.tensor, torch.as_tensor)
"""Functions that torch sends to the device before a mode sees them."""


class OnDevice(Tensor):
    """A tensor that says it is on the device."""

    @staticmethod
    def __new__(cls, held: Tensor) -> "OnDevice":
        form: dict[str, Any] = {"dtype": held.dtype, "layout": held.layout, "device": DEVICE}
        if held.layout is torch.strided:
            form |= {"strides": held.stride(), "storage_offset": held.storage_offset()}
        return cls._make_wrapper_subclass(cls, held.shape, **form)

    def __init__(self, held: Tensor) -> None:
        self.held = held

    @classmethod
    def __torch_dispatch__(cls, operation, types, arguments=(), keys=None):
        raise AssertionError(f"{operation} of a tensor of the device, outside of `stand_in`")


class StandIn(TorchDispatchMode):
    """Computes on the host what tensors of the device are asked."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        """The operations so far for which the host waits."""
        self.operations: set[str] = set()
        """The names of all operations on the device so far."""

    def __torch_dispatch__(self, operation, types, arguments=(), keys=None):
        keys = dict(keys or {})
        name, target = operation.overloadpacket.__name__, keys.get("device")
        flat, _ = tree_flatten((arguments, keys))
        tensors = [X for X in flat if isinstance(X, Tensor)]
        inside = [X for X in tensors if isinstance(X, OnDevice)]
        makes = target is not None and torch.device(target).type != "cpu"
        if not inside and not makes:
            return operation(*arguments, **keys)
        self.operations.add(operation.name())
        self._refuse_mixture(name, tensors, flat, makes)
        to_host = name == "_to_copy" and target is not None and not makes
        if name in WAITING or to_host or self._counts_a_mask(name, arguments):
            self.waits.append(name)
        if target is not None:
            keys["device"] = torch.device("cpu")
        held = {id(X.held): X for X in inside}
        bare = tree_map(_take_held, (arguments, keys))
        if name == "_efficientzerotensor":  # zeros without memory, which no wrapper can hold
            operation = torch.ops.aten.zeros.default
        found = operation(*bare[0], **bare[1])
        if name == "_to_copy" and makes:
            found = _copy_once(found, inside, tensors)
        if to_host or (name == "copy_" and not isinstance(arguments[0], OnDevice)):
            return found
        # What is changed in place is the tensor that it was.
        return tree_map(lambda X: held[id(X)] if id(X) in held else _put(X), found)

    @staticmethod
    def _refuse_mixture(name: str, tensors: list[Tensor], flat: list[Any], makes: bool) -> None:
        on_host = [X for X in tensors if not isinstance(X, OnDevice)]
        if name not in COPYING and any(X.ndim for X in on_host):
            raise RuntimeError(f"{name}: expected all tensors to be on the same device")
        if makes and any(isinstance(X, torch.Generator) for X in flat):
            raise RuntimeError(f"{name}: expected a random stream of the device")

    @staticmethod
    def _counts_a_mask(name: str, arguments) -> bool:
        """Whether a tensor is indexed by a mask whose true entries must be counted, as they are not
        if one number fills them."""
        if name not in ("index", "index_put_") or (name != "index" and arguments[2].numel() == 1):
            return False
        return any(X is not None and X.dtype is torch.bool for X in arguments[1])


class _Making(TorchFunctionMode):
    """Makes tensors of numbers on the host, and moves them."""

    def __torch_function__(self, function, types, arguments=(), keys=None):
        keys = dict(keys or {})
        if function in MAKING and torch.device(keys.get("device") or "cpu").type != "cpu":
            target = keys.pop("device")
            return function(*arguments, **keys).to(target)
        return function(*arguments, **keys)


def _take_held(X: Any) -> Any:
    return X.held if isinstance(X, OnDevice) else X


def _put(X: Any) -> Any:
    return OnDevice(X) if isinstance(X, Tensor) else X


def _copy_once(found: Tensor, inside: list[OnDevice], tensors: list[Tensor]) -> Tensor:
    """What was taken to the device, which never shares memory with the host."""
    shared = not inside and found is tensors[0]
    return found.clone() if shared else found


@contextmanager
def stand_in() -> Iterator[StandIn]:
    """The block may use `DEVICE`."""
    mode = StandIn()
    with mode, _Making():
        yield mode
