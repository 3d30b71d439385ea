"""Work units: files in, files out."""

import os
import sys
from importlib.util import find_spec
from pathlib import Path

# `.venv/bin/dvc repro` without the environment's folder on PATH runs the stages in whatever `python` the shell finds.
if find_spec("polars") is None:
    sys.exit(f"error: {sys.executable} has none of Rootstock's packages; type `. .venv/bin/activate` first, then again")

# Threads that wait by spinning starve each other as soon as two programs share a core: a training step then takes ten
# times its seconds. Read once, when the library of threads is loaded, hence here, before anything imports torch.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# A stage's command ends with its DVC: also while it imports, and with all the processes that it starts.
if "DVC_STAGE" in os.environ:
    from tasks.orphan import follow

    follow()

# `python -m tasks.<name>`: what it imports may take seconds, so its words are looked at first.
if sys.argv[0] == "-m":
    from tasks.command import refuse_words

    name = sys.orig_argv[-len(sys.argv)].removeprefix("-m")
    refuse_words(Path(__file__).parent, name, sys.argv[1:])
