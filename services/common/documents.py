"""What goes wrong where a JSON document is not of the form that its reader takes for granted."""

from __future__ import annotations

MALFORMED = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)
"""Catch these around `json.loads` and the reading of its fields: no JSON at all, fields that are
missing or of another type, numbers that are infinite, and lists in lists without end."""
