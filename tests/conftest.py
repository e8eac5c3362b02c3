"""Shared by all tests: nothing may outlive a test (`tests.support.leaks`) or hang it (`tests.support.bounded`)."""

pytest_plugins = ["tests.support.leaks", "tests.support.bounded"]
