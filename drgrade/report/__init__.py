"""Runs to tables, figures and pages: :func:`drgrade.report.study.make_study` reads and computes, the writers show."""
