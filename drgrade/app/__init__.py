"""A page on this computer to try a trained run: drop a photograph, see what the run says of it.

:mod:`.examining` says what there is to say of one file, :mod:`.cards` writes it as HTML. :mod:`.uploads`
keeps files for as long as that takes, :mod:`.isolation` sees to it that nothing leaves the machine.
:mod:`.page` is the page, :mod:`.serving` serves it; only these two know of Gradio.
"""
