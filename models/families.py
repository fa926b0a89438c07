"""Export the model families of torchvision, timm and transformers, small and with calibrated weights, for the survey.

    pip install torch torchvision timm transformers onnxscript
    python models/families.py FOLDER [--only REGEX]
    python models/survey.py FOLDER

Nothing is downloaded: every architecture gets random weights. Random weights let signals die out or explode, and a
model whose output hardly depends on its input passes every test of completeness vacuously. So each layer is scaled,
one after the other, to outputs of variance one on random data, and the last one to logits that differ by more than
one. Both of PyTorch's exporters are used where they manage: `NAME.dynamo.onnx` and `NAME.legacy.onnx`.
"""

from __future__ import annotations

import argparse
import logging
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from torch import nn

LOGITS = 3.0
"""Standard deviation of the calibrated outputs."""

Built = tuple[nn.Module, tuple[torch.Tensor, ...]]


class FirstTensor(nn.Module):
    """A model that returns one tensor, whatever the wrapped one returns."""

    def __init__(self, inner: nn.Module, *names: str) -> None:
        super().__init__()
        self.inner, self.names = inner, names

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        named = dict(zip(self.names, inputs, strict=True)) if self.names else {}
        found = self.inner(**named) if named else self.inner(*inputs)
        while not isinstance(found, torch.Tensor):
            found = next(iter(found.values())) if isinstance(found, dict) else found[0]
        return found


def torchvision_model(name: str, size: int = 64, **options: object) -> Built:
    import torchvision

    made = torchvision.models.get_model(name, weights=None, num_classes=10, **options)
    return FirstTensor(made), (torch.randn(2, 3, size, size),)


def timm_model(name: str, size: int = 0, **options: object) -> Built:
    import timm

    options = {"img_size": size, **options} if size else options
    made = timm.create_model(name, pretrained=False, num_classes=10, **options)
    return FirstTensor(made), (torch.randn(2, *made.default_cfg["input_size"][:1], *(2 * [size or _size(made)])),)


def _size(model: nn.Module) -> int:
    size: int = model.default_cfg["input_size"][-1]
    return size if model.default_cfg.get("fixed_input_size") else min(size, 96)


SMALL = {
    "hidden_size": 32, "d_model": 32, "n_embd": 32, "embed_dim": 32,
    "num_hidden_layers": 2, "num_layers": 2, "n_layer": 2, "n_layers": 2, "encoder_layers": 2, "decoder_layers": 2,
    "num_decoder_layers": 2,
    "num_attention_heads": 4, "num_heads": 4, "n_head": 4, "n_heads": 4, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 64, "ffn_dim": 64, "d_ff": 64, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "hidden_dim": 64,
    "dim": 32, "d_kv": 8, "head_dim": 8, "vocab_size": 100, "max_position_embeddings": 64, "n_positions": 64,
    "num_labels": 3, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1,
    "_attn_implementation": "eager", "use_cache": False,
}  # fmt: skip


def text_model(kind: str, head: str, **options: object) -> Built:
    import transformers

    config = _configured(kind, **options)
    made = getattr(transformers, head)(config)
    ids, mask = torch.randint(3, 100, (2, 8)), torch.ones(2, 8, dtype=torch.int64)
    return FirstTensor(made, "input_ids", "attention_mask"), (ids, mask)


def image_model(kind: str, head: str, size: int = 32, **options: object) -> Built:
    import transformers

    made = getattr(transformers, head)(_configured(kind, image_size=size, patch_size=8, **options))
    return FirstTensor(made, "pixel_values"), (torch.randn(2, 3, size, size),)


def audio_model(kind: str, head: str, length: int = 1600, **options: object) -> Built:
    import transformers

    made = getattr(transformers, head)(_configured(kind, **options))
    return FirstTensor(made, "input_values"), (torch.randn(2, length),)


def _configured(kind: str, **options: object) -> object:
    import transformers

    config_class = getattr(transformers, f"{kind}Config")
    known = config_class().to_dict()
    return config_class(**{key: value for key, value in SMALL.items() if key in known or key[0] == "_"} | options)


def recurrent(cell: str, **options: object) -> Built:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = getattr(nn, cell)(6, 12, batch_first=True, **options)
            self.head = nn.Linear(12 * (2 if options.get("bidirectional") else 1), 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.head(self.cell(x)[0][:, -1])
            return found

    return Net(), (torch.randn(2, 7, 6),)


def families() -> dict[str, Callable[[], Built]]:
    """Every model by name."""
    found: dict[str, Callable[[], Built]] = {}
    for name in (
        "resnet18 densenet121 squeezenet1_0 mobilenet_v2 "
        "mobilenet_v3_small shufflenet_v2_x0_5 mnasnet0_5 efficientnet_b0 regnet_x_400mf regnet_y_400mf "
        "convnext_tiny swin_t swin_v2_t"
    ).split():
        found[f"tv_{name}"] = partial(torchvision_model, name)
    found["tv_googlenet"] = partial(torchvision_model, "googlenet", 96, aux_logits=False, init_weights=False)
    found["tv_inception_v3"] = partial(torchvision_model, "inception_v3", 128, aux_logits=False, init_weights=False)
    found["tv_vit_b_16"] = partial(torchvision_model, "vit_b_16", 32, image_size=32)
    found["tv_lraspp_mobilenet"] = partial(torchvision_model, "lraspp_mobilenet_v3_large", weights_backbone=None)
    found["tv_deeplab_mobilenet"] = partial(torchvision_model, "deeplabv3_mobilenet_v3_large", weights_backbone=None)
    for name in (
        "test_byobnet test_convnext test_convnext2 test_convnext3 test_csatv2 test_efficientnet "
        "test_efficientnet_evos test_efficientnet_gn test_efficientnet_ln test_mambaout test_nfnet "
        "test_resnet test_vit test_vit2 test_vit3 test_vit4 ghostnet_050 rexnet_100 tinynet_e lcnet_050 "
        "mobilevit_xxs mobilenetv4_conv_small repvgg_a0 dla46_c semnasnet_075 hardcorenas_a resnest14d "
        "skresnet18 selecsls42 ese_vovnet19b_dw cspresnet50 eca_nfnet_l0 poolformer_s12 edgenext_xx_small "
        "pit_ti_224 levit_128s mixer_s32_224 resmlp_12_224 gmixer_12_224 gmlp_ti16_224 pvt_v2_b0 "
        "xcit_nano_12_p16_224 cait_xxs24_224 deit_tiny_patch16_224 coat_tiny crossvit_tiny_240 visformer_tiny "
        "convmixer_768_32 efficientformer_l1 fastvit_t8 repvit_m0_9 tiny_vit_5m_224 inception_next_atto "
        "starnet_s1 hgnetv2_b0 regnetz_005 beit_base_patch16_224 volo_d1_224 twins_pcpvt_small nest_tiny "
        "convit_tiny eva02_tiny_patch14_224"
    ).split():
        found[f"timm_{name}"] = partial(timm_model, name)
    for kind, head in (
        ("Bert", "BertForSequenceClassification"),
        ("Roberta", "RobertaForSequenceClassification"),
        ("DistilBert", "DistilBertForSequenceClassification"),
        ("Albert", "AlbertForSequenceClassification"),
        ("Electra", "ElectraForSequenceClassification"),
        ("MPNet", "MPNetForSequenceClassification"),
        ("DebertaV2", "DebertaV2ForSequenceClassification"),
        ("Camembert", "CamembertForSequenceClassification"),
        ("XLMRoberta", "XLMRobertaForTokenClassification"),
        ("MobileBert", "MobileBertForSequenceClassification"),
        ("SqueezeBert", "SqueezeBertForSequenceClassification"),
        ("ConvBert", "ConvBertForSequenceClassification"),
        ("FNet", "FNetForSequenceClassification"),
        ("Esm", "EsmForSequenceClassification"),
        ("Nystromformer", "NystromformerForSequenceClassification"),
        ("ModernBert", "ModernBertForSequenceClassification"),
        ("GPT2", "GPT2LMHeadModel"),
        ("GPTNeo", "GPTNeoForCausalLM"),
        ("GPTNeoX", "GPTNeoXForCausalLM"),
        ("OPT", "OPTForCausalLM"),
        ("Bloom", "BloomForCausalLM"),
        ("Llama", "LlamaForCausalLM"),
        ("Mistral", "MistralForCausalLM"),
        ("Qwen2", "Qwen2ForCausalLM"),
        ("Qwen3", "Qwen3ForCausalLM"),
        ("Gemma", "GemmaForCausalLM"),
        ("Phi", "PhiForCausalLM"),
        ("StableLm", "StableLmForCausalLM"),
        ("Mamba", "MambaForCausalLM"),
        ("T5", "T5EncoderModel"),
        ("CLIPText", "CLIPTextModelWithProjection"),
        ("XLNet", "XLNetForSequenceClassification"),
        ("Rwkv", "RwkvForCausalLM"),
        ("Canine", "CanineForSequenceClassification"),
    ):
        found[f"hf_{kind.lower()}"] = partial(text_model, kind, head)
    for kind, head in (
        ("ViT", "ViTForImageClassification"),
        ("DeiT", "DeiTForImageClassification"),
        ("Beit", "BeitForImageClassification"),
        ("CLIPVision", "CLIPVisionModelWithProjection"),
        ("Dinov2", "Dinov2ForImageClassification"),
        ("Siglip", "SiglipForImageClassification"),
        ("MobileViT", "MobileViTForImageClassification"),
        ("Segformer", "SegformerForImageClassification"),
        ("ConvNextV2", "ConvNextV2ForImageClassification"),
        ("PoolFormer", "PoolFormerForImageClassification"),
        ("Yolos", "YolosForObjectDetection"),
    ):
        found[f"hf_{kind.lower()}"] = partial(image_model, kind, head)
    convolutions = {"conv_dim": (16, 16), "conv_stride": (5, 4), "conv_kernel": (10, 4), "num_feat_extract_layers": 2}
    for kind in ("Wav2Vec2", "Hubert", "WavLM", "SEW"):
        head = f"{kind}ForSequenceClassification"
        found[f"hf_{kind.lower()}"] = partial(audio_model, kind, head, num_conv_pos_embeddings=16, **convolutions)
    for cell in ("LSTM", "GRU", "RNN"):
        found[f"rnn_{cell.lower()}"] = partial(recurrent, cell)
        found[f"rnn_{cell.lower()}_deep"] = partial(recurrent, cell, num_layers=2, bidirectional=True)
    return found


def calibrate(model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
    """Scale every layer with a weight, in the order of the computation, so that its outputs have variance one."""

    def scale(layer: nn.Module, _: object, output: torch.Tensor) -> torch.Tensor | None:
        spread = float(output.std()) if isinstance(output, torch.Tensor) and output.numel() > 1 else 0.0
        if not 0 < spread < float("inf") or layer in seen:
            return None
        seen.add(layer)
        for parameter in layer.parameters(recurse=False):
            parameter.data /= spread
        return output / spread

    seen: set[nn.Module] = set()
    model.eval()
    for parameter in model.parameters():
        if parameter.ndim > 1 and not parameter.any():  # heads and tokens that start at zero
            nn.init.normal_(parameter, 0, 0.1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
        if isinstance(module, nn.LayerNorm | nn.BatchNorm2d | nn.GroupNorm) and module.weight is not None:
            nn.init.uniform_(module.weight, 0.7, 1.3)
            nn.init.normal_(module.bias, 0, 0.1) if module.bias is not None else None
    layers = [m for m in model.modules() if type(m).__name__ in ("Linear", "Conv1d", "Conv2d", "Conv1D", "Embedding")]
    hooks = [layer.register_forward_hook(scale) for layer in layers]
    with torch.no_grad():
        model(*inputs)
        for hook in hooks:
            hook.remove()
        spread = float(model(*inputs).std())
        for layer in reversed(layers):
            if not isinstance(layer, nn.Embedding):
                for parameter in layer.parameters(recurse=False):
                    parameter.data *= LOGITS / max(spread, 1e-6)
                break


def export(built: Built, path: Path, *, dynamo: bool) -> None:
    model, inputs = built
    names = [f"in{index}" for index in range(len(inputs))]
    if dynamo:
        shapes = tuple({0: torch.export.Dim("batch", min=1, max=64)} for _ in inputs)
        shapes = (shapes,) if isinstance(model, FirstTensor) else shapes
        options = {"input_names": names, "external_data": False, "verbose": False}
        torch.onnx.export(model, inputs, path, dynamo=True, dynamic_shapes=shapes, **options)
    else:
        axes = {name: {0: "batch"} for name in names}
        torch.onnx.export(model, inputs, path, dynamo=False, dynamic_axes=axes, input_names=names, opset_version=17)


def attempts(folder: Path, only: str) -> Iterator[tuple[str, str]]:
    """Export one after the other; what became of each."""
    for name, build in families().items():
        if not re.search(only, name):
            continue
        torch.manual_seed(0)
        try:
            built = build()
            calibrate(*built)
        except Exception as error:  # an architecture that this version of the package does not have, or not so small
            yield name, f"not built: {type(error).__name__}: {error}"
            continue
        for exporter in ("dynamo", "legacy"):
            path = folder / f"{name}.{exporter}.onnx"
            if path.exists():
                continue
            try:
                export(built, path, dynamo=exporter == "dynamo")
                yield path.name, f"{path.stat().st_size / 1e6:.1f} MB"
            except Exception as error:  # the exporter's own limits
                path.unlink(missing_ok=True)
                yield path.name, f"not exported: {type(error).__name__}: {str(error).strip().splitlines()[0][:100]}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", default="", help="names that match this regular expression")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    screen = Console()
    for name, result in attempts(arguments.folder, arguments.only):
        screen.print(f"{name:40} {result}", highlight=False, markup=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
