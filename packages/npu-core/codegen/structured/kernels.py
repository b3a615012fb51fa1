"""The C++ of one group of structured ops."""

from __future__ import annotations

from dataclasses import dataclass

from torchgen.api import meta, structured
from torchgen.api.translate import translate
from torchgen.api.types import Binding, CppSignatureGroup, Expr, NativeSignature
from torchgen.context import native_function_manager
from torchgen.model import Argument, DeviceCheckType, NativeFunction, NativeFunctionsGroup, SchemaKind

from .fast_path import FAST_PATHS, FastPath
from .groups import functional_name
from .special_cases import (
    COPIED_RESULT,
    FINAL_SIZE,
    FLOAT_ACCUMULATION,
    META_ARGUMENTS,
    OUTPUT_FORMAT_FROM,
    PREPARED_ARGUMENTS,
    SHRINKING_OUTPUT,
)

_TENSOR = "const at::Tensor&"
_TENSOR_LISTS_OF_OPTIONAL = "const c10::List<std::optional<at::Tensor>>&"


@dataclass(frozen=True)
class GeneratedGroup:
    """C++ of one group.

    Attributes
    ----------
    headers
        Per-operator headers the definitions need.
    definitions
        The worker function and one dispatching function per overload.
    registrations
        Statements of a ``TORCH_LIBRARY_IMPL`` block.
    """

    headers: frozenset[str]
    definitions: str
    registrations: tuple[str, ...]


def generate_group(group: NativeFunctionsGroup) -> GeneratedGroup:
    """Write the kernels of every overload of ``group``."""
    with native_function_manager(group.out):
        writer = _GroupWriter(group)
        definitions = [writer.worker()]
        registrations = []
        for function in group.functions():
            definitions.append(writer.overload(function))
            registrations.append(f'm.impl("{function.func.name}", TORCH_FN({_function_name(function)}));')
    root = group.out.root_name
    headers = {f"ATen/ops/{root}_meta.h", f"ATen/ops/{root}_cpu_dispatch.h"}
    if functional_name(group) in FLOAT_ACCUMULATION:
        headers.add("aten/half_precision.h")
    return GeneratedGroup(frozenset(headers), "\n".join(definitions), tuple(registrations))


class _GroupWriter:
    def __init__(self, group: NativeFunctionsGroup) -> None:
        self._name = functional_name(group)
        self._group = group
        self._meta_name = meta.name(group)
        self._outputs = [argument.name for argument in group.out.func.arguments.out]
        self._worker = f"run_{self._meta_name}"
        self._prepared = PREPARED_ARGUMENTS.get(self._name, {})
        signature = CppSignatureGroup.from_native_function(group.out, method=False).faithful_signature
        assert signature is not None, f"{self._name}: torchgen gives the out= overload no faithful signature"
        self._kernel = f"at::cpu::{signature.name()}"
        self._kernel_arguments = list(signature.arguments())
        self._inputs = [a for a in self._kernel_arguments if a.name not in self._outputs]

    def worker(self) -> str:
        """The function that runs on the engine."""
        parameters = [f"{_TENSOR} {name}" for name in self._outputs]
        parameters += [f"{_worker_type(a)} {a.name}" for a in self._inputs]
        arguments = []
        for argument in self._kernel_arguments:
            if argument.name in self._outputs:
                arguments.append(f"const_cast<at::Tensor&>({argument.name})")
            elif _cpp_type(argument) == _TENSOR_LISTS_OF_OPTIONAL:
                arguments.append(f"{argument.name}.toBoxed()")
            else:
                arguments.append(argument.name)
        call = f"{self._kernel}({', '.join(arguments)});"
        if self._name in COPIED_RESULT:
            functional = f"at::cpu::{self._group.functional.func.name.name}({', '.join(a.name for a in self._inputs)})"
            copy = f"{self._outputs[0]}.copy_({functional});"
            body = [f"if ({COPIED_RESULT[self._name]}) {copy}", f"else {call}"]
        else:
            body = [call]
        if self._name in FLOAT_ACCUMULATION:
            body.insert(0, self._float_accumulation())
        return _define(f"void {self._worker}({', '.join(parameters)})", body)

    def _float_accumulation(self) -> str:
        # csrc/aten/half_precision.h
        out = self._outputs[0]
        arguments = []
        for argument in self._kernel_arguments:
            if argument.name == out:
                arguments.append("wide")
            elif _cpp_type(argument) == _TENSOR:
                arguments.append(f"widen({argument.name})")
            else:
                arguments.append(argument.name)
        call = f"in_float32({out}, [&](at::Tensor& wide) {{ {self._kernel}({', '.join(arguments)}); }})"
        return f"if (is_slow_half({out})) return {call};"

    def overload(self, function: NativeFunction) -> str:
        """The function registered with the dispatcher for one overload."""
        signature = NativeSignature(function.func, symint=False)
        kind = function.func.kind()
        outputs = {
            SchemaKind.functional: [],
            SchemaKind.inplace: ["self"],
            SchemaKind.out: [a.name for a in function.func.arguments.out],
        }[kind]
        body: list[str] = []
        if function.device_check is not DeviceCheckType.NoCheck:
            body += self._device_check(function)
        body += [f"const auto {name}_ready = {expression};" for name, expression in self._prepared.items()]
        if self._name in FLOAT_ACCUMULATION:
            operands = ", ".join(f"&{a.name}" for a in self._inputs if _cpp_type(a) == _TENSOR)
            body.append(f"check_product_dtypes({{{operands}}});")
        body += self._fast_path(function, kind, outputs)

        sink = f"StructuredMeta<at::meta::structured_{self._meta_name}, {len(self._outputs)}> op"
        if kind is SchemaKind.functional:
            late = self._name in SHRINKING_OUTPUT
            body.append(f"{sink}(OutputMode::kAllocateLate);" if late else f"{sink};")
        else:
            mode = "kInPlace" if kind is SchemaKind.inplace else "kResize"
            body.append(f"{sink}(OutputMode::{mode}, {{{', '.join(outputs)}}});")
        body.append(f"op.meta({', '.join(self._meta_arguments(signature))});")
        if self._name in FINAL_SIZE:
            body.append(f"op.output(0).resize_({FINAL_SIZE[self._name]});")
        if self._name in OUTPUT_FORMAT_FROM:
            body.append(f"take_memory_format(op.output(0), {OUTPUT_FORMAT_FROM[self._name]});")
        inputs = [f"&{a.name}" for a in self._inputs if _cpp_type(a) == _TENSOR]
        if kind is SchemaKind.out and inputs and self._group.out.structured_inherits != "TensorIteratorBase":
            written = ", ".join(f"&op.output({i})" for i in range(len(self._outputs)))
            body.append(f"check_outputs_apart({{{written}}}, {{{', '.join(inputs)}}});")
        body.append(self._launch(function, [f"op.output({i})" for i in range(len(self._outputs))]))
        body.append(_return_statement(kind, outputs, len(self._outputs)))
        return _define(signature.defn(name=_function_name(function)).replace("::std::", "std::"), body)

    def _launch(self, function: NativeFunction, outputs: list[str]) -> str:
        arguments = outputs + [self._worker_argument(a) for a in self._inputs]
        return f'launch_op<&{self._worker}>("aten::{function.func.name}", {", ".join(arguments)});'

    def _worker_argument(self, argument: Binding) -> str:
        name = f"{argument.name}_ready" if argument.name in self._prepared else argument.name
        return f"at::IOptTensorListRef({name})" if _cpp_type(argument) == _TENSOR_LISTS_OF_OPTIONAL else name

    def _meta_arguments(self, signature: NativeSignature) -> list[str]:
        replaced = META_ARGUMENTS.get(self._name, {})
        context = [
            Expr(f"{b.name}_ready" if b.name in self._prepared else b.name, b.nctype) for b in signature.arguments()
        ]
        wanted = structured.meta_arguments(self._group)
        expressions = [e.expr for e in translate(context, wanted, method=False)]
        return [replaced.get(b.name, e) for b, e in zip(wanted, expressions, strict=True)]

    def _device_check(self, function: NativeFunction) -> list[str]:
        arguments = [*function.func.arguments.out, *function.func.arguments.flat_positional]
        tensors = [a.name for a in arguments if isinstance(a, Argument) and a.type.is_tensor_like()]
        if len(tensors) < 2:
            return []
        checks = "".join(f'.check({name}, "{name}")' for name in tensors)
        return [f'SameDevice("{_function_name(function)}"){checks};']

    def _fast_path(self, function: NativeFunction, kind: SchemaKind, outputs: list[str]) -> list[str]:
        rule = FAST_PATHS.get(self._name)
        if rule is None or (rule.boolean and kind is not SchemaKind.functional):
            return []
        self._check_fast_path(rule)
        operands = [a.name for a in self._inputs if _cpp_type(a) == _TENSOR]
        scalars = [a.name for a in self._inputs if "at::Scalar" in _cpp_type(a)]
        rule_text = f"{{DtypeClass::{rule.dtypes}, {'true' if rule.cpu_scalars else 'false'}}}"
        operand_text = "{" + ", ".join(f"&{name}" for name in operands) + "}"
        if kind is SchemaKind.functional:
            find = f"const at::Tensor* lead = pointwise_lead({rule_text}, {operand_text})"
            conditions, dtype = ["lead != nullptr"], "lead->scalar_type()"
        else:
            find = ""
            conditions, dtype = (
                [f"pointwise_fits({rule_text}, {outputs[0]}, {operand_text})"],
                (f"{outputs[0]}.scalar_type()"),
            )
        if scalars:
            conditions.append(f"scalars_keep({dtype}, {', '.join(scalars)})")
        if rule.condition:
            conditions.append(rule.condition)
        head = f"if ({find + '; ' if find else ''}{' && '.join(conditions)}) {{"
        if kind is SchemaKind.functional:
            allocate = "empty_like_lead(*lead, at::kBool)" if rule.boolean else "empty_like_lead(*lead)"
            inner = [f"at::Tensor result = {allocate};", self._launch(function, ["result"]), "return result;"]
        else:
            inner = [self._launch(function, outputs), f"return {outputs[0]};"]
        return [head, *(f"  {line}" for line in inner), "}"]

    def _check_fast_path(self, rule: FastPath) -> None:
        if self._group.out.structured_inherits != "TensorIteratorBase" or len(self._outputs) != 1:
            raise ValueError(f"{self._name} is no pointwise op with one result: remove it from FAST_PATHS")
        del rule


def _function_name(function: NativeFunction) -> str:
    return NativeSignature(function.func, prefix="npu_", symint=False).name()


def _cpp_type(argument: Binding) -> str:
    return argument.nctype.type.cpp_type().replace("::std::", "std::").replace(" &", "&")


def _worker_type(argument: Binding) -> str:
    # A list reference lets the launcher read any list and rebuild it on the engine.
    cpp_type = _cpp_type(argument)
    return "at::IOptTensorListRef" if cpp_type == _TENSOR_LISTS_OF_OPTIONAL else cpp_type


def _return_statement(kind: SchemaKind, outputs: list[str], count: int) -> str:
    if kind is SchemaKind.functional:
        results = [f"std::move(op.output({i}))" for i in range(count)]
        return f"return {results[0]};" if count == 1 else f"return {{{', '.join(results)}}};"
    return f"return {outputs[0]};" if len(outputs) == 1 else f"return std::forward_as_tuple({', '.join(outputs)});"


def _define(head: str, body: list[str]) -> str:
    return "\n".join([f"{head} {{", *(f"  {line}" for line in body), "}", ""])
