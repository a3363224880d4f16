"""Every figure of the course: ``plot_*(data) -> Figure``.

Each is a pure function of its data and returns a closed Figure: as the last line of a cell it is shown once.

Files in the order of reading: `style`, `lakes`, `curves`, `values`, `matrices`, `changes`, `language_model`.
"""
