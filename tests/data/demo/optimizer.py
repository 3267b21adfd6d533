"""Muon: momentum whose matrices are made orthogonal before they are added (Jordan et al., 2024),
and AdamW for the rest."""

import torch


def orthogonal(matrices):
    """matrices (count, rows, columns) with their singular values moved close to 1, by Newton and
    Schulz's iteration."""
    x = matrices.bfloat16()
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        square = x @ x.mT
        x = 3.4445 * x + (-4.775 * square + 2.0315 * square @ square) @ x
    return (x.mT if tall else x).float()


class Optimizer:
    """Muon for the matrices of layers, whose first momentum finds copying many times sooner than
    AdamW alone; AdamW for the others."""

    MOMENTUM = 0.95
    WEIGHT_DECAY = 0.1

    def __init__(self, model):
        self.by_shape = {}
        others = []
        for parameter in model.parameters():
            in_layer = parameter.dim() == 2 and max(parameter.shape) < model.lm_head.weight.shape[0]
            if in_layer:
                self.by_shape.setdefault(parameter.shape, []).append(parameter)
            else:
                others.append(parameter)
        self.momentum = {
            shape: torch.zeros(len(group), *shape) for shape, group in self.by_shape.items()
        }
        self.adam = torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.0)

    @torch.no_grad()
    def step(self, rate):
        """rate: AdamW's; that of the matrices, whose every step has the same norm, is in
        proportion."""
        for group in self.adam.param_groups:
            group["lr"] = rate
        self.adam.step()
        self.adam.zero_grad()
        for shape, group in self.by_shape.items():
            gradients = torch.stack([parameter.grad for parameter in group])
            self.momentum[shape].lerp_(gradients, 1 - self.MOMENTUM)
            steps = orthogonal(gradients.lerp(self.momentum[shape], self.MOMENTUM))
            scale = 7 * rate * max(1.0, shape[0] / shape[1]) ** 0.5
            for parameter, step in zip(group, steps):
                parameter.mul_(1 - self.WEIGHT_DECAY * rate).sub_(step, alpha=scale)
                parameter.grad = None
