"""Averaging tensors among peers that come and go.

* a step: `control`, the handle on it · `config` · `core`, which runs it on one loop · `averager`, the thread-safe face
* finding a group: `group_state`, `attendance`, `leaders`, decisions without a network · `group_key`, `directory`, what
  the DHT holds · `gather`, what members tell each other · `matchmaking`
* exchanging: `load_balancing`, `partition`, who reduces what · `reducer`, `aggregation` · `allreduce`, one round
* around both: `tensors`, the lock, copies, the commit · `state`, downloads · `rounds`, `servicer`, who is called
"""

from hivemind.averaging.allreduce import AllReduceResult, AllReduceRunner
from hivemind.averaging.averager import DecentralizedAverager
from hivemind.averaging.config import AveragerKeywords, AveragerOptions
from hivemind.averaging.control import AveragingStage, RoundReport, StepControl
from hivemind.averaging.core import AveragerCore, CurrentState, Hooks
from hivemind.averaging.group import GroupInfo
from hivemind.averaging.group_key import GROUP_PATTERN, GroupKeyManager, is_valid_group
from hivemind.averaging.leaders import PotentialLeaders
from hivemind.averaging.load_balancing import hagenbach_bishoff, load_balance_peers, optimize_parts_lp
from hivemind.averaging.matchmaking import Matchmaking
from hivemind.averaging.modes import AveragingMode
from hivemind.averaging.partition import DEFAULT_PART_SIZE_BYTES, TensorPartContainer
from hivemind.averaging.reducer import TensorPartReducer
from hivemind.averaging.schema import compute_schema_hash
from hivemind.averaging.state import State
from hivemind.averaging.tensors import TensorLock
from hivemind.errors import AllreduceException, BannedException, MatchmakingException

__all__ = [
    "DEFAULT_PART_SIZE_BYTES",
    "GROUP_PATTERN",
    "AllReduceResult",
    "AllReduceRunner",
    "AllreduceException",
    "AveragerCore",
    "AveragerKeywords",
    "AveragerOptions",
    "AveragingMode",
    "AveragingStage",
    "BannedException",
    "CurrentState",
    "DecentralizedAverager",
    "GroupInfo",
    "GroupKeyManager",
    "Hooks",
    "Matchmaking",
    "MatchmakingException",
    "PotentialLeaders",
    "RoundReport",
    "State",
    "StepControl",
    "TensorLock",
    "TensorPartContainer",
    "TensorPartReducer",
    "compute_schema_hash",
    "hagenbach_bishoff",
    "is_valid_group",
    "load_balance_peers",
    "optimize_parts_lp",
]
