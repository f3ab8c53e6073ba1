"""Audits: what a model still knows of the rows it was asked to forget. Pure functions, one model and one request each.

Many models or requests are one `jax.vmap` away. A figure says little by itself: show it beside the same figure of the
model before unlearning and of retrained models.
"""

from jaxunlearn.audit.divergence import divergence as divergence
from jaxunlearn.audit.divergence import forget_divergence as forget_divergence
from jaxunlearn.audit.ensemble import Ensemble as Ensemble
from jaxunlearn.audit.ensemble import ensemble as ensemble
from jaxunlearn.audit.ensemble import random_halves as random_halves
from jaxunlearn.audit.ensemble import subsets as subsets
from jaxunlearn.audit.epsilon import epsilon_lower_bound as epsilon_lower_bound
from jaxunlearn.audit.forgetting_quality import ForgettingQuality as ForgettingQuality
from jaxunlearn.audit.forgetting_quality import competition_score as competition_score
from jaxunlearn.audit.forgetting_quality import forgetting_quality as forgetting_quality
from jaxunlearn.audit.intervals import Interval as Interval
from jaxunlearn.audit.intervals import auc_interval as auc_interval
from jaxunlearn.audit.intervals import clopper_pearson as clopper_pearson
from jaxunlearn.audit.intervals import crossed_interval as crossed_interval
from jaxunlearn.audit.intervals import t_interval as t_interval
from jaxunlearn.audit.klom import klom as klom
from jaxunlearn.audit.likelihood_ratio import ULira as ULira
from jaxunlearn.audit.likelihood_ratio import lira as lira
from jaxunlearn.audit.likelihood_ratio import u_lira as u_lira
from jaxunlearn.audit.margin import margins as margins
from jaxunlearn.audit.membership import MembershipInference as MembershipInference
from jaxunlearn.audit.membership import Roc as Roc
from jaxunlearn.audit.membership import Scores as Scores
from jaxunlearn.audit.membership import auc as auc
from jaxunlearn.audit.membership import loss_attack as loss_attack
from jaxunlearn.audit.membership import loss_scores as loss_scores
from jaxunlearn.audit.membership import roc_curve as roc_curve
from jaxunlearn.audit.membership import tpr_at_fpr as tpr_at_fpr
from jaxunlearn.audit.memorisation import Memorisation as Memorisation
from jaxunlearn.audit.memorisation import entanglement as entanglement
from jaxunlearn.audit.memorisation import memorisation as memorisation
from jaxunlearn.audit.nulls import Judgement as Judgement
from jaxunlearn.audit.nulls import Verdict as Verdict
from jaxunlearn.audit.nulls import bootstrap as bootstrap
from jaxunlearn.audit.nulls import false_positive_rate as false_positive_rate
from jaxunlearn.audit.nulls import floor_of as floor_of
from jaxunlearn.audit.nulls import judge as judge
from jaxunlearn.audit.nulls import permutation_p_value as permutation_p_value
from jaxunlearn.audit.performance import Performance as Performance
from jaxunlearn.audit.performance import Sets as Sets
from jaxunlearn.audit.performance import accuracy as accuracy
from jaxunlearn.audit.performance import gap as gap
from jaxunlearn.audit.performance import performance as performance
from jaxunlearn.audit.report import print_report as print_report
from jaxunlearn.audit.report import to_json as to_json
from jaxunlearn.audit.report import to_markdown as to_markdown
from jaxunlearn.audit.report import write_html as write_html
from jaxunlearn.audit.rmia import rmia as rmia
from jaxunlearn.audit.rmia import tune_rmia as tune_rmia
from jaxunlearn.audit.rows import predict as predict
from jaxunlearn.audit.run import Audit as Audit
from jaxunlearn.audit.run import run as run
