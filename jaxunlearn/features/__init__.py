"""Features in front of a head: prepared once for all requests, mapped, and what erasures share.

data = prepare(model)(variables, data, key)                # features of all rows, and their second moments
model, variables = insert_map(model, variables, (512,), key)   # equal to the old ones until something is unlearned
"""

from jaxunlearn.features.eigenspace import Eigenspace as Eigenspace
from jaxunlearn.features.eigenspace import alignment as alignment
from jaxunlearn.features.eigenspace import eigenspace as eigenspace
from jaxunlearn.features.maps import Mapped as Mapped
from jaxunlearn.features.maps import insert_map as insert_map
from jaxunlearn.features.maps import without_map as without_map
from jaxunlearn.features.moments import features_at as features_at
from jaxunlearn.features.moments import prepare as prepare
