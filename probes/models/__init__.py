"""What a probed model is: its parts, its family, where its visual tokens lie, its prompts and its targets.

A new model family enters here. Nothing here runs a forward pass.
"""
