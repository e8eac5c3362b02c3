"""Path of hivemind 1.1 for `hivemind.optim.performance`."""

from hivemind.optim.performance import PerformanceEMA

__all__ = ["PerformanceEMA"]
