"""Entries of op_db that npu does not support yet, each with its reason.  test_opinfo.py expects them to fail."""

SPARSE = "sparse layouts on npu: not built yet, the operator raises NotImplementedError and names .cpu()"

KNOWN_EXCEPTIONS = {
    "sparse.sampled_addmm": SPARSE,
    "sparse.mm.reduce": SPARSE,
    "to_sparse": SPARSE,
}


def reason(case_name: str) -> str | None:
    """Why the case is expected to fail, or None."""
    return KNOWN_EXCEPTIONS.get(case_name.split("-")[0])
