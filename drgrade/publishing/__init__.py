"""A trained run for others: its model card, a folder to hand on, the Hugging Face hub.

:mod:`drgrade.publishing.hub` has ``save_pretrained``, ``from_pretrained`` and ``push_to_hub``.
"""
