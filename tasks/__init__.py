"""Work units: files in, files out."""

import os

# Threads that wait by spinning starve each other as soon as two programs share a core: a training step then takes ten
# times its seconds. Read once, when the library of threads is loaded, hence here, before anything imports torch.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
