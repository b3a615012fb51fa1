"""npu-profiler: mstx markers and ``torch_npu.profiler``.

Nothing is loaded here; :mod:`npu_profiler.plugin` is what npu-core calls.
"""

__version__ = "0.1.0"
