"""Data modules of the recipes, all from what ships in Python packages: nothing is downloaded."""
