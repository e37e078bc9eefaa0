"""Pieces of run files that tests and benchmarks share; imports nothing."""

TINY_MODEL = """
[model]
name = "mult_vae"
hidden_width = 8
latent_width = 4
[engine]
precision = "fp32"
zero_stage = 0
"""

AFTER_TRAINING = """
[export]
index = "exact"
[soften]
num_clusters = 2
num_neighbors = 4
min_mass_on_target = 0.0
max_evenness = 1.0
[convert]
output = "{folder}/converted"
[forget]
users = "{folder}/people.txt"
"""
