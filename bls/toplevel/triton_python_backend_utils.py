"""`import triton_python_backend_utils` outside any server: in the tests of a model.py, or at a prompt.

Gives the very module that a served model gets under this name. Owns nothing; it is installed beside the packages.
"""

from __future__ import annotations

import sys

from cantata.bls import pb_utils

sys.modules[__name__] = pb_utils
