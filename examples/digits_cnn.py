"""Train a small CNN on handwritten digits, on npu or on cpu: what a CUDA script looks like after moving.

    python examples/digits_cnn.py                    # npu, mixed precision
    python examples/digits_cnn.py --device cpu       # the same on the stock CPU
    python examples/digits_cnn.py --deterministic    # float32, no dropout: the same losses on both devices

To move a script of your own, write "npu" where it says "cuda".  There is nothing to import: ``import torch`` loads the
plugin.  The data are the 1797 images (8x8 pixels) that come with scikit-learn; nothing is downloaded.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

matplotlib.use("Agg")  # no screen needed
import matplotlib.pyplot as plt


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Train a CNN on scikit-learn's handwritten digits.")
    parser.add_argument("--device", choices=("npu", "cpu"), default="npu")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=3e-3, help="first learning rate of AdamW (default 3e-3)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--amp", action=argparse.BooleanOptionalAction, default=True, help="autocast and GradScaler")
    parser.add_argument(
        "--amp-dtype",
        choices=("float16", "bfloat16"),
        default="bfloat16",
        help="default bfloat16, because few CPUs compute in float16 and the built-in device is one",
    )
    parser.add_argument(
        "--deterministic",
        action="store_true",
        help="no autocast and no dropout, whose masks differ between devices: losses are then comparable",
    )
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder of the picture and the losses")
    options = parser.parse_args(arguments)
    if options.deterministic:
        options.amp = False
    return options


def build_model(dropout: float) -> nn.Sequential:
    """A CNN for 1x8x8 images and ten classes, its weights on the cpu so that a seed means the same everywhere."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(inplace=True),
        nn.Conv2d(32, 64, 3, padding=1, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Dropout(dropout),
        nn.Flatten(),
        nn.Linear(64 * 4 * 4, 64),
        nn.ReLU(inplace=True),
        nn.Dropout(dropout),
        nn.Linear(64, 10),
    )


def load_data(options: argparse.Namespace) -> tuple[DataLoader, torch.Tensor, torch.Tensor]:
    """Batches of 80 % of the images, and the images and labels of the rest, the same for each device."""
    digits = load_digits()
    train_x, test_x, train_y, test_y = train_test_split(
        torch.tensor(digits.images, dtype=torch.float32).div(16).unsqueeze(1),
        torch.tensor(digits.target),
        test_size=0.2,
        random_state=0,
        stratify=digits.target,
    )
    loader = DataLoader(
        TensorDataset(train_x, train_y),
        batch_size=options.batch_size,
        shuffle=True,
        drop_last=True,
        pin_memory=options.device == "npu",
        generator=torch.Generator().manual_seed(options.seed),
    )
    return loader, test_x, test_y


def progress(batches: DataLoader, label: str) -> Iterator[list[torch.Tensor]]:
    """The batches, with a bar when tqdm is installed and somebody is watching."""
    with contextlib.suppress(ImportError):
        from tqdm import tqdm

        return iter(tqdm(batches, desc=label, leave=False, disable=not sys.stderr.isatty()))
    return iter(batches)


def predict(model: nn.Module, images: torch.Tensor, options: argparse.Namespace) -> torch.Tensor:
    """Class probabilities of `images`, on the cpu."""
    model.eval()
    dtype = getattr(torch, options.amp_dtype)
    with torch.no_grad(), torch.autocast(options.device, dtype=dtype, enabled=options.amp):
        logits = model(images.to(options.device))
    return logits.float().softmax(dim=1).cpu()


def train(options: argparse.Namespace) -> dict:
    """Train and evaluate.

    Returns
    -------
    dict
        ``losses`` of every step, ``accuracies`` on the test images after every epoch, ``seconds`` of training,
        ``test_images``, ``test_labels`` and the final ``probabilities``.
    """
    torch.manual_seed(options.seed)
    loader, test_x, test_y = load_data(options)
    model = build_model(dropout=0.0 if options.deterministic else 0.25).to(options.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=options.epochs)
    scaler = torch.amp.GradScaler(options.device, enabled=options.amp)
    dtype = getattr(torch, options.amp_dtype)

    losses: list[torch.Tensor] = []
    accuracies: list[float] = []
    begin = time.perf_counter()
    for epoch in range(1, options.epochs + 1):
        model.train()
        for images, labels in progress(loader, f"epoch {epoch}/{options.epochs}"):
            images = images.to(options.device, non_blocking=True)
            labels = labels.to(options.device, non_blocking=True)
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(options.device, dtype=dtype, enabled=options.amp):
                loss = F.cross_entropy(model(images), labels)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            losses.append(loss.detach())  # read later: reading now would wait for the device in every step
        schedule.step()
        probabilities = predict(model, test_x, options)
        accuracies.append((probabilities.argmax(1) == test_y).float().mean().item())
        mean_loss = torch.stack(losses[-len(loader) :]).mean().item()
        print(
            f"epoch {epoch:2d}/{options.epochs}  loss {mean_loss:.4f}  test accuracy {accuracies[-1]:.2%}", flush=True
        )
    seconds = time.perf_counter() - begin
    if options.device == "npu":
        print(torch.npu.memory_summary(abbreviated=True))
    return {
        "losses": torch.stack(losses).cpu().tolist(),
        "accuracies": accuracies,
        "seconds": seconds,
        "test_images": test_x,
        "test_labels": test_y,
        "probabilities": probabilities,
    }


def draw(result: dict, options: argparse.Namespace, path: Path) -> None:
    """Loss curve, and predictions of test images: every mistake first, then a sample of the others."""
    predicted = result["probabilities"].argmax(1)
    wrong = predicted != result["test_labels"]
    order = torch.cat([wrong.nonzero().flatten(), (~wrong).nonzero().flatten()])[:40]

    figure = plt.figure(figsize=(13, 4.6), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.25))
    axes = left.subplots()
    axes.plot(result["losses"], linewidth=0.8, color="tab:blue")
    axes.set(xlabel="step", ylabel="cross entropy", yscale="log")
    axes.grid(alpha=0.3)
    precision = options.amp_dtype if options.amp else "float32"
    axes.set_title(f"{options.device}, {precision}: {result['accuracies'][-1]:.2%} of the test images right")

    right.suptitle(f"{int(wrong.sum())} of {len(wrong)} test images wrong (red, with the right answer)")
    for index, tile in zip(order.tolist(), right.subplots(4, 10).flat, strict=True):
        tile.imshow(result["test_images"][index, 0], cmap="gray_r")
        tile.set(xticks=[], yticks=[])
        mistaken = bool(wrong[index])
        text = f"{int(predicted[index])}" + (f" not {int(result['test_labels'][index])}" if mistaken else "")
        color = "tab:red" if mistaken else "tab:green"
        tile.set_title(text, fontsize=9, color=color)
        for spine in tile.spines.values():
            spine.set(color=color, linewidth=1.5)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def describe_device(device: str) -> str:
    """One line that says what really computes."""
    if device == "cpu":
        return f"device: cpu, {torch.get_num_threads()} threads"
    properties = torch.npu.get_device_properties(0)
    memory = f"{properties.total_memory / 2**30:.1f} GiB"
    if properties.is_emulated:
        return (
            f"device: {properties.name}, {memory}, EMULATED: the host driver runs every kernel on this machine's CPU "
            f"({torch.get_num_threads()} threads); there is no accelerator behind it"
        )
    return f"device: {properties.name}, {memory}"


def main(arguments: list[str] | None = None) -> dict:
    """Run the demo and return what it wrote to the JSON file."""
    options = parse(arguments)
    if options.device == "npu" and not (hasattr(torch, "npu") and torch.npu.is_available()):
        raise SystemExit("no npu device: `python -m npu_core` says what is missing; --device cpu runs without one")
    print(describe_device(options.device))
    result = train(options)

    options.out.mkdir(parents=True, exist_ok=True)
    stem = options.out / f"digits_cnn_{options.device}"
    draw(result, options, stem.with_suffix(".png"))
    report = {key: result[key] for key in ("losses", "accuracies", "seconds")}
    report |= {"device": options.device, "amp": options.amp, "seed": options.seed, "epochs": options.epochs}
    stem.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    print(f"test accuracy {result['accuracies'][-1]:.2%} after {options.epochs} epochs in {result['seconds']:.1f} s")
    print(f"wrote {stem}.png and {stem}.json")
    return report


if __name__ == "__main__":
    main()
