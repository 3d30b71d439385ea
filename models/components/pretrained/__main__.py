"""python -m models.components.pretrained FOLDER: a checkpoint of transformers in our terms, and what is tied."""

import json
import sys

from models.components.pretrained import CheckpointRejected, read

if len(sys.argv) != 2:
    sys.exit("usage: python -m models.components.pretrained FOLDER")
try:
    loaded = read(sys.argv[1])
except CheckpointRejected as error:
    sys.exit(f"error: {error}")
print(json.dumps(loaded.recipe, indent=1))
print(loaded)
