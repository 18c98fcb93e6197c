"""``python -m bseq_transformers``: commands that the core has not."""

from bseq_transformers.commands import main

main()
