"""Says whether an answer is right: exact match, a pattern, a number, or Python unit tests.

Patterns run in linear time (RE2) and code runs in an operating-system sandbox alone, so no answer
can hold up or harm the service that checks it.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import re2
from stillhouse.common.v1 import language_pb2

from services.common.errors import InvalidInput, Precondition
from services.common.sandbox import NoSandbox, Sandbox
from services.common.texts import TextRecord

DEFAULT_TOLERANCE = 1e-6
DEFAULT_TIMEOUT_S = 5.0
MAX_TIMEOUT_S = 60.0
MAX_PATTERN_CHARS = 2_000
_RE2_BYTES = 8 << 20
_NUMBER = re.compile(
    r"(?:(?<!\d)[-+−])?(?:\d{1,3}(?:[,\u00a0\u202f]\d{3})+|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?"
)
_CODE = re.compile(r"^```[ \t]*+(?:python3?|py)?[ \t]*+\r?\n(.*?)^```", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Verdict:
    """Whether an answer is accepted; `reason` says why not, for people."""

    accepted: bool
    reason: str = ""


_YES = Verdict(True)


def check_verifier(verifier: language_pb2.Verifier, *, sandbox: Sandbox | None = None) -> None:
    """Check what can be known before any answer is.

    Raises InvalidInput for a bad pattern or bound, Precondition where code cannot be run here.
    """
    kind = verifier.WhichOneof("verifier")
    if kind is None:
        raise InvalidInput("verifier: choose one", field="verifier")
    if kind == "regex" and verifier.regex.pattern:
        _compiled(verifier.regex.pattern)
    if kind == "numeric" and not 0 <= verifier.numeric.tolerance < math.inf:
        raise InvalidInput("tolerance: must be finite and not negative", field="tolerance")
    if kind == "python_tests":
        if not 0 <= verifier.python_tests.timeout_s <= MAX_TIMEOUT_S:
            raise InvalidInput(f"timeout_s: at most {MAX_TIMEOUT_S:.0f}", field="timeout_s")
        if sandbox is None:
            raise Precondition(
                "python_tests: this service runs no code; its operator can allow it where there "
                "is a sandbox"
            )
        if isinstance(sandbox, NoSandbox):
            raise Precondition(sandbox.reason)


def needs_reference(verifier: language_pb2.Verifier) -> bool:
    """Return whether the verifier looks at the record's `reference`."""
    return verifier.WhichOneof("verifier") != "regex" or not verifier.regex.pattern


def verify(
    verifier: language_pb2.Verifier,
    answer: str,
    record: TextRecord,
    *,
    sandbox: Sandbox | None = None,
) -> Verdict:
    """Return whether the answer is right. Blocking for as long as its code may run.

    Raises InvalidInput for a bad verifier, Precondition for code without a sandbox.
    """
    if needs_reference(verifier) and not record.reference:
        return Verdict(False, "the record has no reference")
    kind = verifier.WhichOneof("verifier")
    if kind == "exact_match":
        return _exact(answer, record.reference, case=verifier.exact_match.case_sensitive)
    if kind == "regex":
        return _regex(answer, verifier.regex.pattern, record.reference)
    if kind == "numeric":
        return _numeric(answer, record.reference, verifier.numeric.tolerance or DEFAULT_TOLERANCE)
    check_verifier(verifier, sandbox=sandbox)
    assert sandbox is not None
    timeout_s = verifier.python_tests.timeout_s or DEFAULT_TIMEOUT_S
    outcome = sandbox.run(f"{code_of(answer)}\n", f"{record.reference}\n", timeout_s=timeout_s)
    return _YES if outcome.passed else Verdict(False, outcome.reason)


def numbers_of(text: str) -> list[float]:
    """Return the numbers of a text in order; thousands may be separated by commas."""
    found = (re.sub(r"[,\u00a0\u202f]", "", one) for one in _NUMBER.findall(text))
    values = (float(one.replace("−", "-")) for one in found)
    return [value for value in values if math.isfinite(value)]


def code_of(answer: str) -> str:
    """Return the code of an answer: its first fenced block, else all of it."""
    found = _CODE.search(answer)
    return found.group(1) if found else answer


def _exact(answer: str, reference: str, *, case: bool) -> Verdict:
    got, want = answer.strip(), reference.strip()
    if got == want or (not case and got.lower() == want.lower()):
        return _YES
    return Verdict(False, f"not {want[:80]!r}")


def _regex(answer: str, pattern: str, reference: str) -> Verdict:
    try:
        compiled = _compiled(pattern or reference)
    except InvalidInput as error:
        if pattern:
            raise
        return Verdict(False, f"the record's reference: {error.message}")
    found = compiled.search(answer)
    return _YES if found else Verdict(False, "the pattern does not occur")


def _numeric(answer: str, reference: str, tolerance: float) -> Verdict:
    want = numbers_of(reference)
    if not want:
        return Verdict(False, "the record's reference holds no number")
    got = numbers_of(answer)
    if not got:
        return Verdict(False, "the answer holds no number")
    if math.isclose(got[-1], want[-1], rel_tol=tolerance, abs_tol=tolerance * 1e-6):
        return _YES
    return Verdict(False, f"{got[-1]:g} is not {want[-1]:g}")


def _compiled(pattern: str) -> re2._Regexp:
    """Compile a pattern. Raises InvalidInput."""
    if len(pattern) > MAX_PATTERN_CHARS:
        raise InvalidInput(f"pattern: over {MAX_PATTERN_CHARS:,} characters", field="pattern")
    options = re2.Options()
    options.max_mem = _RE2_BYTES
    options.log_errors = False
    try:
        return re2.compile(pattern, options)
    except (re2.error, UnicodeEncodeError) as error:
        said = error.args[0] if error.args else error
        text = said.decode(errors="replace") if isinstance(said, bytes) else str(said)
        raise InvalidInput(f"pattern: {text[:200]}", field="pattern") from None
