"""A step of a Pyro program as one graph: guide, model, objective and gradient, without any Pyro code.

`make_fx` runs the step on real tensors and records every ATen operation, including those of the backward pass.
Parameters and buffers stay the same tensors, so that the next step sees an optimiser's update. Random draws stay
operations on torch's generator, so that a captured step draws the same noise as the program.

The graph freezes what Python decided during this run (a branch, a float in a closure, a module's mode). A graph is
therefore used only while everything that it depends on is unchanged:

- `signature`: the arguments and torch's switches. They form the key of a graph.
- `entered`, `places`, `reach`, `guards`: the Python values that a step can read, found from the functions that ran.
  They are checked before a step, by identity, at the cost of a few calls into C.
- `making`: the step runs once under watch, and is traced. `eager`, `comparing`, `step`: the graph, compared with the
  eager step before its first use, on the first other data, and at intervals after that. The comparison finds changes
  that no guard sees.
- `graphs`: the graphs of one program, which of them a step uses, and when another is made. `parameters` collects
  what the program optimises.
- `tracing` makes Pyro traceable. `state` notes what a step writes, and puts it back after a trial. `simplify` makes the
  graph shorter. `replay` runs the graph on a GPU; `whole` takes the optimiser's update in the same launch.
"""

from ppl_vae.capture.eager import Step, eager_step
from ppl_vae.capture.guards import Change, Guards
from ppl_vae.capture.reach import buffers_of, modules_of
from ppl_vae.capture.signature import environment, signature, unusual
from ppl_vae.capture.state import untouched
from ppl_vae.capture.step import CapturedStep
from ppl_vae.capture.tracing import CaptureError, NotNowError, OutgrownError

__all__ = [
    "CaptureError",
    "CapturedStep",
    "Change",
    "Guards",
    "NotNowError",
    "OutgrownError",
    "Step",
    "buffers_of",
    "eager_step",
    "environment",
    "modules_of",
    "signature",
    "untouched",
    "unusual",
]
