"""What maintainers use: benchmarks, pictures, and the notebooks' builder. Nothing but the command line imports it."""
