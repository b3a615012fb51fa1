"""Several threads that compute on one stream must not see each other's memory."""

import threading

import torch


def test_fallback_results_survive_other_threads():
    stop = threading.Event()

    def noise():
        while not stop.is_set():
            torch.ones(8, 64, device="npu") @ torch.ones(64, 64, device="npu")

    threads = [threading.Thread(target=noise) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        a = torch.randn(8, 64, device="npu")
        wrong = [value for _ in range(400) if (value := (a - a).abs().max().item()) != 0]
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not wrong


def test_gradients_of_four_threads():
    wrong = []

    def train(seed: int):
        x = torch.full((4, 8), float(seed), device="npu")
        layer = torch.nn.Linear(8, 8).npu()
        for _ in range(50):
            layer.zero_grad()
            layer(x).sum().backward()
            if not torch.equal(layer.bias.grad.cpu(), torch.full((8,), 4.0)):
                wrong.append(seed)

    threads = [threading.Thread(target=train, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
