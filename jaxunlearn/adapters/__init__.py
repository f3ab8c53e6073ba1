"""From a model of another library to `Model` and `Variables`; each import happens inside the function that needs it.

Plain functions need no adapter: `Model(forward, loss)` with `forward(variables, inputs, *, train=False, key=None) ->
Outputs` is all that is needed, and what the adapters make.
"""

from jaxunlearn.adapters.equinox import from_equinox as from_equinox
from jaxunlearn.adapters.equinox import to_equinox as to_equinox
from jaxunlearn.adapters.haiku import from_haiku as from_haiku
from jaxunlearn.adapters.linen import from_linen as from_linen
from jaxunlearn.adapters.nnx import from_nnx as from_nnx
from jaxunlearn.adapters.nnx import to_nnx as to_nnx
