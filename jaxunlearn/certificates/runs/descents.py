"""Privacy of gradient descent that is taken back a few steps, and of descent with noise in every step.

**Rewind to delete.** Without noise, two descents from one start on n rows and on those without m of them drift apart. The mean
gradients differ by at most 2 m G / n, and a step of length h on a loss whose gradient is L-Lipschitz spreads a
distance by the factor q = 1 + h L (1 on a convex loss, 1 - h mu on a mu-strongly convex one, for h <= 1 / L). After T - K steps
on different rows and K on the same ones

    distance <= h (2 m G / n) (1 + q + ... + q^{T-K-1}) q^K.

**Langevin unlearning and noisy projected descent.** With mu-strong convexity, h <= 1 / L and noise `N(0, 2 h sigma^2 I)` in
every step, let c = 1 - h mu. However long the learning was, at that and K steps after the rows went

    mu_0 = b sqrt((1 + c) / (1 - c)) / s,    mu_K = c^K mu_0,    b = 2 h m M / n,    s^2 = 2 h sigma^2

as Gaussians of deviation 1 would differ; M bounds the gradient of one row. With fixed batches of at least q rows in fixed
order, B per epoch, b = 2 h m M / q comes once per epoch, at worst in its last step, and

    mu_0 = b / (1 - c^B) sqrt(1 - c^2) / s,    mu_K = c^{B K} mu_0    for K epochs.

Right after learning, at K = 0, this is true for B <= 2 only: the last drift may meet a step that forgets all before it, and has
the noise of that step alone. Then mu_0 is at most `b sqrt(1 + c^{2 B - 2} (1 - c^2) / (1 - c^B)^2) / s`.

Requests one after another add: mu <- c^K (mu + mu_0 of the new rows). All of it is attained by losses that are quadratic.

**Proof.** As in `shifts`, with the drift b while the rows differ and 0 afterwards. The shift that Cauchy and Schwarz leave is
never taken below 0 here, as b / c^{-t} falls. The published bounds are Renyi divergences `alpha mu_0^2 e^{-h mu K / alpha}` for
the first and `alpha mu_K^2` for the second: twice as large and more, see `published_langevin_epsilon`.
"""

import math


def rewind_sensitivity(
    num_forget: float,
    num_rows: float,
    gradient_bound: float,
    growth: float,
    learning_rate: float,
    *,
    steps_before: int,
    steps_after: int,
) -> float:
    """Largest distance between a rewound descent and the one that never saw the rows.

    Args:
        num_forget: m, all rows removed since the descent began.
        num_rows: n, of the descent that is rewound.
        gradient_bound: G, of the gradient of one row along both descents.
        growth: q, what a step does to a distance, see `growth_per_step`.
        learning_rate: h.
        steps_before: T - K, steps in front of the stored weights; 0 gives 0.
        steps_after: K, steps on the retain set.

    Returns:
        In the unit of the weights; inf where it is beyond float64.

    Raises:
        ValueError: a value out of range.

    References:
        Mu, Klabjan: Rewind-to-delete, certified machine unlearning for nonconvex functions, 2025, arXiv 2409.09778. The
        constant is derived here: the published one has a slightly larger base.

    Example:
        >>> print(f"{jaxunlearn.certificates.rewind_sensitivity(1, 100, 1.0, 1.01, 0.1, steps_before=10, steps_after=5):.4f}")
        0.0220
    """
    _require(num_forget=num_forget, gradient_bound=gradient_bound, growth=growth, learning_rate=learning_rate)
    _require(steps_before=steps_before, steps_after=steps_after)
    if not 0 < num_rows < math.inf:
        raise ValueError(f"num_rows must be positive, got {num_rows}")
    if not (steps_before and num_forget and gradient_bound and learning_rate):
        return 0.0
    try:
        away = math.expm1(steps_before * math.log(growth)) / (growth - 1) if growth not in (0, 1) else float(steps_before)
        away = 1.0 if growth == 0 else away
        return learning_rate * 2 * num_forget * gradient_bound / num_rows * away * growth**steps_after * (1 + 1e-12)
    except OverflowError:
        return math.inf


def growth_per_step(learning_rate: float, smoothness: float, convexity: float | None = None) -> float:
    """What a step of gradient descent does to the distance of two weights, at most.

    Args:
        learning_rate: h.
        smoothness: L, Lipschitz constant of the gradient.
        convexity: mu of a mu-strongly convex loss, 0 of a convex one; None where it is not convex.

    Returns:
        `1 + h L`; `max(1 - h mu, h L - 1)` of a convex loss.

    Raises:
        ValueError: a value out of range, or a convex step longer than 2 / L.

    Example:
        >>> jaxunlearn.certificates.growth_per_step(0.1, 2.0), jaxunlearn.certificates.growth_per_step(0.1, 2.0, 1.0)
        (1.2, 0.9)
    """
    _require(learning_rate=learning_rate, smoothness=smoothness)
    if convexity is None:
        return 1 + learning_rate * smoothness
    _require(convexity=convexity)
    if convexity > smoothness or learning_rate * smoothness > 2:
        raise ValueError(
            f"a step on a convex loss needs convexity <= smoothness and learning_rate <= 2 / smoothness, got {convexity}, "
            f"{smoothness} and {learning_rate}"
        )
    return max(1 - learning_rate * convexity, learning_rate * smoothness - 1)


def langevin_mu(
    num_forget: float,
    num_rows: float,
    gradient_bound: float,
    convexity: float,
    learning_rate: float,
    sigma: float,
    *,
    num_batches: int = 1,
    smallest_batch: float | None = None,
) -> float:
    """What `unlearned_mu` starts from: how far apart noisy descents on n rows and on those without m of them are.

    However long they ran. With more than two batches it is no bound by itself, only after an epoch on the retain set.

    Args:
        num_forget: m.
        num_rows: n, before the request.
        gradient_bound: M, of the gradient of one row without the penalty.
        convexity: mu of the mean loss, positive.
        learning_rate: h, at most 1 / L.
        sigma: each step adds noise of variance `2 h sigma^2`.
        num_batches: B, batches per epoch; 1 for steps on all rows.
        smallest_batch: rows of the smallest batch before the request; n / B if not given.

    Returns:
        mu_0 of the module.

    Raises:
        ValueError: a value out of range, `learning_rate * convexity` above 1.

    References:
        Chien, Wang, Chen, Li: Langevin unlearning, 2024, arXiv 2401.10371, and Certified machine unlearning via noisy
        stochastic gradient descent, 2024, arXiv 2403.17105. Bok, Su, Altschuler: Shifted interpolation for differential
        privacy, 2024, arXiv 2403.00278.

    Example:
        >>> print(f"{jaxunlearn.certificates.langevin_mu(1, 10_000, 1.0, 0.01, 3.8, 0.01):.3f}")
        0.198
    """
    _require(num_forget=num_forget, gradient_bound=gradient_bound)
    rows = num_rows / num_batches if smallest_batch is None else smallest_batch
    if not (num_rows > 0 and rows > 0 and num_batches >= 1 and convexity > 0 and learning_rate > 0 and sigma > 0):
        raise ValueError("langevin_mu needs rows, batches, convexity, learning_rate and sigma that are positive")
    if learning_rate * convexity > 1:
        raise ValueError(f"learning_rate must be at most 1 / L, got {learning_rate} with a convexity of {convexity}")
    lost = learning_rate * convexity  # 1 - c
    epoch = -math.expm1(num_batches * math.log1p(-lost)) if lost < 1 else 1.0  # 1 - c^B
    drift = 2 * learning_rate * num_forget * gradient_bound / rows
    return drift / epoch * math.sqrt(lost * (2 - lost) / (2 * learning_rate)) / sigma * (1 + 1e-12)


def unlearned_mu(
    learned: list[float] | tuple[float, ...], steps: list[int] | tuple[int, ...], convexity: float, learning_rate: float
) -> float:
    """What noisy steps on the retain set leave of it, for a request or for several one after another.

    Args:
        learned: `langevin_mu` of the rows of each request.
        steps: steps after each of them, before the next; of batches, epochs times batches, at least one epoch.
        convexity: mu of the mean loss.
        learning_rate: h.

    Returns:
        mu after the last step; `epsilon_of(1.0, mu, delta)` is its epsilon.

    Raises:
        ValueError: lists of different lengths, empty ones, or a value out of range.

    Example:
        >>> print(f"{jaxunlearn.certificates.unlearned_mu([0.2, 0.2], [10, 10], 0.01, 3.8):.3f}")
        0.228
    """
    if len(learned) != len(steps) or not learned:
        raise ValueError(f"expected a number of steps per request, got {len(learned)} and {len(steps)}")
    _require(convexity=convexity, learning_rate=learning_rate)
    if not 0 < learning_rate * convexity <= 1:
        raise ValueError(f"learning_rate must be at most 1 / L, got {learning_rate} with a convexity of {convexity}")
    total = 0.0
    for mu, count in zip(learned, steps, strict=True):
        _require(mu=mu, steps=count)
        total = (total + mu) * (1 - learning_rate * convexity) ** count
    return total * (1 + 1e-12)


def published_langevin_epsilon(mu: float, steps: float, convexity: float, learning_rate: float, delta: float) -> float:
    """The bound as published, for comparison: `min_alpha alpha mu^2 e^{-h mu K / alpha} + ln(1 / delta) / (alpha - 1)`.

    Args:
        mu: `langevin_mu` of steps on all rows, in which `h mu` counts as small.
        steps: K.
        convexity: of the mean loss.
        learning_rate: h.
        delta: in (0, 1).

    Returns:
        epsilon, to about 1 %.

    Raises:
        ValueError: a value out of range.

    Example:
        >>> print(f"{jaxunlearn.certificates.published_langevin_epsilon(0.2, 10, 0.01, 3.8, 1e-5):.2f}")
        1.38
    """
    _require(mu=mu, steps=steps, convexity=convexity, learning_rate=learning_rate)
    if not 0 < delta < 1:
        raise ValueError(f"delta must be between 0 and 1, both excluded, got {delta}")
    orders = (1 + math.exp(k / 64) for k in range(-1000, 1000))
    decay = learning_rate * convexity * steps
    return min(alpha * mu**2 * math.exp(-decay / alpha) + math.log(1 / delta) / (alpha - 1) for alpha in orders)


def _require(**values: float) -> None:
    for name, value in values.items():
        if not 0 <= value < math.inf:
            raise ValueError(f"{name} must be at least 0 and finite, got {value}")
