"""npu_cross_entropy_loss and its gradient against the formula in float64."""

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

LOSS = torch.ops.npu.npu_cross_entropy_loss
BACKWARD = torch.ops.npu.npu_cross_entropy_loss_backward

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# Half a unit in the last place of the result, plus float32 sums for all.
RTOL = {torch.float32: 4e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}
ATOL = {torch.float32: 2e-6, torch.bfloat16: 2e-6, torch.float16: 2e-6}

SHAPES = [(1, 1), (1, 7), (3, 16), (5, 33), (2, 2049), (3, 8191), (4, 32000), (129, 67)]
REDUCTIONS = ["mean", "sum", "none"]


def reference(
    x: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    zloss_scale: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss, log probabilities, z-loss and log-sum-exp by the specification, in float64."""
    x = x.double()
    classes = x.shape[1]
    lse = torch.logsumexp(x, -1)
    log_prob = x - lse[:, None]
    counts = torch.ones_like(target, dtype=torch.float64)
    if ignore_index >= 0:
        counts = (target != ignore_index).double()
    safe = torch.where(counts == 0, 0, target)
    w = torch.ones(classes, dtype=torch.float64) if weight is None else weight.double()
    a = -w[safe] * log_prob.gather(1, safe[:, None])[:, 0] * counts
    b = -counts * (w * log_prob).sum(-1)
    loss = (1 - label_smoothing) * a + (label_smoothing / classes * b if label_smoothing else 0)
    zloss = zloss_scale * lse.square() * counts
    if reduction != "none":
        loss, zloss = loss.sum()[None], zloss.sum()[None]
    if reduction == "mean":
        loss, zloss = loss / (w[safe] * counts).sum(), zloss / counts.sum()
    return loss, log_prob, zloss, lse


def inputs(rows: int, classes: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(rows, classes).mul(3).to(dtype), torch.randint(0, classes, (rows,)), torch.rand(classes) + 0.1


def near(actual: Tensor, expected: Tensor, dtype: torch.dtype, *, scale: float = 1.0) -> None:
    assert actual.dtype == dtype and actual.shape == expected.shape
    torch.testing.assert_close(
        actual.detach().cpu().double(),
        expected.detach(),
        rtol=RTOL[dtype],
        atol=ATOL[dtype] * scale,
        equal_nan=True,
    )


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_defaults(shape: tuple[int, int], dtype: torch.dtype, reduction: str, device: str) -> None:
    x, target, _ = inputs(*shape, dtype)
    loss, log_prob, zloss, lse = LOSS(x.to(device), target.to(device), None, reduction)
    expected = reference(x, target, None, reduction)
    near(loss, expected[0], dtype)
    near(log_prob, expected[1], dtype)
    assert zloss.shape == (0,) and lse.shape == (0,) and zloss.dtype == lse.dtype == dtype
    assert {t.device.type for t in (loss, log_prob, zloss, lse)} == {device}


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_combination_of_options(dtype: torch.dtype, reduction: str, device: str) -> None:
    x, target, weight = inputs(19, 53, dtype)
    for with_weight, ignore, smoothing, scale in itertools.product((False, True), (-100, 7), (0.0, 0.3), (0.0, 0.02)):
        if ignore >= 0:
            target[4:9] = ignore
        w = weight if with_weight else None
        out = LOSS(
            x.to(device),
            target.to(device),
            None if w is None else w.to(device),
            reduction,
            ignore,
            smoothing,
            scale,
            True,
        )
        expected = reference(x, target, w, reduction, ignore, smoothing, scale)
        near(out[0], expected[0], dtype, scale=20)
        near(out[1], expected[1], dtype)
        near(out[2], expected[2], dtype, scale=20)
        if scale:
            near(out[3], expected[3], dtype)
        else:
            assert out[3].shape == (0,)


def test_specification_example(device: str) -> None:
    x = torch.tensor([[1.0, 2.0, 3.0], [1.0, 1.0, 1.0]], device=device)
    target = torch.tensor([2, 0], device=device)
    for smoothing, expected in ((0.0, 0.753109), (0.1, 0.803109)):
        loss = LOSS(x, target, label_smoothing=smoothing)[0]
        torch.testing.assert_close(loss.cpu(), torch.tensor([expected]), rtol=0, atol=1e-6)


def test_equals_torch_where_both_are_defined() -> None:
    x, target, weight = inputs(11, 31, torch.float32)
    target[3] = 5
    for reduction in REDUCTIONS:
        ours = LOSS(x, target, weight, reduction, 5, 0.2)[0]
        theirs = F.cross_entropy(x, target, weight, reduction=reduction, ignore_index=5, label_smoothing=0.2)
        torch.testing.assert_close(ours, theirs.reshape(ours.shape), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_ignored_rows_count_for_nothing(reduction: str, device: str) -> None:
    x, _, _ = inputs(4, 9, torch.float32)
    # An ignored target need not be a class.
    target = torch.tensor([3, 50, 8, 50])
    loss = LOSS(x.to(device), target.to(device), None, reduction, 50)[0].cpu()
    without = reference(x[[0, 2]], target[[0, 2]], None, reduction)[0]
    if reduction == "none":
        assert loss[1] == 0 and loss[3] == 0
        loss = loss[[0, 2]]
    near(loss, without, torch.float32)


def test_nothing_but_ignored_rows(device: str) -> None:
    x, target = torch.randn(3, 5, device=device), torch.full((3,), 2, device=device)
    for reduction, expected in (("mean", [float("nan")]), ("sum", [0.0]), ("none", [0.0] * 3)):
        loss, _, zloss, _ = LOSS(x, target, None, reduction, 2, 0.0, 0.1, True)
        for one in (loss, zloss):
            torch.testing.assert_close(one.cpu(), torch.tensor(expected), equal_nan=True)


def test_no_rows_and_no_classes(device: str) -> None:
    x, target = torch.empty(0, 5, device=device), torch.empty(0, dtype=torch.int64, device=device)
    for reduction, expected in (("mean", [float("nan")]), ("sum", [0.0]), ("none", [])):
        loss, log_prob, zloss, lse = LOSS(x, target, None, reduction, -100, 0.0, 0.1, True)
        torch.testing.assert_close(loss.cpu(), torch.tensor(expected), equal_nan=True)
        assert log_prob.shape == (0, 5) and zloss.shape == loss.shape and lse.shape == (0,)
        assert BACKWARD(loss, log_prob, target, reduction=reduction).shape == (0, 5)
    x, target = torch.empty(2, 0, device=device), torch.full((2,), 1, device=device)
    assert torch.equal(LOSS(x, target, None, "none", 1)[0].cpu(), torch.zeros(2))


@pytest.mark.parametrize("dtype", DTYPES)
def test_non_contiguous_and_unaligned(dtype: torch.dtype, device: str) -> None:
    x = torch.randn(61, 12).to(dtype).to(device).t()
    target = torch.randint(0, 61, (24,), device=device)[::2]
    weight = torch.rand(122, device=device)[::2]
    near(LOSS(x, target, weight)[0], reference(x.cpu(), target.cpu(), weight.cpu())[0], dtype)
    grad = torch.randn(1).to(dtype).to(device).expand(12)
    log_prob = torch.log_softmax(x.float(), -1).to(dtype)
    strided = BACKWARD(grad, log_prob.t().contiguous().t(), target, weight, reduction="none")
    assert torch.equal(strided, BACKWARD(grad.clone(), log_prob, target.clone(), weight.clone(), reduction="none"))
    shifted = torch.randn(1 + 12 * 61).to(dtype).to(device)[1:].view(12, 61)
    near(LOSS(shifted, target)[0], reference(shifted.cpu(), target.cpu())[0], dtype)


def test_extreme_logits(device: str) -> None:
    inf, nan = float("inf"), float("nan")
    x = torch.tensor([[1e30, 0.0, -1e30], [-inf, 0.0, 1.0], [-inf, -inf, -inf], [nan, 0.0, 1.0], [88.0, 89.0, 90.0]])
    target = torch.tensor([1, 2, 0, 1, 0])
    loss, log_prob, _, lse = LOSS(x.to(device), target.to(device), None, "none", -100, 0.0, 1.0)
    torch.testing.assert_close(log_prob.cpu(), torch.log_softmax(x, -1), equal_nan=True)
    torch.testing.assert_close(loss.cpu(), F.cross_entropy(x, target, reduction="none"), equal_nan=True)
    torch.testing.assert_close(lse.cpu(), torch.logsumexp(x, -1), equal_nan=True)


def test_a_maximum_that_comes_late() -> None:
    """Sums of one part of the row are rescaled when a later part has a larger maximum."""
    x = torch.linspace(-40, 40, 9000)[None].expand(3, 9000).clone()
    x[1, :5000] = -float("inf")
    x[2, :4000] *= 0.1
    near(
        LOSS(x, torch.tensor([8999, 8999, 4000]), reduction="none")[0],
        reference(x, torch.tensor([8999, 8999, 4000]), None, "none")[0],
        torch.float32,
    )


# ---- gradient ---------------------------------------------------------------------------------------------------


def reference_gradient(x: Tensor, grads: tuple[Tensor, Tensor], *args: Any) -> Tensor:
    x = x.detach().cpu().double().requires_grad_()
    loss, _, zloss, _ = reference(x, *args)
    (grad,) = torch.autograd.grad((loss, zloss), x, [g.double() for g in grads], materialize_grads=True)
    return grad


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_autograd(dtype: torch.dtype, reduction: str, device: str) -> None:
    x, target, weight = inputs(17, 203, dtype)
    # The saved log probabilities have the dtype of the input: their rounding is in p.
    rtol = {torch.float32: 2e-5, torch.bfloat16: 0.06, torch.float16: 0.01}[dtype]
    for w, ignore, smoothing, scale in (
        (None, -100, 0.0, 0.0),
        (weight, 11, 0.25, 0.05),
        (weight, -1, 0.0, 0.05),
        (None, 3, 0.25, 0.0),
    ):
        if ignore >= 0:
            target[3] = target[8] = ignore
        on_device = x.clone().to(device).requires_grad_()
        loss, log_prob, zloss, lse = LOSS(
            on_device, target.to(device), None if w is None else w.to(device), reduction, ignore, smoothing, scale, True
        )
        assert not log_prob.requires_grad and not lse.requires_grad
        grads = (torch.randn(loss.shape).to(dtype), torch.randn(zloss.shape).to(dtype))
        (actual,) = torch.autograd.grad((loss, zloss), on_device, [g.to(device) for g in grads])
        expected = reference_gradient(x, grads, target, w, reduction, ignore, smoothing, scale)
        assert actual.dtype == dtype
        top = float(expected.abs().max())
        torch.testing.assert_close(actual.cpu().double(), expected, rtol=rtol, atol=rtol / 20 * top)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradient_of_given_log_probabilities(dtype: torch.dtype, isa: str) -> None:
    """The formula of the specification, with the log probabilities that the operator gets."""
    for rows, classes in ((1, 1), (3, 17), (2, 130), (5, 4099)):
        x, target, w = inputs(rows, classes, dtype)
        log_prob = torch.log_softmax(x.double(), -1).to(dtype)
        lse = torch.logsumexp(x.double(), -1).to(dtype)
        grad, grad_zloss = torch.randn(1).to(dtype), torch.randn(1).to(dtype)
        target[0] = min(3, classes - 1)
        counts = (target != int(target[0])).double()
        eps, scale = 0.2, 0.01
        actual = BACKWARD(grad, log_prob, target, w, grad_zloss, lse, "mean", int(target[0]), eps, scale)
        total = (w.double()[target] * counts).sum()
        if total == 0:
            assert torch.equal(actual, torch.zeros_like(actual))
            continue
        a = grad.double() / total * (1 - eps) * w.double()[target] * counts
        b = grad.double() / total * eps / classes * counts
        p = log_prob.double().exp()
        expected = p * (a + b * w.double().sum())[:, None] - b[:, None] * w.double()
        expected += (p.T * (2 * scale * lse.double() * grad_zloss.double() / counts.sum() * counts)).T
        expected[torch.arange(rows), target] -= a
        near(actual, expected, dtype)


def test_gradient_of_the_loss_alone_and_of_the_z_loss_alone(device: str) -> None:
    x, target, _ = inputs(6, 10, torch.float32)
    for which in (0, 2):
        on_device = x.clone().to(device).requires_grad_()
        out = LOSS(on_device, target.to(device), None, "mean", -100, 0.0, 0.5, True)
        out[which].sum().backward()
        grads = (torch.tensor([float(which == 0)]), torch.tensor([float(which == 2)]))
        expected = reference_gradient(x, grads, target, None, "mean", -100, 0.0, 0.5)
        near(on_device.grad, expected, torch.float32)


def test_gradient_is_the_limit_of_differences() -> None:
    x, target, weight = inputs(3, 4, torch.float32)
    args = (weight, "mean", -100, 0.3, 0.1)
    trained = x.clone().requires_grad_()
    loss, _, zloss, _ = LOSS(trained, target, *args, True)
    (loss + 2 * zloss).sum().backward()
    for i in range(x.numel()):
        ends = []
        for sign in (1, -1):
            moved = x.double()
            moved.view(-1)[i] += sign * 1e-6
            out = reference(moved, target, *args)
            ends.append((out[0] + 2 * out[2]).sum())
        slope = (ends[0] - ends[1]) / 2e-6
        torch.testing.assert_close(trained.grad.double().view(-1)[i], slope, rtol=1e-4, atol=1e-5)


def test_second_derivative_is_refused() -> None:
    x, target, _ = inputs(3, 8, torch.float32)
    x.requires_grad_()
    (dx,) = torch.autograd.grad(LOSS(x, target)[0].square().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="npu_cross_entropy_loss has no second derivative"):
        dx.sum().backward()


def test_weight_gets_no_gradient() -> None:
    x, target, weight = inputs(3, 8, torch.float32)
    weight.requires_grad_()
    LOSS(x.requires_grad_(), target, weight)[0].sum().backward()
    assert weight.grad is None


# ---- instruction sets, threads, compile ---------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_kernel_table(isa: str, dtype: torch.dtype) -> None:
    for classes in (*range(1, 20), 63, 64, 65, 2047, 2048, 2049, 5003):
        x, target, weight = inputs(3, classes, dtype)
        out = LOSS(x, target, weight, "none", -100, 0.1, 0.1, True)
        expected = reference(x, target, weight, "none", -100, 0.1, 0.1)
        for actual, wanted in zip(out, expected, strict=True):
            near(actual, wanted, dtype, scale=4)


def test_results_do_not_depend_on_threads() -> None:
    x, target, weight = inputs(301, 1009, torch.bfloat16)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            out = LOSS(x, target, weight, "mean", -100, 0.1, 0.1, True)
            grad = BACKWARD(out[0], out[1], target, weight, out[2], out[3], "mean", -100, 0.1, 0.1)
            results.append((*out, grad))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


@pytest.mark.parametrize("classes", [65536, 65537])
def test_large_outputs_that_go_past_the_caches(classes: int, isa: str) -> None:
    """Rows that start at a cache line and rows that do not; both directions, and the fix-up of the target."""
    rows = 2**23 // 65536 + 1
    x, target, _ = inputs(1, classes, torch.float32)
    x, target = x.expand(rows, classes), target.expand(rows)
    loss, log_prob, _, _ = LOSS(x, target)
    assert log_prob.numel() * 4 > 2**25
    expected = torch.log_softmax(x[0].double(), -1)
    assert torch.equal(log_prob, log_prob[:1].expand(rows, classes))
    torch.testing.assert_close(log_prob[0].double(), expected, rtol=RTOL[torch.float32], atol=ATOL[torch.float32])
    grad = BACKWARD(torch.ones(1), log_prob, target, reduction="sum")
    assert torch.equal(grad, grad[:1].expand(rows, classes))
    wanted = log_prob[0].double().exp()
    wanted[target[0]] -= 1
    torch.testing.assert_close(grad[0].double(), wanted, rtol=RTOL[torch.float32], atol=1e-7)


def test_compiled(device: str) -> None:
    x, target, _ = inputs(6, 24, torch.float32)
    x, target = x.to(device).requires_grad_(), target.to(device)

    def model(x: Tensor) -> Tensor:
        loss, _, zloss, _ = LOSS(x * 2, target, None, "mean", -100, 0.0, 0.1, True)
        return (loss + zloss).sum()

    torch._dynamo.reset()
    (expected,) = torch.autograd.grad(model(x), x)
    (actual,) = torch.autograd.grad(torch.compile(model, backend="aot_eager", fullgraph=True)(x), x)
    torch.testing.assert_close(actual, expected)


# ---- errors -----------------------------------------------------------------------------------------------------


def test_errors_name_operator_and_argument(device: str) -> None:
    x, target = torch.zeros(2, 3, device=device), torch.zeros(2, dtype=torch.int64, device=device)
    half = torch.zeros(2, 3, dtype=torch.float16, device=device)
    loss = torch.zeros(1, device=device)
    for call, message in [
        (lambda: LOSS(x, target, reduction="max"), "npu_cross_entropy_loss: argument reduction: .* got 'max'"),
        (
            lambda: LOSS(x, target, label_smoothing=1.0),
            r"argument label_smoothing: expected a number in \[0, 1\), got 1",
        ),
        (lambda: LOSS(x, target, label_smoothing=-0.1), r"argument label_smoothing: expected a number in \[0, 1\)"),
        (lambda: LOSS(x, target, label_smoothing=float("nan")), r"argument label_smoothing: expected a number"),
        (lambda: LOSS(x[0], target), r"argument input: expected shape \(N, C\), got \[3\]"),
        (lambda: LOSS(x.double(), target), "argument input: expected dtype .*, got float64"),
        (lambda: LOSS(x, target[:1]), r"argument target: expected shape \[2\] \(one per row\), got \[1\]"),
        (lambda: LOSS(x, target.int()), "argument target: expected dtype int64, got int32"),
        (lambda: LOSS(x, target, x[0, :2]), r"argument weight: expected shape \[3\] \(one per class\), got \[2\]"),
        (lambda: LOSS(half, target, half[0]), "argument weight: expected dtype float32, got float16"),
        (lambda: BACKWARD(loss.half(), x, target), "argument grad_loss: expected dtype float32 .* got float16"),
        (lambda: BACKWARD(x[:, 0], x, target), r"argument grad_loss: expected shape \[1\], got \[2\]"),
        (
            lambda: BACKWARD(x[0], x, target, reduction="none"),
            r"argument grad_loss: expected shape \[2\] \(one per row\) or \[1\], got \[3\]",
        ),
        (
            lambda: BACKWARD(loss, x, target, None, loss, lse_square_scale_for_zloss=0.1),
            "argument lse_for_zloss: expected the fourth output of npu_cross_entropy_loss",
        ),
        (
            lambda: BACKWARD(loss, x, target, None, loss, loss, lse_square_scale_for_zloss=0.1),
            r"argument lse_for_zloss: expected shape \[2\]",
        ),
    ]:
        with pytest.raises(RuntimeError, match=message):
            call()


@pytest.mark.parametrize("bad", [-100, -1, 3, 2**62])
def test_targets_out_of_range(bad: int, device: str) -> None:
    x = torch.zeros(4, 3, device=device)
    target = torch.tensor([0, 1, bad, 2], device=device)
    message = (
        rf"npu::npu_cross_entropy_loss(_backward)?: argument target: expected numbers in \[0, 3\), got {bad} in row 2"
    )
    for call in (lambda: LOSS(x, target), lambda: BACKWARD(x[0, :1], x, target)):
        with pytest.raises(IndexError if device == "cpu" else (IndexError, RuntimeError), match=message):
            call()
            torch.npu.synchronize()
    x = torch.zeros(4, 3, device=device)
    assert LOSS(x, torch.zeros(4, dtype=torch.int64, device=device))[0].cpu().isfinite()


def test_devices_must_agree() -> None:
    import torch_npu  # noqa: F401

    x, target = torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(RuntimeError, match="^Expected all tensors to be on the same device.*argument target of"):
        LOSS(x.npu(), target)
    with pytest.raises(RuntimeError, match="^Expected all tensors to be on the same device.*argument weight of"):
        LOSS(x.npu(), target.npu(), x[0])


def test_meta_errors() -> None:
    x, target = torch.empty(2, 3, device="meta"), torch.empty(2, dtype=torch.int64, device="meta")
    with pytest.raises(RuntimeError, match="npu_cross_entropy_loss: argument reduction: expected 'mean', 'sum' or"):
        LOSS(x, target, reduction="max")
    with pytest.raises(RuntimeError, match="npu_cross_entropy_loss: argument target: expected one element per row"):
        LOSS(x, target[:1])
    with pytest.raises(
        RuntimeError, match=r"npu_cross_entropy_loss_backward: argument log_prob: expected shape \(N, C\)"
    ):
        BACKWARD(x[0, :1], x[0], target)
