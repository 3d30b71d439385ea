"""Where the chains of a flow run side by side: in threads, or in processes of Dask or Ray, here or on other hosts.

    ROOTSTOCK_RUNNER            threads (default), dask, or ray
    ROOTSTOCK_RUNNER_ADDRESS    tcp://HOST:8786 or ray://HOST:10001; without it, processes of this host for this run
    ROOTSTOCK_WORKERS           threads, or processes of this host (4)

Chains wait in tasks/slots.py for a device, so more workers than devices cost nothing and overlap gates with training.
Every process works in a checkout of its own host: see docs/scale.md for what those of several hosts must share.
"""

import os
from importlib.util import find_spec
from pathlib import Path

from prefect.settings import get_current_settings
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from tasks.settings import SettingsError

__all__ = ["Runner"]

PACKAGES = {"threads": "prefect", "dask": "prefect_dask", "ray": "prefect_ray"}


class Runner(ThreadPoolTaskRunner):
    """The runner that the environment names when a flow run begins, which is when Prefect duplicates this one."""

    def duplicate(self) -> TaskRunner:
        """A runner that no other flow run has.

        Raises:
            SettingsError: a variable has a value that cannot be, or the runner's package is not installed.
        """
        name, address = os.environ.get("ROOTSTOCK_RUNNER") or "threads", os.environ.get("ROOTSTOCK_RUNNER_ADDRESS")
        if name not in PACKAGES:
            raise SettingsError(f"ROOTSTOCK_RUNNER is one of {', '.join(PACKAGES)}; got {name!r}")
        if name == "threads" and address:
            raise SettingsError("ROOTSTOCK_RUNNER_ADDRESS is that of a cluster, but ROOTSTOCK_RUNNER names none; "
                                "set it to dask or ray")  # fmt: skip
        package = PACKAGES[name]
        if find_spec(package) is None:
            package = package.replace("_", "-")
            raise SettingsError(f"ROOTSTOCK_RUNNER={name} needs the package {package}, which is not installed: "
                                f"pip install -c constraints.txt {package}")  # fmt: skip
        if name != "threads" and not get_current_settings().api.url:  # or each process would start a server of its own
            raise SettingsError(f"ROOTSTOCK_RUNNER={name} needs a Prefect server that all its processes reach: start "
                                f"one (make deploy) and set PREFECT_API_URL to its address")  # fmt: skip
        return {"threads": _threads, "dask": _dask, "ray": _ray}[name](_workers(), address)


def _workers() -> int:
    told = os.environ.get("ROOTSTOCK_WORKERS") or "4"
    if not told.isdecimal() or int(told) < 1:
        raise SettingsError(f"ROOTSTOCK_WORKERS is a whole number >= 1, got {told!r}")
    return int(told)


def _threads(workers: int, _address: None) -> TaskRunner:
    return ThreadPoolTaskRunner(max_workers=workers)


def _dask(workers: int, address: str | None) -> TaskRunner:
    from prefect_dask import DaskTaskRunner

    if address:
        return DaskTaskRunner(address=address)
    # One chain a process; no dashboard, which would listen to other hosts.
    local = {"n_workers": workers, "threads_per_worker": 1, "processes": True, "dashboard_address": None}
    return DaskTaskRunner(cluster_kwargs=local | {"host": "127.0.0.1"})


def _ray(workers: int, address: str | None) -> TaskRunner:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read when ray is imported
    from prefect_ray import RayTaskRunner

    # Its processes begin elsewhere: they are told where `flows` and `tasks` are.
    here = {"env_vars": {"PYTHONPATH": str(Path(__file__).parents[1])}}
    local = {} if address else {"num_cpus": workers, "include_dashboard": False}
    return RayTaskRunner(address=address, init_kwargs=local | {"runtime_env": here})
