r"""A Kolmogorov-Arnold layer (KAN, arXiv 2404.19756): learnable univariate functions on the edges, sums at the nodes.

    y_o = sum_i phi_{o,i}(x_i),        phi(x) = w_b silu(x) + w_s sum_g c_g B_g(x)        (Eq. 2.10-2.12)

The B_g are B-splines of one degree on equally spaced knots that reach `degree` spacings beyond [low, high] on either
side, so they sum to 1 on [low, high]. Outside the knots the splines are zero and phi is its SiLU part.

Cox-de Boor, with knots t_g:  B_{g,0} = 1 on [t_g, t_{g+1}),
    B_{g,p}(x) = (x - t_g) / (t_{g+p} - t_g) B_{g,p-1}(x) + (t_{g+p+1} - x) / (t_{g+p+1} - t_{g+1}) B_{g+1,p-1}(x).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["KanLayer", "bsplines", "uniform_knots"]


def uniform_knots(splines: int, degree: int, low: float, high: float) -> Tensor:
    """Knots of `splines` B-splines of `degree` that sum to 1 on [low, high]."""
    if splines <= degree:
        raise ValueError(f"splines: must be an integer above the degree {degree}, got {splines}")
    if not low < high:
        raise ValueError(f"high: must be above low={low}, got {high}")
    spacing = (high - low) / (splines - degree)
    return low + spacing * torch.arange(-degree, splines + 1, dtype=torch.float64)


def bsplines(x: Tensor, knots: Tensor, degree: int) -> Tensor:
    """Values `[*x.shape, len(knots) - degree - 1]` of the B-splines on `knots`."""
    x = x[..., None]
    found = ((x >= knots[:-1]) & (x < knots[1:])).to(x.dtype)
    for p in range(1, degree + 1):
        rise = (x - knots[: -p - 1]) / (knots[p:-1] - knots[: -p - 1])
        fall = (knots[p + 1 :] - x) / (knots[p + 1 :] - knots[1:-p])
        found = rise * found[..., :-1] + fall * found[..., 1:]
    return found


class KanLayer(nn.Module):
    """`[..., inputs] -> [..., outputs]`; see the module docstring.

    Args:
        inputs: number of arguments x_i.
        outputs: number of sums y_o.
        splines: B-splines per function.
        degree: of the splines; 3 = cubic.
        low: lower end of the interval that they cover.
        high: upper end.
        noise: size of the initial functions.
    """

    knots: Tensor

    def __init__(
        self,
        inputs: int,
        outputs: int,
        splines: int = 8,
        degree: int = 3,
        low: float = -1.0,
        high: float = 1.0,
        noise: float = 0.1,
    ) -> None:
        super().__init__()
        self.degree = degree
        self.register_buffer("knots", uniform_knots(splines, degree, low, high).float(), persistent=False)
        self.base = nn.Parameter(noise * torch.randn(outputs, inputs) / math.sqrt(inputs))
        self.scale = nn.Parameter(torch.ones(outputs, inputs))
        self.coefficients = nn.Parameter(noise * torch.randn(outputs, inputs, splines))

    def forward(self, x: Tensor) -> Tensor:
        curves = torch.einsum("...ig,oig,oi->...o", bsplines(x, self.knots, self.degree), self.coefficients, self.scale)
        return curves + F.silu(x) @ self.base.T
