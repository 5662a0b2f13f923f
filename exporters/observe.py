"""Runs a model and notes its outputs and what it updates. The model stays as it was.

`export` needs both: what is updated becomes an output of the graph, and the graph's outputs are compared with the
model's. Each tensor that the run writes to is copied just before the first write, so that a model which fills the
memory needs no second copy of its weights.
"""

from __future__ import annotations

import copy
import functools
import gc
import inspect
import itertools
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from . import private
from .private import leaves, map_leaves

Args = tuple[Any, ...]
Kwargs = dict[str, Any]
# Of a tensor: the number of the leaf of (args, kwargs), or the dotted name in the model.
Place = int | str


class UnexportableError(ValueError):
    """The model does something that no graph can have; the message says what to change."""


@dataclass(frozen=True)
class State:
    """A tensor that the model updates.

    Attributes:
        name: of the argument, or the dotted name of the buffer or parameter.
        leaf: place among the leaves of (args, kwargs); None for a buffer or parameter.
        output: place among the model's own outputs if it is returned; None if it is not.
    """

    name: str
    leaf: int | None
    output: int | None

    @property
    def place(self) -> Place:
        return self.name if self.leaf is None else self.leaf

    def value(self, model: nn.Module, given: Sequence[Any] = ()) -> Any:
        """The tensor itself, in the model or among the leaves of its arguments."""
        if self.leaf is None:
            return functools.reduce(getattr, self.name.split("."), model)
        return given[self.leaf]


@dataclass(frozen=True)
class Run:
    """One run of a model.

    Attributes:
        outputs: the leaves of what it returned, None left out; tensors as copies.
        states: what it updated.
        after: by the place of a state (`State.place`), a copy of its value at the end.
    """

    outputs: list[Any]
    states: list[State]
    after: dict[Place, Tensor]


def observe(
    model: nn.Module,
    args: Args,
    kwargs: Kwargs,
    *,
    training: bool | None = None,
    seed: int | None = None,
    tied: bool = True,
) -> Run:
    """Run the model on copies of the arguments, without gradients.

    Args:
        training: run it in this mode instead of the one it is in.
        seed: of torch's random numbers; None goes on from where the caller's are.
        tied: whether a buffer may stand under two names in the model.

    Raises:
        UnexportableError: the model updates a tensor that no graph can hand out, or one that stands under two names.
    """
    args, kwargs = copies(args, kwargs)
    with left_alone(model) as writes, torch.random.fork_rng(devices=[]), torch.no_grad():
        if training is not None:
            model.train(training)
        if seed is not None:
            torch.manual_seed(seed)
        known = _known_tensors(model, args, kwargs, tied)
        with writes:
            returned = [leaf for leaf in leaves(model(*args, **kwargs)) if leaf is not None]
        _refuse_unnamed(model, writes.outlived([*known.values(), *filter(_is_tensor, returned)]))
        held = _held_tensors(model, tied)
        updated = {place: held.get(place, tensor) for place, tensor in known.items() if writes.touch(tensor)}
        updated |= {place: tensor for place, tensor in held.items() if tensor is not known.get(place, tensor)}
        names = leaf_names(model, args, kwargs)
        _refuse_shared(writes, [place for place in updated if known[place] is updated[place]], known, names)
        states = []
        for place, tensor in updated.items():
            output = next((i for i, leaf in enumerate(returned) if leaf is tensor), None)
            name, leaf_index = (place, None) if isinstance(place, str) else (names[place], place)
            states.append(State(name, leaf_index, output))
        outputs = [host_copy(leaf) if isinstance(leaf, Tensor) else leaf for leaf in returned]
        return Run(outputs, states, {place: host_copy(tensor) for place, tensor in updated.items()})


def _is_tensor(value: object) -> bool:
    return isinstance(value, Tensor)


def copies(args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs]:
    """Arguments of their own memory; tensors that shared memory still do."""
    detached = map_leaves(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, (args, kwargs))
    copied: tuple[Args, Kwargs] = copy.deepcopy(detached)
    return copied


def apart(args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs]:
    """The arguments, those in memory of their own that share memory and do not overlap: torch.export fails on them."""
    tensors = [leaf for leaf in leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    overlapping = {_overlap(one, other) for one, other in itertools.combinations(tensors, 2)}
    addresses = [_address(tensor) for tensor in tensors]
    shared = {address for address in addresses if addresses.count(address) > 1} - overlapping - {0}

    def own(leaf: Any) -> Any:
        return leaf.detach().clone() if isinstance(leaf, Tensor) and _address(leaf) in shared else leaf

    separated: tuple[Args, Kwargs] = map_leaves(own, (args, kwargs))
    return separated if shared else (args, kwargs)


def _overlap(one: Tensor, other: Tensor) -> int:
    """The address of the memory that has elements of both tensors; 0 if there are none."""
    if _address(one) != _address(other) or _address(one) == 0:
        return 0
    shown = torch.zeros(one.untyped_storage().nbytes(), dtype=torch.uint8, device=one.device)
    _part(shown, one).fill_(-1)
    return _address(one) if bool(_part(shown, other).any()) else 0


def host_copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True).contiguous()


# --------------------------------------------------------------------------------------------------
# What a run can change


@dataclass(frozen=True)
class _Memory:
    """Memory that was written to, as bytes.

    Attributes:
        now: the memory itself.
        before: a copy from before the first write.
        written: 255 for each byte that lies in a tensor which was written to.
        seen_as: the tensor that was first written through, or the one it is a view of.
    """

    now: Tensor
    before: Tensor
    written: Tensor
    seen_as: weakref.ref[Tensor]


class Writes(private.DispatchMode):
    """While active, keeps what memory held before something was written to it; `undo` puts it back."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._memories: dict[int, _Memory] = {}
        self._made_here: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = {_address(leaf) for leaf in leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        for value in _written_arguments(private.schema(func), args, kwargs):
            for tensor in leaves(value):
                self._note(tensor)
        result = func(*args, **kwargs)
        made = {_address(leaf) for leaf in leaves(result) if isinstance(leaf, Tensor)}
        self._made_here |= made - given
        return result

    def _note(self, tensor: Any) -> None:
        """Called before ``tensor`` is written to."""
        if not isinstance(tensor, Tensor) or (address := _address(tensor)) in self._made_here | {0}:
            return
        if address not in self._memories:
            now = torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(tensor.untyped_storage())
            seen_as = weakref.ref(private.shown_by(tensor))
            self._memories[address] = _Memory(now, now.clone(), torch.zeros_like(now), seen_as)
        _part(self._memories[address].written, tensor).fill_(-1)

    def touch(self, tensor: Tensor) -> bool:
        """Whether something was written to this part of the memory."""
        memory = self._memories.get(_address(tensor))
        return memory is not None and bool(_part(memory.written, tensor).any())

    def both_touch(self, one: Tensor, other: Tensor) -> bool:
        """Whether something was written to a part of the memory that both tensors show."""
        memory = self._memories.get(_address(one))
        return memory is not None and bool(_overlap(one, other)) and self.touch(other)

    def outlived(self, known: Iterable[Tensor]) -> list[Tensor]:
        """Tensors that were written to, are none of those known, and are still there: somebody holds them."""
        addresses = {_address(tensor) for tensor in known}
        held = {address: memory.seen_as for address, memory in self._memories.items() if address not in addresses}
        if any(reference() is not None for reference in held.values()):
            gc.collect()  # what only a circle of references keeps alive is nobody's
        return [tensor for reference in held.values() if (tensor := reference()) is not None]

    def undo(self) -> None:
        for memory in self._memories.values():
            memory.now.copy_(memory.before)


def _written_arguments(schema: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
    values = {a.name: args[i] if i < len(args) else kwargs.get(a.name) for i, a in enumerate(schema.arguments)}
    written = [values[a.name] for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write]
    if values.get("training"):  # batch norm does not declare that it updates its statistics
        written += [value for name, value in values.items() if name.startswith("running_")]
    return written


def _address(tensor: Tensor) -> int:
    """Where its memory begins; 0 if it has none."""
    return tensor.untyped_storage().data_ptr() if tensor.layout is torch.strided else 0


_SAME_SIZE = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.complex128}


def _part(memory: Tensor, tensor: Tensor) -> Tensor:
    """The bytes of ``tensor`` in a map of its memory, as integers of the size of its elements."""
    elements = memory[: memory.numel() // tensor.element_size() * tensor.element_size()]
    elements = elements.view(_SAME_SIZE[tensor.element_size()])
    return elements.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


class Attributes:
    """The attributes of all modules of a model, to be put back; containers with what was in them."""

    def __init__(self, model: nn.Module) -> None:
        self._attributes = [(vars(module), dict(vars(module))) for module in model.modules()]
        values = [value for _, saved in self._attributes for value in saved.values()]
        self._dicts = [(value, dict(value)) for value in values if isinstance(value, dict)]
        self._lists = [(value, list(value)) for value in values if isinstance(value, list)]

    def put_back(self) -> None:
        for now, saved in (*self._attributes, *self._dicts):
            now.clear()
            now.update(saved)
        for items, were in self._lists:
            items[:] = were


@contextmanager
def left_alone(model: nn.Module) -> Iterator[Writes]:
    """Afterwards the modules' attributes are what they were, and so is the memory that `Writes` has seen."""
    attributes, writes = Attributes(model), Writes()
    try:
        yield writes
    finally:
        attributes.put_back()
        writes.undo()


# --------------------------------------------------------------------------------------------------
# Names


def _held_tensors(model: nn.Module, tied: bool) -> dict[Place, Tensor]:
    """Buffers and parameters; with ``tied`` a tensor that stands under two names only once."""
    buffers = model.named_buffers(remove_duplicate=tied)
    return {**dict(buffers), **dict(model.named_parameters(remove_duplicate=tied))}


def _known_tensors(model: nn.Module, args: Args, kwargs: Kwargs, tied: bool) -> dict[Place, Tensor]:
    """Everything that a graph can hand out after an update: buffers, parameters, arguments."""
    given = {place: leaf for place, leaf in enumerate(leaves((args, kwargs))) if isinstance(leaf, Tensor)}
    return _held_tensors(model, tied) | given


def leaf_names(model: nn.Module, args: Args, kwargs: Kwargs) -> list[str]:
    """For each leaf the parameter that it belongs to, with its path where the argument is a structure."""
    bound = inspect.signature(model.forward).bind(*args, **kwargs)
    return private.leaf_paths(bound.arguments)


def _refuse_shared(writes: Writes, updated: list[Place], known: dict[Place, Tensor], names: list[str]) -> None:
    """One memory under two names: a graph has two values there, and an update would reach one of them."""
    for one in updated:
        for other, tensor in known.items():
            if other != one and writes.both_touch(known[one], tensor):
                first, second = (place if isinstance(place, str) else names[place] for place in (one, other))
                raise UnexportableError(
                    f"{first} and {second} share memory that the model updates; in a graph they are two values, and "
                    "the update would reach only one of them. Give each its own memory (clone()), or pass only one"
                )


def _refuse_unnamed(model: nn.Module, tensors: list[Tensor]) -> None:
    """A tensor that is no argument, buffer or parameter is a constant in a graph: its update would be lost."""
    if not tensors:
        return
    (shape, dtype), name = (tuple(tensors[0].shape), tensors[0].dtype), "a tensor"
    for prefix, module in model.named_modules():
        for attribute, value in vars(module).items():
            if any(leaf is tensors[0] for leaf in leaves(value)):
                name = f"{prefix}.{attribute}".lstrip(".")
    raise UnexportableError(
        f"the model updates {name} ({dtype}, shape {shape}), which is neither an argument nor a buffer: in a graph it "
        "is a constant, and the update would be lost. Register it (register_buffer), or pass it to forward()"
    )
