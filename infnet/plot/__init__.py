"""Pictures, by matplotlib, which is only imported when one is drawn."""

from infnet.plot.verification import verification as verification
