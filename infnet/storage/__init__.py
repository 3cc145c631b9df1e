"""Kernels on disk: computed tile by tile, by any number of processes, and taken up again where they were left."""

from infnet.storage.arrays import StoredArray as StoredArray
from infnet.storage.compute import compute as compute
from infnet.storage.status import Status as Status
from infnet.storage.status import status as status
