"""Train liftpad_genomics.onnx and liftpad_genomics_letters.onnx, networks of LIFTPAD 3.2. Needs PyTorch and onnxscript.

Run: python models/experiments/train_liftpad_genomics.py
"""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnx
import torch
from genomics import HERE, UNIFORM, Motif, auroc, letters, liftpad_counts, load_motifs, one_hot, simulate
from torch import nn

Data = tuple[torch.Tensor, torch.Tensor]

POSITIVES = 20_000
BATCH = 200


class Prelu(nn.PReLU):
    """One slope a channel; they start at 0, as Keras starts them."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, init=0.0)


def build() -> nn.Module:
    """20 filters of width 15, maxima over windows of 50 (the last one is shorter), two dense layers of 200."""
    layers = [nn.Conv1d(4, 20, 15), Prelu(20), nn.MaxPool1d(50, ceil_mode=True), nn.Flatten()]
    layers += [nn.Linear(80, 200), Prelu(200), nn.Dropout(0.3), nn.Linear(200, 200), Prelu(200), nn.Dropout(0.3)]
    return nn.Sequential(*layers, nn.Linear(200, 1))


def areas(net: nn.Module, x: torch.Tensor, y: torch.Tensor) -> list[float]:
    """The auROC of each output."""
    net.eval()
    with torch.no_grad():
        logits = torch.cat([net(part) for part in x.split(1000)])
    return [auroc(column, labels) for column, labels in zip(logits.T.numpy(), y.T.numpy(), strict=True)]


def train(net: nn.Module, data: Data, held_out: Data, *, epochs: int, rate: float) -> None:
    """Minimise the cross-entropy of the logits with a rate that rises to `rate` and falls again.

    Leaves the weights of the epoch with the best mean auROC on the held-out data.
    """
    x, y = data
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=0.01)
    steps = epochs * -(-len(x) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.15)
    best, state = 0.0, net.state_dict()
    for epoch in range(epochs):
        net.train()
        for rows in torch.randperm(len(x)).split(BATCH):
            loss = nn.functional.binary_cross_entropy_with_logits(net(x[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        found = areas(net, *held_out)
        print(
            f"epoch {epoch + 1}: last loss {loss.item():.3f}, auROC on held-out data {np.round(found, 4)}", flush=True
        )
        if np.mean(found) > best:
            best, state = float(np.mean(found)), copy.deepcopy(net.state_dict())
    net.load_state_dict(state)


def export(net: nn.Module, x: torch.Tensor, path: Path) -> None:
    """Write the network with a final Sigmoid as ONNX: input `x` `[N, 4, LENGTH]`, output `y` `[N, outputs]`."""
    program = torch.onnx.export(
        nn.Sequential(*net, nn.Sigmoid()).eval(),
        (x[:2],),
        opset_version=18,
        input_names=["x"],
        output_names=["y"],
        dynamic_shapes=({0: "N"},),
        verbose=False,
    )
    model = program.model_proto
    for node in model.graph.node:  # stack traces of the export
        del node.metadata_props[:]
    onnx.save(model, path)
    print(f"{path.name}: {path.stat().st_size / 1000:.0f} KB")


def simulated(seed: int, positives: int, motifs: list[Motif]) -> Data:
    """One third positives, two thirds negatives: x `[N, 4, LENGTH]`, y `[N, 1]`."""
    rng = np.random.default_rng(seed)
    counts, labels = liftpad_counts(rng, positives)
    bases = simulate(rng, counts, motifs, UNIFORM).bases
    return torch.from_numpy(one_hot(bases)), torch.from_numpy(labels.astype(np.float32))[:, None]


def main() -> None:
    torch.set_num_threads(1)
    motifs = load_motifs()
    for name, instances in (("liftpad_genomics", motifs), ("liftpad_genomics_letters", letters(motifs))):
        torch.manual_seed(0)
        data = simulated(1, POSITIVES, instances)
        net = build()
        # At the usual rate of 0.001 the network memorises its sequences before it finds the patterns.
        train(net, data, simulated(2, 2000, instances), epochs=15, rate=0.01)
        export(net, data[0], HERE / f"{name}.onnx")


if __name__ == "__main__":
    main()
