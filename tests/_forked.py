"""Work in forked processes, which need not import torch again: how each ended."""

import multiprocessing
import os
import traceback
from collections.abc import Callable


def forked(work: Callable[[], object]) -> multiprocessing.Process:
    """A process, not yet started, that runs `work` and ends with it: 0, its SystemExit's code, or 1 and a traceback.

    It leaves at once. What libraries hung on the parent's exit would wait for threads that a fork does not have:
    after a flow of Prefect in the parent, a child that had done all its work ended with 1.
    """

    def run() -> None:
        code = 1
        try:
            work()
            code = 0
        except SystemExit as end:
            code = end.code
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)

    return multiprocessing.get_context("fork").Process(target=run)


def ended(*works: Callable[[], object], seconds: int = 120) -> list[int | None]:
    """Exit status of each work, all side by side, negative for a signal; one that takes longer is killed."""
    processes = [forked(work) for work in works]
    for process in processes:
        process.start()
    for process in processes:
        process.join(seconds)
        process.kill()
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]
