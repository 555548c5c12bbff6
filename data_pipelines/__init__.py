"""Raw images -> shards -> batches. Knows nothing of the model or of how it is trained."""

import os

# Torch reads it at its first allocation: large tensors in huge pages. A batch of 64 images of 224 pixels is 9,400 small pages
# otherwise, and on a CPU making them takes longer than normalising the images.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
