"""A step of a Pyro program as one graph: guide, model, objective and gradient, with no Pyro code left in it.

`make_fx` runs the step on real tensors and records every ATen operation, those of the backward pass among them.
Parameters and buffers stay the tensors that they are, so that an optimiser's update is seen by the next step; random
draws stay operations on torch's generator, so that a captured step draws the noise that the program would.

What Python decided while it ran (a branch, a float in a closure, a module's mode) is frozen into the graph, so that a
graph is used only while all that it depends on is what it was:

- `signature`: the arguments and torch's switches, which make the key of a graph.
- `entered`, `places`, `reach`, `guards`: the Python values that the functions which ran can read, found from what ran;
  checked before a step, by identity and at the cost of calls into C.
- `eager`, `comparing`, `step`: the graph, held against the program as it is written before its first use, on the first
  other data, and every so often after that: what no guard sees is found there.
- `tracing`: what makes Pyro traceable. `state`: what a step writes, put back after a trial. `simplify`: the graph made
  shorter. `replay`: the graph on a GPU.
"""

from ppl_vae.capture.eager import Step, eager_step
from ppl_vae.capture.guards import Change, Guards
from ppl_vae.capture.reach import buffers_of, modules_of
from ppl_vae.capture.signature import environment, signature, unusual
from ppl_vae.capture.state import untouched
from ppl_vae.capture.step import CapturedStep
from ppl_vae.capture.tracing import CaptureError, NotNowError

__all__ = [
    "CaptureError",
    "CapturedStep",
    "Change",
    "Guards",
    "NotNowError",
    "Step",
    "buffers_of",
    "eager_step",
    "environment",
    "modules_of",
    "signature",
    "untouched",
    "unusual",
]
