"""The grammar of JSON (RFC 8259), as regular expressions over bytes that skip much at a time. Pure.

What has matched is never tried again, so a document costs what its length is, and the engine keeps no list of ways back. A
nested value that is deeper than these look, or not whole yet, is tried once a level and then stepped through.
"""

from __future__ import annotations

import re
from typing import Final


def run_of(one: bytes) -> bytes:
    """Any number of these in a row, possessively.

    The group within looks superfluous and is not: before Python 3.11.5, a possessive repetition of something that fails
    half-way ends where it failed, and not where the last whole one ended. An atomic group goes back by itself.
    """
    return rb"(?:(?>" + one + rb"))*+"


WS: Final = rb"[ \t\r\n]*+"
CHARS: Final = rb'[^"\\\x00-\x1f]*+' + run_of(rb'\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})[^"\\\x00-\x1f]*+')
STRING: Final = rb'"' + CHARS + rb'"'
NUMBER: Final = rb"-?(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?(?:[eE][+-]?[0-9]++)?"
_BETWEEN: Final = rb"[ \t\r\n,:0-9+\-.eEtrufalsn]++"
"""All that stands outside of strings and brackets."""


def _nested(levels: int) -> bytes:
    inside = _BETWEEN + rb"|" + STRING
    if levels > 1:
        inside += rb"|" + _nested(levels - 1)
    return rb"[\[{]" + run_of(inside) + rb"[\]}]"


_NESTED: Final = _nested(levels=4)
ANY: Final = rb"(?:" + STRING + rb"|" + NUMBER + rb"|true|false|null|" + _NESTED + rb")"

SPACE: Final = re.compile(WS)
SKIP: Final = re.compile(run_of(_BETWEEN + rb"|" + STRING + rb"|" + _NESTED))
SKIP_NESTED: Final = re.compile(_NESTED)
SKIP_CHARS: Final = re.compile(CHARS)
SCALAR: Final = re.compile(rb"(?:" + STRING + rb"|(?:" + NUMBER + rb"|true|false|null)(?=[ \t\r\n,\]}]))")
NAME: Final = re.compile(rb"(" + STRING + rb")(?:" + WS + rb"(:))?")

# What a token may look like where a piece ends.
CUT_ESCAPE: Final = re.compile(rb"\\(?:u[0-9a-fA-F]{0,3})?")
CUT_STRING: Final = re.compile(rb'"' + CHARS + rb"(?:" + CUT_ESCAPE.pattern + rb")?")
CUT_SCALAR: Final = re.compile(
    CUT_STRING.pattern + rb"|[-0-9][-+.0-9eE]*+|t(?:r(?:ue?)?)?|f(?:a(?:l(?:se?)?)?)?|n(?:u(?:ll?)?)?"
)
