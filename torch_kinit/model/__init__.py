"""Whole models: rules, the plan that they give, and carrying it out."""
