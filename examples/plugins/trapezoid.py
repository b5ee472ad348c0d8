"""The schedule ``trapezoid``: rise, plateau, fall. A longer training shares the plateau.

::

    train:
      schedule: {name: trapezoid, options: {fall: 0.2}}
"""

import torch
from torch.optim.lr_scheduler import LambdaLR

import pipeline as pl


def trapezoid(
    optimizer: torch.optim.Optimizer, epochs: int, rise: float = 0.05, fall: float = 0.2
) -> LambdaLR:
    """Linear rise to the rate of the optimiser, which is then kept, and a linear fall.

    Args:
        optimizer: given by the package, as ``epochs``, the length of the training.
        epochs: length of the training.
        rise: share of the epochs in which the rate rises.
        fall: share of the epochs in which it falls, in the last epoch to ``1 / (fall * epochs)``.

    Returns:
        One of torch's schedules, stepped once an epoch.

    Source: Zhai et al., CVPR 2022, "Scaling vision transformers" (cooldown).
    """
    if not (rise >= 0 and fall >= 0 and rise + fall <= 1):
        raise ValueError(f"rise is {rise} and fall {fall}: shares of the epochs, together up to 1.")

    def factor(epoch: int) -> float:
        up = (epoch + 1) / max(1.0, rise * epochs)
        down = max(0, epochs - epoch) / max(1.0, fall * epochs)
        return min(1.0, up, down)

    return LambdaLR(optimizer, factor)


pl.register("trapezoid", pl.ScheduleEntry(trapezoid))
