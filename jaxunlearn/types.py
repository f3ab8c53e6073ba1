"""The vocabulary of the library: what a method takes and what it returns. No logic.

Shapes: `n` training rows, `b` rows of a batch, `k` slots of a request, `c` classes, `D` features.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

import jax
from jaxtyping import Float, Int, PRNGKeyArray, PyTree

Scalar: TypeAlias = float | jax.Array  # a hyper-parameter: a number, or a traced array of shape []


class Examples(NamedTuple):
    """Rows of data; every leaf has the same leading axis, `n` or `b`."""

    inputs: PyTree
    targets: PyTree


_OWN: Any = object()  # stands for a new dictionary: a default one would be shared by all


class _Data(NamedTuple):
    train: Examples
    present: Float[jax.Array, " n"]  # 1 while a row is part of the training set, 0 once it was removed
    extra: dict[str, PyTree]  # see `jaxunlearn.slots`


class Data(_Data):
    """Everything a method may read, stored once for all requests.

    `extra` holds what is neither a row nor a request: what `jaxunlearn.prepare` computes once, attributes of rows, and what
    the caller's own methods read. Every key is a slot of `jaxunlearn.slots`; put and get through it.
    """

    __slots__ = ()

    def __new__(cls, train: Any, present: Any, extra: Any = _OWN):
        return super().__new__(cls, train, present, {} if extra is _OWN else extra)


class Variables(NamedTuple):
    """A model's weights (real floating-point leaves only) and its non-trained state."""

    params: PyTree
    state: PyTree = ()  # BatchNorm statistics and the like; any dtype


class ForgetRequest(NamedTuple):
    """Rows to forget, in a static number of slots; the request's size lives in the weights.

    Statistics of single rows and random draws go by slot: rows in another order, or with repeated ones between them, are the
    same request with other draws, as with another key.
    """

    indices: Int[jax.Array, " k"]  # rows of `data.train`
    weights: Float[jax.Array, " k"]  # 1 in a used slot, 0 in a padding slot
    target: PyTree = ()  # what the request is about: multi-hot classes Bool[c], an attribute, a concept


class _Outputs(NamedTuple):
    logits: jax.Array
    features: dict[str, jax.Array]  # named intermediate representations, e.g. "penultimate" [b, D]
    state: PyTree  # the moved `Variables.state` after a pass with `train=True`


class Outputs(_Outputs):
    """What a forward pass returns: `Outputs(logits, features={}, state=())`."""

    __slots__ = ()

    def __new__(cls, logits: Any, features: Any = _OWN, state: Any = ()):
        return super().__new__(cls, logits, {} if features is _OWN else features, state)


class Forward(Protocol):
    """`forward(variables, inputs, *, train=False, key=None) -> Outputs`."""

    def __call__(
        self, variables: Variables, inputs: PyTree, /, *, train: bool = False, key: PRNGKeyArray | None = None
    ) -> Outputs: ...


ExampleLoss: TypeAlias = Callable[[Outputs, Examples], Float[jax.Array, " b"]]


class Head(NamedTuple):
    """The last linear layer of a model, apart from its features."""

    apply: Callable[[Variables, jax.Array], jax.Array]  # features [b, D] -> logits [b, c]
    get: Callable[[Variables], tuple[jax.Array, jax.Array]]  # -> kernel [D, c], bias [c]
    set: Callable[[Variables, jax.Array, jax.Array], Variables]


class Likelihood(NamedTuple):
    """What a model predicts of its targets, see `jaxunlearn.likelihoods`. Functions of rows [b, ...] keep their shapes."""

    name: str
    slope: Callable[[jax.Array, jax.Array], jax.Array]  # (logits, targets): gradient of -log p(targets | logits) in the logits
    draw: Callable[[PRNGKeyArray, jax.Array, jax.Array], jax.Array]  # targets at random; those of the data say what is padding
    # (logits, targets): columns u [s, b, ...] with `sum_s u u' = E[slope slope']` for every row; None if it is only drawn from
    roots: Callable[[jax.Array, jax.Array], jax.Array] | None = None
    scale: float = 1.0  # the loss is the negative log-likelihood times this
    # (key, logits, targets): the roots of one row added up with random signs; None if they have to be made one by one for it
    signed: Callable[[PRNGKeyArray, jax.Array, jax.Array], jax.Array] | None = None


class Model(NamedTuple):
    """A user's model as functions; only `forward` and `loss` are required."""

    forward: Forward
    loss: ExampleLoss  # unreduced: one value per row
    init: Callable[[PRNGKeyArray], Variables] | None = None  # fresh weights, needed by `retrain`
    head: Head | None = None
    regularizer: Callable[[PyTree], jax.Array] | None = None  # weight decay that was part of the training objective
    likelihood: Likelihood | None = None  # what it predicts, for Fisher matrices; found by trying the loss where it can be


class _Result(NamedTuple):
    variables: Variables  # tree, shapes and dtypes of the variables that went in
    status: Int[jax.Array, ""]  # see `jaxunlearn.Status`; 0 is OK
    stats: dict[str, jax.Array]
    extra: dict[str, PyTree]  # what a stream must carry on; its entries replace those of `Data.extra`


class Result(_Result):
    """What every method returns: `Result(variables, status=0, stats={}, extra={})`.

    Under `vmap` every leaf gains the request axis.
    """

    __slots__ = ()

    def __new__(cls, variables: Any, status: Any = 0, stats: Any = _OWN, extra: Any = _OWN):
        return super().__new__(cls, variables, status, {} if stats is _OWN else stats, {} if extra is _OWN else extra)


class UnlearnFn(Protocol):
    """An unlearning method: a pure function, safe under `jit`, `vmap`, `pmap` and sharding."""

    def __call__(self, variables: Variables, data: Data, request: ForgetRequest, key: PRNGKeyArray, /) -> Result: ...


class Weighted(NamedTuple):
    """A batch of rows with weights; rows of weight 0 are zeros and count for nothing."""

    examples: Examples
    weights: Float[jax.Array, " b"]
    slots: Int[jax.Array, " b"]  # where a row came from: slot of the request (forget) or row of `data.train` (retain)


class Batch(NamedTuple):
    """What one step of an iterative method sees; the loop fills in `step` and `num_steps`."""

    forget: Weighted
    retain: Weighted
    step: int | Int[jax.Array, ""] = 0  # counted from 0
    num_steps: int | Int[jax.Array, ""] = 1  # length of the run

    @property
    def progress(self) -> Any:
        """`step / num_steps`, the part of the run that is over: Float[] in [0, 1)."""
        return self.step / self.num_steps


class BatchSizes(NamedTuple):
    """Rows a step draws from each side; static."""

    forget: int
    retain: int


class Split(NamedTuple):
    """The training set as one request divides it, prepared once a run; what a `Sampler` draws from."""

    data: Data
    request: ForgetRequest
    slots: Int[jax.Array, " k"]  # usable slots of the request in random order, the others behind them
    num_forget: Int[jax.Array, ""]
    num_retain: Int[jax.Array, ""]
    present_before: Int[jax.Array, " n"]  # present rows up to and including each row
    retained_before: Int[jax.Array, " k"]  # retained rows in front of each forgotten one, ascending
    first_present: Int[jax.Array, ""]  # what is read where no row counts


class Sampler(Protocol):
    """Draws the batch of one step. `step` counts from 0; `sizes` is static."""

    def __call__(self, split: Split, context: Any, step: jax.Array, key: PRNGKeyArray, sizes: BatchSizes, /) -> Batch: ...


OnEmpty: TypeAlias = Literal["identity", "finetune", "train"]
Prepare: TypeAlias = Callable[[Variables, Data, PRNGKeyArray], Data]


class View(NamedTuple):
    """What a run draws its batches from, where that is not the training rows themselves, e.g. their features."""

    data: Data
    request: ForgetRequest  # in the numbering of `data`
    status: int | Int[jax.Array, ""] = 0


class Unlearner(NamedTuple):
    """An iterative method, one step at a time; `jaxunlearn.iterate` and `jaxunlearn.feed` run it.

    `init(variables, data, request, key) -> (context, state)`: the context is read-only for the run
    (teacher, masks, moved labels) and never carried. `step(state, context, batch, key) -> (state, stats)`.
    `finalize(state, context) -> Variables`. `on_empty` says what an empty request gets: the variables
    unchanged (`identity`) or whatever the steps do with the retain set alone (`finetune`, `train`).
    `view(variables, data, request, context) -> View` replaces the rows that `iterate` samples.
    `prepare` makes what `init` reads in `Data.extra`, see `jaxunlearn.prepare`. `judged` is the model whose loss on retained
    rows tells whether a run destroyed it; None for methods that may not read those. `model` is the one whose logits the labels
    have to fit.
    """

    init: Callable[[Variables, Data, ForgetRequest, PRNGKeyArray], tuple[Any, Any]]
    step: Callable[[Any, Any, Batch, PRNGKeyArray], tuple[Any, dict[str, jax.Array]]]
    finalize: Callable[[Any, Any], Variables]
    sample: Sampler
    on_empty: OnEmpty = "identity"
    view: Callable[[Variables, Data, ForgetRequest, Any], View] | None = None
    prepare: Prepare | None = None
    judged: Model | None = None
    model: Model | None = None
