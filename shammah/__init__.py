"""Shammah: a terminal assistant on a local language model that learns from its user's ratings.

The rooms are described in docs/architecture.md. This module stays empty of imports so that
`import shammah` costs nothing: the prompt appears before torch is loaded.
"""

__version__ = "0.1.0"
