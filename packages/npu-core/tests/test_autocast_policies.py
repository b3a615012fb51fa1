"""Which dtype every op of autocast's lists takes and gives, against the same op on explicitly cast CPU tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

LOWER = [torch.float16, torch.bfloat16]
aten = torch.ops.aten


def draw(*shape: int, low: float = 0.1, high: float = 0.9) -> torch.Tensor:
    """Values inside the domain of every function below, the same at every call with the same shape."""
    generator = torch.Generator().manual_seed(sum(shape) + len(shape))
    return torch.rand(shape, generator=generator) * (high - low) + low


# name -> (function, its floating tensors)
Case = tuple[Callable[..., Any], tuple[torch.Tensor, ...]]

LOWER_PRECISION: dict[str, Case] = {
    "_convolution": (
        lambda x, w: aten._convolution(
            x, w, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1, False, False, False, False
        ),
        (draw(1, 2, 5, 5), draw(3, 2, 3, 3)),
    ),
    "_convolution.deprecated": (
        lambda x, w: aten._convolution.deprecated(
            x, w, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1, False, False, False
        ),
        (draw(1, 2, 5, 5), draw(3, 2, 3, 3)),
    ),
    "convolution": (
        lambda x, w: aten.convolution(x, w, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1),
        (draw(1, 2, 5, 5), draw(3, 2, 3, 3)),
    ),
    "conv1d": (F.conv1d, (draw(1, 2, 7), draw(3, 2, 3))),
    "conv2d": (F.conv2d, (draw(1, 2, 5, 5), draw(3, 2, 3, 3), draw(3))),
    "conv3d": (F.conv3d, (draw(1, 2, 4, 4, 4), draw(3, 2, 2, 2, 2))),
    "conv_tbc": (torch.conv_tbc, (draw(5, 2, 3), draw(2, 3, 4), draw(4))),
    "conv_transpose1d": (F.conv_transpose1d, (draw(1, 2, 5), draw(2, 3, 3))),
    "conv_transpose2d": (F.conv_transpose2d, (draw(1, 2, 4, 4), draw(2, 3, 3, 3))),
    "conv_transpose3d": (F.conv_transpose3d, (draw(1, 2, 3, 3, 3), draw(2, 3, 2, 2, 2))),
    "prelu": (lambda x, w: F.prelu(x - 0.5, w), (draw(2, 3), draw(3))),
    "addmm": (torch.addmm, (draw(2, 4), draw(2, 3), draw(3, 4))),
    "addmv": (torch.addmv, (draw(2), draw(2, 3), draw(3))),
    "addr": (torch.addr, (draw(2, 3), draw(2), draw(3))),
    "matmul": (torch.matmul, (draw(2, 2, 3), draw(3, 4))),
    "einsum": (lambda a, b: torch.einsum("ij,jk->ik", a, b), (draw(2, 3), draw(3, 4))),
    "mm": (torch.mm, (draw(2, 3), draw(3, 4))),
    "mv": (torch.mv, (draw(2, 3), draw(3))),
    "linear": (F.linear, (draw(2, 3), draw(4, 3), draw(4))),
    "addbmm": (torch.addbmm, (draw(2, 4), draw(5, 2, 3), draw(5, 3, 4))),
    "baddbmm": (torch.baddbmm, (draw(5, 2, 4), draw(5, 2, 3), draw(5, 3, 4))),
    "bmm": (torch.bmm, (draw(5, 2, 3), draw(5, 3, 4))),
    "chain_matmul": (lambda *m: aten.chain_matmul(list(m)), (draw(2, 3), draw(3, 4), draw(4, 2))),
    "linalg_multi_dot": (lambda *m: torch.linalg.multi_dot(m), (draw(2, 3), draw(3, 4), draw(4, 2))),
    "lstm_cell": (
        lambda x, h, c, wi, wh, bi, bh: torch.lstm_cell(x, (h, c), wi, wh, bi, bh),
        (draw(2, 3), draw(2, 4), draw(2, 4), draw(16, 3), draw(16, 4), draw(16), draw(16)),
    ),
    "gru_cell": (torch.gru_cell, (draw(2, 3), draw(2, 4), draw(12, 3), draw(12, 4), draw(12), draw(12))),
    "rnn_tanh_cell": (torch.rnn_tanh_cell, (draw(2, 3), draw(2, 4), draw(4, 3), draw(4, 4), draw(4), draw(4))),
    "rnn_relu_cell": (torch.rnn_relu_cell, (draw(2, 3), draw(2, 4), draw(4, 3), draw(4, 4), draw(4), draw(4))),
    "scaled_dot_product_attention": (
        F.scaled_dot_product_attention,
        (draw(1, 2, 4, 8), draw(1, 2, 4, 8), draw(1, 2, 4, 8)),
    ),
}

TARGET = torch.tensor([0, 2])

FLOAT32: dict[str, Case] = {
    **{
        name: (getattr(torch, name), (draw(2, 3),))
        for name in (
            "acos asin cosh erfinv exp expm1 log log10 log2 log1p reciprocal rsqrt sinh tan nuclear_norm pdist".split()
        )
    },
    "pow.Tensor_Scalar": (lambda x: torch.pow(x, 2.5), (draw(2, 3),)),
    "pow.Tensor_Tensor": (torch.pow, (draw(2, 3), draw(2, 3))),
    "pow.Scalar": (lambda x: torch.pow(2.0, x), (draw(2, 3),)),
    "softplus": (F.softplus, (draw(2, 3),)),
    "layer_norm": (lambda x, w, b: F.layer_norm(x, (3,), w, b), (draw(2, 3), draw(3), draw(3))),
    "native_layer_norm": (
        lambda x, w, b: torch.native_layer_norm(x, (3,), w, b, 1e-5),
        (draw(2, 3), draw(3), draw(3)),
    ),
    "group_norm": (lambda x, w, b: F.group_norm(x, 2, w, b), (draw(2, 4, 3), draw(4), draw(4))),
    "frobenius_norm.dim": (lambda x: aten.frobenius_norm.dim(x, [0, 1]), (draw(2, 3),)),
    "nuclear_norm.dim": (lambda x: aten.nuclear_norm.dim(x, [0, 1]), (draw(2, 3),)),
    "cosine_similarity": (F.cosine_similarity, (draw(2, 3), draw(2, 3))),
    "poisson_nll_loss": (F.poisson_nll_loss, (draw(2, 3), draw(2, 3))),
    "cosine_embedding_loss": (
        lambda a, b: F.cosine_embedding_loss(a, b, torch.tensor([1, -1], device=a.device)),
        (draw(2, 3), draw(2, 3)),
    ),
    "nll_loss": (lambda x: F.nll_loss(x, TARGET.to(x.device)), (draw(2, 3),)),
    "nll_loss2d": (
        lambda x: F.nll_loss(x, torch.tensor([[[0, 2]], [[1, 1]]], device=x.device)),
        (draw(2, 3, 1, 2),),
    ),
    "hinge_embedding_loss": (
        lambda x: F.hinge_embedding_loss(x, torch.tensor([[1, -1, 1]], device=x.device)),
        (draw(2, 3),),
    ),
    "kl_div": (lambda a, b: F.kl_div(a, b, reduction="sum"), (draw(2, 3), draw(2, 3))),
    "l1_loss": (lambda a, b: F.l1_loss(a, b.flip(0)), (draw(2, 3), draw(2, 3))),
    "smooth_l1_loss": (lambda a, b: F.smooth_l1_loss(a, b.flip(0)), (draw(2, 3), draw(2, 3))),
    "huber_loss": (lambda a, b: F.huber_loss(a, b.flip(0)), (draw(2, 3), draw(2, 3))),
    "mse_loss": (lambda a, b: F.mse_loss(a, b.flip(0)), (draw(2, 3), draw(2, 3))),
    "margin_ranking_loss": (
        lambda a, b: F.margin_ranking_loss(a, b.flip(0), torch.tensor([[1, -1, 1]], device=a.device)),
        (draw(2, 3), draw(2, 3)),
    ),
    "multilabel_margin_loss": (
        lambda x: F.multilabel_margin_loss(x, torch.tensor([[1, -1, 0], [0, 2, -1]], device=x.device)),
        (draw(2, 3),),
    ),
    "soft_margin_loss": (
        lambda x: F.soft_margin_loss(x, torch.tensor([[1, -1, 1]], device=x.device).expand(2, 3)),
        (draw(2, 3),),
    ),
    "triplet_margin_loss": (
        lambda a, b, c: F.triplet_margin_loss(a, b.flip(0), c),
        (draw(2, 3), draw(2, 3), draw(2, 3)),
    ),
    "multi_margin_loss": (lambda x: F.multi_margin_loss(x, TARGET.to(x.device)), (draw(2, 3),)),
    "binary_cross_entropy_with_logits": (F.binary_cross_entropy_with_logits, (draw(2, 3), draw(2, 3))),
    "dist": (lambda a, b: torch.dist(a, b.flip(0)), (draw(2, 3), draw(2, 3))),
    "cdist": (torch.cdist, (draw(2, 3), draw(4, 3))),
    "renorm": (lambda x: torch.renorm(x, 2, 0, 0.5), (draw(2, 3),)),
    "logsumexp": (lambda x: torch.logsumexp(x, 1), (draw(2, 3),)),
    "norm.Scalar": (lambda x: aten.norm.Scalar(x, 2), (draw(2, 3),)),
    "norm.ScalarOpt_dim": (lambda x: aten.norm.ScalarOpt_dim(x, 2, [1], False), (draw(2, 3),)),
}

FLOAT32_UNLESS_TOLD: dict[str, Case] = {
    "prod": (torch.prod, (draw(2, 3),)),
    "prod.dim_int": (lambda x, **kw: torch.prod(x, 1, **kw), (draw(2, 3),)),
    "softmax": (lambda x, **kw: torch.softmax(x, 1, **kw), (draw(2, 3),)),
    "log_softmax": (lambda x, **kw: torch.log_softmax(x, 1, **kw), (draw(2, 3),)),
    "cumprod": (lambda x, **kw: torch.cumprod(x, 1, **kw), (draw(2, 3),)),
    "cumsum": (lambda x, **kw: torch.cumsum(x, 1, **kw), (draw(2, 3),)),
    "linalg_vector_norm": (torch.linalg.vector_norm, (draw(2, 3),)),
    "linalg_matrix_norm": (lambda x, **kw: torch.linalg.matrix_norm(x, 1, **kw), (draw(2, 3),)),
    "linalg_matrix_norm.str_ord": (lambda x, **kw: torch.linalg.matrix_norm(x, "fro", **kw), (draw(2, 3),)),
    "sum": (torch.sum, (draw(2, 3),)),
    "sum.dim_IntList": (lambda x, **kw: torch.sum(x, [1], **kw), (draw(2, 3),)),
}


def index_put(target: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    return target.index_put((torch.tensor([1, 0], device=target.device),), values)


WIDEST: dict[str, Case] = {
    "addcdiv": (torch.addcdiv, (draw(2, 3), draw(2, 3), draw(2, 3))),
    "addcmul": (torch.addcmul, (draw(2, 3), draw(2, 3), draw(2, 3))),
    "atan2": (torch.atan2, (draw(2, 3), draw(2, 3))),
    "bilinear": (F.bilinear, (draw(2, 3), draw(2, 4), draw(5, 3, 4))),
    "cross": (lambda a, b: torch.cross(a, b, dim=1), (draw(2, 3), draw(3, 2).reshape(2, 3))),
    "dot": (torch.dot, (draw(4), draw(4))),
    "grid_sampler": (lambda x, g: torch.grid_sampler(x, g, 0, 0, False), (draw(1, 2, 4, 4), draw(1, 3, 3, 2))),
    "index_put": (index_put, (draw(2, 3), draw(2, 3))),
    "tensordot": (lambda a, b: torch.tensordot(a, b, dims=1), (draw(2, 3), draw(3, 4))),
    "scatter_add": (
        lambda x, s: x.scatter_add(0, torch.zeros(1, 3, dtype=torch.int64, device=x.device), s),
        (draw(2, 3), draw(1, 3)),
    ),
}


def outputs(result: Any) -> list[torch.Tensor]:
    return [result] if isinstance(result, torch.Tensor) else list(result)


def compare(actual: Any, expected: Any, tolerance: float) -> None:
    for mine, theirs in zip(outputs(actual), outputs(expected), strict=True):
        torch.testing.assert_close(mine.cpu().double(), theirs.double(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("given", [torch.float32, "lower"])
@pytest.mark.parametrize("dtype", LOWER)
@pytest.mark.parametrize("name", LOWER_PRECISION)
def test_lower_precision(name, dtype, given):
    function, arguments = LOWER_PRECISION[name]
    given = dtype if given == "lower" else given
    with torch.autocast("npu", dtype=dtype):
        result = function(*(t.to(given).npu() for t in arguments))
    assert {t.dtype for t in outputs(result)} == {dtype}
    compare(result, function(*(t.to(dtype).float() for t in arguments)), 3e-2)


def fused_cell_arguments(gates: int, dtype: torch.dtype) -> list[torch.Tensor]:
    return [draw(2, gates * 4).to(dtype).npu(), draw(4, gates * 2).reshape(2, -1).to(dtype).npu()]


@pytest.mark.parametrize("dtype", LOWER)
def test_lower_precision_of_the_fused_recurrent_cells(dtype):
    for name, gates in (("_thnn_fused_lstm_cell", 4), ("_thnn_fused_gru_cell", 3)):
        inputs, hidden = fused_cell_arguments(gates, torch.float32)
        state = draw(2, 4).npu()
        cell = getattr(aten, name)
        with torch.autocast("npu", dtype=dtype):
            result = cell(inputs, hidden, state)
        lowered = [t.to(dtype) for t in (inputs, hidden, state)]
        for mine, theirs in zip(result, cell(*lowered), strict=True):
            assert mine.dtype == theirs.dtype and torch.equal(mine.cpu(), theirs.cpu())
        assert result[0].dtype == dtype


@pytest.mark.parametrize("given", LOWER)
@pytest.mark.parametrize("name", FLOAT32)
def test_float32(name, given):
    function, arguments = FLOAT32[name]
    lowered = [t.to(given) for t in arguments]
    with torch.autocast("npu", dtype=given):
        result = function(*(t.npu() for t in lowered))
    assert {t.dtype for t in outputs(result)} == {torch.float32}
    compare(result, function(*(t.float() for t in lowered)), 1e-5)


@pytest.mark.parametrize("given", LOWER)
@pytest.mark.parametrize("name", FLOAT32_UNLESS_TOLD)
def test_float32_unless_the_caller_names_a_dtype(name, given):
    function, (argument,) = FLOAT32_UNLESS_TOLD[name]
    lowered = argument.to(given)
    with torch.autocast("npu", dtype=given):
        result = function(lowered.npu())
        asked = function(lowered.npu(), dtype=torch.float64)
    assert result.dtype == torch.float32 and asked.dtype == torch.float64
    compare(result, function(lowered.float()), 1e-5)
    compare(asked, function(lowered.double()), 1e-5)


@pytest.mark.parametrize("given", LOWER)
def test_sums_of_integers_are_left_alone(given):
    with torch.autocast("npu", dtype=given):
        assert torch.arange(4, device="npu").sum().dtype == torch.int64


@pytest.mark.parametrize("lower", LOWER)
@pytest.mark.parametrize("name", WIDEST)
def test_widest_dtype(name, lower):
    function, arguments = WIDEST[name]
    with torch.autocast("npu", dtype=lower):
        narrow = function(*(t.to(lower).npu() for t in arguments))
        # One float32 argument, wherever it stands, decides.
        for wide in range(len(arguments)):
            mixed = [t if i == wide else t.to(lower) for i, t in enumerate(arguments)]
            result = function(*(t.npu() for t in mixed))
            assert result.dtype == torch.float32
            compare(result, function(*(t.float() for t in mixed)), 1e-5)
    # bilinear and tensordot multiply matrices inside, which lowers again only when autocast still applies there.
    assert narrow.dtype == lower
    compare(narrow, function(*(t.to(lower).float() for t in arguments)), 3e-2)


@pytest.mark.parametrize("dtype", LOWER)
def test_binary_cross_entropy_is_banned(dtype):
    probability, target = draw(2, 3).npu(), draw(2, 3).npu()
    with torch.autocast("npu", dtype=dtype):
        with pytest.raises(RuntimeError, match="binary_cross_entropy_with_logits"):
            F.binary_cross_entropy(probability, target)
        with pytest.raises(RuntimeError, match="BCEWithLogitsLoss"):
            torch.nn.BCELoss()(probability, target)
        with torch.autocast("npu", enabled=False):
            assert F.binary_cross_entropy(probability, target).dtype == torch.float32


@pytest.mark.parametrize("dtype", LOWER)
@pytest.mark.parametrize(
    "function",
    [
        torch.relu,
        torch.sin,
        torch.tanh,
        torch.mean,
        lambda x: x + x,
        lambda x: F.rms_norm(x, (3,)),
        lambda x: F.interpolate(x[None], scale_factor=2),
    ],
    ids=["relu", "sin", "tanh", "mean", "add", "rms_norm", "interpolate"],
)
def test_other_ops_keep_the_dtype_they_get(function, dtype):
    with torch.autocast("npu", dtype=dtype):
        for given in (dtype, torch.float32):
            assert function(draw(2, 3).to(given).npu()).dtype == given


def test_only_floating_tensors_of_the_device_are_cast():
    a = torch.ones(2, 2)
    with torch.autocast("npu", dtype=torch.bfloat16):
        assert (a @ a).dtype == torch.float32, "CPU tensors have an autocast of their own"
        assert (a.npu().double() @ a.npu().double()).dtype == torch.float64
        assert torch.exp(a.npu().double()).dtype == torch.float64
        assert torch.arange(2, device="npu").pow(2).dtype == torch.int64


def test_regions_nest_and_restore():
    a = torch.ones(2, 2, device="npu")
    with torch.autocast("npu", dtype=torch.float16):
        assert (a @ a).dtype == torch.float16
        with torch.autocast("npu", dtype=torch.bfloat16):
            assert (a @ a).dtype == torch.bfloat16
            with torch.autocast("npu", enabled=False):
                assert (a @ a).dtype == torch.float32
            assert (a @ a).dtype == torch.bfloat16
        assert (a @ a).dtype == torch.float16
        with torch.autocast("npu", dtype=torch.float32):
            assert (a @ a).dtype == torch.float32
    assert (a @ a).dtype == torch.float32

    @torch.autocast("npu", dtype=torch.bfloat16)
    def product(x):
        return x @ x

    assert product(a).dtype == torch.bfloat16


def test_region_ends_with_an_exception():
    with pytest.raises(KeyError), torch.autocast("npu"):
        raise KeyError
    assert not torch.npu.is_autocast_enabled()


@pytest.mark.parametrize("cached", [True, False])
def test_cast_weights_are_cached_within_the_region(cached):
    weight = torch.ones(3, 3, device="npu", requires_grad=True)
    x = torch.ones(1, 3, device="npu")
    with torch.autocast("npu", dtype=torch.bfloat16, cache_enabled=cached):
        first, second = F.linear(x, weight), F.linear(x, weight)
        # The cast of a leaf is one node of the graph when cached, one per use otherwise.
        casts = [result.grad_fn.next_functions[-1][0] for result in (first, second)]
        while any(cast.name() != "ToCopyBackward0" for cast in casts):
            casts = [next(n for n, _ in cast.next_functions if n is not None) for cast in casts]
        assert (casts[0] is casts[1]) is cached
    assert not torch.is_autocast_enabled("npu")
    (first + second).sum().backward()
    assert weight.grad.dtype == torch.float32 and weight.grad.eq(2).all().item()


def test_cache_does_not_outlive_the_region():
    weight = torch.ones(2, 2, device="npu", requires_grad=True)
    x = torch.ones(2, 2, device="npu")
    with torch.autocast("npu"):
        assert (x @ weight).sum().item() == 8
    with torch.no_grad():
        weight.fill_(3)
    with torch.autocast("npu"):
        assert (x @ weight).sum().item() == 24


@pytest.mark.parametrize("dtype", LOWER)
def test_gradients_have_the_dtype_of_the_parameters(dtype):
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.LayerNorm(8), torch.nn.Linear(8, 2)).npu()
    x = torch.randn(3, 4, device="npu")
    with torch.autocast("npu", dtype=dtype):
        out = model(x)
        loss = F.cross_entropy(out, torch.tensor([0, 1, 0], device="npu"))
    assert out.dtype == dtype and loss.dtype == torch.float32
    loss.backward()
    assert {p.grad.dtype for p in model.parameters()} == {torch.float32}


def test_checkpointing_repeats_the_region():
    layer = torch.nn.Linear(4, 4).npu()
    seen = []

    def run(x):
        # First, because recomputation stops once it has what backward needs.
        seen.append((x @ x.t()).dtype)
        return layer(x)

    with torch.autocast("npu", dtype=torch.bfloat16):
        out = torch.utils.checkpoint.checkpoint(run, torch.ones(2, 4, device="npu"), use_reentrant=False)
    out.float().sum().backward()
    assert seen == [torch.bfloat16, torch.bfloat16]


def test_custom_functions_follow_the_region():
    seen = {}

    class Square(torch.autograd.Function):
        @staticmethod
        @torch.amp.custom_fwd(device_type="npu")
        def forward(ctx, x):
            ctx.save_for_backward(x)
            seen["forward"] = torch.is_autocast_enabled("npu")
            return x @ x

        @staticmethod
        @torch.amp.custom_bwd(device_type="npu")
        def backward(ctx, grad):
            (x,) = ctx.saved_tensors
            seen["backward"] = (torch.is_autocast_enabled("npu"), torch.get_autocast_dtype("npu"))
            return grad @ x.t() + x.t() @ grad

    x = torch.eye(2, device="npu", requires_grad=True)
    with torch.autocast("npu", dtype=torch.bfloat16):
        out = Square.apply(x)
    out.float().sum().backward()
    assert out.dtype == torch.bfloat16
    assert seen == {"forward": True, "backward": (True, torch.bfloat16)}
    assert x.grad.cpu().tolist() == [[2, 2], [2, 2]]


def test_custom_function_with_cast_inputs_leaves_the_region():
    seen = {}

    class Product(torch.autograd.Function):
        @staticmethod
        @torch.amp.custom_fwd(device_type="npu", cast_inputs=torch.float32)
        def forward(ctx, x, kept):
            seen.update(dtype=x.dtype, kept=kept.dtype, enabled=torch.is_autocast_enabled("npu"))
            return x @ x

        @staticmethod
        @torch.amp.custom_bwd(device_type="npu")
        def backward(ctx, grad):
            seen["backward"] = torch.is_autocast_enabled("npu")
            return grad, None

    x = torch.eye(2, device="npu", dtype=torch.float16, requires_grad=True)
    with torch.autocast("npu", dtype=torch.float16):
        out = Product.apply(x, torch.ones(1, dtype=torch.int32, device="npu"))
    assert out.dtype == torch.float32
    out.sum().backward()
    assert seen == {"dtype": torch.float32, "kept": torch.int32, "enabled": False, "backward": False}
