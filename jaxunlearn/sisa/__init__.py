"""Models trained on shards and slices of the rows, from which rows are removed exactly."""

from jaxunlearn.sisa.cost import Cost as Cost
from jaxunlearn.sisa.cost import expected_cost as expected_cost
from jaxunlearn.sisa.cost import slow_down_attack as slow_down_attack
from jaxunlearn.sisa.cost import visits_of as visits_of
from jaxunlearn.sisa.ensemble import ensemble as ensemble
from jaxunlearn.sisa.partition import Partition as Partition
from jaxunlearn.sisa.partition import partition_by_rate as partition_by_rate
from jaxunlearn.sisa.partition import random_partition as random_partition
from jaxunlearn.sisa.sisa import sisa as sisa
from jaxunlearn.sisa.training import Shards as Shards
from jaxunlearn.sisa.training import Trainer as Trainer
from jaxunlearn.sisa.training import fit as fit
from jaxunlearn.sisa.training import trainer as trainer
