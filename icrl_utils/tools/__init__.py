"""What maintainers use: benchmarks, pictures, and the notebooks' builder. Nothing but the command line imports it.

Files in the order of reading: `build_notebooks`, `pictures`, `bench`, `bench_llama`, `bench_words`.
"""
