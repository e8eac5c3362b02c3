"""Shared by all tests: nothing may outlive a test."""
