"""The structured ops of the installed torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torchgen
from torchgen.gen import get_grouped_native_functions, parse_native_yaml
from torchgen.model import BaseTy, DispatchKey, NativeFunctionsGroup, SchemaKind

_YAML_DIRECTORY = Path(torchgen.__file__).parent / "packaged" / "ATen" / "native"
_KINDS = (SchemaKind.functional, SchemaKind.inplace, SchemaKind.out)


def structured_groups(skip: frozenset[str] = frozenset()) -> list[NativeFunctionsGroup]:
    """Return the groups that get a generated kernel, in the order of ``native_functions.yaml``.

    A group is the functional, the in-place (when there is one) and the out= overload of one op.

    Parameters
    ----------
    skip
        Functional overloads, such as ``"sum.dim_IntList"``, whose whole group is written by hand.

    Raises
    ------
    ValueError
        If a name in ``skip`` is no structured op of this torch.
    """
    parsed = parse_native_yaml(str(_YAML_DIRECTORY / "native_functions.yaml"), str(_YAML_DIRECTORY / "tags.yaml"))
    cpu = parsed.backend_indices[DispatchKey.CPU]
    groups = [
        group
        for group in get_grouped_native_functions(parsed.native_functions)
        if isinstance(group, NativeFunctionsGroup) and group.structured and cpu.get_kernel(group) is not None
    ]
    unknown = skip - {functional_name(group) for group in groups}
    if unknown:
        raise ValueError(f"skip names no structured op of this torch: {sorted(unknown)}; remove or correct them")
    return [group for group in groups if functional_name(group) not in skip and not _takes_generator(group)]


def functional_name(group: NativeFunctionsGroup) -> str:
    """Return the name of the functional overload, ``"add.Tensor"``."""
    return str(group.functional.func.name)


def overload_names(group: NativeFunctionsGroup) -> Iterator[str]:
    """Yield every overload of the group that is registered for npu."""
    for function in group.functions():
        if function.func.kind() in _KINDS:
            yield str(function.func.name)


def _takes_generator(group: NativeFunctionsGroup) -> bool:
    # Random numbers come from the device's own generator: such kernels are written by hand.
    return any(a.type.is_base_ty_like(BaseTy.Generator) for a in group.out.func.arguments.flat_all)
