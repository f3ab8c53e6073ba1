"""Losses: small pure functions with one value per row and no mean; weighting is the caller's."""

from jaxunlearn.losses.classification import cross_entropy as cross_entropy
from jaxunlearn.losses.contrastive import class_contrast as class_contrast
from jaxunlearn.losses.contrastive import unit_rows as unit_rows
from jaxunlearn.losses.distillation import distil_without as distil_without
from jaxunlearn.losses.distillation import jensen_shannon as jensen_shannon
from jaxunlearn.losses.distillation import kl_divergence as kl_divergence
from jaxunlearn.losses.regression import squared_error as squared_error
from jaxunlearn.losses.sequences import blocked_cross_entropy as blocked_cross_entropy
from jaxunlearn.losses.sequences import sequence_cross_entropy as sequence_cross_entropy
from jaxunlearn.losses.sequences import sequence_log_loss as sequence_log_loss
