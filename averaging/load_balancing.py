"""Who reduces how much of the vector.

Every member computes the shares from the bandwidths that all have told, and must come to the same integers: this is
part of the wire format (hivemind 1.1 wire format, "Partition"). Pure; what follows from a set of bandwidths is a
linear program for the fastest round, after Moshpit SGD (2103.03239) and its load balancing.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from hivemind.errors import ConfigError
from hivemind.log import get_logger

__all__ = ["hagenbach_bishoff", "load_balance_peers", "optimize_parts_lp"]

logger = get_logger(__name__)

Floats = npt.NDArray[np.float64]


def load_balance_peers(vector_size: int, bandwidths: Sequence[float | None], min_size: int = 0) -> tuple[int, ...]:
    """How many elements of a vector each peer should reduce.

    :param bandwidths: of each peer, in any one unit; 0 = it cannot reduce, None = as the mean of those given
    :param min_size: peers whose share would be smaller reduce nothing, where bandwidths are given
    :returns: counts that add up to ``vector_size``
    :raises ConfigError: if nobody can reduce, or a bandwidth is not a finite number >= 0
    """
    for bandwidth in bandwidths:
        if bandwidth is not None and not 0 <= bandwidth < math.inf:
            raise ConfigError("bandwidth", bandwidth, "a finite number >= 0, or None")
    given = [bandwidth for bandwidth in bandwidths if bandwidth is not None and bandwidth > 0]
    if given:
        with np.errstate(over="ignore"):
            mean = float(np.mean(given))
        known = np.asarray([mean if each is None else each for each in bandwidths], dtype=np.float64)
        return hagenbach_bishoff(vector_size, optimize_parts_lp(vector_size, known, min_size).tolist())
    if None not in bandwidths:
        raise ConfigError("bandwidths", list(bandwidths), "at least one that is not 0")
    return hagenbach_bishoff(vector_size, [1.0 if bandwidth is None else 0.0 for bandwidth in bandwidths])


def optimize_parts_lp(vector_size: int, bandwidths: npt.ArrayLike, min_size: int = 0) -> Floats:
    """Shares of the vector that minimize the time of the slowest peer.

    A peer of share w and bandwidth b sends and receives 1 + (N - 2) w vectors in time (1 + (N - 2) w) / b; the program
    minimizes the greatest of these times. For N = 2 that time does not depend on w, and the answer is whatever the
    solver gives. Peers of hivemind 1.1 use scipy's "interior-point" method, so it is part of the format. Where scipy
    no longer has that method HiGHS takes its place: the shares are as good, but differ from those of peers with an
    older scipy, and such a group fails with errors about numbers of parts.

    :param bandwidths: >= 0, shape [N]
    :returns: shares, shape [N]; they need not add up to 1
    """
    given = np.asarray(bandwidths, dtype=np.float64)
    order = np.argsort(-given)
    shares = _solve(given[order])
    if shares is None:
        logger.warning("no solution of the load balancing for bandwidths %s: equal shares are used", given.tolist())
        return np.ones_like(given)
    least = min_size / vector_size if vector_size > 0 else 0.0
    if shares.max(initial=0.0) >= least:
        shares[shares < least] = 0.0
    result = np.empty_like(given)
    result[order] = np.round(shares, 9)
    return result


def _solve(bandwidths: Floats) -> Floats | None:
    """Solve for shares; ``bandwidths`` descend. The order of the constraints counts: it moves the ninth digit."""
    from scipy.optimize import linprog

    peers, able = len(bandwidths), int((bandwidths > 0).sum())
    column = np.zeros((peers, 1))
    with np.errstate(over="ignore"):  # what is not finite is refused by the solver
        costs: Floats = -1 / bandwidths[:able]
        slopes: Floats = (peers - 2) / np.where(bandwidths > 0, bandwidths, 1.0)
    enough = np.append(-np.ones(peers), 0.0)[np.newaxis]
    at_most = np.hstack([np.eye(peers), column])
    times = np.hstack([np.diag(slopes), column - 1])[:able]
    program: dict[str, Any] = {
        "c": np.append(np.zeros(peers), 1.0),
        "A_ub": np.vstack([enough, at_most, times]),
        "b_ub": np.concatenate([[-1.0], (bandwidths > 0).astype(np.float64), costs]),
    }
    for method in ("interior-point", "highs"):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the method is deprecated; ill-conditioned steps are warned of, too
                solution = linprog(**program, method=method)
        except ValueError as error:  # no such method in this scipy, or numbers that overflow
            logger.debug("load balancing by %s: %s", method, error)
        else:
            return np.asarray(solution.x, dtype=np.float64)[:peers] if solution.success else None
    return None


def hagenbach_bishoff(vector_size: int, scores: Sequence[float]) -> tuple[int, ...]:
    """Split ``vector_size`` into integers in proportion to ``scores`` by the Hagenbach-Bischoff quota.

    :param scores: >= 0, not all 0
    """
    values = np.asarray(scores, dtype=np.float64)
    total = values.sum()
    if not 0 < total < math.inf or values.min() < 0:
        raise ConfigError("scores", list(scores), "finite numbers >= 0, not all of them 0")
    allocated = np.floor(vector_size * values / total).astype(np.int64)
    while allocated.sum() < vector_size:
        allocated[np.argmax(values / (allocated + 1))] += 1
    return tuple(int(count) for count in allocated)
