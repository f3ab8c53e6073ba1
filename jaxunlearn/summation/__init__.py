"""Learners that are functions of sums over rows, from which rows are removed exactly."""

from jaxunlearn.summation.features import random_features as random_features
from jaxunlearn.summation.learners import Learner as Learner
from jaxunlearn.summation.learners import gaussian_naive_bayes as gaussian_naive_bayes
from jaxunlearn.summation.learners import linear_discriminant as linear_discriminant
from jaxunlearn.summation.learners import multinomial_naive_bayes as multinomial_naive_bayes
from jaxunlearn.summation.learners import nearest_mean as nearest_mean
from jaxunlearn.summation.learners import quadratic_discriminant as quadratic_discriminant
from jaxunlearn.summation.learners import ridge as ridge
from jaxunlearn.summation.summation import summation as summation
from jaxunlearn.summation.totals import Totals as Totals
from jaxunlearn.summation.totals import fit as fit
