"""Recurrent and deep networks of ReLU or erf by recursions in numpy, for a state of N channels.

With weights shared over time, the state h_t = phi(W_x x_t + W_h h_(t-1) + b) at two times has the joint kernels

    S_ts = s_x^2 x_t . x_s + s_h^2 n K_(t-1)(s-1) + s_b^2,          K_ts = E phi(u) phi(v) for N(0, S),
    T_ts = x_t . x_s + biases + n K_(t-1)(s-1) + s_h^2 n Theta_(t-1)(s-1),    Theta_ts = E phi'(u) phi'(v) T_ts

(Alemohammad et al. 2021, arXiv:2006.10246, there in the "ntk" parameterization). Untied weights keep t = s alone.
"""

import numpy as np

T, D, N = 3, 3, 8
S_X, S_H, S_B = 0.7, 1 / np.sqrt(N), 0.4
_RNG = np.random.RandomState(0)
X1, X2 = _RNG.randn(2, T, D), _RNG.randn(3, T, D)


def relu_moments(s, q1, q2):
    """Cho & Saul 2009, equations 5 and 6, of degrees 1 and 0."""
    scale = np.sqrt(q1 * q2)
    angle = np.arccos(np.clip(s / scale, -1, 1))
    return scale * (np.sin(angle) + (np.pi - angle) * np.cos(angle)) / (2 * np.pi), (np.pi - angle) / (2 * np.pi)


def erf_moments(s, q1, q2):
    """Williams 1997, equation 11, and its derivative."""
    a, b = 1 + 2 * q1, 1 + 2 * q2
    return 2 / np.pi * np.arcsin(2 * s / np.sqrt(a * b)), 4 / np.pi / np.sqrt(a * b - 4 * s**2)


def recursion(x1, x2, moments, *, s_x=S_X, s_h=S_H, s_b=S_B, biases=1, tied=True):
    """K and Theta of the states, arrays (n1, n2, t, s): every sum over t, s by a loop, nothing shared with infnet."""

    def step(inputs, k, q1, q2):
        return s_x**2 * inputs + N * s_h**2 * k + s_b**2

    def variances(x):
        k, q = np.zeros(len(x)), []
        for t in range(x.shape[1]):
            q.append(step((x[:, t] ** 2).sum(-1), k, None, None))
            k = moments(q[-1], q[-1], q[-1])[0]
        return np.array(q).T

    q1, q2 = variances(x1), variances(x2)
    inputs = np.einsum("atd,bsd->abts", x1, x2)
    k, theta = np.zeros((2, *inputs.shape))
    for t in range(x1.shape[1]):
        for s in range(x2.shape[1]):
            before = (t > 0 and s > 0) and (tied or t == s)
            k0, theta0 = (k[:, :, t - 1, s - 1], theta[:, :, t - 1, s - 1]) if before else (0.0, 0.0)
            weights = 1.0 if tied or t == s else 0.0
            u = weights * step(inputs[:, :, t, s], k0, None, None)
            k[:, :, t, s], slope = moments(u, q1[:, None, t], q2[None, :, s])
            own = weights * (inputs[:, :, t, s] + biases) + N * k0 + N * s_h**2 * theta0
            theta[:, :, t, s] = slope * own
    return k, theta


def readout(k, theta):
    """Dense(3) with variance 1/N, without a bias."""
    return k, N * k + theta


RECURSION = {"relu": relu_moments, "erf": erf_moments}


def deep(x1, x2, depth, s=S_H):
    """depth layers of relu(Dense(N)), of variance 1/N, the first too."""
    k, q1, q2 = x1 @ x2.T, (x1**2).sum(1)[:, None], (x2**2).sum(1)[None]
    theta = np.zeros_like(k)
    for _ in range(depth):
        own, (k, slope) = k + s**2 * N * theta * (theta.any()), relu_moments(s**2 * k, s**2 * q1, s**2 * q2)
        theta = slope * own
        q1, q2, k = N * q1 * s**2 / 2, N * q2 * s**2 / 2, N * k
    return k / N, theta


def check(found, expected, rtol=1e-10):
    """NNGP and NTK are those expected."""
    for one, two in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, two, rtol=rtol)
