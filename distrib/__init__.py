"""Distributed training and bulk scoring of autoencoder recommenders on Ray.

Legend of the shape letters that end tensor and array names, for the whole project:

====== ==============================================================
letter axis
====== ==============================================================
B      users (rows) of a batch
P      row pointers of a batch, one more than B
N      interactions (stored entries) of a batch, all rows end to end
M      those of the N entries that fall into one chunk of items
I      items: the whole catalog, or one chunk
J      some of the items: a sample, or a chunk of one
C      classes of a user-item pair: not observed, then the rating levels
L      rating levels, one less than C
K      recommended items of a user, best first
Z      latent dimensions
H      hidden units
T      terms of a loss
W      networks of an encoder: that of means, that of variances
Q      attention queries: users or items, times networks
====== ==============================================================
"""

__version__ = "0.1.0"
