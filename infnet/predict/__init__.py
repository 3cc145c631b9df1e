"""Predictions from kernels: the outputs of infinitely wide networks on new data."""

from infnet.predict.gp_inference import Gaussian as Gaussian
from infnet.predict.gp_inference import Info as Info
from infnet.predict.gp_inference import Predictor as Predictor
from infnet.predict.gp_inference import gp_inference as gp_inference
