"""Small faults for Python source, of the kinds that reach a reader: a sign, a factor of ten, two
columns exchanged, "slower" for "faster", a wrong neighbour, a warning turned round.

In what puts a page together it is a call that is left out, a caption that is not set, an option
that is on instead of off.

`faults_in(path, text)` gives all that a module can have. They are made on the syntax tree, so that
each is a program again, and the words of f-strings are found as well as those of plain strings.
What nobody reads or computes is left alone: docstrings, annotations, decorators, imports, asserts.
"""

import ast
import copy
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

KINDS = (
    "sign", "factor of 10", "exchanged", "direction", "neighbour", "condition", "wrong whole",
    "unit", "dropped", "left out",
)  # fmt: skip

_PAIRS = """
    more/fewer more/less gains/loses gain/lose faster/slower fast/slow above/below smaller/larger
    smallest/largest better/worse up/down higher/lower raises/lowers raised/lowered longer/shorter
    nearer/further before/after first/second earlier/later first/last increases/decreases
    beyond/within symmetric/asymmetric received/handed most/least low/high helped/harmed
"""
OPPOSITES: dict[str, str] = {}
for _pair in _PAIRS.split():
    _one, _other = _pair.split("/")
    OPPOSITES.setdefault(_one, _other)
    OPPOSITES.setdefault(_other, _one)
UNITS = {
    " ms": " µs", " µs": " ms", " kB": " MB", " MB": " kB", " GB": " MB", "GB/s": "MB/s",
    " %": "", "×": " %", " bits": " bytes", " bytes": " bits", "bit": "byte", " tokens": " columns",
    " columns": " rows", " rows": " columns",
}  # fmt: skip
_WORDS = re.compile(rf"\b({'|'.join(sorted(OPPOSITES, key=len, reverse=True))})\b", re.IGNORECASE)
_UNITS = re.compile(
    rf"({'|'.join(map(re.escape, sorted(UNITS, key=len, reverse=True)))})(?![\w{{])"
)

NAMES = {"name", "label", "title", "placeholder"}  # of parts of a page or of a chart
TYPES = {"str", "int", "bool", "Any", "Row"}
FORMATTERS = {"number", "percent", "signed", "counted", "three", "share", "size", "duration", "_n"}
SHARES = {"percent", "share"}
ROUND = {10, 100, 1000, 1e6, 1e9}
#: The order of their arguments says nothing, or a mistake in it can only crash.
SYMMETRIC = {
    "max", "min", "equal", "isclose", "allclose", "isinstance", "getattr", "setattr", "hasattr",
    "gcd", "range", "maximum", "minimum", "cast", "cat", "stack", "join",
}  # fmt: skip


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong in a module: `before` and `after` are the place as Python text,
    `function` the outermost one around it ("Class.method"; empty: none is)."""

    file: str
    line: int
    kind: str
    before: str
    after: str
    function: str
    _tree: ast.Module = field(repr=False, compare=False)
    _node: ast.AST = field(repr=False, compare=False)
    _new: ast.AST = field(repr=False, compare=False)

    @property
    def name(self) -> str:
        return f"{self.file}: {self.before} → {self.after}"

    @property
    def source(self) -> str:
        """The whole module with this fault."""
        return ast.unparse(copy.deepcopy(self._tree, {id(self._node): self._new}))


def faults_in(file: str, text: str) -> list[Fault]:
    """Every fault of these kinds that the module `text` can have, in the order of its lines."""
    tree = ast.parse(text)
    found: dict[tuple[int, str, str], Fault] = {}
    for node, function in _nodes(tree, _Place()):
        for kind, new in _faults_of(node, function):
            before, after = _difference(_said(node), _said(new))
            if before != after:
                line = getattr(node, "lineno", 0)
                fault = Fault(file, line, kind, before, after, function, tree, node, new)
                found.setdefault((line, before, after), fault)
    return sorted(found.values(), key=lambda fault: fault.line)


def _difference(one: str, other: str, around: int = 30) -> tuple[str, str]:
    """Both texts, cut to where they differ and a little before and after it."""
    same = min(len(one), len(other))
    start = next((i for i in range(same) if one[i] != other[i]), same)
    most = same - start
    end = next((i for i in range(most) if one[-1 - i] != other[-1 - i]), most)
    start, end = max(start - around, 0), max(end - around, 0)
    return one[start : len(one) - end], other[start : len(other) - end]


def _said(node: ast.AST) -> str:
    return " ".join(ast.unparse(ast.fix_missing_locations(copy.deepcopy(node))).split())


@dataclass(frozen=True)
class _Place:
    """The classes around a node, and the outermost function, where it stands in one."""

    classes: tuple[str, ...] = ()
    function: str = ""

    def within(self, node: ast.AST) -> "_Place":
        if self.function:
            return self
        if isinstance(node, ast.ClassDef):
            return _Place((*self.classes, node.name))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            return _Place((), ".".join([*self.classes, getattr(node, "name", "<lambda>")]))
        return self


def _nodes(node: ast.AST, place: _Place) -> Iterator[tuple[ast.AST, str]]:
    """What can be wrong, and the function that it stands in; the rest is passed over."""
    if isinstance(node, ast.Assert | ast.Import | ast.ImportFrom):
        return
    if isinstance(node, ast.Assign) and _said(node.targets[0]) == "__all__":
        return
    yield node, place.function
    within = place.within(node)
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "bases", "type_comment"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and not _is_prose(child):
                if isinstance(child, ast.Constant) and name == "args" and _makes_a_part(node):
                    continue  # its name on the page, which no value decides: a reader checks it
                if isinstance(child, ast.Constant) and getattr(node, "arg", "") in NAMES:
                    continue
                if isinstance(child, ast.Constant) and child in _named_in(node):
                    continue
                found = _nodes(child, within)
                if name == "comparators" and isinstance(child, ast.Tuple):
                    next(found)  # `x in (a, b)`: their order says nothing
                yield from found


def _named_in(node: ast.AST) -> list[ast.expr]:
    """What stands under one of NAMES in a dict: `{"name": "the closest within the budget"}`."""
    pairs = zip(node.keys, node.values, strict=True) if isinstance(node, ast.Dict) else ()
    return [value for key, value in pairs if isinstance(key, ast.Constant) and key.value in NAMES]


def _makes_a_part(node: ast.AST) -> bool:
    """`Chart("Error against bits")`, `section("What is stored", …)`."""
    called = getattr(getattr(node, "func", None), "id", "")
    made = called[:1].isupper() and not called.endswith("Error")
    return made or called in ("section", "details")


def _is_prose(node: ast.AST) -> bool:
    """A string that stands alone: a docstring."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _faults_of(node: ast.AST, function: str) -> Iterator[tuple[str, ast.AST]]:
    """(kind, what stands there instead) for one node."""
    makers = {
        ast.UnaryOp: _unary, ast.BinOp: _binary, ast.Call: _call, ast.JoinedStr: _joined,
        ast.Subscript: _subscript, ast.If: _tested, ast.IfExp: _tested, ast.BoolOp: _both,
        ast.Compare: _compared, ast.List: _listed, ast.Dict: _mapped, ast.Tuple: _tuple,
        ast.AugAssign: _added, ast.Expr: _done, ast.Assign: _assigned, ast.keyword: _option,
    }  # fmt: skip
    if isinstance(node, ast.Constant) and isinstance(node.value, str) and function:
        yield from _text(node.value)
    elif isinstance(node, ast.Assign) and function.endswith("__init__"):
        return  # without a part that it begins with, an object can only crash
    elif type(node) in makers:
        yield from makers[type(node)](node)


def _text(text: str) -> Iterator[tuple[str, ast.AST]]:
    """Fixed texts outside functions are prose: a reader checks them, no computed value can."""
    if "<m" in text:  # MathML
        return
    for found in _WORDS.finditer(text):
        word = OPPOSITES[found[0].lower()]
        word = word.capitalize() if found[0][0].isupper() else word
        yield "direction", ast.Constant(text[: found.start()] + word + text[found.end() :])
    for found in _UNITS.finditer(text):
        yield "unit", ast.Constant(text[: found.start()] + UNITS[found[1]] + text[found.end() :])


def _unary(node: ast.UnaryOp) -> Iterator[tuple[str, ast.AST]]:
    if isinstance(node.op, ast.USub) and not isinstance(node.operand, ast.Constant):
        yield "sign", node.operand
    if isinstance(node.op, ast.Not):
        yield "condition", node.operand


def _is_text(node: ast.AST) -> bool:
    return any(
        isinstance(part, ast.JoinedStr | ast.List | ast.Tuple | ast.ListComp)
        or (isinstance(part, ast.Constant) and isinstance(part.value, str))
        for part in ast.walk(node)
    )


def _binary(node: ast.BinOp) -> Iterator[tuple[str, ast.AST]]:
    left, op, right = node.left, node.op, node.right
    one = isinstance(right, ast.Constant) and right.value == 1
    if isinstance(op, ast.Add | ast.Sub) and not _is_text(node):
        if one:
            yield "neighbour", left
        else:
            other = ast.Sub() if isinstance(op, ast.Add) else ast.Add()
            yield "sign", ast.BinOp(left, other, right)
    if isinstance(op, ast.Sub) and not one:
        yield "exchanged", ast.BinOp(right, op, left)
    if isinstance(op, ast.Div) and not _is_text(node):  # paths are divided as well
        yield "exchanged", ast.BinOp(right, op, left)
        if not isinstance(left, ast.Constant) and not isinstance(right, ast.Constant):
            yield "wrong whole", ast.BinOp(left, op, ast.BinOp(left, ast.Add(), right))
    if isinstance(op, ast.Mult | ast.Div):
        for side in ("left", "right"):
            constant = getattr(node, side)
            if isinstance(constant, ast.Constant) and constant.value in ROUND:
                new = ast.BinOp(left, op, right)
                setattr(new, side, ast.Constant(constant.value * 10))
                yield "factor of 10", new


def _call(node: ast.Call) -> Iterator[tuple[str, ast.AST]]:
    name = getattr(node.func, "attr", getattr(node.func, "id", ""))
    arguments = node.args
    if name in FORMATTERS and arguments:
        first, rest = arguments[0], arguments[1:]
        ten = ast.Constant(10)
        more, less = ast.BinOp(ten, ast.Mult(), first), ast.BinOp(first, ast.Div(), ten)
        for new in (more, less) if name != "counted" else (more,):
            yield "factor of 10", ast.Call(node.func, [new, *rest], node.keywords)
        if name in SHARES:
            other = ast.BinOp(ast.Constant(1), ast.Sub(), first)
            yield "wrong whole", ast.Call(node.func, [other, *rest], node.keywords)
        if name != "counted":
            minus = ast.UnaryOp(ast.USub(), first)
            yield "sign", ast.Call(node.func, [minus, *rest], node.keywords)
    if name not in SYMMETRIC:
        for new in _exchanged(arguments):
            yield "exchanged", ast.Call(node.func, new, node.keywords)


def _exchanged(items: list[ast.expr]) -> Iterator[list[ast.expr]]:
    """The items with two neighbours exchanged; constants are not what is mistaken for others."""
    for i in range(len(items) - 1):
        two = items[i : i + 2]
        if not any(isinstance(one, ast.Constant | ast.Starred | ast.Lambda) for one in two):
            yield [*items[:i], two[1], two[0], *items[i + 2 :]]


def _joined(node: ast.JoinedStr) -> Iterator[tuple[str, ast.AST]]:
    places = [i for i, part in enumerate(node.values) if isinstance(part, ast.FormattedValue)]
    for one, other in itertools.pairwise(places):
        parts = list(node.values)
        parts[one], parts[other] = parts[other], parts[one]
        yield "exchanged", ast.JoinedStr(parts)
    for place in places:
        part = node.values[place]
        yield "dropped", ast.JoinedStr([*node.values[:place], *node.values[place + 1 :]])
        if part.format_spec is not None and _said(part.format_spec)[2:-1].endswith("g"):
            more = ast.BinOp(ast.Constant(10), ast.Mult(), part.value)
            new = ast.FormattedValue(more, part.conversion, part.format_spec)
            parts = [*node.values[:place], new, *node.values[place + 1 :]]
            yield "factor of 10", ast.JoinedStr(parts)


def _subscript(node: ast.Subscript) -> Iterator[tuple[str, ast.AST]]:
    at = node.slice
    if not isinstance(node.ctx, ast.Load):
        return
    if isinstance(at, ast.Constant) and type(at.value) is int:
        yield "neighbour", ast.Subscript(node.value, ast.Constant(at.value + 1), node.ctx)
    elif isinstance(at, ast.UnaryOp) and isinstance(at.operand, ast.Constant):
        other = ast.Constant(-at.operand.value - 1)
        yield "neighbour", ast.Subscript(node.value, other, node.ctx)
    elif isinstance(at, ast.Name) and len(at.id) <= 4 and at.id not in TYPES:
        # A counter: names of keys are longer.
        other = ast.BinOp(at, ast.Sub(), ast.Constant(1))
        yield "neighbour", ast.Subscript(node.value, other, node.ctx)


def _not(test: ast.expr) -> ast.expr:
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        return test.operand
    return ast.UnaryOp(ast.Not(), test)


def _tested(node: ast.If | ast.IfExp) -> Iterator[tuple[str, ast.AST]]:
    if "TYPE_CHECKING" not in _said(node.test):
        yield "condition", type(node)(_not(node.test), node.body, node.orelse)


def _both(node: ast.BoolOp) -> Iterator[tuple[str, ast.AST]]:
    if all(isinstance(part, ast.Name | ast.Attribute | ast.Constant) for part in node.values):
        return  # a default: `given or other`
    other = ast.Or if isinstance(node.op, ast.And) else ast.And
    yield "condition", ast.BoolOp(other(), node.values)


def _compared(node: ast.Compare) -> Iterator[tuple[str, ast.AST]]:
    turned = {ast.Lt: ast.GtE, ast.Gt: ast.LtE, ast.LtE: ast.Gt, ast.GtE: ast.Lt,
              ast.Eq: ast.NotEq, ast.NotEq: ast.Eq}  # fmt: skip
    if len(node.ops) == 1 and type(node.ops[0]) in turned:
        yield "condition", ast.Compare(node.left, [turned[type(node.ops[0])]()], node.comparators)


def _listed(node: ast.List) -> Iterator[tuple[str, ast.AST]]:
    if isinstance(node.ctx, ast.Load) and len(node.elts) > 1:
        for i in range(len(node.elts)):
            yield "dropped", ast.List([*node.elts[:i], *node.elts[i + 1 :]], node.ctx)
        for new in _exchanged(node.elts):
            yield "exchanged", ast.List(new, node.ctx)


def _mapped(node: ast.Dict) -> Iterator[tuple[str, ast.AST]]:
    values = node.values
    for i in range(len(values) - 1):
        if not any(
            isinstance(v, ast.Constant) or _said(v).startswith("{") for v in values[i : i + 2]
        ):
            new = [*values[:i], values[i + 1], values[i], *values[i + 2 :]]
            yield "exchanged", ast.Dict(node.keys, new)


def _tuple(node: ast.Tuple) -> Iterator[tuple[str, ast.AST]]:
    if isinstance(node.ctx, ast.Load):
        # Classes in a tuple are a choice: their order says nothing.
        names = [part.id for part in node.elts if isinstance(part, ast.Name)]
        if not any(name[0].isupper() and not name.isupper() for name in names):
            for new in _exchanged(node.elts):
                yield "exchanged", ast.Tuple(new, node.ctx)


def _added(node: ast.AugAssign) -> Iterator[tuple[str, ast.AST]]:
    """`text += …` left out; a sum that subtracts."""
    if isinstance(node.op, ast.Add):
        if _is_text(node.value):
            yield "dropped", ast.Pass()
        else:
            yield "sign", ast.AugAssign(node.target, ast.Sub(), node.value)


def _done(node: ast.Expr) -> Iterator[tuple[str, ast.AST]]:
    """Something that is not said (`words.append(…)`), or not done (`self.caption.set_texts(…)`)."""
    name = _said(node.value.func) if isinstance(node.value, ast.Call) else ""
    if name.endswith(".append") or name == "say":
        yield "dropped", ast.Pass()
    elif name and not name.startswith("super()"):
        yield "left out", ast.Pass()


def _assigned(node: ast.Assign) -> Iterator[tuple[str, ast.AST]]:
    """What stays as it was: `self.note.text = …`; a local name left out can only crash."""
    if all(isinstance(target, ast.Attribute) for target in node.targets):
        yield "left out", ast.Pass()


def _option(node: ast.keyword) -> Iterator[tuple[str, ast.AST]]:
    """`looks=True`, or what decides it turned round."""
    if isinstance(node.value, ast.Constant) and isinstance(node.value.value, bool):
        yield "condition", ast.keyword(node.arg, ast.Constant(not node.value.value))
