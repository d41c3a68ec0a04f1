"""How good answers are: scorers, classification, likelihood.

Importing it is light: what needs a library of the extra `eval` imports it when it is made.
"""
