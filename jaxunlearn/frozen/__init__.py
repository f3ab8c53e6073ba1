"""Unlearning in adapters or chosen leaves, over one frozen base that all requests share."""

from jaxunlearn.frozen.int8 import Int8 as Int8
from jaxunlearn.frozen.int8 import int8 as int8
from jaxunlearn.frozen.low_rank import lora as lora
from jaxunlearn.frozen.on_base import OnBase as OnBase
from jaxunlearn.frozen.on_base import on_base as on_base
from jaxunlearn.frozen.on_base import train_only as train_only
