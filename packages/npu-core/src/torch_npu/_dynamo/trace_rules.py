"""How Dynamo traces the functions of `torch.npu`.

What asks about devices becomes a constant of the graph, guarded where the answer can change. Streams, events and
synchronisation become nodes, as for torch's own accelerators. Everything else of `torch.npu` breaks the graph, also
``with torch.npu.device(...)``: AOTAutograd's graphs would forget which device is current.
"""

from __future__ import annotations

from typing import Any

import torch
from torch._dynamo import trace_rules
from torch._dynamo.variables import torch as functions
from torch._dynamo.variables.user_defined import UserDefinedClassVariable

from torch_npu.npu import amp, devices, initialization, streams

# The answer does not change once devices exist.
_CONSTANT: tuple[Any, ...] = (
    devices.device_count,
    devices.get_device_name,
    devices.get_soc_version,
    devices.is_bf16_supported,
    initialization.is_available,
    amp.autocast_mode.get_amp_supported_dtype,
)
# The answer is a constant behind a guard: another answer compiles again.
_GUARDED: tuple[Any, ...] = (devices.current_device, initialization.is_initialized)


def register() -> None:
    """Add the rules."""
    for function in _CONSTANT:
        function._dynamo_marked_constant = True  # what torch._dynamo.assume_constant_result sets
    variable = functions.TorchInGraphFunctionVariable
    traced: tuple[Any, ...] = (*_GUARDED, streams.current_stream, streams.stream, devices.synchronize)
    rules = {f"{function.__module__}.{function.__qualname__}": variable for function in traced}
    trace_rules.torch_name_rule_map.append(rules)
    trace_rules.get_torch_obj_rule_map.cache_clear()
    functions.constant_fold_functions_need_guards.update(dict.fromkeys(_GUARDED))
    functions.constant_fold_functions.update(dict.fromkeys(_GUARDED))

    handlers = variable._get_handlers()
    handlers[streams.current_stream] = handlers[torch.accelerator.current_stream]
    handlers[devices.synchronize] = handlers[torch.accelerator.synchronize]
    classes: tuple[Any, ...] = (streams.Stream, streams.Event)
    UserDefinedClassVariable._in_graph_classes().update(classes)
