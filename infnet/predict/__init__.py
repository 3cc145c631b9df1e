"""Predictions from kernels: the outputs of infinitely wide networks on new data."""

from infnet.predict.gp_inference import Predictor as Predictor
from infnet.predict.gp_inference import gp_inference as gp_inference
from infnet.predict.posterior import Gaussian as Gaussian
from infnet.predict.posterior import Info as Info
