"""Photographs that are there twice: the same file, or the same exposure saved anew.

:mod:`.thumbnail` makes the small picture that is kept of every photograph, :mod:`.features` what is compared,
:mod:`.retrieval` finds the pairs worth a look, :mod:`.verification` looks at them, and :mod:`.search` is the
whole. ``docs/audit-duplicates.md`` says how well it works.
"""
