"""The application: ask, rate, train, swap. Everything above it is a way to reach it."""

from shammah.assistant.application import Assistant
from shammah.assistant.views import AdapterInfo, Notice, Status

__all__ = ["AdapterInfo", "Assistant", "Notice", "Status"]
