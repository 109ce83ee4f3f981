"""A step of a Pyro program as one graph: guide, model, objective and gradient, with no Pyro code left in it.

`make_fx` runs the step once on real tensors and records every ATen operation, those of the backward pass among them.
Parameters and buffers stay the tensors that they are, so that an optimiser's update is seen by the next step; random
draws stay operations on torch's generator, so that a captured step draws the noise that the eager one would.

What Python decided while it ran (a branch, a float in a closure, a module's mode) is frozen into the graph. `Guards`
notes every plain Python value within reach of the program, and a graph is used only while all of them are what they
were; besides, a graph is held against the eager program before its first use and every so often after that.
"""

from ppl_vae.capture.guards import Guards, modules_of
from ppl_vae.capture.step import CapturedStep, CaptureError, Step, eager_step, signature, untouched

__all__ = ["CaptureError", "CapturedStep", "Guards", "Step", "eager_step", "modules_of", "signature", "untouched"]
