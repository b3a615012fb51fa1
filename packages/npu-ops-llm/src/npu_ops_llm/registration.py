"""What a family of operators adds in Python to its schemas and kernels in C++: shapes, documentation, gradients."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar

import torch

Function = TypeVar("Function", bound=Callable[..., Any])


def fake(function: Function, *, namespace: str = "npu") -> Function:
    """Register the decorated function as the fake kernel and the documentation of the operator of its name.

    It gets what the operator gets and returns empty tensors (``x.new_empty(...)``) of the shapes and dtypes that the
    operator returns, symbolic sizes included.  ``help(torch_npu.npu_rms_norm)`` shows its docstring.
    """
    torch.library.register_fake(f"{namespace}::{function.__name__}", function)
    return documented(function, namespace=namespace) if function.__doc__ else function


def documented(function: Function, *, namespace: str = "npu") -> Function:
    """Make the decorated function the documentation of the operator of its name.

    For composite operators, which need no fake kernel: the function is never called.
    """
    packet = getattr(getattr(torch.ops, namespace), function.__name__)
    packet.__doc__ = function.__doc__
    packet.__wrapped__ = function  # inspect.signature() follows it
    return function


def kernel(name: str) -> Callable[[Function], Function]:
    """Register the decorated function as the kernel of ``npu::name`` for CPU and npu tensors.

    For operators whose arguments the stable C++ interface cannot take (``Scalar``, some dtypes): the function checks
    them and calls an internal operator.
    """

    def register(function: Function) -> Function:
        torch.library.impl(f"npu::{name}", ("CPU", "PrivateUse1"), function)
        return function

    return register


def differentiable(name: str, setup_context: Callable[..., None], backward: Callable[..., Any]) -> None:
    """Register the gradient of ``npu::name``.

    Do not unpack ``ctx.needs_input_grad`` in `backward`: the dispatcher drops arguments that equal their defaults.
    """
    torch.library.register_autograd(f"npu::{name}", backward, setup_context=setup_context)


# They live as long as their registrations.
_fragments = {namespace: torch.library.Library(namespace, "FRAGMENT") for namespace in ("npu", "atb")}
_fragment = _fragments["npu"]


def differentiable_with_keywords(
    name: str,
    tensors: tuple[str, ...],
    setup_context: Callable[[Any, dict[str, Any], Any], None],
    backward: Callable[..., Sequence[torch.Tensor | None]],
) -> None:
    """Register the gradient of ``npu::name`` where tensors are keyword-only, which ``register_autograd`` does not take.

    ``setup_context(ctx, inputs, output)`` gets the arguments by name, defaults included.  ``backward(ctx, *gradients)``
    returns the gradients of the arguments named in `tensors`; ``ctx.needed`` has those that are asked for.
    """
    operator = getattr(torch.ops.npu, name).default
    schema = operator._schema.arguments
    order = [argument.name for argument in schema]
    defaults = {argument.name: argument.default_value for argument in schema if argument.has_default_value()}
    after_autograd = torch._C._after_autograd_keyset

    class Gradient(torch.autograd.Function):
        @staticmethod
        def forward(
            ctx: Any, keys: Any, positional: tuple[Any, ...], keywords: dict[str, Any], *tracked: torch.Tensor | None
        ) -> Any:
            with torch._C._AutoDispatchBelowAutograd():
                output = operator.redispatch(keys & after_autograd, *positional, **keywords)
            given = dict(zip(order, positional, strict=False))
            setup_context(ctx, {**defaults, **given, **keywords, **dict(zip(tensors, tracked, strict=True))}, output)
            return output

        @staticmethod
        def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
            ctx.needed = {one for one, needed in zip(tensors, ctx.needs_input_grad[3:], strict=True) if needed}
            results = zip(tensors, backward(ctx, *gradients), strict=True)
            return None, None, None, *(gradient if one in ctx.needed else None for one, gradient in results)

    def run(keys: Any, *positional: Any, **keywords: Any) -> Any:
        if torch.is_grad_enabled():
            given = {**dict(zip(order, positional, strict=False)), **keywords}
            tracked = [given.get(one) for one in tensors]
            if any(tensor is not None and tensor.requires_grad for tensor in tracked):
                return Gradient.apply(keys, positional, keywords, *tracked)
        return operator.redispatch(keys & after_autograd, *positional, **keywords)

    _fragment.impl(name, run, "Autograd", with_keyset=True)


def _below_autograd(operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    with torch._C._AutoDispatchBelowAutograd():
        return operator(*args, **kwargs)


class _Once(torch.autograd.Function):
    """Results of a gradient operator, which refuse to be differentiated."""

    @staticmethod
    def forward(ctx: Any, names: tuple[str, str], call: Callable[[], Any], *tracked: torch.Tensor) -> Any:
        ctx.names = names
        return call()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> NoReturn:
        name, backward_name = ctx.names
        raise NotImplementedError(
            f"{name} has no second derivative: {backward_name} is not differentiable. "
            "Compute this function from torch operators where you need double backward."
        )


def once_differentiable(name: str, backward_name: str) -> None:
    """Make the operator ``npu::backward_name``, the gradient of ``npu::name``, refuse to be differentiated."""
    operator = getattr(torch.ops.npu, backward_name).default

    def run(*args: Any, **kwargs: Any) -> Any:
        if torch.is_grad_enabled():
            given = (*args, *kwargs.values())
            tracked = [one for one in given if isinstance(one, torch.Tensor) and one.requires_grad]
            if tracked:
                call = functools.partial(_below_autograd, operator, args, kwargs)
                return _Once.apply((name, backward_name), call, *tracked)
        return _below_autograd(operator, args, kwargs)

    _fragment.impl(backward_name, run, "Autograd")


def writes_arguments(name: str, *, public: str | None = None, namespace: str = "npu", advice: str = "") -> None:
    """Give an operator that writes arguments and has no gradient the manners of torch's in-place operators.

    A written tensor counts a new version, so that autograd notices when it was saved for a backward.  One that requires
    grad is refused while gradients are recorded.  A pending negation or conjugation is resolved in arguments that are
    read, and refused in written ones.

    Parameters
    ----------
    name : str
        The operator whose schema marks what is written.
    public : str, optional
        What users call, where `name` is internal.
    advice : str
        What to do instead, appended to the error.
    """
    operator = getattr(getattr(torch.ops, namespace), name).default
    public = public or name
    marked = [
        (place, argument.name)
        for place, argument in enumerate(operator._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]

    def written(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[tuple[str, torch.Tensor]]:
        return [(argument, args[place] if place < len(args) else kwargs[argument]) for place, argument in marked]

    def run(*args: Any, **kwargs: Any) -> Any:
        targets = written(args, kwargs)
        if torch.is_grad_enabled():
            for argument, tensor in targets:
                if tensor.requires_grad:
                    raise RuntimeError(
                        f"{public}: argument {argument}: it is written and has no gradient, so it must not require "
                        f"grad; call the operator under torch.no_grad() or on a detached tensor{advice}"
                    )
        result = _below_autograd(operator, args, kwargs)
        for _, tensor in targets:
            if not tensor.is_inference():
                torch.autograd.graph.increment_version(tensor)
        return result

    def resolve(*args: Any, **kwargs: Any) -> Any:
        for argument, tensor in written(args, kwargs):
            if tensor.is_neg() or tensor.is_conj():
                raise RuntimeError(
                    f"{public}: argument {argument}: a view with a pending negation or conjugation cannot be written; "
                    "pass the tensor that it is a view of"
                )

        def plain(value: Any) -> Any:
            return value.resolve_conj().resolve_neg() if isinstance(value, torch.Tensor) else value

        return operator(*map(plain, args), **{key: plain(value) for key, value in kwargs.items()})

    library = _fragments[namespace]
    library.impl(name, run, "Autograd")
    for key in ("Negative", "Conjugate"):
        library.impl(name, resolve, key)


def check(condition: Any, op: str, argument: str, message: str | Callable[[], str]) -> None:
    """Raise the RuntimeError that the kernel raises for the same mistake, for fake kernels.

    `condition` may be symbolic.
    """
    torch._check(condition, lambda: f"{op}: argument {argument}: {message() if callable(message) else message}")
