"""A page in the browser that makes scenes: ``python -m one4d_jax.view --app``.

worker.py   a function in a process of its own, which may crash
tasks.py    what those processes do: make a scene, look at an upload
jobs.py     the queue: one job at a time, its progress, its results
page.py     what people see (gradio)
server.py   what is reachable, and by whom
"""
