"""Fixtures of all tests."""

import pytest
import torch


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Make every test draw the same numbers on every run, alone or with others."""
    torch.manual_seed(0)
