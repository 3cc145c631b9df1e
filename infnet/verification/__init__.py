"""A kernel function against random networks of growing width."""

from infnet.verification.function import verify as verify
from infnet.verification.models import verify_model as verify_model
from infnet.verification.report import Comparison as Comparison
from infnet.verification.report import Verification as Verification
