"""Settings for a new model, chosen on requests to which the right answer is known."""

from jaxunlearn.tuning.answer import Answer as Answer
from jaxunlearn.tuning.answer import answer as answer
from jaxunlearn.tuning.judging import worst_gap as worst_gap
from jaxunlearn.tuning.proxies import proxy_requests as proxy_requests
from jaxunlearn.tuning.recipe import Recipe as Recipe
from jaxunlearn.tuning.tune import Point as Point
from jaxunlearn.tuning.tune import Tuned as Tuned
from jaxunlearn.tuning.tune import tune as tune
