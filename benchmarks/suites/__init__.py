"""One module per suite; ``cases()`` of each yields the :class:`benchmarks.harness.Case` objects to measure."""
