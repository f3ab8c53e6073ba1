"""Audits of language models, reached as `jaxunlearn.audit.language`.

Rows are `Examples(inputs=tokens, targets=labels)`, both Int[n, t]: `labels[i, j]` is the token that position j of row i is to
predict, already shifted, and -1 where it does not count. A model is seen by its log-probabilities, read once
(`token_log_probabilities`, `token_scores`, `token_hits`). Functions are pure; several models are one more leading axis, or one
`jax.vmap`. No figure means much by itself: give one number per model, of unlearned and of retrained models, to
`jaxunlearn.audit.judge`.
"""

from jaxunlearn.audit.language.attacks import Attack as Attack
from jaxunlearn.audit.language.attacks import attack as attack
from jaxunlearn.audit.language.attacks import min_k as min_k
from jaxunlearn.audit.language.attacks import muse_privacy_leak as muse_privacy_leak
from jaxunlearn.audit.language.attacks import zlib_lengths as zlib_lengths
from jaxunlearn.audit.language.attacks import zlib_score as zlib_score
from jaxunlearn.audit.language.comes_back import Returned as Returned
from jaxunlearn.audit.language.comes_back import comes_back as comes_back
from jaxunlearn.audit.language.comes_back import in_bfloat16 as in_bfloat16
from jaxunlearn.audit.language.comes_back import pruned_smallest as pruned_smallest
from jaxunlearn.audit.language.comes_back import rounded as rounded
from jaxunlearn.audit.language.documents import nearest_mean_accuracy as nearest_mean_accuracy
from jaxunlearn.audit.language.exposure import alternatives as alternatives
from jaxunlearn.audit.language.exposure import exposure as exposure
from jaxunlearn.audit.language.extraction import Completions as Completions
from jaxunlearn.audit.language.extraction import completion as completion
from jaxunlearn.audit.language.extraction import completions as completions
from jaxunlearn.audit.language.extraction import exact_memorisation as exact_memorisation
from jaxunlearn.audit.language.extraction import extraction_probability as extraction_probability
from jaxunlearn.audit.language.extraction import extraction_strength as extraction_strength
from jaxunlearn.audit.language.neighbourhood import Neighbourhood as Neighbourhood
from jaxunlearn.audit.language.neighbourhood import embedding_distance as embedding_distance
from jaxunlearn.audit.language.neighbourhood import neighbour_table as neighbour_table
from jaxunlearn.audit.language.neighbourhood import neighbourhood as neighbourhood
from jaxunlearn.audit.language.neighbourhood import perturb as perturb
from jaxunlearn.audit.language.overlap import RougeL as RougeL
from jaxunlearn.audit.language.overlap import common_length as common_length
from jaxunlearn.audit.language.overlap import rouge_l as rouge_l
from jaxunlearn.audit.language.patching import patching as patching
from jaxunlearn.audit.language.patching import unlearning_depth as unlearning_depth
from jaxunlearn.audit.language.remind import FEATURES as FEATURES
from jaxunlearn.audit.language.remind import Remind as Remind
from jaxunlearn.audit.language.remind import Separation as Separation
from jaxunlearn.audit.language.remind import Told as Told
from jaxunlearn.audit.language.remind import held_back as held_back
from jaxunlearn.audit.language.remind import remind as remind
from jaxunlearn.audit.language.remind import remind_features as remind_features
from jaxunlearn.audit.language.remind import separation as separation
from jaxunlearn.audit.language.tokens import mean_log_probability as mean_log_probability
from jaxunlearn.audit.language.tokens import token_hits as token_hits
from jaxunlearn.audit.language.tokens import token_log_probabilities as token_log_probabilities
from jaxunlearn.audit.language.tokens import token_scores as token_scores
from jaxunlearn.audit.language.truth import KsTest as KsTest
from jaxunlearn.audit.language.truth import choice_probability as choice_probability
from jaxunlearn.audit.language.truth import forget_quality as forget_quality
from jaxunlearn.audit.language.truth import model_utility as model_utility
from jaxunlearn.audit.language.truth import probability as probability
from jaxunlearn.audit.language.truth import truth_ratio as truth_ratio
from jaxunlearn.audit.language.truth import truth_score as truth_score
