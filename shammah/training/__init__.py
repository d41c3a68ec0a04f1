"""The training core: datums, losses, schedules, the local training client and the loop."""
