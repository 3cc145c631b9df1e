"""What people look at: phases and depth scales, spectra, alignments, and how kernels move in training."""

from infnet.diagnostics.alignment import Drift as Drift
from infnet.diagnostics.alignment import alignment as alignment
from infnet.diagnostics.alignment import drift as drift
from infnet.diagnostics.kernels import label_kernel as label_kernel
from infnet.diagnostics.model_phase import CorrelationDiagram as CorrelationDiagram
from infnet.diagnostics.model_phase import correlation_diagram as correlation_diagram
from infnet.diagnostics.phase import DepthScale as DepthScale
from infnet.diagnostics.phase import PhaseDiagram as PhaseDiagram
from infnet.diagnostics.phase import depth_scale as depth_scale
from infnet.diagnostics.phase import phase_diagram as phase_diagram
from infnet.diagnostics.spectrum import KernelSpectrum as KernelSpectrum
from infnet.diagnostics.spectrum import spectrum as spectrum
