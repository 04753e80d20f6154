"""The train wing: a model trained with the shaped loss, in a loop of one's own, in Trainer, TRL or by one command.
It may import everything but the demo and the score report; a lower wing never imports it.
Start with enable.py, the loss inside a model; trainer.py and sft_trainer.py use it; run/ is ``fastdss train``.
"""
