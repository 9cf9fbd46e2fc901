"""A fixed-answer gateway for each test."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import structlog

from tests.client import fake_gateway


@pytest.fixture
def gateway() -> Iterator[fake_gateway.World]:
    quiet = structlog.make_filtering_bound_logger(logging.ERROR)
    structlog.configure(wrapper_class=quiet)
    with fake_gateway.serve() as world:
        yield world
    structlog.reset_defaults()
