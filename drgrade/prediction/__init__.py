"""Files graded by a trained run: ``drgrade predict``.

:mod:`.inputs` lists the files, :mod:`.job` grades them batch by batch and hands every batch to consumers,
:mod:`.ledger` keeps what is done, :mod:`.tables` writes it out when all is done, :mod:`.header` says which
job it was.
"""
