"""Prints the mutants of a source file, each a whole text, as a JSON list.

Those of Python are cosmic-ray's, those of C++ universalmutator's; run.py calls this in the environment of these two,
perhaps with lines: then only mutants whose first change is in one of them are printed.
"""

import ast
import contextlib
import json
import re
import sys
from pathlib import Path

# Of cosmic-ray's operators, those whose mutants the others do not make superfluous: a comparison gets its neighbours
# and its opposite, arithmetic one other operator.
OPERATORS = re.compile(
    r"core/(ReplaceComparisonOperator_(Lt_(LtE|GtE)|LtE_(Lt|Gt)|Gt_(GtE|LtE)|GtE_(Gt|Lt)|Eq_(NotEq|LtE|GtE)|NotEq_(Eq|Lt|Gt)"
    r"|Is_IsNot|IsNot_Is)|ReplaceBinaryOperator_(Add_Sub|Sub_Add|Mul_Add|Div_Mul|FloorDiv_Mul|Mod_Mul|Pow_Mul|BitAnd_BitOr"
    r"|BitOr_BitAnd|BitXor_BitOr|LShift_RShift|RShift_LShift)|ReplaceUnaryOperator_(USub_UAdd|Delete_Not|Invert_UAdd)|AddNot"
    r"|Replace(True|False|And|Or|Break|Continue)With\w+|ExceptionReplacer|NumberReplacer|RemoveDecorator|ZeroIterationForLoop)"
)
RULES = Path(__file__).with_name("cpp.rules")


def python_mutants(text: str) -> list[str]:
    from cosmic_ray import plugins
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.mutating import mutate_code

    nodes = list(ast_nodes(get_ast(text)))
    found = []
    for name in filter(OPERATORS.fullmatch, plugins.operator_names()):
        operator = plugins.get_operator(name)()
        places = [place for node in nodes for place in operator.mutation_positions(node)]
        found += [mutate_code(text, operator, occurrence) for occurrence in range(len(places))]
    original = meaning(text)
    return [mutant for mutant in found if mutant is not None and meaning(mutant) != original]


def meaning(text: str) -> str | None:
    """The syntax tree without what type checkers and linters ask for; None if there is none."""
    try:
        tree = ast.parse(text)
    except SyntaxError:
        return None
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            node.returns = None
            node.decorator_list = [one for one in node.decorator_list if ast.unparse(one) != "abstractmethod"]
        elif isinstance(node, (ast.arg, ast.AnnAssign)):
            node.annotation = ast.Constant(None)
        elif isinstance(node, ast.keyword) and node.arg in ("frozen", "strict"):
            node.value = ast.Constant(None)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "reshape":
            # For NumPy, any negative number is the dim that the others leave.
            node.args = [ast.Constant(-1) if isinstance(one, ast.UnaryOp) else one for one in node.args]
    return ast.dump(tree)


def cpp_mutants(text: str) -> list[str]:
    from universalmutator.mutator import mutants_regexp

    lines = text.splitlines(keepends=True)
    # It takes {- for the beginning of a comment, which it is in Haskell.
    spaced = [line.replace("{-", "{ -") for line in lines]
    with contextlib.redirect_stdout(sys.stderr):  # it says what it does
        changes = mutants_regexp(spaced, [str(RULES)], ignorePatterns=[])
    return ["".join([*lines[: line - 1], changed.replace("{ -", "{-"), *lines[line:]]) for line, changed, *_ in changes]


def first_change(original: str, mutant: str) -> int:
    """The number of the first line that differs, from 1 on."""
    pairs = zip(original.splitlines(), mutant.splitlines(), strict=False)
    return next((number for number, (old, new) in enumerate(pairs, 1) if old != new), 0)


if __name__ == "__main__":
    source, lines = Path(sys.argv[1]), [int(line) for line in sys.argv[2:]]
    text = source.read_text()
    mutants = dict.fromkeys((python_mutants if source.suffix == ".py" else cpp_mutants)(text))
    json.dump([mutant for mutant in mutants if not lines or first_change(text, mutant) in lines], sys.stdout)
