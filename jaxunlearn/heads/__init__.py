"""Features in front of a head: prepared once for all requests, mapped, and what erasures share.

data = prepare(model)(variables, data, key)                    # features of all rows, and their second moments
model, variables = insert_map(model, variables, (512,), key)   # equal to the old ones until something is unlearned
"""

from jaxunlearn.heads.eigenspace import Eigenspace as Eigenspace
from jaxunlearn.heads.eigenspace import alignment as alignment
from jaxunlearn.heads.eigenspace import eigenspace as eigenspace
from jaxunlearn.heads.maps import Mapped as Mapped
from jaxunlearn.heads.maps import insert_map as insert_map
from jaxunlearn.heads.maps import without_map as without_map
from jaxunlearn.heads.moments import features_at as features_at
from jaxunlearn.heads.moments import prepare as prepare
