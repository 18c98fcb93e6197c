"""The recipe is the settings of a run: ten typed sections, read from files and from `--set`."""
