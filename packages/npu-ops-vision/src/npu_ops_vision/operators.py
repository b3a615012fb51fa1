"""Importing this module registers the operators of this package, once."""

import importlib

from npu_ops_vision import library
from npu_ops_vision.names import FAMILIES

library.load()
for family in FAMILIES:
    importlib.import_module(f"npu_ops_vision.{family}")
