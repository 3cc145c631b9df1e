"""Predictions from kernels: the outputs of infinitely wide networks on new data, and their training."""

from infnet.predict.ensemble import Ensemble as Ensemble
from infnet.predict.ensemble import gradient_descent_mse_ensemble as gradient_descent_mse_ensemble
from infnet.predict.estimators import Classifier as Classifier
from infnet.predict.estimators import Regressor as Regressor
from infnet.predict.feature_inference import FeaturePredictor as FeaturePredictor
from infnet.predict.feature_inference import feature_inference as feature_inference
from infnet.predict.gp_inference import Predictor as Predictor
from infnet.predict.gp_inference import gp_inference as gp_inference
from infnet.predict.gradient_descent import LossTraining as LossTraining
from infnet.predict.gradient_descent import ODEState as ODEState
from infnet.predict.gradient_descent import gradient_descent as gradient_descent
from infnet.predict.gradient_descent_mse import MseTraining as MseTraining
from infnet.predict.gradient_descent_mse import gradient_descent_mse as gradient_descent_mse
from infnet.predict.laplace_classification import Classification as Classification
from infnet.predict.laplace_classification import LaplacePredictor as LaplacePredictor
from infnet.predict.laplace_classification import laplace_classification as laplace_classification
from infnet.predict.learning_rate import max_learning_rate as max_learning_rate
from infnet.predict.log_marginal_likelihood import log_marginal_likelihood as log_marginal_likelihood
from infnet.predict.posterior import Gaussian as Gaussian
from infnet.predict.posterior import Info as Info
