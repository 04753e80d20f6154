"""The train wing: training a model with the shaped loss, in your own loop, in Trainer, in TRL or by one command.
It may import everything but the demo and the score report; a lower wing never imports it.
Start with enable.py, which puts the loss into a model; trainer.py and sft_trainer.py use it; run/ is ``fastdss train``.
"""
