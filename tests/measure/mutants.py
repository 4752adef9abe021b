"""Draw mutants: single lines inside functions, with a change of behaviour.

A line is drawn with equal chance among all that can be changed, and then one of its changes.
"""

import ast
import random
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

FLIPPED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Eq: ast.NotEq,
    ast.Lt: ast.LtE,
    ast.Gt: ast.GtE,
    ast.Is: ast.IsNot,
    ast.In: ast.NotIn,
}
FLIPPED |= {flipped: kind for kind, flipped in FLIPPED.items()}
SWAPPED: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
}
DROPPED = (ast.Assign, ast.AugAssign, ast.AnnAssign, ast.Break, ast.Continue, ast.Expr, ast.Raise)


@dataclass(frozen=True, order=True)
class Mutant:
    """One changed line.

    Attributes:
        path: of the file, beginning with the package's name.
        line: its number, from 1.
        change: what is done to it.
        text: the line afterwards.
        statement: first and last line of the statement that it is in; of a compound one, the
            header's.
    """

    path: str
    line: int
    change: str
    text: str
    statement: tuple[int, int]


def statements(node: ast.AST, in_function: bool = False) -> Iterator[ast.stmt]:
    """Yield the statements inside functions, without docstrings and inner functions' headers."""
    for child in ast.iter_child_nodes(node):
        is_function = isinstance(child, ast.FunctionDef)
        match child:
            case ast.FunctionDef() | ast.ClassDef() | ast.Expr(ast.Constant(str())):
                pass
            case ast.stmt() if in_function:
                yield child
        yield from statements(child, in_function or is_function)


def expressions(node: ast.AST) -> Iterator[ast.expr | ast.comprehension]:
    """Yield the expressions of a statement, without its inner statements and annotations."""
    for name, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            # Python before 3.12 does not know where in its line a part of an f-string is.
            if name == "annotation" or isinstance(child, ast.stmt | ast.JoinedStr):
                continue
            if isinstance(child, ast.expr | ast.comprehension):
                yield child
            if isinstance(child, ast.AST):
                yield from expressions(child)


def replacements(node: ast.AST) -> Iterator[tuple[str, ast.expr, ast.expr]]:
    """Yield the changes of one node: what is done, the expression, and what replaces it."""
    match node:
        case ast.Compare(left, [op], right) if type(op) in FLIPPED:
            yield "flip comparison", node, ast.Compare(left, [FLIPPED[type(op)]()], right)
        case ast.BoolOp(op, values):
            other = ast.Or() if isinstance(op, ast.And) else ast.And()
            yield "swap and/or", node, ast.BoolOp(other, values)
        case ast.BinOp(left, op, right) if type(op) in SWAPPED:
            yield "swap operator", node, ast.BinOp(left, SWAPPED[type(op)](), right)
        case ast.UnaryOp(ast.Not() | ast.USub(), operand):
            yield "drop sign", node, operand
        case ast.Constant(bool(value)):
            yield "flip constant", node, ast.Constant(not value)
        case ast.Constant(int(value) | float(value)):
            yield "number + 1", node, ast.Constant(value + 1)
            yield "number - 1", node, ast.Constant(value - 1)
        case ast.Constant(str(value)):
            yield "change text", node, ast.Constant(value + "_")
        case ast.Call(func, [first, second, *rest], keywords):
            yield "swap arguments", node, ast.Call(func, [second, first, *rest], keywords)
        case ast.If(test) | ast.While(test) | ast.IfExp(test):
            yield "negate condition", test, ast.UnaryOp(ast.Not(), test)
        case ast.comprehension(ifs=[test]):
            yield "negate condition", test, ast.UnaryOp(ast.Not(), test)
        case ast.Return(ast.expr() as value):
            yield "return None", value, ast.Constant(None)


def changes(statement: ast.stmt) -> Iterator[tuple[str, ast.stmt | ast.expr, str]]:
    """Yield the changes of a statement: what is done, the node, and the text that replaces it."""
    if isinstance(statement, DROPPED):
        yield "drop statement", statement, "pass"
    for node in (statement, *expressions(statement)):
        for change, old, new in replacements(node):
            with suppress(ValueError):  # a backslash in an f-string, in Python before 3.12
                yield change, old, f"({ast.unparse(new)})"


def header(statement: ast.stmt) -> tuple[int, int]:
    """Return the first and last line of a statement, of a compound one up to its body."""
    body = getattr(statement, "body", None) or getattr(statement, "cases", None)
    if not body:
        return statement.lineno, statement.end_lineno or statement.lineno
    first = body[0].pattern if isinstance(body[0], ast.match_case) else body[0]
    return statement.lineno, max(statement.lineno, first.lineno - 1)


def file_mutants(source: str, path: str) -> Iterator[Mutant]:
    """Yield all mutants of a file; some may not be valid Python."""
    lines = source.split("\n")
    for statement in statements(ast.parse(source)):
        for change, node, text in changes(statement):
            if node.lineno == node.end_lineno:
                raw = lines[node.lineno - 1].encode()  # the tree counts bytes
                raw = raw[: node.col_offset] + text.encode() + raw[node.end_col_offset :]
                yield Mutant(path, node.lineno, change, raw.decode(), header(statement))


def apply(mutant: Mutant, source: str) -> str:
    """Return a file with its mutant's line; SyntaxError if that is not Python."""
    lines = source.split("\n")
    lines[mutant.line - 1] = mutant.text
    changed = "\n".join(lines)
    compile(changed, mutant.path, "exec")
    return changed


def draw_mutants(package: Path, seed: int, count: int) -> list[Mutant]:
    """Draw mutants of a package.

    Args:
        package: its folder.
        seed: the same seed draws the same mutants of the same files.
        count: how many; fewer if there are not so many lines.

    Returns:
        Mutants of different lines, in the order drawn.
    """
    sources, by_line = {}, defaultdict(list)
    for path in sorted(package.rglob("*.py")):
        name = path.relative_to(package.parent).as_posix()
        sources[name] = path.read_text(encoding="utf-8")
        for mutant in file_mutants(sources[name], name):
            by_line[mutant.path, mutant.line].append(mutant)
    generator, drawn = random.Random(seed), []
    lines = sorted(by_line)
    for line in generator.sample(lines, len(lines)):
        mutants = sorted(by_line[line])
        for mutant in generator.sample(mutants, len(mutants)):
            with suppress(SyntaxError):
                apply(mutant, sources[mutant.path])
                drawn.append(mutant)
                break
        if len(drawn) == count:
            break
    return drawn
