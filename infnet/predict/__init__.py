"""Predictions from kernels: the outputs of infinitely wide networks on new data."""

from infnet.predict.estimators import Classifier as Classifier
from infnet.predict.estimators import Regressor as Regressor
from infnet.predict.gp_inference import Predictor as Predictor
from infnet.predict.gp_inference import gp_inference as gp_inference
from infnet.predict.laplace_classification import Classification as Classification
from infnet.predict.laplace_classification import LaplacePredictor as LaplacePredictor
from infnet.predict.laplace_classification import laplace_classification as laplace_classification
from infnet.predict.log_marginal_likelihood import log_marginal_likelihood as log_marginal_likelihood
from infnet.predict.posterior import Gaussian as Gaussian
from infnet.predict.posterior import Info as Info
