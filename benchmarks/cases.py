"""All cases by name, in the order of the page."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """What the page says of a case, and the function that measures it, as MODULE:FUNCTION of a folder for files."""

    title: str
    about: str
    function: str


CASES = {
    "resnet18": Case(
        "ResNet-18",
        "8 images of 3 x 224 x 224, over the forward of the same batch in ONNX Runtime.",
        "images:measure_resnet18",
    ),
    "vgg16": Case("VGG-16", "4 images of 3 x 224 x 224, over the forward of the same batch.", "images:measure_vgg16"),
    "resnet18-peers": Case(
        "ResNet-18, beside captum and shap",
        "The same 8 images with zeros as their references, explained by `onnxlift.Explainer`, captum's `DeepLift` and "
        "shap's `DeepExplainer`: how many times longer these take.",
        "peers:measure_resnet18",
    ),
    "genomics": Case(
        "A BPNet",
        "4 sequences of 2114 bases with 20 dinucleotide shuffles each, count logit of a network with 8 dilated layers "
        "of 64 filters, over the forward of these 84 sequences.",
        "sequences:measure_genomics",
    ),
    "genomics-peers": Case(
        "A BPNet, beside tangermeme, captum and shap",
        "The same explanation by the four packages, each with the number of sequences at once that is fastest for it: "
        "how many times longer they take than `onnxlift.Explainer`.",
        "peers:measure_genomics",
    ),
    "references": Case(
        "Shared references",
        "64 digits of 28 x 28 with 20 shared references in a small CNN: a pair of sample and reference, over a sample "
        "of a batch of 64 that is explained with one reference each.",
        "images:measure_references",
    ),
    "bert": Case(
        "A transformer",
        "BERT's encoder with 4 layers of width 256 and 4 heads on 8 sequences of 128 embeddings, over its forward.",
        "sequences:measure_bert",
    ),
    "lstm": Case(
        "An LSTM",
        "2 layers of 256 units, 100 steps of 64 numbers, batch 16, over its forward with ONNX Runtime's fused LSTM.",
        "sequences:measure_lstm",
    ),
    "memory": Case(
        "Memory",
        "The most memory of a fresh process above what it held when its libraries were loaded, to rewrite (or build), "
        "load and explain ResNet-18 on 8 images.",
        "memory:measure",
    ),
    "growth": Case(
        "Growth",
        "Time is proportional to about size^p. The figure is p of the explainer over p of the forward, each fitted to "
        "four or five sizes: the goal is that the explainer grows at most 10 % more steeply.",
        "growth:measure",
    ),
    "rewriter": Case(
        "The rewriter", "`onnxlift.rewrite` of residual dense layers, four nodes each.", "rewriter:measure_nodes"
    ),
    "large-file": Case(
        "Weights over 2 GB",
        "`onnxlift.rewrite_file` of an MLP with its weights in external data, in a fresh process.",
        "rewriter:measure_large_file",
    ),
}
