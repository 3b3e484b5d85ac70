"""Laura: LoRA or full finetuning, at which settings, and what will the model forget?"""

__version__ = "0.1.0"
