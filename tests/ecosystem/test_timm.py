"""Models of timm and torchvision are planned without a rule, with the laws of their authors where Keras has none.

Where torchvision's compiled part does not fit torch, tests/support/torchvision_ops.py lets its Python code be imported.
"""

import math

import pytest
import torch

import torch_kinit as kinit

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ecosystem")]

# Small ones, which are also built with their authors' first weights.
SMALL = [
    *("vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "eva02_tiny_patch14_224", "convit_tiny"),
    *("convnextv2_atto", "convnext_atto", "coat_lite_tiny", "crossvit_tiny_240", "edgenext_xx_small", "levit_128s"),
    *("pit_ti_224", "tiny_vit_5m_224", "fastvit_t8", "hgnetv2_b0", "mobilevitv2_050", "visformer_tiny"),
]
LARGER = [
    *("swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256", "maxvit_tiny_tf_224", "mvitv2_tiny", "hiera_tiny_224"),
    *("efficientformer_l1", "caformer_s18", "eca_nfnet_l0", "samvit_base_patch16", "resnet50", "efficientnet_b0"),
]
UNKNOWN = {  # of which nothing tells what their layer scales were made with
    "beit_base_patch16_224": {"gamma_1", "gamma_2"},
    "cait_xxs24_224": {"gamma_1", "gamma_2"},
    "resmlp_12_224": {"ls1", "ls2"},
    "xcit_nano_12_p16_224": {"gamma1", "gamma2", "gamma3"},
}
OF_TORCHVISION = ["vit_b_16", "swin_t", "swin_v2_t", "convnext_tiny", "maxvit_t", "resnet18"]


def check_as_authors(step, values):
    """The values that its authors give a tensor are as a law says: bounds, mean and std, to six standard errors."""
    values, law = values.detach().double(), step.law
    close = 6 * law.std / math.sqrt(values.numel()) + 1e-6
    assert law.bounds[0] - 1e-5 <= float(values.min()) <= float(values.max()) <= law.bounds[1] + 1e-5, step
    assert abs(float(values.mean()) - law.mean) <= close, step
    assert values.numel() < 16 or abs(float(values.std(correction=0)) - law.std) <= close, step


def planned(make):
    """The plan of a model on the meta device, in which every tensor is spoken of."""
    with torch.device("meta"):
        plan = kinit.plan(make())
    assert all(step.initializer is not None for step in plan)
    return plan


@pytest.mark.parametrize("name", SMALL)
def test_small_models_of_timm_start_as_theirs(name):
    """Each needs no rule, and what has a law of timm's starts as timm starts it."""
    timm = pytest.importorskip("timm")
    model = timm.create_model(name)
    for step in kinit.plan(model):
        if step.rule == "timm default":
            check_as_authors(step, model.get_parameter(step.name))


@pytest.mark.parametrize("name", LARGER)
def test_models_of_timm_need_no_rule(name):
    """Each is planned whole on the meta device."""
    timm = pytest.importorskip("timm")
    planned(lambda: timm.create_model(name))


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_is_truly_unknown_is_named(name):
    """Layer scales whose first value their module does not keep are all that has to be spoken of."""
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        plan = kinit.plan(timm.create_model(name), on_uncovered="keep")
    left = {step.name.rpartition(".")[2] for step in plan if step.initializer is None}
    assert left == UNKNOWN[name]


@pytest.mark.parametrize("name", OF_TORCHVISION)
def test_models_of_torchvision_need_no_rule(name):
    """Each is planned whole, and only tokens, positions and scales have the law of its authors."""
    models = pytest.importorskip("torchvision").models
    plan = planned(lambda: models.get_model(name))
    of_authors = {step.role for step in plan if step.rule == "torchvision default"}
    assert of_authors <= {"token", "position_embeddings", "relative_positions", "scale"}


def test_a_small_model_of_torchvision_starts_as_theirs():
    """Its token, positions and norms start as torchvision starts them."""
    models = pytest.importorskip("torchvision").models
    model = models.VisionTransformer(32, 8, 1, 2, 64, 64)
    steps = [step for step in kinit.plan(model) if step.rule == "torchvision default" or step.role in ("gamma", "beta")]
    assert {"class_token", "encoder.pos_embedding"} <= {step.name for step in steps}
    for step in steps:
        check_as_authors(step, model.get_parameter(step.name))
