"""Which pointwise ops know their result without building a TensorIterator.

For an op listed here, operands of one dtype and one dense layout give a result of the same layout, and ``meta()``
raises nothing that the conditions below do not rule out.  Only then may the generated kernel skip ``meta()``.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class FastPath:
    """When an op may skip ``meta()``.

    Attributes
    ----------
    dtypes
        Enumerator of ``npu::aten::DtypeClass``: dtypes for which the result's dtype is the operands'.
    cpu_scalars
        Whether a Python number may stand for one tensor operand.
    boolean
        The result is bool (comparisons): only the functional overload has a fast path.
    condition
        Further condition in C++ over the op's arguments, "" when there is none.
    """

    dtypes: str = "kFloating"
    cpu_scalars: bool = False
    boolean: bool = False
    condition: str = ""


_FLOATING_UNARY = """
    acos acosh asin asinh atan atanh cos cosh sin sinh sinc tan tanh erf erfc erfinv exp exp2 expm1 log log10 log1p log2
    digamma lgamma i0 reciprocal rsqrt sqrt sigmoid ceil floor round round.decimals trunc frac sgn sign silu mish gelu
    hardsigmoid hardshrink elu leaky_relu threshold softplus clamp_min clamp_max pow.Tensor_Scalar
    special_entr special_erfcx special_i0e special_i1 special_i1e special_log_ndtr special_ndtri
""".split()

_FLOATING_BINARY = """
    atan2 copysign.Tensor hypot nextafter fmod.Tensor remainder.Tensor logaddexp logaddexp2 xlogy.Tensor
    maximum minimum fmax fmin clamp_min.Tensor clamp_max.Tensor pow.Tensor_Tensor heaviside
    lerp.Scalar lerp.Tensor addcmul addcdiv
    sigmoid_backward tanh_backward silu_backward gelu_backward threshold_backward hardsigmoid_backward
    hardshrink_backward softshrink_backward softplus_backward
""".split()

FAST_PATHS: dict[str, FastPath] = {
    **{name: FastPath() for name in _FLOATING_UNARY + _FLOATING_BINARY},
    **{name: FastPath("kReal", cpu_scalars=True) for name in ("add.Tensor", "sub.Tensor", "mul.Tensor")},
    "neg": FastPath("kReal"),
    "div.Tensor": FastPath(cpu_scalars=True),
    "clamp": FastPath(condition="(min.has_value() || max.has_value())"),
    "softshrink": FastPath(condition="lambd.toDouble() >= 0"),
    # With a negative slope or alpha the result does not tell the input's sign: meta() refuses it.
    "leaky_relu_backward": FastPath(condition="(!self_is_result || negative_slope.toDouble() >= 0)"),
    "elu_backward": FastPath(condition="(!is_result || alpha.toDouble() >= 0)"),
    **{f"bitwise_{name}.Tensor": FastPath("kIntegral") for name in ("and", "or", "xor")},
    "bitwise_not": FastPath("kIntegral"),
    **{
        f"{name}.{operand}": FastPath("kReal", cpu_scalars=operand == "Tensor", boolean=True)
        for name in ("eq", "ne", "lt", "le", "gt", "ge")
        for operand in ("Tensor", "Scalar")
    },
}
