"""Real architectures are covered whole, with values as their plans say."""

import math

import pytest
import torch
from torch import nn

import torch_kinit as kinit
from tests.support.models import seeded
from torch_kinit.layers.table import layout_of
from torch_kinit.layers.variable import Options


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


WIDE = {"vocab_size": 200, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
SMALL_LLAMA = {**WIDE, "intermediate_size": 64, "num_key_value_heads": 2, "head_dim": 8}
SMALL_VIT = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
SMALL_VIT |= {"image_size": 64, "patch_size": 8}
SMALL_T5 = {"vocab_size": 200, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
SMALL_MAMBA = {"vocab_size": 200, "hidden_size": 64, "state_size": 8, "num_hidden_layers": 2}
SMALL_WHISPER = {"vocab_size": 200, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "num_mel_bins": 8}
SMALL_WHISPER |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "max_source_positions": 30}
SMALL_WHISPER |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
MODELS = {  # of transformers: the class, and the sizes in its config
    "BERT": ("BertForMaskedLM", {**WIDE, "intermediate_size": 64, "max_position_embeddings": 32}),
    "GPT-2": ("GPT2LMHeadModel", {"vocab_size": 200, "n_positions": 32, "n_embd": 32, "n_layer": 2, "n_head": 2}),
    "ViT": ("ViTForMaskedImageModeling", SMALL_VIT),
    "DINOv2": ("Dinov2WithRegistersModel", SMALL_VIT),
    "CLIP": ("CLIPVisionModel", SMALL_VIT),
    "Llama": ("LlamaForCausalLM", SMALL_LLAMA),
    "Gemma 2": ("Gemma2ForCausalLM", SMALL_LLAMA),
    "Mixtral": ("MixtralForCausalLM", {**SMALL_LLAMA, "num_local_experts": 4}),
    "gpt-oss": ("GptOssForCausalLM", {**SMALL_LLAMA, "num_local_experts": 4}),
    "T5": ("T5ForConditionalGeneration", SMALL_T5),
    "Whisper": ("WhisperForConditionalGeneration", SMALL_WHISPER),
    "Mamba": ("MambaForCausalLM", SMALL_MAMBA),
    "Mamba 2": ("Mamba2ForCausalLM", {**SMALL_MAMBA, "num_heads": 16, "head_dim": 8, "n_groups": 2}),
}


def made(name):
    """A small model of transformers, with its authors' first weights."""
    import transformers

    class_name, sizes = MODELS[name]
    cls = getattr(transformers, class_name)
    return cls(cls.config_class(**sizes))


def check_as_authors(step, values):
    """The values that its authors give a tensor are as a law says: bounds, mean and std, to six standard errors."""
    values, law = values.detach().double(), step.law
    close = 6 * law.std / math.sqrt(values.numel()) + 1e-6
    assert law.bounds[0] - 1e-5 <= float(values.min()) <= float(values.max()) <= law.bounds[1] + 1e-5, step
    assert abs(float(values.mean()) - law.mean) <= close, step
    assert values.numel() < 16 or abs(float(values.std(correction=0)) - law.std) <= close, step


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_models_of_transformers_need_no_rule(name):
    """Each is planned whole; what its authors' law is for starts as they start it, and each norm as they do."""
    model = made(name)
    plan = kinit.plan(model)
    theirs = [step for step in plan if step.rule == "transformers default" or step.role in ("gamma", "beta")]
    for step in theirs:
        check_as_authors(step, model.get_parameter(step.name))
    before = {step.name: model.get_parameter(step.name).detach().clone() for step in theirs}
    assert {step.rule for step in plan} <= {"Keras default", "transformers default"}
    check_covered(model, kinit.apply(model, seed=0))
    for step in theirs:
        if not step.initializer.accepts("generator"):  # values without chance, such as Whisper's sinusoids
            torch.testing.assert_close(model.get_parameter(step.name).data, before[step.name], rtol=1e-5, atol=1e-4)


def test_torch_transformer():
    """torch's nn.Transformer is covered by the defaults alone, its packed attention included."""
    model = nn.Transformer(32, 4, 2, 2, 64, batch_first=True)
    plan = kinit.apply(model, generator=seeded())
    check_covered(model, plan)
    assert plan["decoder.layers.1.multihead_attn.in_proj_weight"].blocks == 3


@pytest.mark.slow
def test_gpt2():
    """GPT-2's transposed linears are Keras' kernels, by their own class in rules; its head is tied to the embedding."""
    from transformers.pytorch_utils import Conv1D

    model = made("GPT-2")
    plan = kinit.apply(model, {Conv1D: "he_normal"}, generator=seeded())
    check_covered(model, plan)
    assert plan["lm_head.weight"].name == "transformer.wte.weight"
    assert plan["transformer.h.0.mlp.c_fc.weight"].fans == (32, 128)
    assert bool(torch.isfinite(model(torch.arange(8)[None]).logits).all())


def test_bert():
    """BERT is covered by the defaults; its padding row stays zero and its tied decoder is drawn once."""
    model = made("BERT")
    plan = kinit.plan(model, {"*word_embeddings*": kinit.skip})
    assert plan["cls.predictions.decoder.weight"].initializer is not None  # its other owner draws it
    plan = kinit.apply(model, {nn.Linear: {"bias": "zeros"}}, generator=seeded())
    assert bool((model.bert.embeddings.word_embeddings.weight[0] == 0).all())
    assert plan["cls.predictions.decoder.bias"].tied == ("cls.predictions.bias",)
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight[0] = model.bert.embeddings.word_embeddings.weight[1]
    check_covered(model, plan)


def test_llama():
    """Rules by class, by a glob and by role hold beside what is known of Llama."""
    model = made("Llama")
    rules = {type(model.model.norm): 0.5, "*_proj": "he_normal", "lm_head": {"kernel": "lecun_normal"}}
    plan = kinit.apply(model, rules, generator=seeded())
    check_covered(model, plan)
    assert str(plan["model.layers.1.mlp.down_proj.weight"].initializer) == "he_normal"
    assert str(plan["model.norm.weight"].initializer) == "constant(0.5)"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "class_name"), [("Mixtral", "MixtralExperts"), ("gpt-oss", "GptOssExperts")])
def test_each_expert_is_a_kernel_of_its_own(name, class_name):
    """An expert computes with its view as Dense with a kernel, and its fans are the matrix', not those of the stack."""
    model = made(name)
    experts = next(module for module in model.modules() if type(module).__name__ == class_name)
    plan = kinit.plan(experts)
    assert {step.name: (step.blocks, step.fans) for step in plan if step.role == "kernel"} == {
        "gate_up_proj": (4, (32, 64)),
        "down_proj": (4, (64, 32)),
    }
    kernel = next(v for v in layout_of(experts, Options()) if v.tensor == "down_proj")
    x, chosen = torch.randn(1, 32), torch.tensor([[2]])

    def computed(expert):
        """What the chosen expert, the third, computes with this kernel of its output."""
        kernel.views(experts.down_proj)[2].copy_(expert)
        return experts(x, chosen, torch.ones(1, 1))

    with torch.no_grad():
        kinit.apply(experts, seed=0)
        first, second = torch.eye(64).split(32, dim=1)
        hidden, values = torch.cat([computed(first), computed(second)], dim=1), torch.randn(64, 32)
        torch.testing.assert_close(computed(values), hidden @ values, rtol=1e-4, atol=1e-5)
