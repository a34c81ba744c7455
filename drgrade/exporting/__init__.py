"""A trained run as one file that needs no drgrade: ``drgrade export``. What is in it: docs/export.md.

:mod:`~drgrade.exporting.graph` is what the file computes, ``onnx_file`` and ``torch_file`` write
and run it, ``parity`` holds it against the model, ``describing`` says in JSON what it takes and gives,
``quantising`` makes it int8 and ``cost`` measures what that costs, on ``photographs``; ``job`` does it all.
"""
