"""What a line of the log must not hold: secrets, and characters that forge lines.

Rules:

1. *Escaped* text has no control character (C0, DEL, C1), no line or paragraph separator, no mark
   that turns the direction of text, and no lone surrogate: it stays on its line, says what
   it seems to say, and can be encoded. Each stands as ``\\x1b`` or ``\\u202e``.
2. A *scrubbed* text has none of the secrets that were named (the token key, the password of the
   database), and nothing that looks like one: passwords in URLs, credentials after
   ``Authorization``, ``Cookie`` and their like, values of ``password=…``, bearer and JSON Web
   tokens. It rather hides too much than too little.

Scrubbing looks for patterns, so it is a net under code that takes care, not a licence to log
whole requests.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

__all__ = ["MASK", "code_of", "escape", "scrubber", "sensitive"]

MASK = "********"
SHORTEST = 6
"""Characters of a secret that is masked wherever it stands: a shorter one is part of words."""

_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


_SHORT = {"\t": r"\t", "\n": r"\n", "\r": r"\r"}


def code_of(one: str) -> str:
    """Return what a character is written as that cannot stand as it is: ``\\x1b``, ``\\u202e``."""
    return f"\\x{ord(one):02x}" if ord(one) < 256 else f"\\u{ord(one):04x}"


def _escaped(match: re.Match[str]) -> str:
    return _SHORT.get(match[0]) or code_of(match[0])


def escape(text: str) -> str:
    """Return ``text`` as rule 1 has it."""
    return _UNSAFE.sub(_escaped, text)


_FIELDS = "(?:proxy-)?authorization|(?:set-)?cookie|x-api-key|x-auth-token"
_NAMES = (
    r"[\w.-]*(?:password|passwd|passphrase|pwd|secret|api[_-]?key|access[_-]?key|private[_-]?key"
    r"|token)"
)
_QUOTED = r'"(?:[^"\\]|\\.)*"|' + r"'(?:[^'\\]|\\.)*'"
# a name, perhaps in quotes; then a colon or =, or in a pair of a tuple the comma; then a value
_FIELD = re.compile(
    rf"((?<![\w-])(?:{_FIELDS})(?:['\"]\s*[:=,]|\s*[:=])\s*b?)({_QUOTED}|[^\r\n]+)", re.IGNORECASE
)
_NAMED = re.compile(
    rf"((?<![\w.-])(?:{_NAMES})(?:['\"]\s*[:=,]|\s*[:=])\s*b?)({_QUOTED}|[^\s,;&'\")}}\]]+)",
    re.IGNORECASE,
)


def _hidden(match: re.Match[str]) -> str:
    quote = match[2][0] if match[2][0] in "'\"" else ""
    return f"{match[1]}{quote}{MASK}{quote}"


_PATTERNS = (
    (re.compile(r"(://[^\s:@/'\"]*):[^\s@/]*@"), rf"\1:{MASK}@"),
    (re.compile(r"\b(bearer|basic)\s+[\w.~+/-]{8,}=*", re.IGNORECASE), rf"\1 {MASK}"),
    (re.compile(r"\beyJ[\w-]{8,}\.[\w-]+(?:\.[\w-]*)?"), MASK),
)
# a part of everything that the patterns find
_HINT = re.compile(r"://|eyj|auth|cookie|pass|pwd|secret|key|token|bearer|basic", re.IGNORECASE)
_SENSITIVE = re.compile(rf"(?:{_FIELDS}|{_NAMES})", re.IGNORECASE)


def sensitive(name: str) -> bool:
    """Return whether what has this name is to be hidden whatever it looks like."""
    return _SENSITIVE.fullmatch(name) is not None


def scrubber(secrets: Iterable[str] = ()) -> Callable[[str], str]:
    """Return a function that gives a text as rule 2 has it.

    :param secrets: texts that are hidden wherever they stand, if they are long enough.
    """
    words = sorted({one for one in secrets if len(one) >= SHORTEST}, key=len, reverse=True)
    known = re.compile("|".join(map(re.escape, words))) if words else None

    def scrub(text: str) -> str:
        if known is not None:
            text = known.sub(MASK, text)
        if _HINT.search(text) is None:
            return text  # as nearly all are
        text = _NAMED.sub(_hidden, _FIELD.sub(_hidden, text))
        for pattern, mask in _PATTERNS:
            text = pattern.sub(mask, text)
        return text

    return scrub
