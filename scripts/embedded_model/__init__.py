"""From the corpus to the shipped embedded model, one idea a file.

grammar      phrasings written as alternations
corpus       the data files, read and validated
noise        typing slips in questions
listening    conversations in which the user tells something and asks for it later
arithmetic   small sums
rows         training conversations drawn from all of these
encoding     tokenizer, chat template, conversations to tokens with a mask
packing      tokens to batches in which no conversation sees another
training     the optimiser loop with its schedule, checkpoint and resume
anchors      questions with the finished model's own answers, shipped beside it
evaluation   what the result is judged by
card         the figures and the model card
"""
