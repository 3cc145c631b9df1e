"""Pictures, by matplotlib, which is only imported when one is drawn."""

from infnet.plot.drift import drift as drift
from infnet.plot.phase import correlation_diagram as correlation_diagram
from infnet.plot.phase import phase_diagram as phase_diagram
from infnet.plot.spectrum import spectrum as spectrum
from infnet.plot.verification import verification as verification
