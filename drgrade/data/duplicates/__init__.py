"""Search for duplicates: identical files, and copies of one exposure.

``docs/audit-duplicates.md`` describes the method and its evaluation.
"""
