"""Path of hivemind 1.1 for codecs of 8 bits."""

from hivemind.compression.blockwise import BlockwiseQuantization
from hivemind.compression.quantile import Quantile8BitQuantization
from hivemind.compression.uniform import Uniform8BitQuantization

__all__ = ["BlockwiseQuantization", "Quantile8BitQuantization", "Uniform8BitQuantization"]
