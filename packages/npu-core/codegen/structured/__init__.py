"""Writes the asynchronous npu kernels of torch's structured ops.

``groups`` reads torch's own description of the ops, ``fast_path`` says which of them can skip ``meta()``,
``special_cases`` names the few that differ from the rest, ``kernels`` writes the C++ of one group, ``shards`` spreads
the groups over files.
"""
