"""What an operator has. Each operator is one class, in a folder of its own, that answers every question about it.

Code outside an operator's folder never asks which operator it has: schemas, shape inference, expand, the checker and
its ``--run``, explain and the exporters go through `OPERATORS` (in ``__init__.py``) and call the methods here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import Any

import numpy.typing as npt
from onnx import FunctionProto, NodeProto, TensorProto, TensorShapeProto, TypeProto
from onnx.defs import OpSchema

from ..graph.tensors import Integers
from .bodies import parsed
from .contract import DOMAIN, DTYPES, OPSET_VERSION, Contract, Violations
from .facts import NodeFacts, node_violation
from .model_text import RuleExample
from .pictures import NotDrawnError, Picture
from .results import Exact as Exact
from .results import Ranked as Ranked
from .results import Wanted
from .windows import length_tensor_violations, seq_tensor_violations

T = "T"
"""The type of all floating-point inputs and outputs of a node: float16 or bfloat16."""


Attributes = Mapping[str, Any]
"""A node's attributes by name: ints, and floats where `Attribute` says so."""


class Lengths(Enum):
    """What an input of lengths holds, one element per sequence."""

    PREFIX_SUMS = "prefix sums"
    LENGTHS = "lengths"


class Pattern(Enum):
    """How an operator is looked for in standard ones, beside its inlined body. `nsa_onnx.recognise` knows each."""

    WEIGHTED_WINDOWS = "windows of tokens, weighted and summed"


@dataclass(frozen=True)
class Input:
    """An input of the node.

    Attributes:
        type: `T` or an ONNX type, as "tensor(int32)".
        text: for the documentation; it begins with the names of the dims, as "`[T, N, D]`: ".
        lengths: what it holds, if it holds lengths.
        below: for an input of indices, whose dim they must stay below: (input, axis).
        distinct: whether no two of those indices may be equal. Negative ones are padding.
        page_size: for a table of pages, the attribute that says how many tokens one has.
        agrees: the attributes that a node of ours which makes its value must have alike.
    """

    name: str
    type: str
    text: str
    optional: bool = False
    lengths: Lengths | None = None
    below: tuple[str, int] | None = None
    distinct: bool = False
    page_size: str = ""
    agrees: tuple[str, ...] = ()


@dataclass(frozen=True)
class Output:
    """An output of the node.

    Attributes:
        type, text: as of an `Input`.
        dims: per axis, the (input, axis) that it may be read from, the best first; none for a dim of its own.
        updates: the input that it is the new state of, if there is one.
        agrees: the attributes that a node of ours which reads it must have alike.
    """

    name: str
    type: str
    text: str
    dims: tuple[tuple[tuple[str, int], ...], ...]
    updates: str | None = None
    agrees: tuple[str, ...] = ()

    def dtype(self, own: str) -> str:
        """NumPy's name of its type, in a node whose type `T` is ``own``."""
        return own if self.type == T else self.type.removeprefix("tensor(").removesuffix(")")


def dim_names(one: Input | Output) -> tuple[str, ...]:
    """What the documentation calls the dims: "T", "N", "D"."""
    return tuple(one.text.partition("]")[0].removeprefix("`[").split(", "))


@dataclass(frozen=True)
class Attribute:
    """A required attribute, an int unless it says float."""

    name: str
    text: str
    is_float: bool = False


class NotRunError(Exception):
    """There is no input that a node could be run on; the message says why."""


@dataclass(frozen=True)
class Sample:
    """What a node is run on: values by the schema's input names, floats as float64 that the node's type can hold."""

    dtype: str
    values: Mapping[str, npt.NDArray[Any]]
    note: str


@dataclass(frozen=True)
class Example:
    """A call that every backend takes, for the doctor; `example_model` makes a model of it.

    Attributes:
        shapes: of the inputs of type `T`.
        indices: the other inputs.
    """

    attributes: Attributes
    shapes: Mapping[str, tuple[int, ...]]
    indices: Mapping[str, npt.NDArray[Any]]


class Operator(ABC):
    """One operator. The class attributes are what a subclass must set."""

    contract: Contract
    doc: str
    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]
    attributes: tuple[Attribute, ...]
    body_text: str
    """The portable body, in ONNX's text format: see `bodies`."""
    example: Example
    rule_examples: Mapping[str, RuleExample]
    """Models that rules of ``nsa-onnx check`` are shown with, by the rules' ids."""
    pattern: Pattern | None = None
    """The form in which it is looked for where a model computes it in standard operators."""
    ascend_note: str = ""
    """What a user of a converted model must know, beyond the targets' rules."""

    @property
    def op_type(self) -> str:
        return self.contract.op_type

    @cached_property
    def input_names(self) -> tuple[str, ...]:
        return tuple(one.name for one in self.inputs)

    @cached_property
    def float_inputs(self) -> tuple[str, ...]:
        return tuple(one.name for one in self.inputs if one.type == T)

    @cached_property
    def attribute_names(self) -> tuple[str, ...]:
        return tuple(one.name for one in self.attributes)

    @cached_property
    def schema(self) -> OpSchema:
        """The ONNX schema, without its inference function."""
        option = OpSchema.FormalParameterOption
        kinds = {False: OpSchema.AttrType.INT, True: OpSchema.AttrType.FLOAT}
        return OpSchema(
            self.op_type,
            DOMAIN,
            OPSET_VERSION,
            self.doc,
            inputs=[
                OpSchema.FormalParameter(
                    one.name, one.type, one.text, param_option=option.Optional if one.optional else option.Single
                )
                for one in self.inputs
            ],
            outputs=[OpSchema.FormalParameter(one.name, one.type, one.text) for one in self.outputs],
            type_constraints=[
                (T, [f"tensor({dtype})" for dtype in DTYPES], "16-bit floating point; one type for the whole node.")
            ],
            attributes=[
                OpSchema.Attribute(one.name, kinds[one.is_float], one.text, required=True) for one in self.attributes
            ],
        )

    # ----------------------------------------------------------------------------------------------
    # A node

    def violations(self, facts: NodeFacts) -> Violations:
        """Everything that is certainly wrong with a node, in the order of the error table."""
        for one in self.inputs:
            if not one.optional and one.name not in facts.inputs:
                yield node_violation("input_missing", one.name)
        for name in sorted(self.attribute_names):
            if name not in facts.attributes:
                yield node_violation("attribute_missing", name)
        for attribute in self.attributes:
            if attribute.is_float and (value := facts.integer(attribute.name)) is not None:
                yield node_violation("attribute_float", attribute.name, value)
        yield from self.contract_violations(facts)

    @abstractmethod
    def contract_violations(self, facts: NodeFacts) -> Violations:
        """The rows of the contract that a node certainly breaks."""

    def length_violations(self, name: str, dtype: str | None, rank: int | None) -> Violations:
        """What is wrong with the type and the rank of lengths that come as a tensor."""
        if f"{name}_rank" in self.contract.rows:
            return length_tensor_violations(self.contract.rows, name, dtype, rank)
        return seq_tensor_violations(dtype, rank)

    def known_dims(self, facts: NodeFacts) -> Mapping[tuple[int, int], int]:
        """Dims that follow from constants or attributes of a node without violations, by (output, axis)."""
        return {}

    def empty_because(self, facts: NodeFacts) -> tuple[str, str] | None:
        """Why a dim of an output's own is certainly 0: the argument that tells, and how; for a node without violations.

        None if it is not, or not for certain.
        """
        return None

    def may_be_empty(self, facts: NodeFacts) -> bool:
        """Whether a dim of an output's own may be 0 that `known_dims` does not know."""
        return False

    def looks_ahead(self, facts: NodeFacts) -> tuple[str, str] | None:
        """Why a token sees later ones, if it may: the argument that tells, and how; for a node without violations."""
        return None

    def blind_rows(self, facts: NodeFacts) -> tuple[str, Integers] | None:
        """The rows of a constant mask that see nothing for certain, and the mask's name; for a node without violations.

        Not counted are rows of tokens that come before all that a token may see.
        """
        return None

    def output_types(self, facts: NodeFacts, types: Mapping[str, TypeProto]) -> list[TypeProto]:
        """The outputs' types, from a node without violations. ``types`` are the inputs' own, by name.

        Dims that have a name in the graph keep it; an unknown dim of the output's own stays without value and name.
        """
        known = self.known_dims(facts)
        return [self._output_type(facts, types, number, known) for number in range(len(self.outputs))]

    def _output_type(
        self, facts: NodeFacts, types: Mapping[str, TypeProto], number: int, known: Mapping[tuple[int, int], int]
    ) -> TypeProto:
        output, result = self.outputs[number], TypeProto()
        tensor = result.tensor_type
        if output.type != T:
            tensor.elem_type = getattr(TensorProto, output.dtype("").upper())
        else:
            dtypes = (facts.tensor(name).dtype for name in self.float_inputs)
            if (own := next(filter(None, dtypes), None)) is not None:
                tensor.elem_type = getattr(TensorProto, own.upper())
        for axis, sources in enumerate(output.dims):
            dims = [dim for name, index in sources if (dim := _dim_proto(types.get(name), index)) is not None]
            # A number beats a name, and a name beats nothing.
            dims.sort(key=lambda dim: not dim.HasField("dim_value"))
            tensor.shape.dim.add().CopyFrom(dims[0] if dims else TensorShapeProto.Dimension())
            if (number, axis) in known:
                tensor.shape.dim[axis].dim_value = known[number, axis]
        return result

    # ----------------------------------------------------------------------------------------------
    # The portable body

    def body(self, opset: int) -> FunctionProto:
        """The operator in standard operators, as a model-local function (`bodies.parsed`)."""
        return parsed(self.body_text, opset)

    def completion(self, node: NodeProto, prefix: str, opset: int) -> list[NodeProto]:
        """Nodes that compute what an optional input that is left out stands for, or none.

        A function cannot ask whether an input is there. The input that is made is called ``prefix`` and its name, and
        all other names that the nodes make begin with ``prefix`` as well.
        """
        return []

    # ----------------------------------------------------------------------------------------------
    # Running a node

    @abstractmethod
    def sample(self, facts: NodeFacts, attributes: Attributes) -> Sample:
        """Valid input for a node without violations. NotRunError if there is none."""

    @abstractmethod
    def reference(self, values: Mapping[str, npt.NDArray[Any]], attributes: Attributes) -> tuple[Wanted, ...]:
        """The outputs by the contract, in float64, written apart from the kernels."""

    @abstractmethod
    def call(self, inputs: Sequence[Any], attributes: Attributes) -> tuple[Any, ...]:
        """The eager call, on arrays in the order of the node's inputs (None where left out); they stay as they are."""

    # ----------------------------------------------------------------------------------------------
    # Drawing a node

    def picture(self, facts: NodeFacts, lengths: Sequence[int] | None) -> Picture:
        """What ``nsa-onnx explain`` draws of a node, with these lengths where the model does not fix them.

        The node may break any row of the contract. NotDrawnError if there is nothing to draw.
        """
        raise NotDrawnError(f"{self.op_type} has no picture.")


def _dim_proto(type_proto: TypeProto | None, index: int) -> Any:
    """A usable dim of a tensor type (a value that is not negative, or a name), or None."""
    if type_proto is None or not type_proto.HasField("tensor_type"):
        return None
    shape = type_proto.tensor_type.shape
    if index >= len(shape.dim):
        return None
    dim = shape.dim[index]
    usable = dim.dim_value >= 0 if dim.HasField("dim_value") else bool(dim.dim_param)
    return dim if usable else None
