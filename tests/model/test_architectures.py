"""Real architectures are covered whole, with values as their plans say."""

import math
from functools import partial

import pytest
import torch
from torch import nn

import torch_kinit as kinit
from tests.support.models import seeded


def check_covered(model, plan):
    """Every parameter is in the plan exactly once, and its values have the std and the bounds that it says."""
    names = [name for step in plan for name in (step.name, *step.tied) if step.kind == "parameter"]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters(remove_duplicate=False))
    for step in plan:
        assert step.law is not None, step.name
        values = model.get_parameter(step.name) if step.kind == "parameter" else model.get_buffer(step.name)
        values, law = values.detach().double(), step.law
        assert float(values.min()) >= law.bounds[0] - 1e-6, step.name
        assert float(values.max()) <= law.bounds[1] + 1e-6, step.name
        # Of a law's sample std, the relative error is at most 0.707/sqrt(n), a normal's. An orthogonal's is smaller.
        assert float(values.std(correction=0)) == pytest.approx(
            law.std, rel=6 * 0.707 / math.sqrt(values.numel()), abs=1e-7
        )


def gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"vocab_size": 200, "n_positions": 32, "n_embd": 32, "n_layer": 2, "n_head": 2}
    return GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))


def bert():
    from transformers import BertConfig, BertForMaskedLM

    sizes = {"vocab_size": 200, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return BertForMaskedLM(BertConfig(**sizes, intermediate_size=64, max_position_embeddings=32))


def vit():
    from transformers import ViTConfig, ViTModel

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    return ViTModel(ViTConfig(**sizes, image_size=32, patch_size=8))


def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": 200, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2))


def test_torch_transformer():
    """torch's nn.Transformer is covered by the defaults alone, its packed attention included."""
    model = nn.Transformer(32, 4, 2, 2, 64, batch_first=True)
    plan = kinit.apply(model, generator=seeded())
    check_covered(model, plan)
    assert plan["decoder.layers.1.multihead_attn.in_proj_weight"].blocks == 3


@pytest.mark.slow
def test_gpt2(register):
    """GPT-2 needs one registered layout, for its transposed linears; its head is tied to the embedding."""
    from transformers.pytorch_utils import Conv1D

    model = gpt2()
    with pytest.raises(kinit.UncoveredParameterError, match=r"h\.0\.attn\.c_attn\.weight \(32, 96\) of Conv1D"):
        kinit.plan(model)
    register(Conv1D, lambda m: [kinit.Variable("kernel", "weight", "keras"), kinit.Variable("bias", "bias")])
    plan = kinit.apply(model, {Conv1D: "he_normal"}, generator=seeded())
    check_covered(model, plan)
    assert plan["lm_head.weight"].name == "transformer.wte.weight"
    assert plan["transformer.h.0.mlp.c_fc.weight"].fans == (32, 128)
    assert bool(torch.isfinite(model(torch.arange(8)[None]).logits).all())


def test_bert():
    """BERT is covered by the defaults; its padding row stays zero and its tied decoder is drawn once."""
    model = bert()
    plan = kinit.plan(model, {"*word_embeddings*": kinit.skip})
    assert plan["cls.predictions.decoder.weight"].initializer is not None  # its other owner draws it
    plan = kinit.apply(model, {nn.Linear: {"bias": "zeros"}}, generator=seeded())
    assert bool((model.bert.embeddings.word_embeddings.weight[0] == 0).all())
    assert plan["cls.predictions.decoder.bias"].tied == ("cls.predictions.bias",)
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight[0] = model.bert.embeddings.word_embeddings.weight[1]
    check_covered(model, plan)


def test_vit():
    """ViT's raw parameters have to be spoken of, and rules by name cover them."""
    model = vit()
    rules = {"*cls_token": "zeros", "*position_embeddings": partial(kinit.trunc_normal_, std=0.02)}
    with pytest.raises(kinit.UncoveredParameterError, match="cls_token"):
        kinit.plan(model)
    check_covered(model, kinit.apply(model, rules, generator=seeded()))


def test_llama():
    """Llama's own RMSNorm has to be spoken of, and a rule by class covers it."""
    model = llama()
    rules = {type(model.model.norm): "ones", "*_proj": "he_normal", "lm_head": {"kernel": "lecun_normal"}}
    plan = kinit.apply(model, rules, generator=seeded())
    check_covered(model, plan)
    assert str(plan["model.layers.1.mlp.down_proj.weight"].initializer) == "he_normal"
