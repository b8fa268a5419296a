"""The law L(N, D) = E + A/N^α + B/D^β, what training costs, and the best size for a budget.

Everything here takes many laws at once (the fit and its bootstrap replicates), as arrays (R,).
"""

from dataclasses import dataclass

import numpy as np

from tokenwm.scaling.law.solve import Array


@dataclass(frozen=True, kw_only=True)
class Laws:
    """R laws.

    Attributes:
        irreducible: E, nats per token, (R,).
        log_a: Natural logarithm of A, (R,).
        log_b: Natural logarithm of B, (R,).
        alpha: Exponent of size, (R,).
        beta: Exponent of data, (R,).
    """

    irreducible: Array
    log_a: Array
    log_b: Array
    alpha: Array
    beta: Array

    @classmethod
    def from_centred(cls, parameters: Array, mean_log_n: float, mean_log_d: float) -> "Laws":
        """From parameters (R, 5) of :mod:`tokenwm.scaling.law.solve`."""
        e, a, b, alpha, beta = parameters.T
        return cls(
            irreducible=np.exp(e),
            log_a=a + alpha * mean_log_n,
            log_b=b + beta * mean_log_d,
            alpha=alpha,
            beta=beta,
        )

    def loss(self, log_n: Array, log_d: Array) -> Array:
        """Nats per token for log N and log D that broadcast with (R,)."""
        return np.asarray(
            self.irreducible
            + np.exp(self.log_a - self.alpha * log_n)
            + np.exp(self.log_b - self.beta * log_d)
        )


@dataclass(frozen=True, kw_only=True)
class TrainingCost:
    """FLOPs of training: C = factor · N^(1 + bend) · D.

    Attributes:
        log_factor: Natural logarithm of the factor; 6 where attention costs nothing.
        bend: 0 if FLOPs per parameter do not depend on the size.
        largest_error: Largest error of the runs' FLOPs against this, as a fraction.
    """

    log_factor: float
    bend: float
    largest_error: float

    @classmethod
    def from_runs(cls, log_n: Array, log_d: Array, log_c: Array) -> "TrainingCost":
        """Least squares through the runs' own exact counts."""
        per_product = log_c - log_n - log_d
        centred = log_n - log_n.mean()
        bend = float(centred @ per_product / (centred @ centred)) if np.ptp(log_n) > 0 else 0.0
        bend = 0.0 if abs(bend) < 1e-9 else bend
        log_factor = float(per_product.mean() - bend * log_n.mean())
        error = np.expm1(np.abs(per_product - log_factor - bend * log_n))
        return cls(log_factor=log_factor, bend=bend, largest_error=float(error.max()))

    def log_flops_per_token(self, log_n: Array) -> Array:
        """Natural logarithm of C / D."""
        return self.log_factor + (1.0 + self.bend) * log_n


def best_log_n(laws: Laws, cost: TrainingCost, log_c: Array | float) -> Array:
    """Log N of the lowest loss that C buys; log C broadcasts with (R,).

    With C = k N^(1+κ) D the loss is stationary where α A/N^α = (1+κ) β B/D^β.
    """
    slope = 1.0 + cost.bend
    return np.asarray(
        (
            np.log(laws.alpha / (slope * laws.beta))
            + laws.log_a
            - laws.log_b
            + laws.beta * (log_c - cost.log_factor)
        )
        / (laws.alpha + slope * laws.beta)
    )


def cheapest_log_n(
    laws: Laws, cost: TrainingCost, log_loss_target: Array, log_tokens_imagined: float
) -> Array:
    """Log N of the least training and imagination FLOPs that reach a loss, (R,).

    An imagined token costs a forward pass, a third of a training token. A smaller model than the
    best to train needs more data for the same loss and repays it with every token it imagines.

    Args:
        laws: R laws.
        cost: Cost of training.
        log_loss_target: Natural logarithm of the loss to reach, above E, (R,).
        log_tokens_imagined: Natural logarithm of the tokens imagined in the model's life.
    """
    reducible = np.exp(log_loss_target) - laws.irreducible
    smallest = (laws.log_a - np.log(reducible)) / laws.alpha  # infinite data would be needed
    low, high = smallest + 1e-6, smallest + 12.0

    def log_total(log_n: Array) -> Array:
        per_token = cost.log_flops_per_token(log_n)
        log_d = log_tokens_needed(laws, log_n, log_loss_target)
        return np.asarray(per_token + np.logaddexp(log_d, log_tokens_imagined - np.log(3.0)))

    golden = (np.sqrt(5.0) - 1.0) / 2.0
    for _ in range(80):
        left, right = high - golden * (high - low), low + golden * (high - low)
        falls = log_total(left) > log_total(right)
        low, high = np.where(falls, left, low), np.where(falls, high, right)
    return np.asarray(0.5 * (low + high))


def log_tokens_needed(laws: Laws, log_n: Array, log_loss_target: Array) -> Array:
    """Log D at which a model of that size reaches a loss, (R,); infinite if it cannot."""
    left = np.exp(log_loss_target) - laws.irreducible - np.exp(laws.log_a - laws.alpha * log_n)
    with np.errstate(divide="ignore", invalid="ignore"):
        needed = (laws.log_b - np.log(np.maximum(left, 0.0))) / laws.beta
    return np.asarray(needed)
