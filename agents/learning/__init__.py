"""How policies learn: rollouts, losses, the algorithms as points of one space, imitation, and whole populations."""
