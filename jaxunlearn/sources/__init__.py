"""Rows that stay on disk: which of them each step of a run reads, reading ahead, and passes over all of them.

index = sources.index(len(rows))                                   # the rows by their numbers, for requests
source = sources.batches(method, rows, index, request, key, ...)   # what `iterate` would draw, for `feed`
blocks = sources.blocks(rows, index, size=1024, ...)               # all rows once, for curvatures and audits
"""

from jaxunlearn.blocks import map_blocks as map_blocks
from jaxunlearn.sources.drawing import Drawn as Drawn
from jaxunlearn.sources.drawing import Plan as Plan
from jaxunlearn.sources.drawing import draw as draw
from jaxunlearn.sources.drawing import index as index
from jaxunlearn.sources.pace import Pace as Pace
from jaxunlearn.sources.pace import paced as paced
from jaxunlearn.sources.reading import Reader as Reader
from jaxunlearn.sources.reading import batches as batches
from jaxunlearn.sources.reading import blocks as blocks
from jaxunlearn.sources.reading import part as part
