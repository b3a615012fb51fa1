"""Train the digits CNN on two devices with DistributedDataParallel.

    torchrun --nproc-per-node 2 examples/ddp_digits.py                    # npu:0 and npu:1, backend hccl
    torchrun --nproc-per-node 2 examples/ddp_digits.py --device cpu       # on CPU, backend gloo
    python examples/ddp_digits.py                                         # one process, the same losses

Each process holds a copy of the model on its own device and sees its share of the images; backward averages the
gradients between the processes while it runs, and the batch normalisation of npu modules takes its mean and variance
over the images of all processes.  So on npu any number of processes that divides the batch trains the same model: the
losses agree but for rounding (1 % after a few epochs).  With --device cpu each process normalises over its own images.
The data are the 1797 images that come with scikit-learn.
"""

from __future__ import annotations

import argparse
import os
import time

import torch
import torch.distributed as dist
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

BACKENDS = {"npu": "hccl", "cpu": "gloo"}


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Train a CNN on handwritten digits with two processes.")
    parser.add_argument("--device", choices=tuple(BACKENDS), default="npu")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--batch-size", type=int, default=64, help="images per step over all processes (default 64)")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def build_model() -> nn.Sequential:
    """A CNN for 1x8x8 images and ten classes."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(inplace=True),
        nn.Conv2d(32, 64, 3, padding=1, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * 4 * 4, 64),
        nn.ReLU(inplace=True),
        nn.Linear(64, 10),
    )


def load_data(options: argparse.Namespace) -> tuple[DataLoader, DistributedSampler, torch.Tensor, torch.Tensor]:
    """This process's share of 80 % of the images in batches, and the other images with their labels."""
    digits = load_digits()
    train_x, test_x, train_y, test_y = train_test_split(
        torch.tensor(digits.images, dtype=torch.float32).div(16).unsqueeze(1),
        torch.tensor(digits.target),
        test_size=0.2,
        random_state=0,
        stratify=digits.target,
    )
    dataset = TensorDataset(train_x, train_y)
    sampler = DistributedSampler(dataset, seed=options.seed, drop_last=True)
    loader = DataLoader(
        dataset,
        batch_size=options.batch_size // dist.get_world_size(),
        sampler=sampler,
        pin_memory=options.device == "npu",
        drop_last=True,
    )
    return loader, sampler, test_x, test_y


def accuracy(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, device: torch.device) -> float:
    """Share of right answers: every process looks at its part of the images, then the counts are added up."""
    part = slice(dist.get_rank(), None, dist.get_world_size())
    model.eval()
    with torch.no_grad():
        right = (model(images[part].to(device)).argmax(1) == labels[part].to(device)).sum()
    dist.all_reduce(right)
    return right.item() / len(labels)


def say(text: str) -> None:
    """Print on one process only."""
    if dist.get_rank() == 0:
        print(text, flush=True)


def describe(device: torch.device) -> str:
    """What the processes really compute on."""
    if device.type == "cpu":
        return "cpu"
    properties = torch.npu.get_device_properties(device)
    if not getattr(properties, "is_emulated", False):
        return properties.name
    return f"{properties.name}, emulated by the host driver: results are real, speed is the CPU's"


def train(options: argparse.Namespace, device: torch.device) -> float:
    """Train and return the final accuracy on the test images."""
    torch.manual_seed(options.seed)
    loader, sampler, test_x, test_y = load_data(options)
    model = build_model().to(device)
    if device.type == "npu":  # torch has it for accelerators only
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    model = DistributedDataParallel(model, device_ids=None if device.type == "cpu" else [device])
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=options.epochs)
    result = 0.0
    for epoch in range(options.epochs):
        sampler.set_epoch(epoch)
        model.train()
        total = torch.zeros((), device=device)
        for images, labels in loader:
            images = images.to(device, non_blocking=True)
            labels = labels.to(device, non_blocking=True)
            optimizer.zero_grad(set_to_none=True)
            loss = F.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            total += loss.detach()
        schedule.step()
        dist.all_reduce(total)
        result = accuracy(model.module, test_x, test_y, device)
        mean = total.item() / (len(loader) * dist.get_world_size())
        say(f"epoch {epoch + 1:2d}/{options.epochs}  loss {mean:.6f}  test accuracy {result:.2%}")
    return result


def main() -> None:
    """Join the group, train, leave."""
    options = parse()
    if "LOCAL_RANK" not in os.environ:  # not started by torchrun: a job of one process
        os.environ |= {
            "LOCAL_RANK": "0",
            "RANK": "0",
            "WORLD_SIZE": "1",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": "0",
        }
    if options.device == "npu":
        device = torch.device("npu", int(os.environ["LOCAL_RANK"]))
        torch.npu.set_device(device)
    else:
        device = torch.device("cpu")
    dist.init_process_group(BACKENDS[options.device])
    try:
        say(f"processes: {dist.get_world_size()}, backend {dist.get_backend()}, device: {describe(device)}")
        begin = time.perf_counter()
        result = train(options, device)
        seconds = time.perf_counter() - begin
        say(f"test accuracy {result:.2%} after {options.epochs} epochs in {seconds:.1f} s")
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
