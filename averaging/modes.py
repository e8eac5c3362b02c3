"""What part a peer takes in a round."""

from __future__ import annotations

import enum

__all__ = ["AveragingMode"]


class AveragingMode(enum.IntEnum):
    """Part of one member in an exchange; the numbers are those of the gathered data on the wire."""

    #: sends its tensors and reduces a share of the vector
    NODE = 0
    #: sends its tensors, cannot be called, reduces nothing
    CLIENT = 1
    #: reduces a share; its own tensors count with weight 0 and are overwritten with the average
    AUX = 2
