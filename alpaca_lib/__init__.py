"""The Alpaca recipe: seed tasks -> data -> training -> a model that answers.

    records, prompts                 examples, and the texts that models see
    models                           a name -> configuration, tokenizer, weights
    generation, dataset              lessons 01 and 02: write data with a teacher, inspect it
    training, planning, launch       lessons 03 and 04: train it, predict the cost, start it
    inference, evaluation, export    lesson 05: answers, comparisons, GGUF and serving

Each package lists its public names in ``help(alpaca_lib.training)`` and loads them when they are
used; ``alpaca --help`` lists the commands.
"""

__version__ = "0.1.0"
