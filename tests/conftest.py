"""Shared by all tests: nothing may outlive a test (`tests.support.leaks`)."""

pytest_plugins = ["tests.support.leaks", "tests.support.properties"]
