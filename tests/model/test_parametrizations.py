"""A weight that is parametrized or pruned obeys that at once, and comes from the seed, its name and its shape alone."""

import json

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import torch_kinit as kinit
from tests.support.models import Twice, symmetric
from tests.support.states import check_same_state, state
from torch_kinit import Key

LAYERS = {
    "linear": lambda: nn.Linear(7, 5),
    "conv1d": lambda: nn.Conv1d(3, 8, 3),
    "conv2d": lambda: nn.Conv2d(4, 6, 3, groups=2),
    "conv3d": lambda: nn.Conv3d(2, 5, 2),
    "transpose1d": lambda: nn.ConvTranspose1d(3, 8, 3),
    "transpose2d": lambda: nn.ConvTranspose2d(3, 8, 3),
    "transpose3d": lambda: nn.ConvTranspose3d(3, 4, 2),
}


def largest(weight, dim=0):
    """The largest singular value, by LAPACK."""
    return float(torch.linalg.svdvals(weight.detach().double().movedim(dim, 0).flatten(1))[0])


def spectral():
    """A critic as GANs have it."""
    norm = parametrizations.spectral_norm
    return nn.Sequential(norm(nn.Conv2d(2, 4, 3)), nn.Flatten(), norm(nn.Linear(16, 3)))


def effective(model):
    """All tensors, and the weights that the layers use, in eval mode."""
    model.eval()
    weights = {f"{i} in use": m.weight.detach().clone() for i, m in enumerate(model) if hasattr(m, "weight")}
    return state(model) | weights


# --- spectral_norm ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_spectral_norm_is_obeyed_at_once(make, dim):
    """In eval mode, where torch improves nothing, the largest singular value is one, also in half precision."""
    for dtype in (torch.float32, torch.bfloat16):
        model = parametrizations.spectral_norm(make(), dim=dim).to(dtype)
        model.parametrizations.weight.original.data.mul_(100)
        kinit.apply(model, seed=3)
        assert largest(model.eval().weight, dim) == pytest.approx(1, abs=0.1)


def test_what_torch_keeps_is_not_enough():
    """The check of the norm sees the vectors of another weight, which were left before."""
    model = parametrizations.spectral_norm(nn.Linear(7, 5))
    kinit.he_normal_(model.parametrizations.weight.original, generator=Key(3))
    assert abs(largest(model.eval().weight) - 1) > 0.1


EARLIER = {
    "other weights": lambda model: [p.data.normal_() for p in model.parameters()],
    "forwards in train mode": lambda model: [model(torch.ones(2, 2, 4, 4)) for _ in range(3)],
    "NaN": lambda model: [t.data.fill_(float("nan")) for t in state_of(model)],
    "channels last": lambda model: model.to(memory_format=torch.channels_last),
    "another initialization": lambda model: kinit.apply(model, {"*": {"kernel": "he_normal"}}, seed=9),
    "eval mode": lambda model: model.eval(),
    "materialized": lambda model: kinit.materialize(model.to("meta"), "cpu"),
}


def state_of(model):
    return [*model.parameters(), *model.buffers()]


@pytest.mark.parametrize("change", EARLIER.values(), ids=EARLIER)
def test_seed_name_and_shape_alone(change):
    """Whatever state the model was in, one seed gives the same weights in use and the same vectors, bit for bit."""
    torch.manual_seed(1)
    first, second = spectral(), spectral()
    kinit.apply(first, seed=5)
    change(second)
    before = torch.get_rng_state()
    kinit.apply(second, seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    check_same_state(effective(second), effective(first))
    kinit.apply(second, seed=6)
    assert not torch.equal(second[0].weight, first[0].weight)


def test_the_name_counts():
    """Two layers of one shape have vectors of their own; a layer alone has those that it has in a model."""
    norm = parametrizations.spectral_norm
    model, alone = nn.Sequential(norm(nn.Linear(6, 6)), norm(nn.Linear(6, 6))), norm(nn.Linear(6, 6))
    kinit.apply(model, {nn.Linear: "identity"}, seed=2)  # all of whose singular values are one: the start vectors stay
    vectors = [layer.parametrizations.weight[0].state_dict()["_v"] for layer in model]
    assert not torch.allclose(*vectors)
    kinit.apply(alone, {nn.Linear: "identity"}, seed=2, prefix="1")
    check_same_state(state(alone), state(model[1]))


def test_vectors_come_from_a_generator():
    """They are drawn from the generator that is given, after all weights, and never from torch's global one."""
    models = [spectral(), spectral(), nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(16, 3))]
    for layer in (models[2][0], models[2][2]):
        parametrize.register_parametrization(layer, "weight", Twice())
    for i, model in enumerate(models):
        torch.manual_seed(i)
        before = torch.get_rng_state()
        kinit.apply(model, generator=torch.Generator().manual_seed(4))
        assert torch.equal(torch.get_rng_state(), before)
    check_same_state(effective(models[0]), effective(models[1]))
    assert torch.equal(models[0][2].parametrizations.weight.original, models[2][2].weight)  # the last one drawn


def test_vectors_of_a_replayed_model():
    """Keras' numbers go into the weights alone: the vectors move nothing and are the same each time."""
    models = [spectral(), spectral()]
    for i, model in enumerate(models):
        torch.manual_seed(i)
        before = torch.get_rng_state()
        kinit.replay_keras(model, 3, backend="jax")
        assert torch.equal(torch.get_rng_state(), before)
        kinit.apply(model, {"*.bias": "zeros"}, only=["0.bias"])
    check_same_state(effective(models[0]), effective(models[1]))
    assert largest(models[0].eval()[2].weight) == pytest.approx(1, abs=0.1)
    plain = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(16, 3))
    kinit.replay_keras(plain, 3, backend="jax")
    assert torch.equal(models[0][0].parametrizations.weight.original, plain[0].weight)


def test_the_plan_lists_the_vectors():
    """Each has a step, which says whose it is; a rule for a vector, `skip` and `only` reach it."""
    model = nn.Sequential(parametrizations.spectral_norm(nn.Linear(7, 5)), nn.Linear(5, 2))
    plan = kinit.plan(model)
    step = plan["0.parametrizations.weight.0._u"]
    assert (step.kind, step.rule, step.law) == ("buffer", "spectral_norm of weight", None)
    assert step.parametrizations == ("power_iteration",)
    assert kinit.plan(model, {"0": kinit.skip})[step.name].initializer is None
    assert kinit.plan(model, only=["1.weight"])[step.name].initializer is None
    kinit.apply(model, {"*._u": "ones"}, seed=1)
    assert bool((state(model)[step.name] == 1).all())
    weight = model[0].parametrizations.weight.original.detach().clone()
    kinit.apply(model, seed=1, only=[step.name])  # what a checkpoint lacks of it
    assert torch.equal(model[0].parametrizations.weight.original, weight)
    assert largest(model.eval()[0].weight) == pytest.approx(1, abs=0.1)


def test_plans_of_0_4_make_the_vectors_too():
    """A plan of an older version does not speak of the vectors, and gives them the values of a new one."""
    old, new = spectral(), spectral()
    data = kinit.plan(old).to_dict()
    data["steps"] = [step for step in data["steps"] if step["kind"] == "parameter"]
    for step in data["steps"]:
        step.pop("parametrizations", None)
    kinit.Plan.from_dict(data).apply(old, seed=1)
    kinit.apply(new, seed=1)
    check_same_state(effective(old), effective(new))


# --- what a plan says ------------------------------------------------------------------------------------------------

NAMES = {
    "weight_norm": (parametrizations.weight_norm, ("weight_norm",), True),
    "spectral_norm": (parametrizations.spectral_norm, ("spectral_norm",), False),
    "orthogonal": (parametrizations.orthogonal, ("orthogonal",), False),
    "both": (
        lambda m: parametrizations.spectral_norm(parametrizations.weight_norm(m)),
        ("weight_norm", "spectral_norm"),
        False,
    ),
}


@pytest.mark.parametrize(("wrap", "names", "keeps"), NAMES.values(), ids=NAMES)
def test_a_plan_names_parametrizations(wrap, names, keeps):
    """It says what a weight passes through, and claims the initializer's law only where the values stay."""
    plan = kinit.plan(wrap(nn.Linear(6, 4)))
    step = plan["weight"]
    assert step.parametrizations == names
    assert (step.law == kinit.law("glorot_uniform", (4, 6))) is keeps
    assert (step.law is None) is not keeps
    assert ", then ".join(("glorot_uniform", *names)) in plan._repr_html_()
    assert kinit.Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


def test_plain_steps_are_written_as_before():
    """A plan without parametrizations has nothing in its JSON that 0.4 could not read."""
    assert all("parametrizations" not in step for step in kinit.plan(nn.Linear(3, 2)).to_dict()["steps"])


def test_users_parametrizations_are_named():
    """A user's class is named by itself, and nothing is claimed of its values."""
    step = kinit.plan(symmetric(Twice()))["weight"]
    assert (step.parametrizations, step.law) == (("Twice",), None)


def test_an_orthogonal_draw_stays_one():
    """An orthogonal matrix behind `orthogonal` keeps its law; a longer one does not."""
    model = parametrizations.orthogonal(nn.Linear(4, 4))
    assert kinit.plan(model, {"weight": "orthogonal"})["weight"].law.std == 0.5
    assert kinit.plan(model, {"weight": {"class_name": "Orthogonal", "config": {"gain": 2.0}}})["weight"].law is None


def test_a_weight_without_direction_is_refused():
    """What spectral_norm and weight_norm would make NaN of is an error that says so; nothing changes."""
    for wrap in (parametrizations.spectral_norm, parametrizations.weight_norm):
        model = nn.Sequential(wrap(nn.Linear(3, 3)))
        before = state(model)
        with pytest.raises(ValueError, match=r"^0\.weight holds NaN once it has passed through (spectral|weight)_norm"):
            kinit.apply(model, {"0.weight": "zeros"}, seed=1)
        check_same_state(state(model), before)


def test_a_chain_that_changes_the_value_on_its_way():
    """spectral_norm sees what the parametrizations before it make of the weight, and those after it see its value."""
    model = nn.Linear(6, 6)
    for step in (Twice(), Twice()):
        parametrize.register_parametrization(model, "weight", step)
    parametrizations.spectral_norm(model)
    parametrize.register_parametrization(model, "weight", Twice())
    kinit.apply(model, seed=1)
    assert largest(model.eval().weight) == pytest.approx(2, abs=0.2)


def test_an_error_after_the_weights_leaves_the_vectors():
    """After an error in a later rule, weights and vectors are what they were."""
    model = nn.Sequential(*spectral(), nn.Linear(3, 3))
    before = state(model)
    with pytest.raises(ValueError, match="returned None"):
        kinit.apply(model, {"3.weight": lambda tensor: None}, seed=1)
    check_same_state(state(model), before)


# --- pruning ---------------------------------------------------------------------------------------------------------


def pruned():
    model = nn.Sequential(nn.Linear(6, 4), nn.LSTM(4, 3))
    prune.random_unstructured(model[0], "weight", 0.5)
    prune.l1_unstructured(model[0], "weight", 0.2)  # a second method: a container
    prune.random_unstructured(model[0], "bias", 0.5)
    prune.random_unstructured(model[1], "weight_hh_l0", 0.5)
    return model


def test_pruned_layers_are_named():
    """The plan speaks of what is pruned by its role, with its law, and names pruning."""
    plan = kinit.plan(pruned())
    step = plan["0.weight_orig"]
    assert (step.role, step.parametrizations, step.fans) == ("kernel", ("pruning",), (6, 4))
    assert step.law == kinit.law("glorot_uniform", (4, 6))
    assert (plan["0.bias_orig"].role, plan["1.weight_hh_l0_orig"].role) == ("bias", "recurrent_kernel")
    assert "glorot_uniform, then pruning" in str(plan)


def test_masks_survive():
    """Right after apply the weight in use is the new original under the old mask, also of an LSTM."""
    model = pruned()
    masks = {name: t for name, t in state(model).items() if name.endswith("_mask")}
    kinit.apply(model, {nn.Linear: {"bias": 2.0}}, seed=1)
    check_same_state({name: t for name, t in state(model).items() if name.endswith("_mask")}, masks)
    assert torch.equal(model[0].weight, model[0].weight_orig * masks["0.weight_mask"])
    assert torch.equal(model[0].bias, 2 * masks["0.bias_mask"])
    assert torch.equal(model[1].weight_hh_l0, model[1].weight_hh_l0_orig * masks["1.weight_hh_l0_mask"])
    model[0](torch.ones(2, 6)).sum().backward()
    assert model[0].weight_orig.grad is not None


def test_pruned_layers_are_drawn_from_the_seed():
    """The original is drawn under its own name, whatever the mask."""
    models = [pruned(), pruned()]
    for model in models:
        kinit.apply(model, seed=1)
    assert torch.equal(models[0][0].weight_orig, models[1][0].weight_orig)
    want = kinit.glorot_uniform_(torch.empty(4, 6), generator=Key(1).fold_in("0.weight_orig"))
    assert torch.equal(models[0][0].weight_orig, want)


def test_a_pruned_layer_of_no_layout():
    """A pruned parameter of an unknown layer is uncovered, and the error says that it is pruned."""
    model = nn.ParameterDict({"scale": nn.Parameter(torch.ones(4))})
    prune.random_unstructured(model, "scale", 0.5)
    with pytest.raises(kinit.UncoveredParameterError, match=r"scale_orig .*pruned by torch\.nn\.utils\.prune"):
        kinit.plan(model)


def test_a_plan_for_another_pruned_model():
    """A plan is carried out on another model under that model's masks."""
    model, other = pruned(), pruned()
    before = model[0].weight.clone()
    kinit.plan(model).apply(other, seed=2)
    assert torch.equal(other[0].weight, other[0].weight_orig * other[0].weight_mask)
    assert torch.equal(model[0].weight, before)


def test_keras_has_no_masks():
    """Weights are not exchanged with Keras behind a mask: an error that says what to do."""
    with pytest.raises(ValueError, match=r"0\.weight_orig is pruned, and Keras has no masks; torch.*prune\.remove"):
        kinit.to_keras(pruned())
