"""Training with a swarm.

* `optimizer`: `Optimizer`, what users call; `config`: its options;
* `global_step`: how an epoch ends; `planning`: rounds ahead of time;
* `epoch`: when an epoch ends (pure); `progress`: reports on the wire; `swarm_view`: what a peer knows of the others;
  `reporting`: its network side; `tracker`: all of that for users; `performance`: the speed of a peer;
* `accumulate`: microbatches to one gradient; `grad_averager`: the average of those;
* `training_state`: parameters, optimizer, schedule and epoch as one; `structure`, `flatten`: the optimizer's state on
  the wire; `state_averager`: averages and hands out the state.
"""

from hivemind.optim.config import OptimizerOptions, TrackerOptions
from hivemind.optim.epoch import GlobalTrainingProgress, LocalTrainingProgress
from hivemind.optim.grad_averager import GradientAverager
from hivemind.optim.optimizer import Optimizer
from hivemind.optim.state_averager import TrainingStateAverager
from hivemind.optim.tracker import ProgressTracker

__all__ = [
    "GlobalTrainingProgress",
    "GradientAverager",
    "LocalTrainingProgress",
    "Optimizer",
    "OptimizerOptions",
    "ProgressTracker",
    "TrackerOptions",
    "TrainingStateAverager",
]
