"""torch.func on npu: what transformed functions return equals what they return on CPU."""

from __future__ import annotations

import pytest
import torch
from torch.func import (
    functional_call,
    grad,
    grad_and_value,
    hessian,
    jacfwd,
    jacrev,
    jvp,
    linearize,
    stack_module_state,
    vjp,
    vmap,
)
from torch.utils._pytree import tree_leaves

SCALAR_FUNCTIONS = {
    "polynomial": lambda x: (x**3 - 2 * x).sum(),
    "logsumexp": lambda x: x.logsumexp(-1).sum(),
    "norm": lambda x: torch.linalg.vector_norm(x, dim=-1).sum(),
    "matmul": lambda x: (x @ x.transpose(-1, -2)).tanh().sum(),
    "softmax": lambda x: x.softmax(-1).square().sum(),
    "layer_norm": lambda x: torch.nn.functional.layer_norm(x, x.shape[-1:]).sin().sum(),
    "indexing": lambda x: x[..., [0, 2]].exp().sum() + x.flip(-1)[..., 1].sum(),
    "where": lambda x: torch.where(x > 0, x, x.square()).sum(),
    "cat": lambda x: torch.cat([x, x.cos()], -1).prod(-1).sum(),
    "cumsum": lambda x: x.cumsum(-1).sigmoid().sum(),
    "max": lambda x: x.amax(-1).sum() + x.var(),
    "det": lambda x: torch.linalg.det(x.transpose(-1, -2) @ x + torch.eye(x.shape[-1], device=x.device)).sum(),
}

TENSOR_FUNCTIONS = {
    "elementwise": lambda x: x.sin() * x.exp(),
    "matvec": lambda x: x @ x.sum(-2),
    "log_softmax": lambda x: x.log_softmax(-1),
    "sort": lambda x: x.sort(-1).values,
    "gather": lambda x: x.gather(-1, torch.zeros(x.shape, dtype=torch.int64, device=x.device)),
    "pad": lambda x: torch.nn.functional.pad(x, (1, 0)).roll(1, -1),
    "conv": lambda x: torch.nn.functional.conv1d(x[None], x.new_ones(2, x.shape[0], 2))[0],
    "gelu": lambda x: torch.nn.functional.gelu(x),
    "triu": lambda x: x.triu(1) + x.t()[: x.shape[0], :1],
}


def _input(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(7))


def _same_on_both(transformed, *arguments: torch.Tensor) -> None:
    expected = transformed(*arguments)
    result = transformed(*(a.npu() for a in arguments))
    assert all(t.device.type == "npu" for t in tree_leaves(result) if isinstance(t, torch.Tensor))
    torch.testing.assert_close(result, expected, check_device=False)


def _sensitivities(function):
    return {
        "grad": grad(function),
        "grad_and_value": grad_and_value(function),
        "grad of grad": grad(lambda x: grad(function)(x).square().sum()),
        "hessian": hessian(function),
        "vmap of grad": vmap(grad(function)),
        "vmap in_dims": vmap(grad(function), in_dims=1, out_dims=-1),
        "chunked": vmap(grad_and_value(function), chunk_size=2),
    }


@pytest.mark.parametrize("function", SCALAR_FUNCTIONS.values(), ids=SCALAR_FUNCTIONS)
@pytest.mark.parametrize("transform", _sensitivities(lambda x: x))
def test_scalar_function(function, transform):
    shape = (3, 3, 4) if "vmap" in transform or transform == "chunked" else (3, 4)
    _same_on_both(_sensitivities(function)[transform], _input(*shape))


def _jacobians(function):
    return {
        "jacrev": jacrev(function),
        "jacrev chunked": jacrev(function, chunk_size=2),
        "jacfwd": jacfwd(function),
        "jvp": lambda x, t: jvp(function, (x,), (t,)),
        "vjp": lambda x, t: vjp(function, x)[1](function(x)),
        "linearize": lambda x, t: linearize(function, x)[1](t),
        "vmap of jvp": lambda x, t: vmap(lambda u: jvp(function, (x,), (u,))[1])(torch.stack([t, 2 * t])),
    }


@pytest.mark.parametrize("function", TENSOR_FUNCTIONS.values(), ids=TENSOR_FUNCTIONS)
@pytest.mark.parametrize("transform", _jacobians(lambda x: x))
def test_tensor_function(function, transform):
    x = _input(3, 4)
    arguments = (x,) if transform.startswith("jac") else (x, x.cos())
    _same_on_both(_jacobians(function)[transform], *arguments)


def _model() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 2)).double()


def test_per_sample_gradients():
    torch.manual_seed(0)
    model = _model()
    inputs, targets = _input(6, 4), torch.arange(6) % 2

    def gradients(device: str) -> dict[str, torch.Tensor]:
        parameters = {name: p.detach().to(device) for name, p in model.named_parameters()}

        def loss(parameters, x, y):
            return torch.nn.functional.cross_entropy(functional_call(model, parameters, (x[None],)), y[None])

        return vmap(grad(loss), in_dims=(None, 0, 0))(parameters, inputs.to(device), targets.to(device))

    ours = gradients("npu")
    assert ours["0.weight"].shape == (6, 5, 4)
    torch.testing.assert_close(ours, gradients("cpu"), check_device=False)


def test_ensemble_of_stacked_modules():
    torch.manual_seed(1)
    models = [_model() for _ in range(3)]
    x = _input(5, 4)
    expected = torch.stack([model(x) for model in models])
    parameters, buffers = stack_module_state([model.npu() for model in models])
    skeleton = _model().to("meta")
    result = vmap(lambda p, b, x: functional_call(skeleton, (p, b), (x,)), in_dims=(0, 0, None))(
        parameters, buffers, x.npu()
    )
    assert all(p.device.type == "npu" for p in parameters.values())
    torch.testing.assert_close(result, expected, check_device=False)


RANDOM = {
    "rand_like": lambda x: torch.rand_like(x),
    "randn": lambda x: torch.randn(x.shape, device=x.device, dtype=x.dtype),
    "dropout": lambda x: torch.nn.functional.dropout(torch.ones_like(x), 0.5),
    "bernoulli": lambda x: torch.bernoulli(torch.full_like(x, 0.5)),
    "uniform_": lambda x: x.clone().uniform_(),
    "randint": lambda x: torch.randint(1 << 30, x.shape, device=x.device),
}


@pytest.mark.parametrize("function", RANDOM.values(), ids=RANDOM)
class TestRandomness:
    def test_different(self, function):
        result = vmap(function, randomness="different")(torch.zeros(3, 64, device="npu"))
        assert result.device.type == "npu" and result.shape == (3, 64)
        assert not torch.equal(result[0], result[1]) and not torch.equal(result[1], result[2])

    def test_same(self, function):
        transformed = vmap(function, randomness="same")
        if function is RANDOM["bernoulli"]:
            # torch has no such rule for a batch of probabilities, on no device.
            with pytest.raises(RuntimeError, match="same randomness with a batched tensor"):
                transformed(torch.zeros(3, 64, device="npu"))
            return
        result = transformed(torch.zeros(3, 64, device="npu"))
        assert result.shape == (3, 64) and result[0].unique().numel() > 1
        assert torch.equal(result[0], result[1]) and torch.equal(result[0], result[2])

    def test_error(self, function):
        with pytest.raises(RuntimeError, match="randomness"):
            vmap(function)(torch.zeros(3, 64, device="npu"))

    def test_seed_decides(self, function):
        batch = torch.zeros(3, 64, device="npu")
        torch.npu.manual_seed(5)
        first = vmap(function, randomness="different")(batch)
        torch.npu.manual_seed(5)
        assert torch.equal(vmap(function, randomness="different")(batch), first)


def test_vmap_refuses_what_depends_on_data():
    with pytest.raises(RuntimeError, match="vmap"):
        vmap(lambda x: x.item())(torch.ones(3, device="npu"))


def test_in_place_operator_under_vmap_and_functionalize():
    def function(x):
        y = x.clone()
        y[0].mul_(2)
        return y.add_(1)

    _same_on_both(vmap(function), _input(3, 4))
    _same_on_both(torch.func.functionalize(function), _input(3, 4))
