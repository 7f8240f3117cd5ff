"""Layers of transformers 5.23: norms, routers, experts, state space mixers, tokens and positions."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from torch_kinit.initializers.plain import constant_
from torch_kinit.layers.known import Known, setting
from torch_kinit.layers.variable import Variable

_known = partial(Known, "transformers")
_authors = partial(Variable, tensor="", layout="keras", origin="transformers")
_KERNEL, _BIAS = Variable("kernel", ""), Variable("bias", "", "keras")
_GAMMA, _BETA = Variable("gamma", "", "keras"), Variable("beta", "", "keras")

# Norms that multiply by 1 + weight, so that zeros are what ones are elsewhere.
_ONE_PLUS = (
    r"((Gemma2?|Gemma3|RecurrentGemma|T5Gemma2?|VaultGemma|MiniMaxM3VL|Qwen3_5|Qwen3_5Moe|Qwen3Next|Qwen4ExpText|"
    r"Step3p7)RMSNorm|MuseGlimmerTextCenteredRMSNorm|MuseSparkText(Centered|InputScaled)RMSNorm|NemotronLayerNorm1P|"
    r"VideoPrismLayerNorm)"
)
_NORMS = r"\w*(RMSNorm|RmsNorm|LayerNorm|GroupNorm|TimestepNorm|NoNorm)\w*"
_EXPERTS, _EXPERTS_IN_KERAS = r"\w*Experts", r"(Aria|GptOss|Llama4Text|OpenAIPrivacyFilter)\w*Experts"
# Tokens and positions that their authors start at zero, and those drawn with the config's usual std of 0.02.
_AT_ZERO = (
    r"(AST|Beit|DPTViT|Data2VecVision|DeiT|FlavaImage|InternVLVision|QianfanOCRVision|Vilt|ViTMSN|Vivit|Yolos)Embeddings|"
    r"FlavaMultimodalModel|LayoutLMv3Model|GotOcr2VisionEncoder|Sam(HQ)?VisionEncoder|Sam2HieraDetModel|"
    r"UnlimitedOcrSamVisionEncoder"
)
_DRAWN = (
    r"(DINOv3ViT|Dinov2|Dinov2WithRegisters|Hiera|IJepa|LwDetrViT|Mgpstr|Pixio|RfDetrDinov2|Sam3ViT|Sapiens2|SegGpt|"
    r"Timesformer|Tipsv2Vision|ViT|VitDet)Embeddings|CvtStage|(Pvt|Radio)PatchEmbeddings|Aimv2AttentionPoolingHead"
)
_POSITIONS = r"position_embeddings?|pos_embed(_window)?"
_CLIP = (
    r"(AltCLIP|CLIP|CLIPSeg|ChineseCLIP|Kosmos2|MLCD|MetaClip2|OwlViT|Owlv2|UnlimitedOcr|XCLIP)Vision\w*Embeddings|"
    r"Llama4VisionModel"
)
_MAMBA, _MAMBA2 = r"(Mamba|FalconMamba)Mixer", r"(Mamba2|NemotronHMamba2|Zamba2Mamba)(Mixer)?"
_MAMBA_OF_ONES = r"(Bamba|FalconH1)Mixer|GraniteMoeHybridMambaLayer"
_MAMBAS = rf"{_MAMBA}|{_MAMBA2}|{_MAMBA_OF_ONES}|(JambaMamba|ZambaMamba)Mixer"


def _in_torch(block: Tensor) -> Tensor:
    """One expert, (1, out, in), as Keras has a kernel."""
    return block.squeeze(0).t()


def _in_keras(block: Tensor) -> Tensor:
    """One expert, (1, in, out)."""
    return block.squeeze(0)


def _experts(module: Any, tensor: Tensor, transposed: bool = False, halves: int = 1) -> Variable:
    """A kernel for each expert; those of gate and up, packed in one, have fans of their own."""
    count, outputs, inputs = tensor.shape
    if transposed:
        outputs, inputs = inputs, outputs
    return Variable("kernel", "", _in_keras if transposed else _in_torch, (inputs, outputs // halves), blocks=count)


def _decays(module: Any, tensor: Tensor) -> Variable:
    """log(1), log(2), ..., along the states of Mamba, or the heads of Mamba 2."""
    logs = torch.tensor([math.log(i + 1) for i in range(tensor.shape[-1])], dtype=torch.float32, device="cpu")
    return _authors("decay", default=partial(constant_, value=logs))


def _time_steps(module: Any, tensor: Tensor) -> Variable:
    low, high = setting(module, "time_step_min", 0.001), setting(module, "time_step_max", 0.1)
    return _authors("bias", default=f"time_step_bias(low={low!r}, high={high!r})")


def _time_step_kernel(module: Any, tensor: Tensor) -> Variable:
    reach = setting(module, "time_step_scale", 1.0) / math.sqrt(tensor.shape[1])
    return Variable("kernel", "", default=f"random_uniform(low={-reach!r}, high={reach!r})", origin="transformers")


def _by_width(module: Any, tensor: Tensor) -> Variable:
    return _authors("token", default=f"random_normal(std={tensor.shape[-1] ** -0.5!r})")


def _gamma_beside(module: Any, tensor: Tensor) -> Variable:
    """The gamma of a norm that adds a number to it, one or zero."""
    return Variable("gamma", "", "keras", default="zeros" if module.unit_offset else "ones")


def _normal(role: str, std: float) -> Variable:
    # The bounds of torch's trunc_normal_ are at 2, a hundred of these standard deviations away.
    return _authors(role, default=f"random_normal(std={std!r})")


ROWS = [
    _known("Conv1D", "weight", Variable("kernel", "", "keras")),
    _known("Conv1D", "bias", _BIAS),
    # Biases that stand alone
    _known(r"\w*(Head|Router)", "bias", _BIAS),
    _known(r"\w*(Router|MoeStatics)", "e_score_correction_bias", _BIAS, buffers=True),
    _known(r"\w*Attention", "(q|k|v|dense)_bias", _BIAS),
    # Norms
    _known(_ONE_PLUS, "weight", Variable("gamma", "", "keras", default="zeros")),
    _known("MoonshineStreamingLayerNorm", "gamma", _gamma_beside),
    _known(_NORMS, "weight|gamma", _GAMMA),
    _known(_NORMS, "bias|beta", _BETA),
    _known(r"\w*FrozenBatchNorm2d", "weight", _GAMMA, buffers=True),
    _known(r"\w*FrozenBatchNorm2d", "bias", _BETA, buffers=True),
    _known(r"\w*FrozenBatchNorm2d", "running_mean", Variable("moving_mean", ""), buffers=True),
    _known(r"\w*FrozenBatchNorm2d", "running_var", Variable("moving_variance", ""), buffers=True),
    _known("ConvNextV2GRN", "weight", _authors("gamma", default="zeros")),
    _known("ConvNextV2GRN", "bias", _BETA),
    # Routers and experts
    _known(r"\w*(TopKRouter|TopkRouter|HashRouter)", "weight", _KERNEL),
    _known(_EXPERTS_IN_KERAS, "gate_up_proj", partial(_experts, transposed=True, halves=2)),
    _known(_EXPERTS_IN_KERAS, "down_proj", partial(_experts, transposed=True)),
    _known(_EXPERTS, "gate_up_proj", partial(_experts, halves=2)),
    _known(_EXPERTS, "(gate|up|down)_proj", _experts),
    _known("JetMoeParallelExperts", "weight", _experts),
    _known(_EXPERTS, r"\w+_proj_bias", _BIAS),
    # State space models
    _known(_MAMBAS, "A_log", _decays),
    _known(_MAMBAS, "D", _authors("skip_scale", default="ones")),
    _known(_MAMBA, r"dt_proj\.bias", _time_steps),
    _known(_MAMBA, r"dt_proj\.weight", _time_step_kernel),
    _known(rf"{_MAMBA2}|OlmoHybridGatedDeltaNet|\w+ForgetGate", "dt_bias", _time_steps),
    _known(rf"{_MAMBA_OF_ONES}|\w+GatedDeltaNet", "dt_bias", _authors("bias", default="ones")),
    # Tokens and positions
    _known("WhisperEncoder", r"embed_positions\.weight", _authors("position_embeddings", default="sinusoids")),
    _known(_AT_ZERO, r"(cls|distillation)_token|detection_tokens", _authors("token", default="zeros")),
    _known(_AT_ZERO, _POSITIONS, _authors("position_embeddings", default="zeros")),
    _known("SegGptEmbeddings", r"mask_token|\w+_token_\w+", _normal("token", 0.02)),
    _known(rf"{_AT_ZERO}|{_DRAWN}", "mask_token", _authors("token", default="zeros")),
    _known(
        "Dinov2WithRegistersEmbeddings|Tipsv2VisionEmbeddings", "register_tokens", _authors("token", default="zeros")
    ),
    _known(_DRAWN, r"cls_token|cls_register_token|register_tokens", _normal("token", 0.02)),
    _known(_DRAWN, _POSITIONS, _normal("position_embeddings", 0.02)),
    _known(_CLIP, "class_embedding", _by_width),
    _known("Llama4VisionModel", "positional_embedding_vlm", _by_width),
    _known(r"Git\w*Embeddings|Inkling2VisionEmbeddings|MllamaVisionModel", "class_embedding", _normal("token", 0.02)),
    _known(r"(Blip2|InstructBlip|InstructBlipVideo)Model", "query_tokens", _authors("token", default="zeros")),
    _known(r"\w+Model", "masked_spec_embed", _authors("token", default="random_uniform(low=0.0, high=1.0)")),
    _known(r"\w+Model", "image_newline|view_separator", _by_width),
    _known("HunYuanVLVisionPatchMerger", "image_(begin|end|sep)", _by_width),
    _known(r"\w*(Detr|Dino)Model|Mask2FormerPixelDecoder", "level_embed", _normal("token", 1.0)),
    # Relative positions and sinks
    _known(r"\w+", "relative_position_bias_table", _authors("relative_positions", default="zeros")),
    _known(r"Levit\w+", "attention_biases", _authors("relative_positions", default="zeros")),
    _known("SegGptAttention", "rel_pos_[hw]", _normal("relative_positions", 0.02)),
    _known(r"\w+Attention", "rel_pos_[hw]", _authors("relative_positions", default="zeros")),
    _known("(Flint|GptOss|MiMoV2Flash|OpenAIPrivacyFilter)Attention", "sinks", _normal("sinks", 0.02)),
    _known(r"\w+Attention", "sinks", _authors("sinks", default="zeros")),
    # Scales of residuals, of attention and of contrastive losses
    _known("(DINOv3)?ConvNext(V2)?Layer", "layer_scale_parameter|gamma", Variable("gamma", "", "keras", default=1e-6)),
    _known(r"\w+LayerScale", "lambda1", _authors("gamma", default="ones")),
    _known(r"\w+Layer", "lambda_[12]", _authors("gamma", default=0.1)),
    _known(r"\w+", "layer_scale_[12]", _authors("gamma", default=1e-5)),
    _known(r"SwiftFormer\w+", "layer_scale", _authors("gamma", default="ones")),
    _known(r"\w+LayerScale", "scale", _authors("gamma", default=0.01)),
    _known(r"Swin\w+Attention", "logit_scale", _authors("scale", default=math.log(10))),
    _known(r"Siglip2?Model", "logit_(scale|bias)", _authors("scale", default="zeros")),
    _known("Aimv2Model|ClapModel", "logit_scale(_[at])?", _authors("scale", default=math.log(1 / 0.07))),
    _known(r"\w+Model", "logit_scale", _authors("scale", default=2.6592)),
]
