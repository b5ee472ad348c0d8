"""The optimiser ``lion``: the sign of a momentum, with half of AdamW's memory.

Its rate is 3 to 10 times smaller than AdamW's, its decay as much larger.

::

    train:
      optimizer: {name: lion, options: {lr: 1.0e-4, weight_decay: 0.1}}
"""

from collections.abc import Iterable

import torch

import pipeline as pl


class Lion(torch.optim.Optimizer):
    """Lion; its state is a momentum for each weight, kept in ``state_dict()`` as torch does it."""

    def __init__(
        self, parameters: Iterable, lr: float, betas: tuple[float, float], weight_decay: float
    ) -> None:
        super().__init__(parameters, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for group in self.param_groups:
            (now, later), rate = group["betas"], group["lr"]
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["momentum"] = torch.zeros_like(weight)
                momentum = state["momentum"]
                weight.mul_(1 - rate * group["weight_decay"])
                weight.sub_(momentum.lerp(weight.grad, 1 - now).sign(), alpha=rate)
                momentum.lerp_(weight.grad, 1 - later)


def lion(
    parameters: Iterable,
    lr: float = 1e-4,
    betas: tuple[float, float] = (0.9, 0.99),
    weight_decay: float = 0.1,
) -> Lion:
    """Make the optimiser.

    Args:
        parameters: tensors, or groups as torch takes them; given by the package.
        lr: learning rate: how far every weight moves in a step.
        betas: share of the momentum in the step, and in the next momentum.
        weight_decay: decoupled, as AdamW's.

    Returns:
        One of torch's optimisers.

    Source: Chen et al., NeurIPS 2023.
    """
    return Lion(parameters, lr, (betas[0], betas[1]), weight_decay)


pl.register("lion", pl.OptimizerEntry(lion))
