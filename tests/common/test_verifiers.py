"""Verifiers: which answers are right, and which patterns and bounds are refused."""

from __future__ import annotations

import time

import pytest
from stillhouse.common.v1 import language_pb2 as pb

from services.common.errors import InvalidInput, Precondition
from services.common.sandbox import Outcome, Sandbox
from services.common.texts import TextRecord
from services.common.verifiers import check_verifier, code_of, numbers_of, verify

EXACT = pb.Verifier(exact_match=pb.ExactMatchVerifier())
CASE = pb.Verifier(exact_match=pb.ExactMatchVerifier(case_sensitive=True))
NUMERIC = pb.Verifier(numeric=pb.NumericVerifier())
CODE = pb.Verifier(python_tests=pb.PythonTestsVerifier())


def pattern(text: str) -> pb.Verifier:
    return pb.Verifier(regex=pb.RegexVerifier(pattern=text))


@pytest.mark.parametrize(
    ("verifier", "answer", "reference", "accepted"),
    [
        (EXACT, " Paris\n", "paris", True),
        (EXACT, "Paris.", "Paris", False),
        (CASE, "paris", "Paris", False),
        (CASE, " Paris ", "Paris", True),
        (EXACT, "anything", "", False),
        (pattern("^a+b$"), "aaab", "", True),
        (pattern("colou?r"), "the color is", "", True),
        (pattern("colou?r"), "tint", "", False),
        (pattern(""), "x12", r"\d{2}", True),
        (pattern(""), "x1", r"\d{2}", False),
        (pattern(""), "x1", "(", False),
        (NUMERIC, "so 3 + 4 = 7", "7", True),
        (NUMERIC, "7 or 8", "7", False),
        (NUMERIC, "1,234.50", "1234.5", True),
        (NUMERIC, "-0.5", "−0.5", True),
        (NUMERIC, "2e3", "2000", True),
        (NUMERIC, "none", "7", False),
        (NUMERIC, "7", "none", False),
        (NUMERIC, "0", "0", True),
        (NUMERIC, "0.001", "0", False),
        (NUMERIC, "1e999", "7", False),
    ],
)
def test_which_answers_are_right(
    verifier: pb.Verifier, answer: str, reference: str, accepted: bool
) -> None:
    record = TextRecord("r", prompt="p", reference=reference)
    verdict = verify(verifier, answer, record)
    assert verdict.accepted == accepted
    assert bool(verdict.reason) != accepted


def test_tolerance_is_relative() -> None:
    loose = pb.Verifier(numeric=pb.NumericVerifier(tolerance=0.1))
    assert verify(loose, "105", TextRecord("r", prompt="p", reference="100")).accepted
    assert not verify(loose, "120", TextRecord("r", prompt="p", reference="100")).accepted


def test_numbers_of_a_text() -> None:
    assert numbers_of("v 1.2, then 10-5 and 1,000,000 but 1,2") == [1.2, 10, 5, 1_000_000, 1, 2]


def test_patterns_take_linear_time() -> None:
    started_s = time.monotonic()
    assert not verify(pattern("(a+)+$"), "a" * 100_000 + "b", TextRecord("r", prompt="p")).accepted
    assert time.monotonic() - started_s < 5


@pytest.mark.parametrize(
    ("verifier", "error"),
    [
        (pb.Verifier(), InvalidInput),
        (pattern("(a"), InvalidInput),
        (pattern("a" * 3_000), InvalidInput),
        (pattern("(a{1000}){1000}"), InvalidInput),
        (pattern(r"(a)\1"), InvalidInput),
        (pb.Verifier(numeric=pb.NumericVerifier(tolerance=float("nan"))), InvalidInput),
        (pb.Verifier(python_tests=pb.PythonTestsVerifier(timeout_s=1e9)), InvalidInput),
        (CODE, Precondition),
    ],
)
def test_bad_verifiers_are_refused_at_once(verifier: pb.Verifier, error: type[Exception]) -> None:
    with pytest.raises(error):
        check_verifier(verifier, sandbox=None)


class _Told(Sandbox):
    """Records what it is asked to run."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, float]] = []

    def run(self, code: str, tests: str, *, timeout_s: float) -> Outcome:
        self.asked.append((code, tests, timeout_s))
        return Outcome("good" in code, "bad")


def test_code_goes_to_the_sandbox_alone() -> None:
    record = TextRecord("r", prompt="p", reference="assert f()")
    with pytest.raises(Precondition):
        verify(CODE, "x", record)
    told = _Told()
    check_verifier(CODE, sandbox=told)
    assert verify(CODE, "Here:\n```python\ngood = 1\n```\nDone.", record, sandbox=told).accepted
    assert told.asked == [("good = 1\n\n", "assert f()\n", 5.0)]
    verdict = verify(CODE, "x = 1", record, sandbox=told)
    assert (verdict.accepted, verdict.reason) == (False, "bad")
    assert not verify(CODE, "x", TextRecord("r", prompt="p"), sandbox=told).accepted


def test_code_of_an_answer() -> None:
    assert code_of("a = 1") == "a = 1"
    assert code_of("```\nx\n```\n```py\ny\n```") == "x\n"
    assert code_of("```js\nx\n```") == "```js\nx\n```"
    assert code_of("```python3 \nx\n```") == "x\n"
    padded = "```" + " " * 200_000  # minutes, where both runs of blanks may share them
    assert code_of(padded) == padded
