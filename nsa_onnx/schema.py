"""Names that move: see `nsa_onnx.operators.schema`."""

from .operators import OPERATORS
from .operators import schema as _schema
from .operators.facts import NODE_ROWS as NODE_ROWS
from .operators.facts import NodeFacts as NodeFacts

SCHEMAS, INPUT_NAMES, OUTPUT_RANKS = _schema.SCHEMAS, _schema.INPUT_NAMES, _schema.OUTPUT_RANKS
observing, register, violations, context_facts = (
    _schema.observing,
    _schema.register,
    _schema.violations,
    _schema.context_facts,
)


def output_rows(facts: NodeFacts) -> int | None:
    return OPERATORS[facts.op_type].known_dims(facts).get((0, 0))
