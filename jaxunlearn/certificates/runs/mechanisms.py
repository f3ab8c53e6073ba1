"""What makes a run certified: which theorem, on which constants, who answers for each, and what it is compared with."""

import math
from collections.abc import Mapping
from typing import Literal, NamedTuple, Protocol

import numpy as np

from jaxunlearn.certificates.calibration import TINY, epsilon_of, gaussian_scale
from jaxunlearn.certificates.certificate import OWN_NOISE, Assessment, Assumption
from jaxunlearn.certificates.runs.descents import growth_per_step, langevin_mu, rewind_sensitivity, unlearned_mu
from jaxunlearn.certificates.runs.projections import projected_epsilon
from jaxunlearn.certificates.runs.shifts import gaussian_mu
from jaxunlearn.certificates.statements import holds

UP, DOWN = 1 + 1e-6, 1 - 1e-6  # settings are reported in float32
MARGIN = 100  # of noise over rounding: what an accountant leaves out is about a hundredth of a deviation per step
CLEAN = "a clean algorithm: the same steps on the retain set, from any weights that never saw the forget set"
CONSTANTS = ("declared", "estimated", "unproved")


class Constant(NamedTuple):
    """A constant of the loss, and who answers for it.

    Args:
        value: at least 0 and finite.
        source: `declared` where whoever certifies has a proof or a computation over all weights, `estimated` where it is the
            largest of some samples, `unproved` where it is a guess. `publish` wants the last two to be accepted by name.
    """

    value: float
    source: Literal["declared", "estimated", "unproved"]


class Run(NamedTuple):
    """What is known of a run, as host numbers."""

    stats: Mapping[str, np.ndarray]  # what the method reported of its own settings
    num_rows: int  # before the request
    num_forget: int
    rounding: float = 0.0  # norm of the weights times the precision of their dtype


class RunMechanism(Protocol):
    """A theorem that turns a run into a certificate. Its parameters are checked when it is used."""

    @property
    def stats(self) -> tuple[str, ...]:
        """Statistics that it reads."""
        ...

    @property
    def compared_with(self) -> str:
        """What the released model cannot be told from."""
        ...

    @property
    def own_noise(self) -> bool:
        """Whether the noise is part of the run."""
        ...

    def assess(self, run: Run, epsilon: float, delta: float) -> Assessment:
        """Apply the theorem; ValueError for parameters out of range, nothing is raised for what was measured."""
        ...


class NoisyFinetune(NamedTuple):
    """Noisy fine-tuning, by the accountants of `shifts` and `projections`: nothing is assumed of the loss.

    **Theorem.** See there. Every setting is enforced in each step, and the smallest epsilon that one of the two gives counts.
    The sensitivity of its certificate is mu, or with project="before noise" the ratio of a step.

    **Doubts.** Rounding of float32 to each side of a clip is paid for, that of the sums in a step is not.

    References:
        Koloskova, Allouah, Jha, Guerraoui, Koyejo: Certified unlearning for neural networks, 2025, arXiv 2506.06985.
    """

    @property
    def stats(self) -> tuple[str, ...]:
        """What `jaxunlearn.noisy_finetune` reports."""
        names = ("norm", "contraction", "drift", "noise", "ratio", "noisy_steps")
        return (*names, "steps", "peek", "chosen_on_request", "first_look")

    @property
    def compared_with(self) -> str:
        """See the module."""
        return CLEAN

    @property
    def own_noise(self) -> bool:
        """Every noisy step has its own."""
        return True

    def assess(self, run: Run, epsilon: float, delta: float) -> Assessment:
        """Epsilon from the settings of every noisy step."""
        stats = {name: np.atleast_1d(np.asarray(value, np.float64)) for name, value in run.stats.items()}
        made = int(min(stats["steps"][0], stats.get("best_step", stats["steps"])[0]))
        planned, first_look = int(stats["noisy_steps"][0]) if stats["noisy_steps"].size else 0, int(stats["first_look"][0])
        whole = 1 <= planned <= made
        norm, contraction, drift, noise, ratio = (
            stats[name][:planned] for name in ("norm", "contraction", "drift", "noise", "ratio")
        )
        found, spent = math.inf, math.inf
        if whole and noise.min() > 0:
            if np.isfinite(drift).all():
                found = float(gaussian_mu(2 * norm[0] * UP, contraction * UP, drift * UP, noise * DOWN, num_steps=planned))
                spent = float(epsilon_of(1.0, found, delta)) if found < math.inf else math.inf
            if np.isfinite(ratio).all():
                found = min(found, float(ratio.max()))
                spent = min(spent, float(projected_epsilon(ratio * UP, delta, num_steps=planned)))
        clips = f"weights at {norm[0]:g}" if whole else "weights"
        clips += f", updates by {drift[0] / 2:g} at most" if whole and np.isfinite(drift[0]) else ""
        return Assessment(
            found,
            0.0,
            epsilon - spent,
            (
                Assumption("clipping", True, f"the run clipped {clips}", "enforced"),
                holds(
                    "all noisy steps",
                    whole,
                    f"{made} steps count, {planned} noisy ones were planned",
                    "run at least as many, and choose no earlier one by keep_best or stop",
                ),
                holds(
                    "nothing looked at the forget set",
                    not (stats["peek"].any() or stats["chosen_on_request"].any()),
                    "stop, keep_best, active_steps",
                    "leave out peek, until_unseen and an active_steps that reads rows",
                ),
                holds(
                    "no look at noisy steps",
                    first_look == 0 or first_look >= planned,
                    f"first look behind step {first_look}" if first_look else "no stop, no keep_best",
                    "stop and keep_best choose whether there is a release: let look_every be at least the noisy steps",
                ),
                _within(spent, epsilon, delta),
            ),
        )


class OutputPerturbation(NamedTuple):
    """Weights that are clipped, then noise: what every certificate has to beat, as it needs no data and no assumption.

    **Theorem.** Two weights of norm C are at most 2 C apart. Without noise of its own (`sigma=0`) the release gets it from
    `publish`, from the entropy of the operating system.
    """

    own_noise: bool = False

    @property
    def stats(self) -> tuple[str, ...]:
        """What `jaxunlearn.output_perturbation` reports with a `clip_norm`."""
        return ("clip_norm", "sigma")

    @property
    def compared_with(self) -> str:
        """See the module."""
        return "a clean algorithm: any weights that never saw the forget set, clipped to the same norm, with the same noise"

    def assess(self, run: Run, epsilon: float, delta: float) -> Assessment:
        """Noise, or epsilon, from the norm alone."""
        norm, sigma = (float(run.stats[name]) for name in self.stats)
        sensitivity = 2 * (norm * UP + run.rounding)  # half precision rounds norms up
        clipped = Assumption("clipping", True, f"the run clipped weights at {norm:g}", "enforced")
        if not self.own_noise:
            free = holds("no noise of its own", sigma == 0, f"sigma {sigma:g}", "say OutputPerturbation(own_noise=True)")
            return Assessment(sensitivity, float(gaussian_scale(sensitivity, epsilon, delta)), 0.0, (clipped, free))
        spent = float(epsilon_of(sigma * DOWN, sensitivity, delta)) if sigma > 0 else math.inf
        return Assessment(sensitivity, 0.0, epsilon - spent, (clipped, _within(spent, epsilon, delta)))


class Rewind(NamedTuple):
    """Rewind-to-delete: descent from stored weights of the past, noise for how far it may be from a retrained descent.

    **Theorem.** See `descents`. Full batches and one learning rate throughout, from a start that knows no row.

    **Doubts.** L and G of a network hold near the weights that were looked at, if at all, and the bound grows as
    `(1 + h L)^T`: it is a certificate where both are proved, as for losses of linear scores, and a relative dial elsewhere.

    Args:
        smoothness: L.
        gradient_bound: G, of one row.
        steps_before: T - K, steps in front of the stored weights.
        convexity: mu of a mu-strongly convex mean loss, 0 of a convex one; None where it is not convex.
        removed_before: rows removed earlier since the descent began.

    References:
        Mu, Klabjan: Rewind-to-delete, certified machine unlearning for nonconvex functions, 2025, arXiv 2409.09778.
    """

    smoothness: Constant
    gradient_bound: Constant
    steps_before: int
    convexity: Constant | None = None
    removed_before: int = 0

    @property
    def stats(self) -> tuple[str, ...]:
        """What `jaxunlearn.rewind_to_delete` reports."""
        return ("step_size", "descent_steps", "undone_steps")

    @property
    def compared_with(self) -> str:
        """See the module."""
        return "retraining: the same descent without the forget set, from the same start, with the same noise"

    @property
    def own_noise(self) -> bool:
        """`publish` adds it."""
        return False

    def assess(self, run: Run, epsilon: float, delta: float) -> Assessment:
        """Sensitivity from constants and counts."""
        rate, after, undone = (float(run.stats[name]) for name in self.stats)
        known = {"smoothness L": self.smoothness, "gradient bound G": self.gradient_bound}
        known |= {"strong convexity mu": self.convexity} if self.convexity is not None else {}
        for name, each in known.items():
            if each.source not in CONSTANTS:
                raise ValueError(f"the source of {name} must be declared, estimated or unproved, got {each.source!r}")
        flags = [Assumption(name, True, f"{name} = {each.value:g}, {each.source}", each.source) for name, each in known.items()]
        short = rate * UP * self.smoothness.value <= 1
        flags += [
            holds("step at most 1 / L", short, f"learning rate {rate:g}", "take shorter steps"),
            Assumption("history of the descent", True, "all rows in every step, one rate, a start without rows", "declared"),
        ]
        if undone:
            flags.append(
                Assumption("steps that were undone", True, f"{undone:.0f} steps were taken back by iteration", "estimated")
            )
        mu = None if self.convexity is None else self.convexity.value
        # a shorter step may shrink a distance less, a longer one may stretch it more
        growth = max(growth_per_step(rate * x, self.smoothness.value, mu) for x in (UP, DOWN)) if short else math.inf
        rows = run.num_rows + self.removed_before
        sensitivity = math.inf
        if growth < math.inf:
            sensitivity = rewind_sensitivity(
                run.num_forget + self.removed_before,
                rows,
                self.gradient_bound.value,
                growth,
                rate * UP,
                steps_before=self.steps_before,
                steps_after=int(after),
            )
        if self.steps_before:
            sensitivity = max(sensitivity, TINY)  # descents that should meet do so up to rounding only
        scale = float(gaussian_scale(sensitivity, epsilon, delta)) if sensitivity < math.inf else math.inf
        flags.append(above_rounding(scale, run))
        return Assessment(sensitivity, scale, 0.0, tuple(flags))


class Langevin(NamedTuple):
    """Descent with noise in every step on a strongly convex loss, learning and unlearning; full batches or fixed ones in turn.

    **Theorem.** See `descents`. Exact for quadratic losses, however long the learning was. The sensitivity of its certificate
    is mu: the next request of a stream passes it as `before`.

    **Doubts.** That the learning was done by the same steps, with the same noise, cannot be seen from a result.

    Args:
        before: mu that earlier requests left; 0 for the first.

    References:
        Chien, Wang, Chen, Li: Langevin unlearning, 2024, arXiv 2401.10371, and Certified machine unlearning via noisy
        stochastic gradient descent, 2024, arXiv 2403.17105.
    """

    before: float = 0.0

    @property
    def stats(self) -> tuple[str, ...]:
        """What `jaxunlearn.convex.langevin` and `pnsgd` report."""
        names = ("row_norm", "promised_norm", "gradient_bound", "convexity", "smoothness", "learning_rate", "sigma")
        return (*names, "descent_steps", "num_batches", "smallest_batch")

    @property
    def compared_with(self) -> str:
        """See the module."""
        return "retraining: the same noisy descent without the forget set from the beginning"

    @property
    def own_noise(self) -> bool:
        """Every step has its own."""
        return True

    def assess(self, run: Run, epsilon: float, delta: float) -> Assessment:
        """Epsilon from constants that the rows were checked for."""
        s = {name: float(run.stats[name]) for name in self.stats}
        short = 0 < s["learning_rate"] * s["smoothness"] <= UP and s["sigma"] > 0 and s["smallest_batch"] >= 1
        spread = math.sqrt(2 * s["learning_rate"]) * s["sigma"] if short else 0.0
        mu = spent = math.inf
        if short:
            learned = langevin_mu(
                run.num_forget,
                run.num_rows,
                s["gradient_bound"],
                s["convexity"],
                s["learning_rate"],
                s["sigma"],
                num_batches=int(s["num_batches"]),
                smallest_batch=s["smallest_batch"],
            )
            mu = unlearned_mu([self.before + learned], [int(s["descent_steps"])], s["convexity"], s["learning_rate"])
            spent = float(epsilon_of(1.0, mu, delta)) if mu > 0 else 0.0
        return Assessment(
            mu,
            0.0,
            epsilon - spent,
            (
                holds(
                    "rows within the promised norm",
                    s["row_norm"] <= s["promised_norm"] * (1 + 1e-6),
                    f"the longest row has norm {s['row_norm']:.6g}, {s['promised_norm']:g} promised",
                    "make rows with convex.feature_rows, or promise more",
                ),
                Assumption("strong convexity mu", True, f"{s['convexity']:g}, the penalty", "enforced"),
                Assumption("gradient bound M", True, f"{s['gradient_bound']:g}, of the loss on rows of that norm", "checked"),
                holds("step at most 1 / L", short, f"learning rate {s['learning_rate']:g}", "take shorter steps, with noise"),
                holds(
                    "a whole epoch",
                    s["descent_steps"] >= s["num_batches"],
                    f"{s['descent_steps']:.0f} steps on {s['num_batches']:.0f} batches",
                    "batches in turn hide a row after an epoch without it",
                ),
                Assumption("history of the descent", True, "the same steps from a start without rows", "declared"),
                above_rounding(spread, run),
                _within(spent, epsilon, delta),
            ),
        )


def above_rounding(noise: float, run: Run) -> Assumption:
    """Whether noise covers what rounding of two descents may tell, which no accountant counts."""
    found = f"noise of deviation {noise:.3g}, the weights are rounded by {run.rounding:.3g}"
    fine = noise == 0 or noise >= MARGIN * run.rounding
    return holds("noise above rounding", fine, found, "more noise, fewer steps after the request, or float64")


def _within(spent: float, epsilon: float, delta: float) -> Assumption:
    found = f"the run is ({spent:.4g}, {delta:g}) private, {epsilon:g} allowed"
    return holds("noise of the run suffices", spent <= epsilon, found, "more noise, more steps, or a larger epsilon")


def secrecy(secret_key: bool | None) -> Assumption:
    """Noise that was part of a run is only as secret as its key."""
    found = "not declared" if secret_key is None else f"declared secret_key={secret_key!r}"
    remedy = "secret_key=True says that the key was drawn at random for this run alone, learning included, and nobody knows it"
    return holds(OWN_NOISE, secret_key is True, found, remedy, "declared")
