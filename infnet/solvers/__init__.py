"""Solving with kernel matrices that are too large for one device, or for memory."""

from infnet.solvers.conjugate_gradients import Prepared as Prepared
from infnet.solvers.conjugate_gradients import Solution as Solution
from infnet.solvers.conjugate_gradients import SolveInfo as SolveInfo
from infnet.solvers.operators import MatrixFree as MatrixFree
from infnet.solvers.operators import Operator as Operator
from infnet.solvers.operators import operator as operator
from infnet.solvers.strategies import Cholesky as Cholesky
from infnet.solvers.strategies import ConjugateGradients as ConjugateGradients
from infnet.solvers.strategies import Solver as Solver
from infnet.solvers.strategies import solve as solve
