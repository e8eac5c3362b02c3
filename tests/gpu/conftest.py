"""Tests of what runs on GPUs: on the first one that torch can use, else on one that is emulated."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.emulated_gpu import gpu


@pytest.fixture(autouse=True)
def one_gpu() -> Iterator[None]:
    with gpu():
        yield
