"""Recipes that train the models which methods judge with, one file each."""
