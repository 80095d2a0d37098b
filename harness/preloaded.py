"""What every model's process needs, imported once by the fork server (`harness.worker`): pandas writes what a session
scores, transformers' modules stand behind every family and every checkpoint.

It is frozen before there are children. One that met half a million objects of the server in its first collection of
garbage would look at each of them, and copy the pages they lie in: a quarter of a second in every child.
"""

import gc

import pandas  # noqa: F401
import transformers.generation.utils
import transformers.modeling_layers
import transformers.tokenization_utils_tokenizers  # noqa: F401

import harness.session  # noqa: F401

gc.freeze()
