"""False alarms of the audit: `python -m tests.support.audit_rates [SEEDS]` counts them, by default of 2,000 seeds.

The model has 400 tensors of 4 to 1,100 values with five laws, and is initialized rightly each time.
"""

import sys

from torch import nn

import torch_kinit as kinit

LAWS = ("he_normal", "glorot_uniform", "random_normal", "lecun_normal", "random_uniform")


def planned():
    """The plan of the model."""
    model = nn.Sequential(*(nn.Linear(4 + i % 29, 4 + (7 * i) % 31) for i in range(200)))
    biases = ("zeros", "random_normal", "random_normal")
    return kinit.plan(model, {f"{i}.*": {"kernel": LAWS[i % 5], "bias": biases[i % 3]} for i in range(200)})


def false_alarms(seeds):
    """The seeds with which the audit says that something is off."""
    plan = planned()
    return [seed for seed in seeds if not plan.apply(seed=seed).audit().ok]


if __name__ == "__main__":
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    print(f"{len(false_alarms(range(count)))} of {count} seeds")
