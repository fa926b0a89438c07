"""onnxlift beside captum, shap and tangermeme, on the same samples, references and weights."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from copy import deepcopy
from functools import partial
from pathlib import Path

import captum.attr
import numpy as np
import shap
import torch
from images import IMAGE, noise
from networks import export, made, resnet18
from results import Result, Row, ratio
from sequences import genome, genomics_network
from tangermeme.deep_lift_shap import deep_lift_shap
from timing import Array, Times, fastest, interleaved, seconds
from torch import Tensor, nn

import onnxlift

warnings.simplefilter("ignore")  # the others announce their hooks, and gaps, which are measured here

Explain = Callable[[], Array]

REUSE = "No module of the network is used twice, which captum and shap cannot explain."


class OneLogit(nn.Module):
    """A classifier's first logit alone, `[N, 1]`: shap explains every output that there is."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)[:, :1]


def measure_resnet18(folder: Path) -> Result:
    x = torch.from_numpy(noise(8, *IMAGE))
    network = made(resnet18, x)
    model = export(network, x, folder / "resnet18.onnx")
    given = {"x": x.numpy(), "x_reference": np.zeros_like(x)}
    paired = onnxlift.Explainer(model, target=0, progress=False)
    baked = onnxlift.Explainer(model, target=0, reference="zeros", progress=False)
    captums = captum.attr.DeepLift(network)
    shaps = shap.DeepExplainer(OneLogit(network), torch.zeros(1, *IMAGE))
    peers: dict[str, Explain] = {
        "captum": lambda: _array(captums.attribute(x, torch.zeros_like(x), target=0)),
        "shap": lambda: _squeezed(shaps.shap_values(x, check_additivity=False)),
    }
    ours: dict[str, Explain] = {
        "paired": lambda: paired(given).contributions["x"],
        "baked": lambda: baked(x.numpy()).contributions["x"],
    }
    difference = _difference(OneLogit(network), x, torch.zeros_like(x)[:, None])
    result = _compare(ours, peers, {"paired": 3.6, "baked": 5}, difference)
    result.notes += [REUSE, "shap loses shares where windows of a max pooling overlap, as they do in ResNet's stem."]
    return result


def measure_genomics(folder: Path) -> Result:
    sequences, shuffles = genome()
    network = genomics_network(sequences, folder / "genomics.onnx").count_network()
    x, r = torch.from_numpy(sequences), torch.from_numpy(shuffles)
    given = {"x": sequences, "x_reference": shuffles}
    explainer = onnxlift.Explainer(folder / "genomics.onnx", output="counts", reference="grouped", progress=False)
    tried: dict[str, dict[int, Explain]] = {
        "tangermeme": {size: partial(_tangermeme, network, x, r, size) for size in (10, 20, 40, 80)},
        "captum": {size: partial(_captum, network, x, r, size) for size in (10, 20, 40, 80)},
        "shap": {size: partial(_shap, network, x, r, size) for size in (5, 10, 20)},
    }
    peers, chosen = {}, []
    for name, sizes in tried.items():
        took = {size: min(seconds(explain) for _ in range(2)) for size, explain in sizes.items()}
        size = min(took, key=took.__getitem__)
        peers[name] = sizes[size]
        chosen.append(f"{name} {size} (of {', '.join(map(str, sizes))})")
    difference = _difference(network, x, r)
    ours: dict[str, Explain] = {"grouped": lambda: explainer(given).contributions["x"]}
    result = _compare(ours, peers, {"grouped": 3}, difference)
    result.notes += [f"Fastest pairs at once: {'; '.join(chosen)}.", REUSE]
    return result


def _captum(network: nn.Module, x: Tensor, r: Tensor, size: int) -> Array:
    method = captum.attr.DeepLift(network)
    rows, references = x.repeat_interleave(r.shape[1], 0).split(size), r.flatten(0, 1).split(size)
    found = [method.attribute(a, b, target=0) for a, b in zip(rows, references, strict=True)]
    return _array(torch.cat(found).reshape(r.shape).mean(1))


def _shap(network: nn.Module, x: Tensor, r: Tensor, size: int) -> Array:
    """Each sample has its own references, so that each needs its own explainer."""
    found = []
    for i, references in enumerate(r):
        explainers = [shap.DeepExplainer(network, part) for part in references.split(size)]
        found.append(np.mean([each.shap_values(x[i : i + 1], check_additivity=False) for each in explainers], axis=0))
    return _squeezed(np.concatenate(found))


def _tangermeme(network: nn.Module, x: Tensor, r: Tensor, size: int) -> Array:
    return _array(deep_lift_shap(network, x, references=r, batch_size=size, device="cpu"))


def _difference(network: nn.Module, x: Tensor, r: Tensor) -> Array:
    """t(x) - t(r) in float64, averaged over the references `[N, K, ...]`: `[N]`."""
    exact = deepcopy(network).double()
    at_references = exact(r.flatten(0, 1).double()).reshape(r.shape[:2]).mean(1)
    return _array(exact(x.double())[:, 0] - at_references)


def _compare(
    ours: Mapping[str, Explain], peers: Mapping[str, Explain], goals: Mapping[str, float], difference: Array
) -> Result:
    """How many times longer the others take; the goal counts for the fastest of them.

    `difference`: t(x) - t(r) of every sample, `[N]`, which contributions should add up to.
    """
    gaps = []
    for name, explain in (*ours.items(), *peers.items()):
        found = explain()
        gap = np.abs(found.reshape(len(found), -1).sum(1, dtype=np.float64) - difference) / np.abs(difference)
        gaps.append(f"{name} {gap.max():.1e}")
    times = interleaved({**ours, **peers})
    first = fastest(times, peers)
    rows = [_longer(times, peer, name, goals[name] if peer == first else None) for name in ours for peer in peers]
    took = ", ".join(f"{name} {1e3 * np.median(spent):.0f} ms" for name, spent in times.items())
    return Result(rows, [f"Medians: {took}.", f"Largest completeness gap over |t(x) - t(r)|: {', '.join(gaps)}."])


def _longer(times: Times, peer: str, ours: str, goal: float | None) -> Row:
    line = ratio(f"{peer} over {ours}", times, (peer, ours), goal)
    line.better = "higher"
    return line


def _array(tensor: Tensor) -> Array:
    return tensor.detach().numpy()


def _squeezed(values: Array) -> Array:
    """Without the axis for the single output, where this version of shap has one."""
    return values[..., 0] if values.shape[-1] == 1 else values
