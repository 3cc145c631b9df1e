"""Moments without a closed form, sampled: one channel of a feature as a function of Gaussian fields.

Where a nonlinearity meets an argument that is not Gaussian (a post-activation residual block, a max-pool, the gates of
a GRU), the features of infinitely many channels still are independent copies of ONE channel, and that channel is a
function of a few jointly Gaussian fields, whose covariances are known. So its moments are integrals of few
dimensions, which randomised quasi-Monte Carlo estimates, with a standard error.
"""
