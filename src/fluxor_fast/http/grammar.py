"""What fields are made of, as expressions that several modules check by.

Sources: RFC 9110, sections 5.5 (values), 5.6.2 (tokens) and 8.6 (lengths). What a request id may
be is this project's own: one word of visible ASCII that fits into a line of a log.
"""

from __future__ import annotations

import re
from typing import Final

__all__ = ["BAD_VALUE", "TCHAR", "TOKEN", "is_length", "is_request_id"]

TCHAR: Final = r"!#$%&'*+\-.^_`|~0-9A-Za-z"
"""The characters of a token, as they stand in a set."""
TOKEN: Final = f"[{TCHAR}]+"
BAD_VALUE: Final = r"[\x00-\x08\x0a-\x1f\x7f]"
"""A character that no value has."""

is_length = re.compile(rb"[0-9]{1,18}").fullmatch
"""Whether bytes are a length; more digits than these are no length that anybody means."""
is_request_id = re.compile(rb"[\x21-\x7e]{1,128}").fullmatch
