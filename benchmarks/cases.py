"""All cases by name, in the order of the page."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """What the page says of a case, and the function that measures it, as MODULE:FUNCTION of a folder for files.

    `limit`: why a goal may be out of reach, for the page where one is.
    """

    title: str
    about: str
    function: str
    limit: str = ""


CASES = {
    "resnet18": Case(
        "ResNet-18",
        "8 images of 3 x 224 x 224, over the forward of the same batch in ONNX Runtime.",
        "images:measure_resnet18",
        "On a processor with AVX-512 the forward is nothing but convolutions at their peak (about 250 billion "
        "operations a second and thread). The explainer's convolutions alone take 2.1 times as long where the "
        "reference is baked in, 3.1 times paired: the stem's has no faster way back to 3 channels than a "
        "ConvTranspose of 1.7 times its forward, for which a Conv for all phases and a DepthToSpace takes longer "
        "still. Every pass over the stem's activations is 2 to 3 % of the forward beside that: Relu's slope has "
        "6, the pool with overlapping windows about as much as 10, of which Where, Expand, Pad and SpaceToDepth "
        "run in one thread, and ONNX Runtime moves activations between its blocked layout and the plain one. On "
        "slower convolutions all this weighs less.",
    ),
    "vgg16": Case(
        "VGG-16",
        "4 images of 3 x 224 x 224, over the forward of the same batch.",
        "images:measure_vgg16",
        "Convolutions and dense layers alone take 2.0 times the forward. The rest is passes over activations of "
        "54 million numbers: the slopes of Relu, and what tells where a pool's maximum was.",
    ),
    "resnet18-peers": Case(
        "ResNet-18, beside captum and shap",
        "The same 8 images with zeros as their references, explained by `onnxlift.Explainer`, captum's `DeepLift` and "
        "shap's `DeepExplainer`: how many times longer these take.",
        "peers:measure_resnet18",
        "PyTorch's convolutions are nearly as fast here as ONNX Runtime's, so that shap takes 11 to 12 forwards "
        "of ONNX Runtime and captum 16. A 3.6th of shap's is what the explainer's convolutions alone take. shap's "
        "numbers are wrong here: they miss up to nine tenths of t(x) - t(r).",
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
        "In so small a network the forward passes, which pairs share, are an eighth of a paired explanation, and the "
        "rest is done for every pair: the way back through two convolutions, the slopes, and the routes of two pools. "
        "What makes these faster makes a paired explanation faster as well. `Explainer` runs so many pairs at once "
        "that they stay in the cache.",
    ),
    "bert": Case(
        "A transformer",
        "BERT's encoder with 4 layers of width 256 and 4 heads on 8 sequences of 128 embeddings, over its forward.",
        "sequences:measure_bert",
        "Matrix products alone take 2.7 to 2.8 times the forward: each of attention's two products has two on the way "
        "back. ONNX Runtime fuses what stands between them in the forward (bias and GELU, sums and normalisations, "
        "softmax) and not in the explainer, where slopes and both runs read what is in between: about 600 nodes, and "
        "30 passes over the attention weights for Softmax alone.",
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
        "Of a transformer, what grows with the square of the length is attention, where the explainer has about "
        "30 passes for Softmax and four more products: its share is larger than in the forward at the same "
        "length, and the exponent comes nearer to 2 earlier. For long sequences both are 2.",
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
