"""Order and schedule. What Prefect reads from the environment when it is imported is set here, before that."""

import os

from tasks.command import quiet

quiet()
os.environ.setdefault(
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY", "30"
)  # tasks/deploy.py calls a run dead after three missed ones
