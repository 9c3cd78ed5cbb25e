"""Strings in a ``torch.export`` program: shown safely, and looked at only to report a file that was made to attack.

Nothing here or in `archive_graph` evaluates them; ``torch.export.load`` would.
"""

from __future__ import annotations

import re
from typing import Any

from quantinel.errors import InputError

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_TOKEN = re.compile(
    r"\s+|\d+(\.\d+)?(e-?\d+)?|'[A-Za-z0-9_.]*'|[-+*/%&|^(),=<>!\[\].]|(?P<word>[A-Za-z_][A-Za-z0-9_]*)"
)
_WORDS_OF_EXPRESSIONS = """
    Symbol Integer Float Rational Add Mul Pow Max Min Mod Abs Eq Ne Lt Le Gt Ge And Or Not Equality Unequality
    StrictLessThan LessThan StrictGreaterThan GreaterThan FloorDiv ModularIndexing Where PythonMod CleanDiv
    CeilToInt FloorToInt CeilDiv PowByNatural FloatPow FloatTrueDiv IntTrueDiv TruncToFloat TruncToInt
    RoundToInt RoundDecimal ToFloat Identity IsNonOverlappingAndDenseIndicator true false True False None
    positive integer nonnegative real finite precision dps prec oo L size stride storage_offset shape and or not
    is in max min abs math torch floor ceil ceiling trunc round sqrt _sym_sqrt log2 inf nan int_oo sym_float
    sym_max sym_min int float bool flat_args
"""
_WORDS = frozenset(_WORDS_OF_EXPRESSIONS.split())
_SYMBOL = re.compile(r"[suz][a-z]*\d+")


def shown(text: object) -> str:
    """Text from a file, short and on one line, with terminal control characters escaped."""
    content = str(text).strip()
    first = content.splitlines()[0] if content else ""
    return ascii(first[:120])


def refuse_code(program: Any) -> None:
    """Refuse a program with strings that ``torch.export.load`` would evaluate and torch does not write.

    Raises:
        InputError: an expression, guard, name or pytree specification that is not plain.
    """
    pending: list[Any] = [program]
    while pending:  # a list, not recursion: the depth is the file's choice
        item = pending.pop()
        if isinstance(item, list):
            pending.extend(item)
        if not isinstance(item, dict):
            continue
        pending.extend(item.values())
        for expression in (item.get("expr_str", ""), *list(item.get("guards_code") or [])):
            if not _is_plain(str(expression)):
                raise InputError(f"it holds a size expression with code in it ({shown(expression)}); do not open it")
        for key in ("in_spec", "out_spec"):
            if re.search(r"__enum__|default_factory", str(item.get(key, ""))):
                raise InputError(f"its {key} imports modules ({shown(item[key])}); export plain tensors instead")
        for name in (item.get("name"), item.get("as_name"), *list(item.get("forward_arg_names") or [])):
            if name and not _NAME.fullmatch(str(name)):
                raise InputError(f"it holds a name with code in it ({shown(name)}); do not open it")


def _is_plain(expression: str) -> bool:
    position = 0
    while position < len(expression):
        match = _TOKEN.match(expression, position)
        word = match["word"] if match else None
        if match is None or (word is not None and word not in _WORDS and not _SYMBOL.fullmatch(word)):
            return False
        position = match.end()
    return len(expression) < 1 << 16
