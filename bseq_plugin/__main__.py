"""``python -m bseq_plugin``: the ``bseq`` command, as torchrun starts it."""

from bseq_plugin.cli.main import main

if __name__ == "__main__":
    main()
