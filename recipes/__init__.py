"""Whole experiments as data, and the few pieces of code that they need beside the builder.

A recipe is a YAML file, `python train.py +recipes=NAME`, with a header that says its purpose, its command, how long it
takes and what you should see. Data modules stand in `recipes.data`. There are no training loops here: what a recipe
cannot say in YAML belongs into the builder.
"""
